"""Training from an expert: values, names of replicas, errors."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.experts.library import load_expert
from pemt_jax.stages.run import run_stage
from pemt_jax.trees import flatten
from tests.stages import small


def config_of(backbone, tasks=small.SOURCES, stage='lora+prompt', **changes):
  config = small.config_of(stage, backbone, tasks=tasks, **changes)
  config.method.lora.rank = 2
  return config


@pytest.fixture(scope='module')
def experts(backbone, tmp_path_factory):
  return run_stage(config_of(backbone), tmp_path_factory.mktemp('first')).experts


@pytest.fixture(scope='module')
def merged(experts, tmp_path_factory):
  """Two folders with an expert `without_<target>` each."""
  folders = []
  for folder in experts.values():
    place = tmp_path_factory.mktemp('merged')
    shutil.copytree(folder, place / f'without_{small.TARGET.replace("/", "-")}')
    folders.append(place)
  return folders


def test_each_start_is_a_replica_that_begins_at_its_values(backbone, experts, workdir):
  starts = tuple(map(str, experts.values()))
  config = config_of(backbone, (small.TARGET,), starts=starts, train__learning_rate=0.0)
  result = run_stage(config, workdir)
  target = small.TARGET.replace('/', '-')
  assert list(result.experts) == [f'{target}-from-{name}' for name in experts]
  for name, folder in experts.items():
    expected = flatten(load_expert(folder)[0])
    found = flatten(load_expert(result.experts[f'{target}-from-{name}'])[0])
    assert set(found) == set(expected)
    for path, leaf in expected.items():
      np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_a_folder_of_merges_gives_the_one_without_the_task(backbone, merged, workdir):
  config = config_of(backbone, (small.TARGET,), starts=(str(merged[1]),), train__learning_rate=0.0)
  folder, = run_stage(config, workdir).experts.values()
  inner, = merged[1].iterdir()
  expected, found = (flatten(load_expert(place)[0]) for place in (inner, folder))
  for path, leaf in expected.items():
    np.testing.assert_array_equal(found[path], leaf, err_msg=path)


@pytest.mark.parametrize('changes, part', [
    (dict(starts=('nowhere',)), "config.starts holds 'nowhere', which is neither an expert"),
    (dict(method__lora__rank=3), 'lora/down'),
    (dict(stage='lora'), 'embed/prompt/table')])
def test_a_start_that_does_not_fit_is_an_error(backbone, merged, workdir, changes, part):
  stage = changes.pop('stage', 'lora+prompt')
  config = small.config_of(stage, backbone, tasks=(small.TARGET,))
  if stage == 'lora+prompt':
    config.method.lora.rank = changes.pop('method__lora__rank', 2)
  else:
    config.method.rank = 2
  config.starts = changes.get('starts', (str(merged[0]),))
  with pytest.raises(UserError, match=part):
    run_stage(config, workdir)
