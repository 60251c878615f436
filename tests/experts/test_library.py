"""Laws of the expert library: what is saved comes back, all else ends with one sentence."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.experts import library, tree_files

TUNED = {'wo': {'lora': {'down': np.arange(6, dtype=np.float32).reshape(2, 3),
                         'up': jnp.ones((3, 2), jnp.bfloat16)}}}
CONSTANTS = {'mask': np.array([1, 0], np.int32)}


def make_card(name='rte'):
  return library.ExpertCard(name=name, method='pemt_stage1', plan=[['.*/wo', 'lora']], task='rte',
                            backbone_id='t5-small', backbone_hash='ab' * 32,
                            metrics={'accuracy_percent': 71.5})


@pytest.fixture
def folder(tmp_path):
  place = library.expert_folder(tmp_path, 'rte')
  library.save_expert(place, TUNED, CONSTANTS, make_card())
  return place


def test_round_trip(folder, tmp_path):
  tuned, constants, card = library.load_expert(
      folder, {'tuned': TUNED, 'constants': CONSTANTS})
  for found, saved in ((tuned, TUNED), (constants, CONSTANTS)):
    found, saved = tree_files.named_leaves(found), tree_files.named_leaves(saved)
    assert found.keys() == saved.keys()
    for name, leaf in saved.items():
      assert found[name].dtype == leaf.dtype
      np.testing.assert_array_equal(found[name], leaf)
  assert card.metrics == {'accuracy_percent': 71.5} and 'jax' in card.versions
  assert card.shapes['constants/mask'] == {'shape': [2], 'dtype': 'int32'}
  assert sorted(path.name for path in folder.iterdir()) == ['card.json', 'checkpoint']
  assert library.list_experts(tmp_path) == ['rte']


def test_saving_again_replaces_and_an_expert_without_constants_is_fine(folder):
  library.save_expert(folder, {'w': np.zeros(2, np.float32)}, {}, make_card())
  tuned, constants, _ = library.load_expert(folder)
  assert list(tuned) == ['w'] and constants == {}
  assert [path.name for path in folder.parent.iterdir()] == ['rte']


def test_a_write_that_is_cut_short_leaves_the_old_expert(folder, monkeypatch):
  def cut(*unused):
    raise KeyboardInterrupt
  monkeypatch.setattr(tree_files, 'write_json', cut)
  with pytest.raises(KeyboardInterrupt):
    library.save_expert(folder, {'w': np.zeros(2, np.float32)}, {}, make_card())
  monkeypatch.undo()
  assert list(library.load_expert(folder)[0]) == ['wo']
  assert library.list_experts(folder.parent.parent) == ['rte']


def expect(sentence, call, *args):
  with pytest.raises(UserError) as error:
    call(*args)
  assert str(error.value) == sentence


def test_errors_name_file_key_and_shapes(folder):
  place = folder / 'checkpoint'
  lora = TUNED['wo']['lora']
  wide = {**lora, 'down': np.zeros((2, 4), np.float32)}
  expect(f"{place} has 'tuned/wo/lora/down' as float32 [2, 3], expected float32 [2, 4]; use a "
         'checkpoint of the same config.',
         library.load_expert, folder, {'tuned': {'wo': {'lora': wide}}, 'constants': CONSTANTS})
  expect(f"{place} has no 'tuned/wo/lora/bias', expected float32 [2]; use a checkpoint of the same "
         'config.', library.load_expert, folder,
         {'tuned': {'wo': {'lora': {**lora, 'bias': np.zeros(2, np.float32)}}},
          'constants': CONSTANTS})
  expect(f"{place} has 'constants/mask' (int32 [2]), which is not expected; use a checkpoint of "
         'the same config.', library.load_expert, folder, {'tuned': TUNED, 'constants': {}})


def test_errors_of_the_card(folder):
  expect(f'{folder.parent / "cb"} holds no expert, card.json is missing (experts there: rte); give '
         'the folder of an expert.', library.load_expert, folder.parent / 'cb')
  path = folder / 'card.json'
  card = json.loads(path.read_text())
  path.write_text(json.dumps({**card, 'format': 7}))
  expect(f'{path} has format 7, this version reads format 1; install the version of pemt_jax that '
         'wrote it.', library.load_card, folder)
  path.write_text(json.dumps({name: card[name] for name in card if name != 'plan'}))
  expect(f'{path} has missing or unknown fields: plan; it is not a card of format 1.',
         library.load_card, folder)
  path.write_text('{')
  with pytest.raises(UserError, match="card.json' is not valid JSON"):
    library.load_card(folder)


def test_a_checkpoint_that_is_not_that_of_its_card_is_an_error(folder):
  tree_files.write_tree(folder / 'checkpoint', {'tuned': {'w': np.zeros(2, np.float32)}})
  with pytest.raises(UserError, match="checkpoint has no 'constants/mask', expected int32"):
    library.load_expert(folder)


def test_damaged_arrays_are_an_error(folder):
  for path in (folder / 'checkpoint' / 'arrays').rglob('*'):
    if path.is_file():
      path.write_bytes(b'')
  with pytest.raises(UserError, match='is not what was written; the tree is damaged, remove'):
    library.load_expert(folder)


def test_an_expert_of_another_backbone_is_an_error():
  library.check_backbone(make_card(), 'elsewhere', 'ab' * 32)
  expect("Expert 'rte' is a checkpoint of another backbone: it was trained on 't5-small' "
         "(abababababab), this run has 't5-base' (cdcdcdcdcdcd); set config.model.name, or "
         '--backbone, to its backbone.', library.check_backbone, make_card(), 't5-base', 'cd' * 32)


@pytest.mark.parametrize('change', ['value', 'name', 'dtype', 'shape'])
def test_backbone_hash_sees_every_change_and_no_order(change):
  params = {'a': {'w': np.arange(4, dtype=np.float32)}, 'b': np.float32(3)}
  assert library.backbone_hash(params) == library.backbone_hash(
      {'b': jnp.float32(3), 'a': {'w': jnp.arange(4, dtype=jnp.float32)}})
  w = params['a']['w']
  other = {'value': {'w': w + np.float32([0, 0, 0, 1e-6])}, 'name': {'v': w},
           'dtype': {'w': w.view(np.int32)}, 'shape': {'w': w.reshape(2, 2)}}[change]
  assert library.backbone_hash({**params, 'a': other}) != library.backbone_hash(params)
  assert library.backbone_hash({'w': jnp.ones(3, jnp.bfloat16)})


def test_backbone_hash_reads_in_chunks(monkeypatch):
  params = {'w': np.arange(100, dtype=np.float32)}
  whole = library.backbone_hash(params)
  monkeypatch.setattr(library, '_CHUNK_BYTES', 7)
  assert library.backbone_hash(params) == whole
