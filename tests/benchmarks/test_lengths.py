"""Batches of the suite `lengths`: real lengths, and how much of them is padding."""

from __future__ import annotations

import itertools

import numpy as np

from benchmarks import lengths
from benchmarks.options import Options
from pemt_jax.data.pipeline import batch_stats

VOCAB = 100


def counts(form, steps=64):
  """Sums of `batch_stats` over the first batches of a form."""
  options = Options('', lengths=form, batch=lengths.FORMS[form], source=lengths.ROW)
  stream = lengths.stream(options, VOCAB)
  found = [batch_stats(batch) for batch in itertools.islice(stream, steps)]
  stream.close()
  return {name: sum(each[name] for each in found) for name in found[0]}


def test_texts_have_the_lengths_of_the_mix():
  rows, mix = lengths.rows_of(VOCAB), lengths.statistics()
  assert mix['texts'] == lengths.read_mix()[:, 2].sum() and rows.input_limit == lengths.ROW
  np.testing.assert_allclose(rows.input_lengths.mean(), mix['input'], rtol=0.05)
  np.testing.assert_allclose(rows.target_lengths.mean(), mix['target'], rtol=0.1)


def test_buckets_pad_less_than_one_length_and_packing_less_than_buckets():
  found = {form: counts(form) for form in lengths.FORMS if form != 'dynamic'}
  share = {form: own['tokens'] / own['positions'] for form, own in found.items()}
  assert share['one'] < 0.3 < 0.6 < share['buckets'] < 0.8 < share['packed']
  texts = [own['examples'] for own in found.values()]
  assert max(texts) < 1.2 * min(texts)
