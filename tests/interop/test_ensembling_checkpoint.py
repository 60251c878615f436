"""Checkpoints of the original ensembling program: what is read, what is refused, both ways."""

from __future__ import annotations

import argparse
import json
import pathlib

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.interop import ensembling_checkpoint as checkpoints
from pemt_jax.interop import ensembling_original
from pemt_jax.parity import ensembling as parity
from pemt_jax.trees import flatten, unflatten
from tests import tiny

torch = pytest.importorskip('torch')

CONFIG = tiny.CONFIG
FLAGS = {
    'adapter': {'apply_adapter': True, 'adapter_size': 3},
    'lora': {'apply_lora': True, 'lora_r': 2},
    'bias': {'apply_bias': True, 'lora_r': 2, 'decoder_mlp': True},
    'prefix': {'apply_prefix': True, 'prefix_num': 4, 'prefix_r': 3},
    'prompt': {},
    'hyper_PET': {'apply_adapter': True, 'adapter_size': 2, 'share_intrinsic': True,
                  'intrinsic_dim': 3},
    'bias_stage2': {'apply_bias_stage2': True, 'lora_r': 2},
}
ROWS = 4


def flags_of(method):
  return {'tune_method': method, 'learning_rate': 5e-4, **FLAGS[method]}


def random_tree(method):
  """Values for every leaf of a method's checkpoint."""
  prompt = {'prompt': np.zeros((ROWS, 0))} if method == 'prompt' else {}
  table = checkpoints.Checkpoint(prompt, flags_of(method)).table(CONFIG)
  return unflatten({path: tiny.random_leaf(path, shape, 0)
                    for path, shape in table.leaf_shapes().items()})


@pytest.mark.parametrize('method', FLAGS)
def test_trees_become_files_and_come_back(method, tmp_path):
  tree, rows = random_tree(method), ROWS if method == 'prompt' else 0
  made = checkpoints.from_tree(tree, flags_of(method), CONFIG, rows)
  checkpoints.write(tmp_path / 'a.pt', made)
  found = checkpoints.read(tmp_path / 'a.pt')
  assert found.flags == flags_of(method) and found.delta.keys() == made.delta.keys()
  back = found.tree(CONFIG)
  tiny.assert_trees_close(back['params'], tree, rtol=0, atol=0)
  assert bool(back['constants']) == (method == 'prompt')
  if method == 'bias_stage2':
    assert all(name.endswith('.lora_R') for name in found.delta)
  if method == 'hyper_PET':
    assert 'encoder.block.0.layer.0.adapter.share_intrinsic' in found.delta


class Settings:
  """Stands for the config object of the program."""

  def __init__(self):
    self.size = 3


def test_a_checkpoint_of_training_is_read_without_its_objects(golden_root, tmp_path, monkeypatch):
  folder = golden_root / 'ensembling' / 'train_lora'
  case = json.loads((folder / 'case.json').read_text())
  with np.load(folder / 'outputs.npz') as outputs:
    delta = {name.removeprefix('after5/'): torch.tensor(value)
             for name, value in outputs.items() if name.startswith('after5/')}
  made = []
  monkeypatch.setattr(Settings, '__setstate__', lambda *_: made.append(1), raising=False)
  flags = dict(case['model_config'], tune_method='lora')
  torch.save({'lora': delta, 'optimizer': {'state': {0: {'step': 5, 'exp': torch.ones(2)}}},
              'scheduler': {'base': [0.1]}, 'config': Settings(), 'args': flags,
              'namespace': argparse.Namespace(a=1),
              'current_state': {'epoch': 2, 'num_updates': 5}}, tmp_path / 'checkpoint-best.pt')
  found = checkpoints.read(tmp_path / 'checkpoint-best.pt')
  assert (found.epoch, found.updates) == (2, 5) and not made
  layout = parity.layout_of(case)
  params = found.tree(layout.config)['params']
  back = ensembling_original.tree_to_state(params, layout, parts=('lora',))
  assert back.keys() == delta.keys()
  for name, value in back.items():
    np.testing.assert_array_equal(value, delta[name].numpy())


class Nasty:
  """Would make a file where its pickle were executed."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (pathlib.Path(self.path),)


def test_nothing_in_a_file_is_executed(tmp_path):
  made = tmp_path / 'made'
  torch.save({'args': flags_of('lora'), 'lora': {}, 'config': Nasty(str(made))}, tmp_path / 'a.pt')
  try:
    checkpoints.read(tmp_path / 'a.pt')
  except UserError:
    pass
  assert not made.exists()


@pytest.mark.parametrize('content, sentence', [
    ({'lora': {}}, "'{}' is no checkpoint of the ensembling program, since it has no dict 'args' of"
     ' flags; give another file.'),
    ({'args': {'tune_method': 'magic'}}, "'{}' has tune_method 'magic'; those that can be read are "
     + ', '.join(checkpoints.KINDS) + '.'),
    ({'args': {'tune_method': 'bias'}, 'adapter': {}}, "'{}' has no tensors under 'lora', where"
     " tune_method 'bias' keeps them; give another file."),
])
def test_other_files_are_refused(content, sentence, tmp_path):
  torch.save(content, tmp_path / 'a.pt')
  with pytest.raises(UserError) as error:
    checkpoints.read(tmp_path / 'a.pt')
  assert str(error.value) == sentence.format(tmp_path / 'a.pt')


def test_a_missing_or_damaged_file_is_refused(tmp_path):
  with pytest.raises(UserError, match='there is no file'):
    checkpoints.read(tmp_path / 'none.pt')
  (tmp_path / 'a.pt').write_bytes(b'no zip')
  with pytest.raises(UserError, match='is no checkpoint of the ensembling program'):
    checkpoints.read(tmp_path / 'a.pt')


def test_a_delta_of_another_backbone_is_refused():
  tree = random_tree('lora')
  made = checkpoints.from_tree(tree, flags_of('lora'), CONFIG)
  with pytest.raises(UserError, match="'a.pt' has 'encoder.block.0.layer.0.Self.*q.lora_A'"):
    made.tree(tiny.replace(CONFIG, embed=16), 'a.pt')
  lacking = {path: leaf for path, leaf in flatten(tree).items() if not path.endswith('up')}
  with pytest.raises(UserError, match='lacks encoder/layers/self_attention/q/lora/up'):
    checkpoints.from_tree(unflatten(lacking), flags_of('lora'), CONFIG)
