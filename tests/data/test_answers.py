"""Laws of drawn answers: every answer is met, a draw depends on its row alone, buckets hold all."""

from __future__ import annotations

import numpy as np
import pytest

from pemt_jax.data import pipeline
from pemt_jax.data.answers import DrawnAnswers, draw_answers
from pemt_jax.data.templates import Example
from pemt_jax.data.tokenizer import train_word_tokenizer

TARGETS = (('a',), ('b', 'c c', 'd'), ('e e e', 'f'))


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
  tokenizer = train_word_tokenizer(['x a b c d e f'], tmp_path_factory.mktemp('words'))
  examples = [Example(f'x {targets[0]}', targets[0], {'targets': targets}) for targets in TARGETS]
  data = pipeline.tokenize_examples(examples, tokenizer, max_target_length=8)
  return tokenizer, examples, data


def _texts(tokenizer, batch):
  found = tokenizer.decode_batch(batch['targets'] * batch['targets_mask'].astype(int))
  return dict(zip(batch['example_ids'].tolist(), found))


def test_every_answer_is_drawn_and_only_those_of_the_row(rows):
  tokenizer, examples, data = rows
  drawn = draw_answers(data, examples, tokenizer, seed=3)
  seen = [set() for _ in TARGETS]
  for epoch in range(40):
    batch = drawn.assemble(np.array([0, 1, 2, -1]), epoch, (8, 8))
    for row, text in _texts(tokenizer, batch).items():
      if row >= 0:
        seen[row].add(text)
    assert not batch['targets_mask'][3].any() and batch['example_ids'][3] == -1
  assert seen == [set(targets) for targets in TARGETS]


def test_a_draw_depends_on_seed_epoch_and_row_alone(rows):
  tokenizer, examples, data = rows
  first, other = (draw_answers(data, examples, tokenizer, seed=seed) for seed in (3, 4))
  together = first.drawn(np.array([2, 1, 0]), 5)
  alone = [int(first.drawn(np.array([row]), 5)[0]) for row in (2, 1, 0)]
  assert together.tolist() == alone
  everything = lambda source: [source.drawn(np.arange(3), epoch).tolist() for epoch in range(20)]
  assert everything(first) != everything(other) and first.fingerprint != other.fingerprint


def test_lengths_hold_the_longest_answer_and_streams_take_the_rows(rows):
  tokenizer, examples, data = rows
  drawn = draw_answers(data, examples, tokenizer, seed=3)
  assert drawn.target_lengths.tolist() == [2, 3, 4]
  stream = pipeline.Stream(drawn, pipeline.StreamConfig(batch_size=2, target_buckets=[3, 4]))
  batches = [next(stream) for _ in range(4)]
  assert sum((batch['example_ids'] >= 0).sum() for batch in batches) == 6
  stream.close()


def test_rows_with_one_answer_each_stay_as_they_are(rows):
  tokenizer, examples, data = rows
  single = [Example(example.source, example.target) for example in examples]
  assert draw_answers(data, single, tokenizer, seed=3) is data
  assert isinstance(draw_answers(data, examples, tokenizer, seed=3), DrawnAnswers)
