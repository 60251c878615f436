"""Decoding as each task wants it, and scores of several tasks, with predictions made up."""

from __future__ import annotations

import types

import numpy as np
import pytest

from pemt_jax.data.tasks import get_task
from pemt_jax.evaluation.postprocess import AVERAGE
from pemt_jax.models.decoding import GenerationConfig
from pemt_jax.stages.config import base_config
from pemt_jax.stages.decoding import TaskPredict, task_options
from pemt_jax.stages.evaluate import Evaluator
from pemt_jax.stages.rows import ReplicaSpec, RowStore

WORDS = {'propetl/mrpc': ('1', '0', '1', 'x'), 'propetl/qnli': ('1', '1', '0'),
         'propetl/xsum': ('a b', 'c')}
SOURCES = {
    'propetl/mrpc': [{'sentence1': 'a', 'sentence2': 'b', 'label': i} for i in (1, 1, 1, 0)],
    'propetl/qnli': [{'question': 'a', 'sentence': 'b', 'label': 1} for _ in range(3)],
    'propetl/xsum': [{'document': 'a', 'summary': text} for text in ('a b', 'd')]}


class Letters:
  """A tokenizer of characters; 1 ends a text and 0 fills it."""

  pad_id = 0

  def encode_batch(self, texts, max_length=None):
    """Code points and the end mark."""
    return [[*map(ord, text)][:max_length and max_length - 1] + [1] for text in texts]

  def decode_batch(self, rows):
    """Leaves ids below 2 out."""
    return [''.join(chr(i) for i in row if i > 1) for row in rows]


class Rows(RowStore):
  """Rows of `SOURCES` in one batch a task."""

  def __init__(self):
    super().__init__(Letters(), '')

  def examples(self, spec, split):
    """All rows of the task."""
    task = get_task(spec.task)
    made = [example for row in SOURCES[spec.task] for example in task.template(row)]
    return types.SimpleNamespace(task=task, examples=made)

  def tokens(self, spec, split):
    """Targets of at most two tokens."""
    rows = self.tokenizer.encode_batch([e.target for e in self.examples(spec, split).examples], 2)
    return types.SimpleNamespace(targets=types.SimpleNamespace(row=rows.__getitem__))

  def eval_batches(self, spec, split):
    """One batch of each task."""
    if spec.parts:
      return super().eval_batches(spec, split)
    ids = np.arange(len(SOURCES[spec.task]), dtype=np.int32)
    text = np.zeros((len(ids), 1), np.int32)
    return [{'inputs': text, 'inputs_mask': text, 'targets': text, 'targets_mask': text,
             'task_ids': np.zeros_like(ids), 'example_ids': ids}]


def spec_of(task, name='', parts=(), **mixture):
  config = base_config('lora')
  config.mixture.update(mixture)
  return ReplicaSpec(name or task, task, 0, None, None, config, tuple(parts))


def evaluator_of(*specs):
  """An evaluator whose predictions are `WORDS`, and the tasks and replicas it was asked for."""
  asked, made = [], {}

  def predict_of(task):
    def predict(tuned, frozen, constants, batch):
      asked.append((task, tuned['number'].tolist()))
      out = np.zeros(batch['example_ids'].shape + (5,), np.int32)
      for replica, ids in enumerate(batch['example_ids']):
        for place in np.flatnonzero(ids >= 0):
          row, = Letters().encode_batch([WORDS[task][ids[place]]])
          out[replica, place, 1:1 + len(row)] = row
      zeros = np.zeros(len(out))
      return out, {'total': zeros, 'weight': zeros + 1, 'extra': zeros}
    return made.setdefault(task, predict)

  return Evaluator(predict_of, Rows(), {spec.name: spec for spec in specs}), asked


def evaluate(evaluator, *specs):
  tuned = {'number': np.arange(len(specs))}
  return evaluator(tuned, {}, {}, specs, 'test')


def test_tasks_state_lengths_and_beams():
  options, letters = GenerationConfig(max_length=20, length_penalty=0.6), Letters()
  found = task_options('propetl/xsum', options, letters)
  assert (found.max_length, found.num_beams, found.length_penalty) == (64, 6, 0.6)
  assert task_options('propetl/mlqa_de', options, letters).num_beams == 1
  assert task_options('propetl/rte', options, letters).max_length == 2
  assert task_options('propetl/stsb', options, letters).max_length == len('0.2') + 1
  assert task_options('rte', options, letters).max_length == len('not_entailment') + 1
  assert task_options('squad', options, letters) == options


def test_tasks_with_the_same_options_share_a_program():
  config, made = base_config('lora'), []
  make = lambda options: made.append(options) or object()
  shared = TaskPredict(config, GenerationConfig(), Letters(), make)
  assert shared('propetl/xsum') is shared('propetl/rte') is shared.default
  config.generation.by_task = True
  own = TaskPredict(config, GenerationConfig(), Letters(), make)
  assert own('propetl/rte') is own('propetl/cola') is not own('propetl/xsum')
  assert len(made) == 4 and own('squad') is own.default


def test_labels_are_predicted_where_a_task_has_some():
  config = base_config('lora')
  config.generation.labels_only = True
  predict = TaskPredict(config, GenerationConfig(num_beams=2), Letters(), lambda options: options)
  found = predict('rte')
  assert found.labels == tuple(
      (*map(ord, word), 1) for word in ('entailment', 'not_entailment'))
  assert found.max_length == len('not_entailment') + 2 and found is predict('rte')
  assert predict('squad') is predict.default


def test_replicas_of_one_program_are_decoded_by_their_tasks():
  specs = [spec_of(task) for task in WORDS]
  evaluator, asked = evaluator_of(*specs)
  results = evaluate(evaluator, *specs)
  assert asked == [(task, [number]) for number, task in enumerate(WORDS)]
  assert results[0] == {'f1': pytest.approx(200 / 3), 'accuracy': 50.0,
                        AVERAGE: pytest.approx(175 / 3), 'loss': 0.0, 'cross_entropy_nats': 0.0}
  assert results[1]['accuracy'] == pytest.approx(200 / 3)
  assert results[2]['rouge1'] == 50.0 and results[2]['generated_tokens'] == pytest.approx(3.0)
  assert [evaluator.latest[task, 'test'][0] for task in WORDS] == list(map(list, WORDS.values()))


def test_lengths_enter_the_average_as_published():
  spec = spec_of('propetl/xsum')
  evaluator, _ = evaluator_of(spec)
  found, = evaluate(evaluator, spec)
  assert found[AVERAGE] == pytest.approx((50 + 50 + 50 + 50) / 4)
  spec.config.generation.compat_length_in_average = True
  found, = evaluate(evaluator, spec)
  assert found[AVERAGE] == pytest.approx((4 * 50 + 3.0) / 5) and found['generated_tokens'] == 3.0


@pytest.mark.parametrize('average, weights', [('tasks', (1, 1)), ('values', (2, 1))])
def test_a_mixture_averages_tasks_or_values(average, weights):
  parts = [spec_of(task) for task in list(WORDS)[:2]]
  spec = spec_of(parts[0].task, 'mixture', parts, sampling='equal', average=average)
  evaluator, asked = evaluator_of(spec)
  found, = evaluate(evaluator, spec)
  assert [task for task, _ in asked] == list(WORDS)[:2]
  expected = np.average([175 / 3, 200 / 3], weights=weights)
  assert found[AVERAGE] == pytest.approx(expected)
  assert found['propetl/mrpc/f1'] == pytest.approx(200 / 3)


def test_targets_are_whole_unless_the_published_ones_are_asked_for():
  spec = spec_of('propetl/xsum')
  assert [example.target for example in Rows().references(spec, 'test')] == ['a b', 'd']
  spec.config.data.compat_truncated_targets = True
  assert [example.target for example in Rows().references(spec, 'test')] == ['a', 'd']
