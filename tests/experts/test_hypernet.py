"""Generated adapters are banks of adapters whose weights follow from the embeddings."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from flax import linen as nn

from pemt_jax.errors import UserError
from pemt_jax.experts.task_bank import TaskBank
from pemt_jax.methods import hyperformer, zoo
from pemt_jax.methods.base import boxed_shapes
from pemt_jax.models.roberta import Roberta
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.models.t5 import T5
from pemt_jax.parity import common
from pemt_jax.training.rules import FROZEN, assign_groups
from pemt_jax.trees import flatten, unflatten
from tests import tiny

CONFIG, TASKS = tiny.CONFIG, 3
SMALL = {'reduction': 2, 'pre_norm': True, 'tasks': TASKS}
HYPER = SMALL | {'size': 3, 'hidden': 6, 'projected': 4, 'project_tasks': True}
STAGES = tuple(hyperformer.SCOPES)
IDS = np.array([2, 0, 1], np.int32)
BATCH = tiny.make_batch(rows=3, length=6, target_length=4) | {'task_ids': IDS}
ENCODER = RobertaConfig(vocab_size=32, embed=8, heads=2, mlp=12, encoder_layers=2, positions=20)


@functools.cache
def method_of(stage, **changes):
  """The small method of a name for three tasks."""
  entry = zoo.ZOO[stage]
  values = SMALL if stage == 'adapter_controller' else HYPER
  options = dataclasses.replace(entry.default_options(), **values | changes)
  return entry.make(options, CONFIG, 0)


@functools.cache
def bank():
  """A bank of adapters at the same sites, norms included."""
  adapter = method_of('hyperformer_pp').plan.rules[0].delta.delta
  return T5(CONFIG, Plan(tuple(Rule('adapter', f'*/{site}', TaskBank(adapter, TASKS))
                               for site in hyperformer.SITES)))


def network(values, name, x):
  """relu(x W + b) W' + b'."""
  hidden = np.maximum(x @ values[f'{name}_in/kernel'] + values[f'{name}_in/bias'], 0)
  return hidden @ values[f'{name}_out/kernel'] + values[f'{name}_out/bias']


def below(flat, path):
  """Leaves below a path by the rest of their path."""
  return {name.removeprefix(f'{path}/'): leaf for name, leaf in flat.items()
          if name.startswith(f'{path}/')}


def embedding(values, scope, z, layer, place):
  """What the networks of a place read for one task, by definition."""
  if scope == 'layer':
    return z
  parts = [z, values['layers'][layer]]
  if scope == 'places':
    parts.append(values['places'][place])
  joint = network(values, 'join', np.concatenate(parts))
  joint = (joint - joint.mean()) / np.sqrt(joint.var() + 1e-6)
  return joint * values['norm/scale'] + values['norm/bias']


def as_bank(params, stage):
  """The parameters of `bank` that a hyper-network stands for, one number after the other."""
  flat, scope = flatten(params), hyperformer.SCOPES[stage]
  model = below(flat, 'deltas/hyper')
  found = {path: leaf for path, leaf in flat.items() if '/hyper/' not in path}
  for path, shape in tiny.shapes(bank())['params'].items():
    if '/adapter/' not in path:
      continue
    start, name = path.split('/adapter/')
    stack, _, site = start.split('/', 2)
    values, place = below(flat, f'{stack}/hyper'), hyperformer.SITES.index(site)
    key = name.replace('/', '_')
    key = key if scope == 'places' else f"{site.replace('/', '_')}_{key}"
    leaf = np.zeros(shape, np.float32)
    for layer, task in itertools.product(range(shape[0]), range(TASKS)):
      e = embedding(values, scope, network(model, 'task', model['tasks'][task]), layer, place)
      at = (layer,) if scope == 'layer' else ()
      leaf[layer, task] = np.tensordot(e, values[f'{key}/kernel'][at], 1) + values[
          f'{key}/bias'][at]
    found[path] = leaf
  return unflatten(found)


def variables_of(stage):
  """Random parameters."""
  return tiny.variables_of(tiny.model_of(method_of(stage)))


@pytest.mark.parametrize('stage', [
    pytest.param(stage, marks=[] if stage == 'hyperformer_pp' else [pytest.mark.slow])
    for stage in STAGES])
def test_a_mixed_batch_sees_the_adapters_of_its_tasks(stage):
  variables = variables_of(stage)
  plain = {'params': as_bank(variables['params'], stage)}
  found = common.forward(tiny.model_of(method_of(stage)), variables, BATCH)[1]
  wanted = common.forward(bank(), plain, BATCH)[1]
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_generation_prepares_them_once_and_one_task_is_the_same(stage='hyperformer_pp'):
  variables = variables_of(stage)
  plain = {'params': as_bank(variables['params'], stage)}
  one = BATCH | {'task_ids': np.full(3, 1, np.int32)}
  alone = tiny.model_of(method_of(stage, one_task=True))
  np.testing.assert_array_equal(common.greedy(alone, variables, one, 4),
                                common.greedy(bank(), plain, one, 4))
  np.testing.assert_allclose(common.forward(alone, variables, one)[1],
                             common.forward(bank(), plain, one)[1], rtol=1e-4, atol=1e-4)


def test_adapters_share_their_norms_and_tasks_may_share_adapters():
  method = method_of('adapter_controller', tasks=0, members=(1, 0, 1))
  shapes = tiny.shapes(T5(CONFIG, method.plan))['params']
  start = 'encoder/layers/mlp/wo/adapter'
  assert shapes[f'{start}/down/kernel'] == (2, 2, 8, 4)
  assert shapes[f'{start}/post_norm/scale'] == shapes[f'{start}/pre_norm/bias'] == (2, 8)
  variables = tiny.variables_of(T5(CONFIG, method.plan))
  flat = {path: leaf[:, [1, 0, 1]] if '/adapter/' in path and '_norm/' not in path else leaf
          for path, leaf in flatten(variables['params']).items()}
  norms = {path: np.repeat(leaf[:, None], TASKS, axis=1) for path, leaf in flat.items()
           if '/adapter/' in path and '_norm/' in path}
  wanted = common.forward(bank(), {'params': unflatten(flat | norms)}, BATCH)[1]
  found = common.forward(T5(CONFIG, method.plan), variables, BATCH)[1]
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_groups_and_norms_that_are_trained_themselves():
  method = method_of('meta_adapter', conditional_norms=False)
  shapes = tiny.shapes(T5(CONFIG, method.plan))['params']
  groups = assign_groups(dict(shapes), method.tuned)
  by_group = {group: {path for path in groups if groups[path] == group}
              for group in set(groups.values())}
  assert by_group.keys() == {'task_embedding', 'hypernet', 'adapter', 'norm', FROZEN}
  assert all(path.startswith('deltas/hyper/') for path in by_group['task_embedding'])
  assert len(by_group['adapter']) == 16 and not any('norm' in path for path in by_group['hypernet'])


@pytest.mark.slow
def test_rows_of_an_encoder_use_their_task():
  method = method_of('hyperformer')
  model = Roberta(ENCODER, method.plan, labels=2)
  shapes = flatten(nn.meta.unbox(boxed_shapes(model)))
  params = unflatten({path.removeprefix('params/'): tiny.random_leaf(path, leaf.shape, 0)
                      for path, leaf in shapes.items()})
  run = jax.jit(lambda ids: model.apply({'params': params}, BATCH['inputs'], BATCH['inputs_mask'],
                                        None, ids)[0])
  mixed = run(IDS)
  for row, task in enumerate(IDS):
    np.testing.assert_allclose(mixed[row], run(np.full(3, task, np.int32))[row], rtol=1e-5,
                               atol=1e-5)
  assert np.abs(mixed - run(np.zeros(3, np.int32))).max() > 1e-3


def test_the_number_of_tasks_comes_from_the_config_unless_options_say_it():
  options = zoo.default_options('hyperformer') | zoo.default_options('lora')
  found = zoo.for_tasks(options, 4, True)
  assert found['lora'] == options['lora']
  assert (found['hyperformer'].tasks, found['hyperformer'].one_task) == (4, True)
  shared = hyperformer.HyperOptions(members=(0, 0, 1))
  assert (zoo.for_tasks(shared, 3, False).tasks, shared.count) == (3, 2)
  with pytest.raises(UserError) as error:
    zoo.for_tasks(shared, 4, False)
  assert str(error.value) == ('method.tasks or method.members has 3 tasks, but the config has 4;'
                              ' give one for each task.')
  with pytest.raises(UserError, match='method.tasks is 2, but method.members has 3 entries'):
    hyperformer.ControllerOptions(tasks=2, members=(0, 0, 1))
