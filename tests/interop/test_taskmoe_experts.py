"""Checkpoints of the task-level mixture of experts become experts, and experts such checkpoints."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.experts import library
from pemt_jax.experts.task_vectors import TaskVectors
from pemt_jax.interop import bart_files, files, formats, task_vector_files
from pemt_jax.methods.task_moe import PLACE
from pemt_jax.models import bart_config
from pemt_jax.stages.artefacts import config_of
from pemt_jax.stages.config import options_of
from pemt_jax.trees import flatten, unflatten

torch = pytest.importorskip('torch')
BIAS, VECTORS = 'final_logits_bias', 'task_model.embed.weight'
NAMES = ('glue-rte', 'own task', 'boolq', 'mc_taco', 'emo', 'paws')


def convert(first, second, source, target, **options):
  return formats.convert(first, second, str(source), str(target), formats.Options(**options))


@pytest.fixture(scope='module', params=['full_softmax_tau', 'full_vanilla_layers'])
def original(request, shared_root, tmp_path_factory):
  """(folder of a checkpoint as the original writes it, its tensors, its BART)."""
  case = shared_root / 'golden' / 'taskmoe' / request.param
  if not case.is_dir():
    pytest.skip(f'no recorded case {request.param}')
  folder, values = tmp_path_factory.mktemp('original'), json.loads((case / 'case.json').read_text())
  state = {name: np.asarray(value) for name, value in
           files.read_tensors(case / 'state.safetensors').items()}
  vectors = state.pop(VECTORS)
  (folder / 'best').mkdir()
  files.write_tensors(folder / 'best' / 'model.pt', state)
  task_vector_files.write_task_vectors(folder / 'best', TaskVectors(
      NAMES[:len(vectors)], vectors))
  flags = dict(values['method_config'])
  flags['encoder_vanilla_layers'] = ','.join(map(str, flags['encoder_vanilla_layers']))
  (folder / 'config.json').write_text(json.dumps(values['model_config'] | flags))
  config = bart_config.from_hf(values['model_config'])
  shapes = bart_files.bart_table(config).leaf_shapes()
  params = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
  params['logits_bias'] = state[BIAS][0]
  bart_files.save_bart(folder / 'bart', config, unflatten(params))
  return folder, state, vectors


def test_a_checkpoint_becomes_an_expert_and_comes_back(original, tmp_path):
  folder, state, vectors = original
  bart = str(folder / 'bart')
  assert convert('task_moe', 'expert', folder / 'best', tmp_path / 'expert', backbone=bart) == []
  _, constants, card = library.load_expert(tmp_path / 'expert')
  np.testing.assert_array_equal(flatten(constants)[f'{PLACE}/vectors'], vectors)
  config = config_of(card)
  assert config.tasks == ('crossfit/glue-rte', 'own task', 'crossfit/boolq', 'crossfit/mc_taco',
                          'crossfit/emo', 'crossfit/paws')[:len(vectors)]
  assert options_of(config).experts == card.extra['options']['experts']
  assert convert('expert', 'task_moe', tmp_path / 'expert', tmp_path / 'again') == []
  again = files.read_tensors(tmp_path / 'again' / 'model.pt')
  for name, value in state.items():
    np.testing.assert_array_equal(again[name], value, err_msg=name)
  for name in ('id2task.json', 'task_vecs.npy'):
    assert (tmp_path / 'again' / name).read_bytes() == (folder / 'best' / name).read_bytes()
  first, second = (json.loads((place / 'config.json').read_text())
                   for place in (folder, tmp_path / 'again'))
  for name in ('router_input_dim', 'router_hidden_dim', 'router_block_num', 'router_nn_type',
               'd_model', 'decoder_layers'):
    assert first[name] == second[name]


def test_a_table_of_routes_in_the_place_of_vectors_is_fixed_routes(original, tmp_path):
  folder, _, vectors = original
  values = json.loads((folder / 'config.json').read_text())
  layers = values['encoder_layers'] + values['decoder_layers']
  routes = np.random.default_rng(0).uniform(
      size=(len(vectors), layers, values['router_block_num'])).astype(np.float32)
  routes /= routes.sum(-1, keepdims=True)
  copied = tmp_path / 'random'
  copied.mkdir()
  for name in ('best/model.pt', 'config.json'):
    (copied / name.split('/')[-1]).write_bytes((folder / name).read_bytes())
  task_vector_files.write_task_vectors(copied, TaskVectors(
      NAMES[:len(vectors)], routes.reshape(len(vectors), -1)))
  left = convert('task_moe', 'expert', copied, tmp_path / 'expert', backbone=str(folder / 'bart'))
  assert left and all(path.startswith(f'{PLACE}/router_') for path in left)
  _, constants, card = library.load_expert(tmp_path / 'expert')
  np.testing.assert_array_equal(flatten(constants)[f'{PLACE}/routes'], routes)
  assert card.extra['options']['routes'] == 'fixed'
  with pytest.raises(UserError, match='is no mixture of layers under a router'):
    convert('expert', 'task_moe', tmp_path / 'expert', tmp_path / 'back')


def test_mistakes_are_told(original, tmp_path):
  folder, _, vectors = original
  with pytest.raises(UserError, match='An expert belongs to a backbone; give --backbone'):
    convert('task_moe', 'expert', folder / 'best', tmp_path / 'expert')
  wrong = tmp_path / 'wrong'
  wrong.mkdir()
  (wrong / 'model.pt').write_bytes((folder / 'best' / 'model.pt').read_bytes())
  bart = str(folder / 'bart')
  with pytest.raises(UserError, match='nor the folder above has config.json'):
    convert('task_moe', 'expert', wrong, tmp_path / 'expert', backbone=bart)
  (wrong / 'config.json').write_bytes((folder / 'config.json').read_bytes())
  task_vector_files.write_task_vectors(wrong, TaskVectors(
      NAMES[:len(vectors)], np.ones((len(vectors), 5), np.float32)))
  with pytest.raises(UserError, match='has vectors of 5 numbers, but its router reads'):
    convert('task_moe', 'expert', wrong, tmp_path / 'expert', backbone=bart)
  assert not (tmp_path / 'expert').exists()
