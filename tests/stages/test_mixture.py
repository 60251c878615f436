"""One replica for several tasks; prompts of source tasks: ATTEMPT and SPoT."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.experts.library import load_expert
from pemt_jax.interop import files, pemt_prompts
from pemt_jax.methods import spot
from pemt_jax.stages.artefacts import open_expert
from pemt_jax.stages.build import build
from pemt_jax.stages.predict import predict_examples
from pemt_jax.stages.prompts import initial_prompt
from pemt_jax.stages.rows import replica_specs
from pemt_jax.stages.run import run_stage
from pemt_jax.trees import flatten, unflatten
from tests.stages import small

TABLE = 'encoder/embed/prompt/table'
ATTEMPT = 'encoder/embed/attempt'
MIXED = {'mixture__sampling': 'equal'}


@pytest.fixture(scope='module')
def prompts(base, backbone):
  """Source prompts of four rows."""
  config = small.config_of('prompt', backbone, prompt__length=4, train__eval_every='never',
                           train__final_split='')
  return run_stage(config, base / 'prompts')


@pytest.fixture(scope='module')
def attempt(base, backbone, prompts):
  """ATTEMPT on a mixture of both tasks."""
  config = small.config_of('attempt', backbone, sources=(str(base / 'prompts'),),
                           method__temperature=5.0, train__eval_every=1, **MIXED)
  return run_stage(config, base / 'attempt')


def test_a_mixture_is_one_replica_that_scores_every_task(attempt, base):
  assert list(attempt.experts) == ['mixture']
  metrics = attempt.trained.results['mixture']['final_metrics']
  averages = [metrics[f'{task}/average_metrics'] for task in small.SOURCES]
  assert metrics['average_metrics'] == pytest.approx(np.mean(averages))
  for task in small.SOURCES:
    assert np.isfinite(metrics[f'{task}/loss'])
    lines = [json.loads(line) for line in
             (base / 'attempt' / 'results' / f'mixture.{task.replace("/", "-")}.jsonl')
             .read_text().splitlines()]
    assert [(line['step'], line['split']) for line in lines] == [
        (1, 'validation'), (2, 'validation'), (attempt.trained.results['mixture']['best_step'],
                                               'test')]
    assert lines[-1]['average_metrics'] == pytest.approx(metrics[f'{task}/average_metrics'])


def test_each_target_has_a_prompt_of_its_own_that_starts_from_the_first_source(attempt, prompts):
  stage = attempt.stage
  sources = flatten(stage.start.frozen)[f'{ATTEMPT}/sources']
  trained = [small.leaves_of(folder)[TABLE] for folder in prompts.experts.values()]
  np.testing.assert_array_equal(sources, np.stack(trained))
  experiment = stage.experiment()
  first = flatten(stage.start(experiment.replicas[0])[0])[f'{ATTEMPT}/table']
  np.testing.assert_array_equal(first, np.stack([trained[0]] * 2))
  best = small.leaves_of(attempt.experts['mixture'])
  assert set(best) == {f'{ATTEMPT}/{name}' for name in (
      'table', 'attention_down/kernel', 'attention_up/kernel')}
  assert np.abs(best[f'{ATTEMPT}/table'][0] - best[f'{ATTEMPT}/table'][1]).max() > 1e-6


def test_an_expert_of_a_mixture_is_opened_and_scores_as_it_did(attempt):
  loaded = open_expert(attempt.experts['mixture'])
  assert loaded.stage.specs['mixture'].tasks == small.SOURCES
  replica = loaded.stage.experiment().replicas[0]
  found = loaded.stage.evaluator(loaded.tuned, loaded.stage.start.frozen, loaded.constants,
                                 (replica,), 'test')[0]
  expected = attempt.trained.results['mixture']['final_metrics']
  assert found == pytest.approx({name: expected[name] for name in found}, rel=1e-4)


def test_rows_of_a_task_use_its_prompt_in_generation(attempt):
  stage = attempt.stage
  batches = stage.store.eval_batches(stage.specs['mixture'], 'test')
  assert {int(ids) for batch in batches for ids in batch['task_ids']} == {0, 1}
  lift = lambda tree: {name: np.asarray(leaf)[None] for name, leaf in tree.items()}
  tuned, constants, _ = load_expert(attempt.experts['mixture'])
  tuned = flatten(tuned) | {f'{ATTEMPT}/table': flatten(tuned)[f'{ATTEMPT}/table'].copy()}
  tuned[f'{ATTEMPT}/table'][1] += 30.0
  tree = unflatten({path: np.asarray(leaf)[None] for path, leaf in tuned.items()})
  losses = []
  for ids in (0, 1):
    batch = lift(batches[0] | {'task_ids': np.full_like(batches[0]['task_ids'], ids)})
    predict = stage.evaluator.predict_of(small.SOURCES[ids])
    losses.append(predict(tree, stage.start.frozen, constants, batch)[1]['total'])
  assert abs(float(losses[0][0]) - float(losses[1][0])) > 1e-3


def test_files_of_the_published_code_are_sources_and_stay_beside_the_run(
    backbone, base, prompts, workdir):
  places = []
  for number, folder in enumerate(prompts.experts.values()):
    place = workdir / f'source{number}' / 'prefix_embeddings.safetensors'
    place.parent.mkdir()
    files.write_tensors(place, {'prefix_shared': small.leaves_of(folder)[TABLE]})
    places.append(place if number else place.parent)
  config = small.config_of('attempt', backbone, (small.TARGET,), steps=1,
                           sources=tuple(map(str, places)), train__eval_every='never')
  result = run_stage(config, workdir / 'run')
  for place in (workdir / 'source0', workdir / 'source1'):
    place.joinpath('prefix_embeddings.safetensors').unlink()
  loaded = open_expert(next(iter(result.experts.values())))
  np.testing.assert_array_equal(flatten(loaded.stage.start.frozen)[f'{ATTEMPT}/sources'],
                                flatten(result.stage.start.frozen)[f'{ATTEMPT}/sources'])


def test_rows_are_predicted_for_the_task_that_is_named(attempt):
  loaded = open_expert(attempt.experts['mixture'])
  stage, spec = attempt.stage, attempt.stage.specs['mixture']
  for number, task in enumerate(small.SOURCES):
    examples = stage.store.examples(spec.parts[number], 'test').examples
    text = (attempt.trained.workdir / 'predictions' / 'mixture.test.jsonl').read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    own = lines[:len(examples)] if number == 0 else lines[-len(examples):]
    texts, scores = predict_examples(loaded, list(examples), task)
    assert texts == [line['prediction'] for line in own]
    assert np.isfinite(scores).all()
  with pytest.raises(UserError, match="was trained on .* and not on 'playground/charm'"):
    predict_examples(loaded, list(examples), small.TARGET)


def test_prompts_of_a_mixture_go_out_as_files_and_come_back(attempt, base, backbone, workdir):
  expert = attempt.experts['mixture']
  assert pemt_prompts.from_expert(expert, workdir / 'files', 'safetensors') == []
  tasks = [task.replace('/', '-') for task in small.SOURCES]
  assert {path.stem for path in (workdir / 'files').iterdir()} == {
      *(f'prefix_embeddings_{task}' for task in tasks), 'attn_W_down', 'attn_W_up'}
  sources = {task: str(workdir / f'{task}.safetensors') for task in tasks}
  for task, folder in zip(tasks, sorted((base / 'attempt' / 'sources').iterdir()), strict=True):
    files.write_tensors(sources[task], {'prefix_shared': small.leaves_of(folder)[TABLE]})
  pemt_prompts.to_expert(workdir / 'files', workdir / 'again', backbone, sources, small.SOURCES)
  loaded = open_expert(workdir / 'again')
  assert loaded.stage.method.plan.rules[0].delta.targets == 2
  found = flatten(loaded.tuned)
  for path, leaf in small.leaves_of(expert).items():
    np.testing.assert_array_equal(found[path][0], leaf)
  np.testing.assert_array_equal(flatten(loaded.stage.start.frozen)[f'{ATTEMPT}/sources'],
                                flatten(attempt.stage.start.frozen)[f'{ATTEMPT}/sources'])


def spot_stage(backbone, workdir, base, **changes):
  changes = {'sources': (str(base / 'prompts'),), 'prompt__init': 'sources'} | changes
  config = small.config_of('prompt', backbone, (small.TARGET,), **changes)
  return build(config, workdir)


def first_table(stage):
  return flatten(stage.start(stage.experiment().replicas[0])[0])[TABLE]


def test_spot_starts_from_source_prompts(backbone, base, prompts, workdir):
  tables = np.stack([small.leaves_of(folder)[TABLE] for folder in prompts.experts.values()])
  target = str(list(prompts.experts.values())[1])
  stage = spot_stage(backbone, workdir, base, prompt__weighting='similarity',
                     prompt__target=target)
  expected = spot.mix(tables, spot.similarity_weights(tables, tables[1]))
  np.testing.assert_allclose(first_table(stage), expected, rtol=1e-5)
  single = spot_stage(backbone, workdir, base, sources=(target,))
  np.testing.assert_array_equal(first_table(single), tables[1])
  random = first_table(spot_stage(backbone, workdir, base, prompt__weighting='random'))
  weights, *_ = np.linalg.lstsq(tables.reshape(2, -1).T, random.ravel(), rcond=None)
  np.testing.assert_allclose(spot.mix(tables, weights), random, atol=1e-4)
  assert np.all((0 <= weights) & (weights <= 1))


@pytest.mark.parametrize('stage, changes, words', [
    ('prompt', {'prompt__init': 'sources', 'sources': ()}, 'there is no source prompt'),
    ('attempt', {'sources': ()}, 'there is no source prompt'),
    ('lora', {'mixture__sampling': 'some'}, "config.mixture.sampling is 'some'"),
    ('lora', {'mixture__sampling': 'temperature', 'mixture__temperature': 0.5},
     'mixture.temperature is 0.5'),
    ('lora', MIXED | {'mixture__batches': 'one'}, "config.mixture.batches is 'one'"),
    ('lora', MIXED | {'mixture__average': 'all'}, "config.mixture.average is 'all'"),
    ('lora', MIXED | {'per_task': {small.SOURCES[0]: {'train': {'learning_rate': 1.0}}}},
     f'per_task.{small.SOURCES[0]} changes train'),
])
def test_mistakes_are_one_sentence(backbone, workdir, stage, changes, words):
  config = small.config_of(stage, backbone, **changes)
  with pytest.raises(UserError) as error:
    build(config, workdir).experiment()
  assert str(error.value).startswith(words)


def test_starts_that_do_not_fit_are_one_sentence(backbone, base, prompts, stage1, workdir):
  for changes, words in (
      ({}, "prompt.weighting is 'copy' and there are 2 source prompts"),
      ({'prompt__weighting': 'similarity'}, "prompt.weighting is 'similarity', which needs"),
      ({'prompt__weighting': 'mean'}, "prompt.weighting is 'mean'")):
    with pytest.raises(UserError) as error:
      spot_stage(backbone, workdir, base, **changes)
    assert str(error.value).startswith(words)
  with pytest.raises(UserError, match='has a prompt of shape'):
    spot_stage(backbone, workdir, base, sources=(str(base / 'stage1'),))


def test_tasks_of_a_mixture_keep_their_own_rows_in_training(backbone, workdir):
  config = small.config_of('lora', backbone, seeds=(1, 2), **MIXED)
  with config.unlocked():
    config.per_task = {small.SOURCES[1]: {'data': {'max_train_rows': 8}}}
  assert [spec.name for spec in replica_specs(config)] == ['mixture-seed1', 'mixture-seed2']
  stage = build(config, workdir)
  spec = stage.specs['mixture-seed1']
  stream = stage.store.stream(spec)
  assert stream.steps_per_epoch == stage.store.steps_per_epoch(spec) == 8
  seen = [pair for _ in range(8) for batch in [next(stream)]
          for pair in zip(batch['task_ids'].tolist(), batch['example_ids'].tolist(), strict=True)]
  stream.close()
  assert len(seen) == 64 and len(set(seen)) == 40
  assert sum(task for task, _ in seen) == 32
  single = {task: dataclasses.replace(part, parts=()) for task, part in
            zip(small.SOURCES, spec.parts, strict=True)}
  data = {task: stage.store.tokens(part, 'train') for task, part in single.items()}
  batch = next(stage.store.stream(spec))
  for row, (task, example) in enumerate(zip(batch['task_ids'], batch['example_ids'], strict=True)):
    text = data[small.SOURCES[task]].inputs.row(example)
    np.testing.assert_array_equal(batch['inputs'][row][:len(text)], text)


@pytest.mark.parametrize('batches, steps', [('single', 8), ('drawn', 5)])
def test_batches_of_a_mixture_may_hold_one_task(backbone, workdir, batches, steps):
  config = small.config_of('lora', backbone, mixture__batches=batches, mixture__seed=0, **MIXED)
  with config.unlocked():
    config.per_task = {small.SOURCES[1]: {'data': {'max_train_rows': 8}}}
  stage = build(config, workdir)
  spec = stage.specs['mixture']
  stream = stage.store.stream(spec)
  assert stream.steps_per_epoch == stage.store.steps_per_epoch(spec) == steps
  tasks = [set(next(stream)['task_ids'].tolist()) for _ in range(3 * steps)]
  stream.close()
  assert all(len(found) == 1 for found in tasks) and set.union(*tasks) == {0, 1}


def test_sampled_rows_are_different_rows_of_the_embedding():
  embedding = np.arange(24, dtype=np.float32).reshape(12, 2)
  rows = np.asarray(initial_prompt('sample', range(8), embedding, jax.random.key(0)))
  assert rows.shape == (8, 2) and len({tuple(row) for row in rows}) == 8
  assert {tuple(row) for row in rows} <= {tuple(row) for row in embedding}


@pytest.mark.slow
def test_a_frozen_random_start_is_the_same_when_an_expert_of_any_seed_is_opened(backbone, workdir):
  config = small.config_of('mixda', backbone, (small.TARGET,), seeds=(1, 2), steps=1,
                           method__down_scale=4, method__hidden=6, method__encoder_layers=None,
                           method__decoder_layers=(0,), train__eval_every='never')
  result = run_stage(config, workdir)
  trained = flatten(result.stage.start.frozen)
  random = [path for path in trained if '/mixda/knowledge_' in path]
  assert any(np.abs(trained[path]).max() > 0 for path in random)
  for folder in result.experts.values():
    found = flatten(open_expert(folder).stage.start.frozen)
    for path in random:
      np.testing.assert_array_equal(found[path], trained[path], err_msg=path)
