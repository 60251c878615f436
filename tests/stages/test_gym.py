"""Tasks of the few-shot gym through a whole stage: pre-built rows, several answers, Adafactor."""

from __future__ import annotations

import json

import pytest

from pemt_jax.data import gym_files
from pemt_jax.data.answers import DrawnAnswers, draw_answers
from pemt_jax.data.tokenizer import load_tokenizer
from pemt_jax.stages.rows import RowStore, replica_specs
from pemt_jax.stages.run import run_stage
from tests.stages import small

TASKS = ('crossfit/web_questions', 'crossfit/mc_taco')
ANSWERS = (['red', 'blue sky'], ['blue sky'], ['red'], ['green', 'red', 'blue sky'])


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  """Two tasks with folders of their own; the second has fewer rows than the limit."""
  root = tmp_path_factory.mktemp('gym')
  for title, size, kinds in (('web_questions', 12, ANSWERS), ('mc_taco', 3, (['yes'], ['no']))):
    (root / title).mkdir()
    for part in ('train', 'dev', 'test'):
      gym_files.write_lines(root / title / f'{title}_{part}.tsv', [
          (f'word {i}', kinds[i % len(kinds)]) for i in range(size)])
  names = ' '.join(f'[{title}]' for title in ('web_questions', 'mc_taco'))
  backbone = small.write_backbone(
      root / 'backbone', [f'{names} word red blue sky green yes no', *map(str, range(12))])
  return small.config_of(
      'adapter', backbone, TASKS, data__source='crossfit', data__root=str(root),
      data__max_validation_rows=5, train__optimizer='adafactor', train__schedule='constant',
      train__clip_norm=0.1, train__ties_improve=True, train__patience=10)


def test_a_stage_trains_and_scores_gym_tasks(config, tmp_path):
  result = run_stage(config, tmp_path)
  assert set(result.experts) == {'crossfit-web_questions', 'crossfit-mc_taco'}
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  values = {line['replica']: line for line in lines if 'validation/average_metrics' in line}
  assert 'validation/em' in values['crossfit-web_questions']
  assert 'validation/accuracy' in values['crossfit-mc_taco']


def test_rows_are_limited_task_by_task_and_training_draws_answers(config, tmp_path):
  store = RowStore(load_tokenizer(config.model.name), tmp_path)
  questions, pairs = replica_specs(config)
  sizes = [len(store.examples(spec, 'validation').examples) for spec in (questions, pairs)]
  assert sizes == [5, 3]
  rows = [draw_answers(store.tokens(spec, 'train'), store.examples(spec, 'train').examples,
                       store.tokenizer, spec.seed) for spec in (questions, pairs)]
  assert [isinstance(each, DrawnAnswers) for each in rows] == [True, False]
  stream, seen = store.stream(questions), set()
  for _ in range(12):
    batch = next(stream)
    texts = store.tokenizer.decode_batch(batch['targets'] * batch['targets_mask'].astype(int))
    seen |= {text for text, row in zip(texts, batch['example_ids']) if row % 4 == 0 and row >= 0}
  assert seen == {'red', 'blue sky'}
