"""Experts of ProPETL <-> folders of the original program."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.experts import library, masks
from pemt_jax.experts.masked import score_axes
from pemt_jax.interop import formats
from pemt_jax.methods.propetl import ProPETLOptions, propetl
from pemt_jax.models.sites import plan_as_json
from pemt_jax.models.t5 import T5
from pemt_jax.stages.artefacts import config_of
from pemt_jax.training.rules import split_params
from pemt_jax.trees import flatten
from tests import tiny

GLUE = ('propetl/rte', 'propetl/cola')
PLANS = {
    'hybrid': (GLUE, {'first_layer': 1}),
    'apart': (GLUE, {'first_layer': 1, 'place': 'stack', 'tune_norms': True}),
    'one task': (GLUE[:1], {'owners': ('layer',), 'density': 0.5}),
    'each layer and task': (GLUE, {'owners': ('layer_task',), 'placement': 'houlsby'}),
}


def write_expert(folder, backbone, tasks, options):
  """An expert of random values; returns its leaves."""
  method = propetl(options, tiny.CONFIG, 0)
  _, tuned = split_params(tiny.variables_of(T5(tiny.CONFIG, method.plan))['params'], method.tuned)
  library.save_expert(folder, tuned, {}, library.ExpertCard(
      'expert', 'propetl', plan_as_json(method.plan), backbone, 'hash', tasks[0],
      extra={'options': vars(options), 'config': {'stage': 'propetl', 'tasks': list(tasks)}}))
  return flatten(tuned)


@pytest.mark.parametrize('name', PLANS)
def test_an_expert_comes_back_from_the_original_folder(name, backbone, tmp_path):
  tasks, values = PLANS[name]
  options = ProPETLOptions(reduction=2, tasks=len(tasks), **values)
  first = write_expert(tmp_path / 'expert', backbone, tasks, options)
  convert = lambda a, b, source, target: formats.convert(
      a, b, str(tmp_path / source), str(tmp_path / target),
      formats.Options(weights='safetensors'))
  assert convert('expert', 'propetl', 'expert', 'original') == []
  flags = json.loads((tmp_path / 'original' / 'config.json').read_text())
  assert flags['tasks'] == [task.removeprefix('propetl/') for task in tasks]
  assert convert('propetl', 'expert', 'original', 'again') == []
  tuned, _, card = library.load_expert(tmp_path / 'again')
  config = config_of(card)
  assert (config.stage, config.tasks) == ('propetl', tasks)
  densities = {rule['name']: rule['config']['density'] for rule in card.plan}
  found = flatten(tuned)
  if name == 'one task':  # The original's masks belong to the only task.
    found = {path.replace('/layer_task_', '/layer_'): leaf[:, 0] if '/layer_task_' in path else leaf
             for path, leaf in found.items()}
  assert found.keys() == first.keys()
  for path, leaf in found.items():
    axes = score_axes(path, densities)
    expected = first[path] if axes is None else masks.top_mask(first[path], *axes)
    np.testing.assert_array_equal(leaf, expected, err_msg=path)


def test_what_the_original_has_no_form_for_is_refused(backbone, tmp_path):
  write_expert(tmp_path / 'expert', backbone, GLUE, ProPETLOptions(reduction=2, tasks=2))
  with pytest.raises(UserError, match='these options are form adapter with masks of task, layer'):
    formats.convert('expert', 'propetl', str(tmp_path / 'expert'), str(tmp_path / 'original'),
                    formats.Options())
  assert not (tmp_path / 'original').exists()
  library.save_expert(tmp_path / 'other', {'a': np.zeros(2, np.float32)}, {}, library.ExpertCard(
      'other', 'lora', [], backbone, 'hash', 'rte'))
  with pytest.raises(UserError, match="expert 'other' is of method 'lora'; only propetl has a"):
    formats.convert('expert', 'propetl', str(tmp_path / 'other'), str(tmp_path / 'original'),
                    formats.Options())


def test_a_folder_without_tasks_weights_or_backbone_is_refused(tmp_path):
  read = lambda: formats.convert('propetl', 'expert', str(tmp_path), str(tmp_path / 'expert'),
                                 formats.Options())
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(UserError, match='names no tasks; give the config file that the weights'):
    read()
  (tmp_path / 'config.json').write_text('{"tasks": ["rte"]}')
  with pytest.raises(UserError, match='names no backbone'):
    read()
