"""Stage 1: replicas of one program are the runs that each would be alone; first values."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.experts import tree_files
from pemt_jax.stages import prompts
from pemt_jax.stages.run import run_stage
from pemt_jax.trees import flatten
from tests.stages import small

ADAPTER = {'method__expert': 'adapter'}
NO_PROMPT = {'method__prompt': False}


def alone(config, task):
  """The same config for one of its tasks, without evaluation."""
  config.tasks = (task,)
  config.train.eval_every, config.train.final_split = 'never', ''
  return config


def test_a_replica_is_the_run_of_its_task_alone(stage1, backbone, workdir):
  names = [name.replace('/', '-') for name in small.SOURCES]
  assert [stage1.trained.results[name]['step'] for name in names] == [3, 2]
  result = run_stage(alone(small.stage1_config(backbone), small.SOURCES[0]), workdir)
  small.assert_same_leaves(small.leaves_of(stage1.experts[names[0]]),
                           small.leaves_of(result.experts[names[0]]))


@pytest.mark.slow
@pytest.mark.parametrize('changes', [{}, ADAPTER | NO_PROMPT], ids=['lora', 'adapter-no-prompt'])
def test_together_one_by_one_and_alone_are_the_same(backbone, workdir, changes):
  config = small.stage1_config(backbone, **changes)
  together = run_stage(config, workdir / 'together')
  config.together = 'none'
  one_by_one = run_stage(config, workdir / 'one_by_one')
  for task in small.SOURCES:
    name = task.replace('/', '-')
    lonely = run_stage(alone(small.stage1_config(backbone, **changes), task), workdir / name)
    reference = small.leaves_of(lonely.experts[name])
    for result in (together, one_by_one):
      small.assert_same_leaves(small.leaves_of(result.experts[name]), reference)
    values = [result.trained.results[name]['final_metrics'] for result in (together, one_by_one)]
    assert values[0] == pytest.approx(values[1], rel=1e-4)
  first, second = (tree_files.read_json(workdir / each / 'config.json')
                   for each in ('together', 'one_by_one'))
  assert {**first, 'together': 'none'} == second


@pytest.mark.slow
def test_replicas_of_a_task_may_share_a_program(backbone, workdir):
  config = small.stage1_config(backbone)
  config.seeds = (0, 1)
  together = run_stage(config, workdir / 'together')
  config.together = 'task'
  by_task = run_stage(config, workdir / 'by_task')
  for name in together.experts:
    small.assert_same_leaves(*(small.leaves_of(result.experts[name])
                               for result in (together, by_task)))
  folders = {folder.name: folder for folder in (workdir / 'by_task' / 'replicas').iterdir()}
  assert set(folders) == {task.replace('/', '-') for task in small.SOURCES}
  for task, folder in folders.items():
    lines = map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
    assert {line['replica'] for line in lines} == {f'{task}-seed0', f'{task}-seed1'}


@pytest.mark.slow
@pytest.mark.parametrize('field, value, tolerance', [
    ('scan_layers', False, 2e-4), ('remat', 'full', 2e-4), ('dtype', 'bfloat16', 5e-2),
    ('frozen_dtype', 'bfloat16', 5e-2)])
def test_ways_to_compute_give_the_same_losses(stage1, backbone, workdir, field, value, tolerance):
  config = small.stage1_config(backbone, **{f'model__{field}': value})
  config.train.eval_every, config.train.final_split = 'never', ''
  run_stage(config, workdir)
  expected = losses(stage1.trained.workdir)
  assert len(expected) == 3 + 2
  assert losses(workdir) == pytest.approx(expected, rel=tolerance)


def losses(workdir):
  """{(replica, step): loss} of a run."""
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return {(line['replica'], line['step']): line['train/loss'] for line in lines
          if 'train/loss' in line}


@pytest.mark.slow
def test_beams_decode_the_replicas_of_a_program(backbone, workdir):
  result = run_stage(small.stage1_config(backbone, generation__num_beams=2), workdir)
  assert len(result.experts) == 2 and list((workdir / 'predictions').iterdir())


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['pemt/stage1', 'adapter', 'prompt', 'full'])
def test_a_batch_of_one_row(backbone, workdir, stage):
  config = small.config_of(stage, backbone, steps=1, data__batch_size=1, data__eval_batch_size=1,
                           data__max_validation_rows=2, data__max_test_rows=1)
  result = run_stage(config, workdir)
  for values in result.trained.results.values():
    assert np.isfinite(values['final_metrics']['loss'])


def test_every_source_learns(stage1):
  for index, name in enumerate(stage1.experts):
    start = flatten(stage1.stage.start(stage1.trained.replicas[index])[0])
    tuned = flatten(jax.tree.map(lambda leaf, i=index: leaf[i], stage1.trained.tuned))
    unchanged = [path for path in start if np.array_equal(start[path], tuned[path])]
    assert not unchanged, (name, unchanged)


def test_prompts_start_as_rows_of_the_vocabulary_behind_their_padding(stage1):
  stage = stage1.stage
  for replica in stage1.trained.replicas:
    tuned, constants = stage.start(replica)
    table, mask = (tree['encoder']['embed']['prompt'][name]
                   for tree, name in ((tuned, 'table'), (constants, 'mask')))
    ids = prompts.description_ids(stage.config, stage.specs[replica.name].task,
                                  stage.backbone.tokenizer)
    np.testing.assert_array_equal(
        prompts.trim(table, mask), stage.backbone.params['shared']['embedding'][ids])
    assert not table[:len(table) - len(ids)].any()
  assert {len(leaves['encoder/embed/prompt/table'])
          for leaves in map(small.leaves_of, stage1.experts.values())} == {9, 5}


EMBEDDING = np.random.default_rng(0).normal(3.0, 2.0, size=(40, 64)).astype(np.float32)
IDS = [5, 9, 5, *range(10, 40)]


def test_normal_prompts_have_equal_rows_for_equal_ids():
  table = prompts.initial_prompt('normal', IDS, EMBEDDING, jax.random.key(0))
  np.testing.assert_array_equal(table[0], table[2])
  assert not np.array_equal(table[0], table[1])
  assert abs(float(table.mean())) < 0.1 and abs(float(table.std()) - 1) < 0.1
  other = prompts.initial_prompt('normal', IDS, EMBEDDING, jax.random.key(1))
  assert not np.array_equal(table[0], other[0])


@pytest.mark.parametrize('mode, bound', [('uniform', 0.5), ('scaled_uniform', 64**-0.5)])
def test_uniform_prompts_lie_within_their_bound(mode, bound):
  table = prompts.initial_prompt(mode, IDS, EMBEDDING, jax.random.key(0))
  assert -1 <= table.min() / bound < -0.96 and 0.96 < table.max() / bound <= 1
  assert not np.array_equal(table[0], table[2])


def test_vocabulary_prompts_are_float32_rows():
  table = prompts.initial_prompt('vocab', IDS, EMBEDDING.astype(np.float16), jax.random.key(0))
  assert table.dtype == np.float32
  np.testing.assert_array_equal(table, EMBEDDING.astype(np.float16).astype(np.float32)[IDS])


def test_prompt_length_repeats_or_cuts_the_description(stage1):
  stage, task = stage1.stage, small.SOURCES[0]
  ids = prompts.description_ids(stage.config, task, stage.backbone.tokenizer)
  for length in (3, 12):
    config = small.stage1_config(stage.backbone.name, prompt__length=length)
    found = prompts.description_ids(config, task, stage.backbone.tokenizer)
    assert found == (ids * 3)[:length]


def test_an_unknown_start_is_an_error():
  with pytest.raises(UserError) as error:
    prompts.initial_prompt('zeros', IDS, EMBEDDING, jax.random.key(0))
  assert str(error.value) == ("prompt.init is 'zeros'; choose one of vocab, sample, normal,"
                              ' uniform, scaled_uniform.')
