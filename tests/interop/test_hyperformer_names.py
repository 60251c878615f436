"""State dicts of the HyperFormer code: every tensor of a model has a name and comes back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.interop import hyperformer_names
from pemt_jax.methods import zoo
from pemt_jax.models.t5 import T5
from pemt_jax.trees import flatten
from tests import tiny

CONFIG = tiny.CONFIG
FLAGS = {'tasks': ['rte', 'cola'], 'reduction_factor': 2, 'non_linearity': 'gelu_new',
         'add_layer_norm_before_adapter': True, 'unfreeze_layer_norms': True}
META = FLAGS | {'adapter_config_name': 'meta-adapter', 'task_embedding_dim': 3,
                'projected_task_embedding_dim': 5, 'task_hidden_dim': 7}
# What a config file says -> stage, and a tensor with its shape.
FORMS = {
    'adapter': (FLAGS, 'adapter_controller',
                'decoder.block.1.layer.2.adapter_controller.adapters.cola.up_sampler.weight',
                (8, 4)),
    'meta': (META | {'train_task_embeddings': True}, 'meta_adapter',
             'encoder.block.0.layer.0.adapter_controller.meta_down_sampler.weight_generator.0'
             '.weight', (32, 5)),
    'meta_norms': (META | {'conditional_layer_norm': True}, 'meta_adapter',
                   'decoder.block.1.layer.0.adapter_controller.post_layernorm_hypernet'
                   '.weight_generator.weight', (8, 3)),
    'hyperformer': (META | {'unique_hyper_net': True}, 'hyperformer',
                    'encoder.adapter_layers_hyper_net.self_attention_pre_layernorm_hypernet'
                    '.bias_generator.bias', (8,)),
    'hyperformer_pp': (META | {'efficient_unique_hyper_net': True}, 'hyperformer_pp',
                       'decoder.adapter_layers_hyper_net.task_hypernet.task_embeding_generator.0'
                       '.weight', (7, 9)),
}


@pytest.mark.parametrize('form', FORMS)
def test_every_tensor_comes_back_and_the_flags_too(form):
  flags, stage, name, shape = FORMS[form]
  layout = hyperformer_names.layout_from_flags(flags, CONFIG)
  assert layout.stage == stage
  model = T5(CONFIG, zoo.ZOO[stage].make(layout.options, CONFIG, 0).plan)
  params = tiny.variables_of(model)['params']
  state = hyperformer_names.tree_to_state(params, layout)
  assert state[name].shape == shape
  again = hyperformer_names.state_to_tree(state, layout)
  assert {path: leaf.shape for path, leaf in flatten(again).items()} == tiny.shapes(model)['params']
  tiny.assert_trees_close(again, params, rtol=0, atol=0)
  assert hyperformer_names.layout_from_flags(hyperformer_names.flags_of(layout), CONFIG) == layout


def test_generated_matrices_are_turned_around():
  flags, _, name, _ = FORMS['meta']
  layout = hyperformer_names.layout_from_flags(flags, CONFIG)
  model = T5(CONFIG, zoo.ZOO['meta_adapter'].make(layout.options, CONFIG, 0).plan)
  params = tiny.variables_of(model)['params']
  state, z = hyperformer_names.tree_to_state(params, layout), np.arange(5, dtype=np.float32)
  kernel = params['encoder']['hyper']['self_attention_o_down_kernel']['kernel'][0]
  np.testing.assert_allclose(np.tensordot(z, kernel, 1), (state[name] @ z).reshape(4, 8).T,
                             rtol=1e-5)


def test_a_config_file_without_tasks_is_refused():
  with pytest.raises(UserError, match='names no tasks; give the one'):
    hyperformer_names.layout_from_flags({}, CONFIG)


def test_a_state_of_other_tasks_is_refused():
  layout = hyperformer_names.layout_from_flags(FLAGS, CONFIG)
  model = T5(CONFIG, zoo.ZOO[layout.stage].make(layout.options, CONFIG, 0).plan)
  state = hyperformer_names.tree_to_state(tiny.variables_of(model)['params'], layout)
  other = dataclasses.replace(layout, tasks=('rte', 'mnli'))
  with pytest.raises(UserError, match='lacks .*adapters.mnli.down_sampler.weight'):
    hyperformer_names.state_to_tree(state, other)
