"""Masked prototypes are the deltas whose weights are prototype times mask, for every form."""

from __future__ import annotations

import functools
import itertools

import jax
import numpy as np
import pytest

from pemt_jax.deltas.adapter import Adapter, Bottleneck
from pemt_jax.deltas.prefix import Prefix
from pemt_jax.errors import UserError
from pemt_jax.experts import masks
from pemt_jax.experts.masked import Masked, site_of
from pemt_jax.methods import propetl
from pemt_jax.models.blocks import StackSpec
from pemt_jax.models.layers import Compute
from pemt_jax.models.sites import Plan
from pemt_jax.models.t5 import T5
from pemt_jax.parity import common
from pemt_jax.trees import flatten, unflatten
from tests import tiny

CONFIG = tiny.CONFIG
SMALL = {'adapter': {'reduction': 2}, 'lora': {'rank': 3, 'alpha': 3.0},
         'prefix': {'length': 3, 'hidden': 5}}
LANGUAGES = ((0, 1), (1, 0), (0, 0))
# (form, options); the first ones run always.
GRID = (
    ('adapter', {'owners': ('task', 'layer')}),
    ('lora', {'owners': ('task', 'language', 'layer'), 'members': LANGUAGES, 'combine': 'add'}),
    ('prefix', {'owners': ('layer_task',), 'place': 'stack'}),
    ('adapter', {'owners': ('layer_task',), 'placement': 'houlsby', 'place': 'stack'}),
    ('adapter', {'owners': ('task', 'layer'), 'combine': 'and', 'place': 'layer'}),
    ('adapter', {'owners': ('task', 'layer'), 'first_layer': 2}),
    ('adapter', {'owners': ('layer',)}),
    ('adapter', {'owners': ('task',)}),
    ('lora', {'owners': ('task', 'layer'), 'cross_attention': True}),
    ('prefix', {'owners': ('task', 'layer'), 'hidden': 0}),
    ('prefix', {'owners': ('task', 'language', 'layer'), 'members': LANGUAGES}),
)
CASES = [pytest.param(*case, marks=[] if number < 3 else [pytest.mark.slow],
                      id=f'{case[0]}-{"-".join(map(str, case[1].values()))}')
         for number, case in enumerate(GRID)]
IDS = np.array([2, 0, 1], np.int32)
BATCH = tiny.make_batch(rows=3, length=6, target_length=4) | {'task_ids': IDS}


def method_of(form, **options):
  return propetl.propetl(
      propetl.ProPETLOptions(form=form, **({'tasks': 3} | SMALL[form] | options)), CONFIG, 0)


@functools.cache
def plain_model(form, placement='mlp', cross_attention=False):
  """Deltas of the same form with weights of their own in every layer and no masks."""
  options = {'placement': placement, 'cross_attention': cross_attention}
  options |= {'hidden': 0} if form == 'prefix' else {}
  return T5(CONFIG, method_of(form, owners=(), place='layer', **options).plan)


def mask_of(rule, flat, layer, member, leaf):
  """The joined mask of a weight in one layer, by NumPy."""
  delta, (stack, _, site) = rule.delta, rule.site.partition('/')
  key, own = site.replace('/', '_'), f'deltas/{rule.name}'
  takes_first = delta.first_layer is not None and stack == 'encoder'
  scores = {
      'task': lambda: flat[f'{own}/task/{leaf}'][member[0]],
      'language': lambda: flat[f'{own}/language/{leaf}'][member[1]],
      'layer': lambda: flat[f'{stack}/{rule.name}/layer_{key}/{leaf}'][layer - takes_first],
      'layer_task': lambda: flat[f'{stack}/{rule.name}/layer_task_{key}/{leaf}'][layer, member[0]]}
  if takes_first and not layer:
    scores['layer'] = lambda: flat[f'{own}/task/{leaf}'][delta.first_layer]
  return masks.combine([np.asarray(masks.top_mask(scores[owner](), delta.density))
                        for owner in delta.owners], delta.how)


def prototype_of(rule, flat, layer, place):
  """The prototype's weights in one layer."""
  delta, (stack, _, site) = rule.delta, rule.site.partition('/')
  start = {'model': f'deltas/{rule.name}', 'stack': f'{stack}/{rule.name}',
           'layer': f'{stack}/layers/{site}/{rule.name}'}[delta.place]
  own = {name: flat[f'{start}/{name}'] for name in delta.delta.source_weights(place)}
  if delta.place == 'layer':
    own = {name: value[layer] for name, value in own.items()}
  return delta.delta.from_source(own, place)


def spelled_out(model, params, task):
  """Parameters of the plain model: every layer's prototype times its masks."""
  flat = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
  found = {path: leaf for path, leaf in flat.items() if 'propetl' not in path}
  for rule, layer in itertools.product(model.plan.rules, range(2)):
    stack, _, site = rule.site.partition('/')
    place = site_of(rule.site, StackSpec(CONFIG, Plan(), stack, Compute()).shape)
    module = f'{site}/attend' if site == 'self_attention' else site
    for name, value in prototype_of(rule, flat, layer, place).items():
      if np.ndim(value) > 1:
        member = rule.delta.members[task]
        value = value * mask_of(rule, flat, layer, member, name.replace('/', '_'))
      path = f'{stack}/layers/{module}/{rule.name}/{name}'
      found.setdefault(path, np.zeros((2, *np.shape(value)), np.float32))[layer] = value
  return unflatten(found)


@pytest.mark.parametrize('form, options', CASES)
def test_rows_of_mixed_tasks_have_the_masked_weights_of_their_task(form, options):
  method = method_of(form, **options)
  model = T5(CONFIG, method.plan)
  params = tiny.variables_of(model)['params']
  plain = plain_model(form, options.get('placement', 'mlp'), options.get('cross_attention', False))
  _, logits, _ = common.forward(model, {'params': params}, BATCH)
  for row, task in enumerate(IDS):
    variables = {'params': spelled_out(model, params, int(task))}
    _, expected, _ = common.forward(plain, variables, BATCH)
    np.testing.assert_allclose(logits[row], expected[row], rtol=1e-4, atol=1e-4)
    assert np.abs(expected[row]).max() > 0.1


def test_a_batch_of_one_task_is_the_same_where_all_batches_are():
  mixed, single = (method_of('adapter', one_task=flag) for flag in (False, True))
  model = T5(CONFIG, mixed.plan)
  variables = {'params': tiny.variables_of(model)['params']}
  batch = BATCH | {'task_ids': np.full(3, 1, np.int32)}
  _, first, _ = common.forward(model, variables, batch)
  _, second, _ = common.forward(T5(CONFIG, single.plan), variables, batch)
  np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-5)


def test_scores_of_absent_tasks_have_no_gradient_and_zeros_of_a_mask_have_one():
  method = method_of('adapter')
  model = T5(CONFIG, method.plan)
  batch = BATCH | {'task_ids': np.full(3, 1, np.int32)}
  _, _, grads = tiny.loss_and_gradients(model, method, tiny.variables_of(model), batch)
  by_task = np.abs(flatten(grads)['deltas/propetl/task/down_kernel']).max((1, 2))
  assert by_task[1] > 0 and not by_task[[0, 2]].any()
  by_layer = np.asarray(flatten(grads)['encoder/propetl/layer_mlp_residual/down_kernel'])
  scores = flatten(tiny.variables_of(model)['params'])[
      'encoder/propetl/layer_mlp_residual/down_kernel']
  assert np.abs(by_layer[np.asarray(masks.top_mask(scores, 0.3, 1)) == 0]).max() > 0


def test_full_density_needs_no_scores_unless_asked_for():
  shapes = lambda **options: tiny.shapes(T5(CONFIG, method_of(
      'adapter', density=1.0, **options).plan))['params']
  assert not any('/task/' in path or '/layer_' in path for path in shapes())
  assert any('/task/' in path for path in shapes(full_masks=True))


def test_first_scores_are_bounded_by_the_fan_that_is_asked_for():
  for fan, bound in (('in', 8**-0.5), ('out', 4**-0.5), ('all', 32**-0.5)):
    delta = Masked(Adapter(Bottleneck(4)), ('encoder/mlp_residual',), fan=fan)
    shape = StackSpec(CONFIG, Plan(), 'encoder', Compute()).shape
    weight = delta.stack_weights(shape)['layer_mlp_residual/down_kernel']
    drawn = np.abs(weight.init(jax.random.key(0), weight.shape))
    assert 0.8 * bound < drawn.max() <= bound


def test_mistakes_are_told():
  adapter, site = Adapter(Bottleneck(4)), ('encoder/mlp_residual',)
  with pytest.raises(UserError, match="the owner of a mask is 'row'; choose one of layer, task"):
    Masked(adapter, site, owners=('row',))
  with pytest.raises(UserError, match='a Prefix cannot be a masked prototype'):
    Masked(Prefix(3), ('encoder/self_attention',))
  with pytest.raises(UserError, match='first_layer of masks needs masks of layers'):
    Masked(adapter, site, owners=('layer',), first_layer=0)
  with pytest.raises(UserError, match='method.members is empty'):
    propetl.ProPETLOptions(owners=('language',))
  with pytest.raises(UserError, match='method.tasks is 2, but method.members has 1 entries'):
    propetl.ProPETLOptions(tasks=2, members=((0, 0),))
