"""A bank over one prototype: its experts are those of the sources, its gates mix them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pemt_jax.errors import UserError
from pemt_jax.experts import masked_bank, mixture
from pemt_jax.experts.masks import combine, top_mask
from pemt_jax.experts.packed import pack
from pemt_jax.methods import pemt, propetl
from pemt_jax.models.generation import shift_right
from pemt_jax.models.sites import Site, SiteContext, StackShape, plan_as_json
from pemt_jax.training.rules import split_params
from pemt_jax.trees import flatten, merge, unflatten
from tests import tiny

CONFIG, TASKS = tiny.CONFIG, 3
FORMS = {'adapter': {'reduction': 2, 'combine': 'or'},
         'lora': {'form': 'lora', 'rank': 3, 'alpha': 6.0, 'projections': ('wo',),
                  'combine': 'add', 'place': 'stack'}}
BATCH = tiny.make_batch(rows=TASKS, length=6, target_length=4)
BARE = pemt.Stage2Options(prompt=False, target_adapter=False)


@functools.cache
def source_of(form='adapter', seed=0, tasks=TASKS, **options):
  """(model, tuned, frozen) of a masked prototype with random scores."""
  options = propetl.ProPETLOptions(**(FORMS[form] | {'tasks': tasks} | options))
  method = propetl.propetl(options, CONFIG, 0)
  model = tiny.model_of(method)
  frozen, tuned = split_params(tiny.variables_of(model, seed)['params'], method.tuned)
  return model, tuned, frozen


def stored(model, tuned, place='first', tasks=TASKS):
  """The source as a stage reads it."""
  plan = plan_as_json(model.plan)
  masked, rule = masked_bank.masked_of(plan, place)
  names = tuple(f'{place}/{number}' for number in range(tasks))
  return masked_bank.MaskedSource(place, masked, rule, pack(tuned, plan)[0], names)


def bank_of(*sources, options=BARE):
  """(method, bank's tree, names) of stage 2."""
  masked, names, tree = masked_bank.join_masks(sources, pemt.BANK)
  shape = pemt.BankShape('masked', len(names), 0, masked=masked)
  return pemt.stage2(options, CONFIG, 0, shape), tree, names


def with_gate(index, count):
  """Lets every gate choose one expert."""
  def intercept(call, args, kwargs, context):
    out = call(*args, **kwargs)
    return 1e4 * jax.nn.one_hot(index, count) + 0 * out if isinstance(
        context.module, mixture._Gate) else out

  return nn.intercept_methods(intercept)


def chosen(method, tree, frozen, count):
  """Logits of the bank's model under each one-hot gate: [expert, batch, length, vocab]."""
  model = tiny.model_of(method)
  params = merge(merge(tiny.variables_of(model)['params'], frozen), tree)

  @jax.jit
  def logits(index):
    with with_gate(index, count):
      return apply(model, params, None)

  return np.stack([logits(index) for index in range(count)])


def apply(model, params, task_ids):
  """Logits of the batch."""
  return model.apply({'params': params}, BATCH['inputs'], BATCH['inputs_mask'],
                     shift_right(BATCH['targets'], 0), BATCH['targets_mask'], task_ids, None)[0]


def alone(model, tuned, frozen, count):
  """Logits of the source's own model for each task: [expert, batch, length, vocab]."""
  logits = jax.jit(lambda task: apply(model, merge(frozen, tuned), jnp.full(TASKS, task)))
  return np.stack([logits(task) for task in range(count)])


@pytest.mark.parametrize('form', FORMS)
def test_a_gate_that_chooses_one_expert_gives_the_model_of_that_source(form):
  model, tuned, frozen = source_of(form)
  method, tree, names = bank_of(stored(model, tuned))
  assert names == ('first/0', 'first/1', 'first/2')
  expected = alone(model, tuned, frozen, TASKS)
  assert np.abs(expected[0] - expected[1]).max() > 1e-2
  np.testing.assert_allclose(chosen(method, tree, frozen, TASKS), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('options, tasks', [
    ({'owners': ('layer',)}, 1),
    pytest.param({'owners': ('task', 'layer')}, 2, marks=pytest.mark.slow),
    pytest.param({'owners': ('task', 'language', 'layer'), 'members': ((0, 1), (1, 0))}, 2,
                 marks=pytest.mark.slow)])
def test_several_files_with_one_prototype_are_one_bank(options, tasks):
  sources, expected, frozen = [], [], None
  for seed, place in enumerate(('first', 'second')):
    model, tuned, frozen = source_of('adapter', tasks=tasks, **options)
    flat = flatten(tuned)
    rng = np.random.default_rng(seed)
    flat = {path: rng.normal(size=leaf.shape).astype(np.float32) if '_kernel' in path else leaf
            for path, leaf in flat.items()}
    sources.append(stored(model, unflatten(flat), place, tasks))
    expected.append(alone(model, unflatten(flat), frozen, tasks))
  method, tree, _ = bank_of(*sources)
  np.testing.assert_allclose(chosen(method, tree, frozen, 2 * tasks), np.concatenate(expected),
                             rtol=1e-4, atol=1e-5)


def test_the_mixture_is_the_gated_sum_of_separate_masked_experts():
  model, tuned, _ = source_of('adapter')
  source, flat = stored(model, tuned), flatten(tuned)
  site = Site('encoder/mlp_residual', CONFIG.embed, CONFIG.embed, 'embed', 'embed', jnp.float32)
  config = mixture.SourceMixture(masked_bank.MaskedExperts(source.masked), TASKS)
  x, residual = np.random.default_rng(1).normal(size=(2, 3, 5, CONFIG.embed)).astype(np.float32)
  _, tree, _ = bank_of(source)
  context = SiteContext(np.ones((3, 5), np.float32), np.ones(3, np.float32),
                        model={'pemt': flattened(tree['deltas']['pemt'])})
  stack = config.stack_module(StackShape('encoder', 2, 8, 2, 4, 16, jnp.float32), 'pemt')
  shared, layers = stack.apply({'params': tree['encoder']['pemt']}, context)
  kernel = np.random.default_rng(2).normal(size=(CONFIG.embed, TASKS)).astype(np.float32)
  context = context.replace(shared={'pemt': shared},
                            per_layer={'pemt': jax.tree.map(lambda a: a[1], layers)})
  y, aux = config.module(site, 'pemt').apply(
      {'params': {'gate': {'kernel': kernel}}}, lambda value: residual + value, x, context)
  gate, expected = np.asarray(aux['gate']), residual + x
  np.testing.assert_allclose(
      gate, jax.nn.softmax((residual + x)[:, 0] @ kernel, axis=-1), rtol=1e-5)
  for task in range(TASKS):
    expected = expected + gate[:, task, None, None] * expert(flat, task, residual + x)
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def flattened(tree):
  """Arrays of a rule as a model holds them, by name."""
  return {name: jnp.asarray(leaf) for name, leaf in flatten(tree).items()}


def expert(flat, task, h):
  """What the adapter of a task adds in the second layer of the encoder, by its formula."""
  masks = {name: combine([np.asarray(top_mask(scores, 0.3)) for scores in (
      flat[f'deltas/propetl/task/{name}'][task],
      flat[f'encoder/propetl/layer_mlp_residual/{name}'][1])], 'or')
           for name in ('down_kernel', 'up_kernel')}
  own = {name: flat[f'deltas/propetl/{name}'] for name in ('down/kernel', 'down/bias',
                                                           'up/kernel', 'up/bias')}
  hidden = h @ (own['down/kernel'] * masks['down_kernel']) + own['down/bias']
  hidden = np.asarray(jax.nn.gelu(hidden, approximate=True))
  return hidden @ (own['up/kernel'] * masks['up_kernel']) + own['up/bias']


def test_a_further_expert_costs_a_bit_for_each_entry_and_nothing_of_the_bank_trains():
  sizes = {}
  for tasks in (2, 4):
    model, tuned, _ = source_of('adapter', tasks=tasks)
    method, tree, _ = bank_of(stored(model, tuned, tasks=tasks), options=pemt.Stage2Options(
        prompt=False, reduction=2))
    sizes[tasks] = sum(np.asarray(leaf).nbytes for leaf in flatten(tree).values())
    shapes = tiny.shapes(tiny.model_of(method))['params']
    _, trained = split_params(unflatten(dict(shapes)), method.tuned)
    assert {path.split('/pemt/')[-1].split('/')[0] for path in flatten(trained)
            if '_norm' not in path} == {'gate', 'adapter'}
  assert sizes[4] - sizes[2] == 2 * 2 * CONFIG.embed * (CONFIG.embed // 2) / 8


def test_mistakes_are_told():
  model, tuned, _ = source_of('adapter')
  other = jax.tree.map(lambda leaf: leaf + 1.0, tuned)
  with pytest.raises(UserError, match='source second has a prototype of its own; the masks of a'):
    bank_of(stored(model, tuned), stored(model, other, 'second'))
  lora, more, _ = source_of('lora')
  with pytest.raises(UserError, match='source second has a prototype of another form or with'):
    bank_of(stored(model, tuned), stored(lora, more, 'second'))
  first, own, _ = source_of('adapter', first_layer=2)
  with pytest.raises(UserError, match='source first has the mask of a task in its first layer'):
    bank_of(stored(first, own), stored(first, own, 'second'))
  for options, words in (({'form': 'lora', 'rank': 3}, 'is no bank of experts'),
                         ({'form': 'prefix', 'length': 3}, 'is no bank of experts'),
                         ({'reduction': 2, 'place': 'layer'}, 'has no shared prototype')):
    plan = propetl.propetl(propetl.ProPETLOptions(**options), CONFIG, 0).plan
    with pytest.raises(UserError, match=words):
      masked_bank.masked_of(plan_as_json(plan), 'first')
