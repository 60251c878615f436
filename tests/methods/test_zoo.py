"""Laws that every entry of the zoo keeps, one expert or many; a new entry joins by its line there.

One program per entry returns most of what single experts are compared by. The grid runs further
programs; entries of ALIKE, which have the delta of another entry, stay out of it. The short run
takes those of THOROUGH through the grid and those of LIGHT through their one program.
"""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.deltas.fold import fold
from pemt_jax.errors import UserError
from pemt_jax.experts import library
from pemt_jax.experts.merging import weights as merging
from pemt_jax.experts.task_bank import TaskBank
from pemt_jax.experts.token_routing import TokenRouting
from pemt_jax.methods import zoo
from pemt_jax.methods.base import initialiser, joined, make_loss, shift_right
from pemt_jax.models import generation
from pemt_jax.models.decoding import GenerationConfig
from pemt_jax.models.layers import Compute
from pemt_jax.models.sites import Plan
from pemt_jax.models.t5 import T5
from pemt_jax.trees import flatten, merge, unflatten
from tests import tiny

# Options that keep an entry small.
SMALL = {
    **{name: {'reduction': 2} for name in ('adapter', 'houlsby', 'propetl', 'adapter_controller')},
    'pfeiffer': {'reduction': 2, 'reads': 'sum'},
    'parallel': {'size': 3},
    'houlsby_ensembling': {'size': 3},
    'compacter': {'reduction': 2, 'terms': 2},
    'adamix': {'experts': 3, 'size': 4},
    'mixda': {'count': 2, 'down_scale': 2, 'hidden': 6, 'encoder_layers': None,
              'decoder_layers': None},
    'fastfood': {'dimension': 4, 'tensors': '.*/mlp/.*'},
    **{name: {'reduction': 2, 'size': 3, 'hidden': 6, 'projected': 4}
       for name in ('meta_adapter', 'hyperformer', 'hyperformer_pp')},
    'switch': {'experts': 'mpo', 'cores': 3, 'count': 3}, 'top2': {'count': 3},
    'task_moe': {'experts': 2, 'router': 'linear', 'hidden': 3, 'mode': 'softmax'},
    'mpo': {'components': ('word_embed', 'mlp', 'attention'), 'cores': 3, 'mlp_rank': 4},
    'prefix': {'length': 3, 'rank': 4}, 'prefix_kv': {'length': 2},
    'intrinsic_prefix': {'length': 3, 'dimension': 4},
    'intrinsic_adapter': {'size': 3, 'dimension': 4},
    'intrinsic_lora': {'rank': 2, 'alpha': 3.0, 'dimension': 4},
    **{name: {'rank': 2, 'alpha': 3.0}
       for name in ('lora', 'lora_ensembling', 'lora_mlp', 'lora_br', 'bias_mlp')},
    'attempt': {'sources': 2, 'hidden': 5, 'temperature': 3.0},
}
# Patterns of backbone leaves that an entry tunes; the others leave the backbone as it is.
TUNES_BACKBONE = {'full': '.*', 'maml': '.*', 'mpo': '(?!shared/|.*/kernel).*'} | dict.fromkeys(
    ('switch', 'top2'), '(?!.*/mlp/w).*') | {'task_moe': '(?!.*/layers/).*'} | dict.fromkeys(
    ('adapter', 'houlsby', 'compacter', 'adapter_controller', 'meta_adapter', 'hyperformer',
     'hyperformer_pp'), '.*norm/scale')
JOINED = 'adapter+prompt'
NAMES = (*zoo.ZOO, JOINED)
THOROUGH = ('lora', 'prefix')
LIGHT = (*THOROUGH, JOINED, 'bitfit', 'intrinsic_adapter')
# The delta of another entry at other places or of other sizes, or two deltas of other entries.
ALIKE = ('houlsby', 'houlsby_ensembling', 'hyperformer', 'intrinsic_lora', 'intrinsic_prefix',
         'lora_br', 'lora_ensembling', 'maml', JOINED)
# Deltas that differ between layers, are made once for all of them, or move the backbone's leaves.
UNROLLED = (*THOROUGH, 'fastfood', 'hyperformer_pp', 'mixda', 'mpo', 'switch', 'task_moe')


def entries(short, names=NAMES):
  """Parametrises a test by entries; those that the short run leaves out are slow.

  All tests of one entry run together, see `one_entry_at_a_time`.
  """
  params = [pytest.param(name, marks=[] if name in short else [pytest.mark.slow]) for name in names]
  return pytest.mark.parametrize('name', params, scope='module')


EVERY = entries(LIGHT)
GRID = entries(THOROUGH, [name for name in NAMES if name not in ALIKE])

CONFIG = tiny.CONFIG
PROMPT, EXPERTS, ROWS, LENGTH = 3, 3, 3, 5
MIXED = np.array([2, 0, 1], np.int32)
BATCH = tiny.make_batch(rows=ROWS, length=6, target_length=LENGTH)
OTHER_BATCH = tiny.make_batch(rows=ROWS, length=6, target_length=LENGTH, seed=1)
PLAIN = T5(CONFIG)


@functools.cache
def method_of(name):
  """The small method of a name."""
  names = zoo.names_of(name)
  options = {part: dataclasses.replace(zoo.ZOO[part].default_options(), **SMALL.get(part, {}))
             for part in names}
  return zoo.make(name, options if len(names) > 1 else options[name], CONFIG, PROMPT)


@functools.cache
def model_of(name, compute=Compute()):
  """The tiny backbone with the deltas of a name."""
  return T5(CONFIG, method_of(name).plan, compute)


@functools.cache
def constants_of(model):
  """First constants; masks of prompts are ones."""
  if not tiny.shapes(model).get('constants'):
    return {}
  return initialiser(model)(jax.random.key(0))[1]


def delta_paths(model):
  """Paths of the parameters that the plain backbone lacks."""
  return [path for path in tiny.shapes(model)['params'] if path not in backbone()]


@functools.cache
def backbone():
  """{path: leaf} of the plain backbone."""
  return flatten(tiny.variables_of(PLAIN)['params'])


@functools.cache
def expert(name, number):
  """(tuned, frozen) of one of several experts on one backbone."""
  model = model_of(name)
  shapes = tiny.shapes(model)['params']
  deltas = delta_paths(model) or list(shapes)
  leaves = {path: leaf for path, leaf in backbone().items() if path in shapes}
  leaves |= {path: tiny.random_leaf(path, shapes[path], number + 1) for path in deltas}
  frozen, tuned = tiny.split(method_of(name), {'params': unflatten(leaves)})
  return tuned, frozen


def variables_of(name, number):
  """What the model is applied to with one expert."""
  return method_of(name).variables(*expert(name, number), constants_of(model_of(name)))


def apply_of(model, variables, batch):
  """(encoded, logits) of a batch, rows with tasks of their own if it names them."""
  task_ids = batch.get('task_ids')
  encoded = model.apply(variables, batch['inputs'], batch['inputs_mask'], task_ids,
                        method='encode')
  decoder_inputs = shift_right(batch['targets'], CONFIG.start_id)
  logits, _ = model.apply(variables, decoder_inputs, batch['targets_mask'], encoded, task_ids,
                          method='decode')
  return encoded, logits


def start(model, variables, batch, encoded):
  """(step, cache) of cached decoding."""
  memory, cache = model.apply(variables, encoded, ROWS, LENGTH, batch.get('task_ids'),
                              method='start_decoding')
  step = lambda tokens, position, cache: model.apply(variables, tokens, position, cache, memory,
                                                     method='decode_step')
  return step, cache


def teacher_forced(model, variables, batch):
  """Logits of whole sequences, and the same through the cached step."""
  encoded, logits = apply_of(model, variables, batch)
  step, cache = start(model, variables, batch, encoded)

  def advance(cache, column):
    logits, cache = step(column[0], column[1], cache)
    return cache, logits

  columns = shift_right(batch['targets'], CONFIG.start_id).T, jnp.arange(LENGTH)
  _, cached = jax.lax.scan(advance, cache, columns)
  return {'logits': logits, 'cached': cached.swapaxes(0, 1)}


def searched(model, beams, variables, batch):
  """Greedy tokens (one beam) or those of beam search."""
  encoded = model.apply(variables, batch['inputs'], batch['inputs_mask'], batch.get('task_ids'),
                        method='encode')
  step, cache = start(model, variables, batch, encoded)
  return generation.generate(step, cache, ROWS,
                             GenerationConfig(max_length=LENGTH, num_beams=beams))


@functools.cache
def program(name):
  """Compiled (tuned, frozen, constants, batch) -> all that experts are compared by."""
  model, method = model_of(name), method_of(name)
  loss_fn = make_loss(model, method)

  @jax.jit
  def run(tuned, frozen, constants, batch):
    (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        tuned, frozen, constants, batch, None)
    variables = method.variables(tuned, frozen, constants)
    return {'loss': loss, 'grads': grads, **teacher_forced(model, variables, batch)}

  return run


@functools.cache
def search_program(name, beams):
  """Compiled (variables, batch) -> tokens."""
  return jax.jit(functools.partial(searched, model_of(name), beams))


@functools.cache
def outcome(name, number=0):
  """What an expert computes."""
  tuned, frozen = expert(name, number)
  return jax.device_get(program(name)(tuned, frozen, constants_of(model_of(name)), BATCH))


@functools.cache
def plain_logits():
  """Logits of the backbone without deltas."""
  return np.asarray(tiny.forward(PLAIN, {'params': unflatten(backbone())}, BATCH)[0])


@pytest.fixture(autouse=True)
def one_entry_at_a_time(request):
  """Forgets the programs of other entries: a process cannot hold those of the whole grid."""
  name = request.node.callspec.params['name'] if hasattr(request.node, 'callspec') else None
  if name not in (None, *LIGHT) and name != LATEST[-1]:
    for cached in (program, search_program, outcome, bank_program):
      cached.cache_clear()
    jax.clear_caches()
    LATEST.append(name)


LATEST = [None]


def differs(first, second):
  """Whether two arrays differ by more than rounding."""
  return np.max(np.abs(first - second)) > 1e-3


@EVERY
def test_the_delta_changes_the_model_and_all_that_is_tuned_and_only_that_has_a_gradient(name):
  found = outcome(name)
  assert np.isfinite(found['logits']).all() and np.isfinite(found['loss'])
  assert differs(found['logits'], plain_logits())
  tuned, frozen = map(flatten, expert(name, 0))
  deltas, pattern = set(delta_paths(model_of(name))), TUNES_BACKBONE.get(name.split('+')[0], '')
  assert not tuned.keys() & frozen.keys()
  assert {path for path in tuned if path not in deltas} == {
      path for path in backbone() if re.fullmatch(pattern, path)}
  grads = flatten(found['grads'])
  assert grads.keys() == tuned.keys()
  for path, grad in grads.items():
    assert np.isfinite(grad).all() and np.max(np.abs(grad)) > 1e-9, path


@EVERY
def test_cached_decoding_is_decoding_of_the_whole_sequence(name):
  found = outcome(name)
  np.testing.assert_allclose(found['cached'], found['logits'], rtol=1e-4, atol=1e-4)


@GRID
def test_greedy_tokens_follow_the_logits_of_the_whole_sequence(name):
  variables = variables_of(name, 0)
  tokens = np.asarray(search_program(name, 1)(variables, BATCH))
  batch = BATCH | {'targets': tokens[:, 1:], 'targets_mask': np.ones((ROWS, LENGTH - 1))}
  chosen = np.asarray(tiny.forward(model_of(name), variables, batch)[0]).argmax(-1)
  for row, own in zip(tokens[:, 1:], chosen, strict=True):
    ended = np.flatnonzero(row == CONFIG.eos_id)
    stop = ended[0] + 1 if len(ended) else len(row)
    np.testing.assert_array_equal(row[:stop], own[:stop])
    assert (row[stop:] == CONFIG.pad_id).all()


@EVERY
def test_another_expert_runs_in_the_same_program(name):
  first, second = outcome(name, 0), outcome(name, 1)
  assert differs(first['logits'], second['logits'])
  assert program(name)._cache_size() == 1


@EVERY
def test_an_expert_is_saved_and_read_strictly(name, tmp_path):
  tuned, _ = expert(name, 0)
  constants = constants_of(model_of(name))
  card = library.ExpertCard(name=name, method=name, plan=[], backbone_id='tiny', task='none',
                            backbone_hash='00')
  folder = library.expert_folder(tmp_path, name)
  library.save_expert(folder, tuned, constants, card)
  found, found_constants, _ = library.load_expert(folder, {'tuned': tuned, 'constants': constants})
  tiny.assert_trees_close(found, tuned, rtol=0, atol=0)
  tiny.assert_trees_close(found_constants, constants, rtol=0, atol=0)
  flat = flatten(tuned)
  first = next(iter(flat))
  less = unflatten({path: leaf for path, leaf in flat.items() if path != first})
  for expected in (less, merge(tuned, {'more': np.zeros(1, np.float32)})):
    with pytest.raises(UserError):
      library.load_expert(folder, {'tuned': expected, 'constants': constants})


@EVERY
def test_the_mean_of_equal_experts_is_the_expert(name):
  tuned, _ = expert(name, 0)
  tiny.assert_trees_close(merging.average(merging.stack_sources([tuned] * 3)), tuned)


@entries(THOROUGH, UNROLLED)
def test_unrolled_layers_compute_the_same(name):
  model, method = model_of(name, tiny.UNROLLED), method_of(name)
  tuned, frozen = expert(name, 0)
  (loss, _), grads = tiny.gradients(model, method)(tuned, frozen, constants_of(model), BATCH, None)
  found = outcome(name)
  np.testing.assert_allclose(loss, found['loss'], rtol=1e-5)
  tiny.assert_trees_close(grads, found['grads'], rtol=1e-3, atol=1e-5)


@GRID
def test_replicas_are_separate_runs(name):
  loss_fn = make_loss(model_of(name), method_of(name))
  gradient = jax.vmap(jax.value_and_grad(loss_fn, has_aux=True), in_axes=(0, None, 0, 0, None))
  constants, frozen = constants_of(model_of(name)), expert(name, 0)[1]
  stacked = tiny.stack([expert(name, number)[0] for number in range(2)])
  (losses, _), grads = jax.jit(gradient)(stacked, frozen, tiny.stack([constants] * 2),
                                         tiny.stack([BATCH, OTHER_BATCH]), None)
  for number, batch in enumerate((BATCH, OTHER_BATCH)):
    alone = program(name)(expert(name, number)[0], frozen, constants, batch)
    np.testing.assert_allclose(losses[number], alone['loss'], rtol=1e-5)
    own = jax.tree.map(lambda leaf, number=number: leaf[number], grads)
    tiny.assert_trees_close(own, alone['grads'], rtol=1e-3, atol=1e-5)


@functools.cache
def bank_program(name):
  """(parameters of all experts, compiled program of the bank) of a name."""
  rules = tuple(dataclasses.replace(rule, delta=TaskBank(rule.delta, EXPERTS))
                for rule in method_of(name).plan.rules)
  model = T5(CONFIG, Plan(rules))
  experts = [flatten(merge(*expert(name, number))) for number in range(EXPERTS)]
  params = dict(backbone())
  for path in delta_paths(model):
    layered = re.search('/layers(_[0-9]+_[0-9]+)?/', path)
    params[path] = np.stack([own[path] for own in experts], axis=1 if layered else 0)
    assert params[path].shape == tiny.shapes(model)['params'][path], path
  variables = {'params': unflatten(params), 'constants': constants_of(model_of(name))}
  run = lambda variables, batch: (teacher_forced(model, variables, batch)
                                  | {'beam': searched(model, 2, variables, batch)})
  return variables, jax.jit(run)


@GRID
def test_rows_of_a_bank_use_the_expert_of_their_task(name):
  method = method_of(name)
  deltas = [rule.delta for rule in method.plan.rules]
  routed = any(isinstance(delta, TokenRouting) or delta.copies for delta in deltas)
  if not deltas or method.expand is not joined or routed:
    pytest.skip('its experts change the whole backbone and cannot share a batch')
  variables, run = bank_program(name)
  for ids in (MIXED, np.full(ROWS, 1, np.int32)):
    found = run(variables, BATCH | {'task_ids': ids})
    for row, number in enumerate(ids):
      alone = outcome(name, int(number))
      for kind in ('logits', 'cached'):
        np.testing.assert_allclose(found[kind][row], alone[kind][row], rtol=1e-4, atol=1e-4,
                                   err_msg=kind)
      tokens = search_program(name, 2)(variables_of(name, int(number)), BATCH)
      np.testing.assert_array_equal(found['beam'][row], tokens[row])


@GRID
def test_bfloat16_is_close(name):
  model = model_of(name, Compute(dtype='bfloat16'))
  variables = variables_of(name, 0)
  logits = np.asarray(tiny.forward(model, variables, BATCH)[0])
  error = np.abs(logits - outcome(name)['logits'])
  assert 0 < error.mean() < 0.05 * np.std(outcome(name)['logits'])


@pytest.mark.slow
def test_a_bank_of_experts_that_move_the_whole_backbone_is_refused():
  with pytest.raises(UserError, match='cannot share a batch'):
    bank_program('fastfood')


FOLDED = ('lora', 'lora_ensembling', 'ia3', 'full', 'maml', 'mpo')


@EVERY
def test_linear_deltas_fold_into_the_backbone_and_others_are_refused(name):
  params = variables_of(name, 0)['params']
  if name not in FOLDED:
    with pytest.raises(UserError, match='cannot be folded'):
      fold(params, method_of(name).plan)
    return
  params = fold(params, method_of(name).plan)
  assert flatten(params).keys() == backbone().keys()
  logits = tiny.forward(PLAIN, {'params': params}, BATCH)[0]
  np.testing.assert_allclose(logits, outcome(name)['logits'], rtol=1e-4, atol=1e-4)
