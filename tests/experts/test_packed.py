"""Packed files: sizes by the accounting, equal logits, masks of one task alone."""

from __future__ import annotations

import json
import math

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn

from pemt_jax.errors import UserError
from pemt_jax.experts import library, masks, packed, tree_files
from pemt_jax.methods import propetl
from pemt_jax.methods.base import boxed_shapes
from pemt_jax.models.t5 import T5
from pemt_jax.models.t5_config import t5_config
from pemt_jax.parity import common
from pemt_jax.training.rules import split_params
from pemt_jax.trees import flatten, merge, unflatten
from tests import tiny

BATCH = tiny.make_batch(rows=3, length=6, target_length=4) | {'task_ids': np.array([2, 0, 1])}
CARD = library.ExpertCard('glue', 'propetl', [], 'tiny', 'hash', 'glue')


@pytest.fixture(scope='module')
def trained():
  """(model, frozen, tuned) of masks for three tasks; entries of a mask fill no whole bytes."""
  config = tiny.replace(tiny.CONFIG, embed=6)
  method = propetl.propetl(propetl.ProPETLOptions(tasks=3, reduction=2), config, 0)
  model = T5(config, method.plan)
  return model, *split_params(tiny.variables_of(model)['params'], method.tuned)


def logits_of(model, frozen, tuned):
  return common.forward(model, {'params': merge(frozen, tuned)}, BATCH)[1]


def test_a_packed_expert_computes_the_same_logits(trained, tmp_path):
  model, frozen, tuned = trained
  card = packed.save_packed(tmp_path / 'expert', tuned, CARD, model.plan)
  again, constants, found = library.load_expert(tmp_path / 'expert', {'tuned': tuned,
                                                                      'constants': {}})
  assert constants == {} and found == card
  np.testing.assert_array_equal(logits_of(model, frozen, again), logits_of(model, frozen, tuned))


def test_bfloat16_rounds_the_prototype_and_keeps_the_masks(trained, tmp_path):
  model, _, tuned = trained
  packed.save_packed(tmp_path / 'expert', tuned, CARD, model.plan, 'bfloat16')
  again, _, card = library.load_expert(tmp_path / 'expert')
  assert card.extra['storage']['float_bits'] == 16
  for path, leaf in flatten(again).items():
    value = flatten(tuned)[path]
    if '/task/' in path or '/layer_' in path:
      expected = masks.top_mask(jnp.asarray(value), 0.3, 1)
    else:
      expected = value.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(leaf, expected, err_msg=path)


def test_masks_of_a_task_are_read_alone(trained, tmp_path):
  model, _, tuned = trained
  packed.write_packed(tmp_path / 'a.safetensors', tuned, model.plan)
  for task in range(3):
    found = packed.read_task(tmp_path / 'a.safetensors', task)
    assert set(found) == {f'deltas/propetl/task/{half}_kernel' for half in ('down', 'up')}
    for path, mask in found.items():
      np.testing.assert_array_equal(mask, masks.top_mask(flatten(tuned)[path][task], 0.3))
  with pytest.raises(UserError, match='has masks of 3 tasks, not of task 3; give a number from 0'):
    packed.read_task(tmp_path / 'a.safetensors', 3)


def published(name, **options):
  """(storage, parameters of the backbone, trained shapes, plan) of a published T5."""
  config = t5_config(name)
  method = propetl.propetl(propetl.ProPETLOptions(**options), config, 0)
  shapes = nn.meta.unbox(boxed_shapes(T5(config, method.plan)))['params']
  frozen, tuned = split_params(shapes, method.tuned)
  backbone = sum(math.prod(leaf.shape) for leaf in flatten(frozen).values())
  return packed.storage_of(tuned, method.plan), backbone, tuned, method.plan


GLUE = {'tasks': 8, 'first_layer': 7}
LAYERS = {'density': 0.5, 'owners': ('layer',), 'reduction': 1}
UNSHARED = {'place': 'layer', 'density': 1.0}


@pytest.mark.parametrize('name, options, floats, entries, equivalent, share', [
    ('t5-base', GLUE | {'reduction': 12}, 99_136, 3_047_424, 194_368, 0.0872),
    ('t5-base', GLUE | {'reduction': 16}, 74_544, 2_285_568, 145_968, 0.0655),
    ('t5-base', UNSHARED | {'reduction': 12}, 2_379_264, 0, 2_379_264, 1.067),
    ('t5-3b', GLUE | {'reduction': 128}, 17_416, 901_120, 45_576, 0.0016),
    ('t5-3b', UNSHARED | {'reduction': 128}, 835_968, 0, 835_968, 0.0293),
    ('t5-base', LAYERS, 1_181_184, 24 * 1_179_648, 2_065_920, 0.927),
    ('t5-base', UNSHARED | {'reduction': 8}, 3_559_680, 0, 3_559_680, 1.597)])
def test_the_published_accounting(name, options, floats, entries, equivalent, share):
  storage, backbone, _, _ = published(name, **options)
  assert (storage.floats, storage.mask_entries, storage.equivalent) == (floats, entries, equivalent)
  assert storage.share(backbone) == pytest.approx(share, abs=6e-4 if share > 0.1 else 6e-5)
  assert storage.share(backbone, 8) == storage.share(backbone) / 8


def test_the_file_of_the_published_size_is_as_large_as_the_accounting(tmp_path):
  storage, _, shapes, plan = published('t5-base', **GLUE, reduction=12)
  rng = np.random.default_rng(0)
  tuned = {path: rng.normal(size=leaf.shape).astype(np.float32)
           for path, leaf in flatten(shapes).items()}
  packed.write_packed(tmp_path / 'a.safetensors', unflatten(tuned), plan)
  size = (tmp_path / 'a.safetensors').stat().st_size
  assert storage.bytes <= size <= 1.01 * storage.bytes
  assert size - storage.bytes < 2500  # of names, shapes and offsets


def test_the_card_states_the_bits(trained, tmp_path):
  model, _, tuned = trained
  packed.save_packed(tmp_path / 'expert', tuned, CARD, model.plan)
  stated = json.loads((tmp_path / 'expert' / 'card.json').read_text())['extra']['storage']
  # Two matrices of 6 x 3 entries, for 3 tasks and 4 layers; biases of 3 and 6.
  assert stated == {'floats': 45, 'mask_entries': 252, 'float_bits': 32, 'bits': 45 * 32 + 252,
                    'bytes': 212}


def test_mistakes_are_told(trained, tmp_path):
  model, _, tuned = trained
  with pytest.raises(UserError, match="dtype of a packed file is 'int8'; choose one of float32"):
    packed.write_packed(tmp_path / 'a.safetensors', tuned, model.plan, 'int8')
  (tmp_path / 'b.safetensors').write_text('no tensors')
  with pytest.raises(UserError, match='is not a readable safetensors file'):
    packed.read_packed(tmp_path / 'b.safetensors')
  from safetensors.numpy import save_file
  save_file({'a': np.zeros(2)}, tmp_path / 'c.safetensors')
  with pytest.raises(UserError, match='is not a packed file of format 1'):
    packed.read_packed(tmp_path / 'c.safetensors')
  packed.save_packed(tmp_path / 'expert', tuned, CARD, model.plan)
  fewer = {'tuned': {'deltas': tuned['deltas']}, 'constants': {}}
  with pytest.raises(UserError, match="packed.safetensors has 'tuned/decoder/propetl/layer_mlp"):
    library.load_expert(tmp_path / 'expert', fewer)
  assert tree_files.read_json(tmp_path / 'expert' / 'card.json')['name'] == 'glue'


def test_an_expert_without_masks_is_refused(tmp_path):
  library.save_expert(tmp_path / 'expert', {'a': np.zeros(2, np.float32)}, {}, CARD)
  with pytest.raises(UserError, match="expert 'glue' has no masks or more than prototype"):
    packed.pack_expert(tmp_path / 'expert', tmp_path / 'packed')
  assert not (tmp_path / 'packed').exists()
