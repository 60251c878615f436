"""Switch and top-2 as methods: where they start, what trains, how they compute and shard."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pemt_jax.errors import UserError
from pemt_jax.methods import moe
from pemt_jax.methods.base import backbone_of, boxed_shapes, initialiser
from pemt_jax.models.gpt2_config import GPT2Config
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.models.segments import cut, join
from pemt_jax.models.t5 import T5
from pemt_jax.training.rules import FROZEN, assign_groups, split_params
from pemt_jax.trees import flatten, merge, unflatten
from tests import tiny

T5_CONFIG = tiny.CONFIG
BERT = RobertaConfig(vocab_size=32, embed=8, heads=2, mlp=16, encoder_layers=2, positions=40)
GPT2 = GPT2Config(vocab_size=32, embed=8, heads=2, mlp=16, decoder_layers=2, positions=24)
MAKE = {'switch': (moe.switch, moe.SwitchOptions), 'top2': (moe.top2, moe.TopTwoOptions)}
BATCH = tiny.make_batch()


def method_of(name, config=T5_CONFIG, **options):
  """The method with 3 experts, and 3 cores of a matrix."""
  make, kind = MAKE[name]
  return make(kind(**{'count': 3, 'cores': 3, **options}), config, 0)


@functools.cache
def backbone(config):
  """Random parameters of the plain backbone; T5 has no biases."""
  found = tiny.shapes(backbone_of(config))['params']
  return unflatten({path: tiny.random_leaf(path, shape, 0) for path, shape in found.items()})


def started(method, config, key=0):
  """Parameters that a model starts from, cut to its segments."""
  model = backbone_of(config, method.plan)
  shapes = nn.meta.unbox(boxed_shapes(model))['params']
  loaded = cut(backbone(config), shapes)
  params = merge(initialiser(model, loaded)(jax.random.key(key))[0], loaded)
  return cut(method.first_values(backbone(config), join(params), jax.random.key(key)), shapes)


def logits_of(config, params, plan=None):
  """Logits or, of an encoder, final states."""
  model = backbone_of(config, *([plan] if plan else []))
  if isinstance(config, T5_CONFIG.__class__):
    return tiny.forward(model, {'params': params}, BATCH)[0]
  if isinstance(config, RobertaConfig):
    run = lambda params: model.apply({'params': params}, BATCH['inputs'], BATCH['inputs_mask'],
                                     method='encode').states
  else:
    run = lambda params: model.apply({'params': params}, *model.example_batch(3, 7))[0]
  return jax.jit(run)(params)


@functools.cache
def plain(config):
  return np.asarray(logits_of(config, backbone(config)))


@pytest.mark.parametrize('name, config, options', [
    ('switch', T5_CONFIG, {}),
    ('switch', T5_CONFIG, {'experts': 'mpo', 'encoder_layers': (1,), 'decoder_layers': ()}),
    pytest.param('switch', T5_CONFIG, {'experts': 'lora'}, marks=pytest.mark.slow),
    pytest.param('top2', T5_CONFIG, {'experts': 'adapter'}, marks=pytest.mark.slow),
    pytest.param('top2', T5_CONFIG, {'experts': 'mpo'}, marks=pytest.mark.slow),
    pytest.param('switch', tiny.replace(T5_CONFIG, gated=True, activation='gelu_tanh'), {},
                 marks=pytest.mark.slow),
    pytest.param('switch', BERT, {'experts': 'mpo'}, marks=pytest.mark.slow),
    pytest.param('top2', BERT, {}, marks=pytest.mark.slow),
    pytest.param('switch', GPT2, {}, marks=pytest.mark.slow)])
def test_a_model_starts_as_its_backbone(name, config, options):
  """All experts are the backbone's feed-forward, so that it does not matter who takes a token."""
  method = method_of(name, config, **options)
  params = started(method, config)
  found = logits_of(config, method.expand(params, {}, {}), method.plan)
  scale = np.abs(plain(config)).max()
  np.testing.assert_allclose(found, plain(config), rtol=0, atol=1e-4 * scale)


def test_only_routed_layers_lose_their_feed_forward():
  method = method_of('switch', encoder_layers=(1,), decoder_layers=())
  flat = flatten(join(started(method, T5_CONFIG)))
  assert flat['encoder/layers/mlp/whole/switch/wi/kernel'].shape == (1, 3, 8, 16)
  assert flat['decoder/layers/mlp/wi/kernel'].shape == (2, 8, 16)
  np.testing.assert_array_equal(flat['encoder/layers/mlp/wi/kernel'],
                                flatten(backbone(T5_CONFIG))['encoder/layers/mlp/wi/kernel'][:1])
  assert not any(path.startswith('decoder/layers/mlp/whole') for path in flat)


def shapes_of(method):
  return nn.meta.unbox(boxed_shapes(T5(T5_CONFIG, method.plan)))['params']


def test_the_central_core_is_stored_once_and_has_a_rate_of_its_own():
  method = method_of('switch', experts='mpo', freeze=(0,))
  shapes = {path: leaf.shape for path, leaf in flatten(shapes_of(method)).items()}
  groups = assign_groups(shapes_of(method), method.tuned)
  start = 'encoder/layers/mlp/whole/switch'
  assert shapes[f'{start}/wi/core_0'][:2] == (2, 3) and len(shapes[f'{start}/wi/core_1']) == 5
  assert [groups[f'{start}/wi/core_{k}'] for k in range(3)] == [FROZEN, 'central', 'expert']
  assert groups[f'{start}/router/bias'] == 'router' and groups['shared/embedding'] == 'backbone'
  light = method_of('top2', experts='mpo', freeze=(1,), tune_backbone=False)
  groups = assign_groups(shapes_of(light), light.tuned)
  assert set(groups.values()) == {'router', 'expert', FROZEN}


@pytest.mark.slow
def test_matrices_of_a_step_are_those_of_each_call():
  """Equal loss and gradients; the gradient of a central core is the sum over its experts."""
  results = []
  for rebuild in ('step', 'layer'):
    method = method_of('switch', experts='mpo', rebuild=rebuild, balance_weight=0.1,
                       router_weight=0.01)
    model = T5(T5_CONFIG, method.plan)
    _, tuned = split_params(tiny.variables_of(model)['params'], method.tuned)
    results.append(tiny.gradients(model, method)(tuned, {}, {}, BATCH, jax.random.key(3)))
  (one, metrics), grads = results[0]
  (two, again), others = results[1]
  np.testing.assert_allclose(one, two, rtol=1e-5)
  assert {'switch_balance', 'switch_dropped', 'switch_largest_load'} <= metrics.keys()
  np.testing.assert_allclose(metrics['switch_balance'], again['switch_balance'], rtol=1e-5)
  tiny.assert_trees_close(grads, others, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_central_cores_may_start_at_random():
  method = method_of('top2', experts='mpo', random_central=True)
  first, second = (flatten(started(method, T5_CONFIG, key)) for key in (0, 1))
  path = 'encoder/layers/mlp/whole/top2/wi/core_'
  assert np.abs(first[f'{path}1'] - second[f'{path}1']).max() > 1e-3
  np.testing.assert_array_equal(first[f'{path}0'], second[f'{path}0'])


@pytest.mark.parametrize('options, sentence', [
    ({'experts': 'sparse'}, "method.experts is 'sparse'; choose one of dense, mpo, lora, adapter."),
    ({'freeze': (4,)}, 'method.freeze is 4; give a number from 0 to 2.'),
    ({'capacity_factor': -1.0}, 'method.capacity_factor is -1.0; give a number of at least 0.'),
    ({'factors': (('q', (2,), (2,)),)}, "method.factors is 'q'; choose one of wi, wo."),
    ({'experts': 'mpo', 'factors': (('wi', (2, 2, 1), (2, 2, 4)),)}, 'which is smaller than 8 x')])
def test_wrong_options_are_refused(options, sentence):
  with pytest.raises(UserError) as error:
    method_of('switch', **options)
  assert sentence in str(error.value)


SHARDED = '''
import re
import jax
from pemt_jax.methods import moe
from pemt_jax.methods.base import boxed_shapes, make_loss
from pemt_jax.models.t5 import T5
from pemt_jax.sharding.mesh import MeshShape, make_mesh
from pemt_jax.sharding.placement import Placement
from tests import tiny

config = tiny.replace(tiny.CONFIG, embed=16, mlp=32, heads=4)
method = moe.switch(moe.SwitchOptions(count=4, form='FORM'), config, 0)
model = T5(config, method.plan)
frozen, tuned = tiny.split(method, tiny.variables_of(model))
placement = Placement.of(make_mesh(MeshShape(2, 2, 1, 2)), boxed_shapes(model)['params'])
step = jax.jit(jax.grad(make_loss(model, method), has_aux=True))
with placement.scope():
  text = step.lower(placement.frozen(tuned), placement.frozen(frozen), {},
                    placement.batch(tiny.make_batch(8, 8, 4), lead=0), None).compile().as_text()
gathered = re.findall(r'= f32\\[([0-9,]+)\\]\\S* all-gather', text)
# Matrices of all experts would be [4, 16, 32] or with a layer in front of that.
print('all-to-all' in text, any(re.search(r'(^|,)4,(16,32|32,16)$', shape) for shape in gathered))
'''


@pytest.mark.slow
@pytest.mark.parametrize(('form', 'found'), [('batched', 'True False\n'), ('auto', 'False True\n')])
def test_tokens_travel_to_matrices_or_matrices_to_tokens(on_eight_devices, form, found):
  assert on_eight_devices(SHARDED.replace('FORM', form)) == found
