"""Experts of HyperFormer <-> model folders of the original program."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.experts import library
from pemt_jax.interop import files, formats, huggingface
from pemt_jax.methods import zoo
from pemt_jax.methods.base import initialiser
from pemt_jax.models.sites import plan_as_json
from pemt_jax.models.t5 import T5
from pemt_jax.stages.artefacts import config_of
from pemt_jax.training.rules import split_params
from tests import tiny

TASKS = ('hyperformer/rte', 'hyperformer/cola')


def write_expert(folder, backbone, stage, tasks=TASKS, **values):
  """An expert of random values; returns its tree."""
  entry = zoo.ZOO[stage]
  counts = {'tasks': len(tasks)} if len(tasks) > 1 else {}
  options = dataclasses.replace(entry.default_options(), reduction=2, **counts | values)
  method = entry.make(options, tiny.CONFIG, 0)
  _, tuned = split_params(tiny.variables_of(T5(tiny.CONFIG, method.plan))['params'], method.tuned)
  library.save_expert(folder, tuned, {}, library.ExpertCard(
      'expert', stage, plan_as_json(method.plan), backbone, 'hash', tasks[0],
      # A stage leaves the number of tasks to its config.
      extra={'options': vars(options) | {'tasks': 0},
             'config': {'stage': stage, 'tasks': list(tasks)}}))
  return tuned


def converter(folder):
  """(from, to, source, target, options) -> paths without a place."""
  return lambda a, b, source, target, **options: formats.convert(
      a, b, str(folder / source), str(folder / target), formats.Options(**options))


@pytest.mark.parametrize('stage, weights', [('adapter_controller', 'torch'),
                                            ('hyperformer_pp', 'safetensors')])
def test_an_expert_comes_back_from_the_original_folder(stage, weights, backbone, tmp_path):
  if weights == 'torch':
    pytest.importorskip('torch')
  first = write_expert(tmp_path / 'expert', backbone, stage)
  convert = converter(tmp_path)
  assert convert('expert', 'hyperformer', 'expert', 'original', weights=weights) == []
  names = set(files.read_tensors(tmp_path / 'original'))
  assert any('.cola' in name for name in names) and 'shared.weight' in names
  assert convert('hyperformer', 'expert', 'original', 'again') == []
  tuned, _, card = library.load_expert(tmp_path / 'again')
  tiny.assert_trees_close(tuned, first, rtol=0, atol=0)
  config = config_of(card)
  assert (config.stage, config.tasks, card.backbone_id) == (stage, TASKS, backbone)


def test_an_expert_without_a_form_there_is_refused(backbone, tmp_path):
  convert = converter(tmp_path)
  write_expert(tmp_path / 'shared', backbone, 'adapter_controller', members=(0, 0))
  with pytest.raises(UserError, match='has 1 adapters for 2 tasks; the HyperFormer code names'):
    convert('expert', 'hyperformer', 'shared', 'original')
  write_expert(tmp_path / 'lora', backbone, 'houlsby', tasks=TASKS[:1])
  with pytest.raises(UserError, match="is of method 'houlsby'; only adapter_controller"):
    convert('expert', 'hyperformer', 'lora', 'original')


def test_weights_on_another_backbone_are_refused(backbone, tmp_path):
  convert = converter(tmp_path)
  write_expert(tmp_path / 'expert', backbone, 'adapter_controller')
  convert('expert', 'hyperformer', 'expert', 'original', weights='safetensors')
  params, _ = initialiser(T5(tiny.CONFIG))(jax.random.key(1))
  huggingface.save_t5(tmp_path / 'other', tiny.CONFIG, jax.tree.map(np.asarray, params))
  with pytest.raises(UserError, match="which it has not trained; give --backbone with the T5"):
    convert('hyperformer', 'expert', 'original', 'again', backbone=str(tmp_path / 'other'))
