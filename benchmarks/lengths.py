"""Rows of the lengths of PEMT's six source tasks, with synthetic tokens, and their batches.

`length_mix.json` holds the histogram of the lengths, which `length_mix.py` writes.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np

from benchmarks.options import Options
from pemt_jax.data.packing import RowForm, pack_rows
from pemt_jax.data.pipeline import Stream, StreamConfig
from pemt_jax.data.tokenized import Ragged, TokenizedData

MIX = pathlib.Path(__file__).with_name('length_mix.json')
ROW = 256  # longest input, and the length of a packed row
ROWS = 4096  # texts that are drawn from the histogram
STEPS = 4  # of a measured turn
WINDOW = 32  # steps whose rows are sorted together, and whose shapes are compiled ahead
# How rows make batches, and the rows of a batch: packed ones hold several texts.
FORMS = {'dynamic': 16, 'one': 16, 'buckets': 16, 'packed': 4}


def read_mix() -> np.ndarray:
  """[kind, 3] input length, target length and number of texts, of all tasks together."""
  tasks = json.loads(MIX.read_text(encoding='utf-8'))
  return np.array([kind for kinds in tasks.values() for kind in kinds])


def statistics() -> dict[str, float]:
  """Mean lengths and number of texts."""
  inputs, targets, counts = read_mix().T
  return {'texts': int(counts.sum()), 'input': float(np.average(inputs, weights=counts)),
          'target': float(np.average(targets, weights=counts))}


def rows_of(vocab: int) -> TokenizedData:
  """Texts of random tokens whose lengths are drawn from the histogram; the same at every call."""
  mix, rng = read_mix(), np.random.default_rng(0)
  drawn = mix[rng.choice(len(mix), ROWS, p=mix[:, 2] / mix[:, 2].sum())]
  inputs, targets = (Ragged(rng.integers(2, vocab, size=lengths.sum(), dtype=np.int32), lengths)
                     for lengths in (drawn[:, 0].astype(np.int64), drawn[:, 1].astype(np.int64)))
  return TokenizedData(inputs, targets, np.zeros(ROWS, np.int32), np.arange(ROWS, dtype=np.int32),
                       0, ROW, int(targets.lengths.max()), 'lengths')


def stream(options: Options, vocab: int) -> Stream:
  """Batches of the library's side."""
  rows = rows_of(vocab)
  buckets = {'one': ([ROW], [rows.target_limit]), 'buckets': (None, None)}
  if options.lengths == 'packed':
    rows = pack_rows(rows, RowForm(options.prompt, options.source), 0, 'lengths')
    buckets['packed'] = (None, [rows.form.target_length])
  return Stream(rows, StreamConfig(options.batch, 0, 'lengths', *buckets[options.lengths],
                                   lookahead=WINDOW))
