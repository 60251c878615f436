"""Rows with several accepted answers: training draws one of them for each row and epoch."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
from pathlib import Path

import numpy as np

from pemt_jax.data.buckets import Batch, BatchSource, FILLER
from pemt_jax.data.gym import targets_of
from pemt_jax.data.keyed_random import keyed_bits
from pemt_jax.data.templates import Example
from pemt_jax.data.tokenized import Ragged, TokenizedData, digest, tokenize_examples
from pemt_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class DrawnAnswers:
  """A `BatchSource` whose targets are drawn.

  Attributes:
    data: the rows, with any of their answers as targets.
    answers: ids of all answers, those of row 0 first.
    starts: [row + 1] place of each row's first answer in `answers`.
    seed: of the draws; a draw depends on it, the epoch and the row alone.
  """
  data: TokenizedData
  answers: Ragged
  starts: np.ndarray
  seed: int

  def __len__(self) -> int:
    return len(self.data)

  @property
  def input_lengths(self) -> np.ndarray:
    """[row] ids per input."""
    return self.data.input_lengths

  @functools.cached_property
  def target_lengths(self) -> np.ndarray:
    """[row] ids of the longest answer: buckets must not depend on the draw."""
    return np.maximum.reduceat(self.answers.lengths, self.starts[:-1])

  @property
  def input_limit(self) -> int:
    """Greatest allowed input length."""
    return self.data.input_limit

  @property
  def target_limit(self) -> int:
    """Greatest allowed target length."""
    return self.data.target_limit

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hex digest of rows, answers and seed."""
    parts = (self.answers.tokens, self.answers.lengths, self.starts)
    return digest(self.data.fingerprint, str(self.seed), *(part.tobytes().hex() for part in parts))

  def drawn(self, rows: np.ndarray, epoch: int) -> np.ndarray:
    """Places in `answers` of the targets of rows [batch] in an epoch; -1 stays -1."""
    counts = np.diff(self.starts)[rows].astype(np.uint64)
    draws = keyed_bits('answer', self.seed, epoch, np.maximum(rows, 0)) % counts
    return np.where(rows == FILLER, FILLER, self.starts[rows] + draws.astype(np.int64))

  def assemble(self, rows: np.ndarray, epoch: int, lengths: tuple[int, int]) -> Batch:
    """Makes a batch; see `TokenizedData.assemble`."""
    batch = self.data.assemble(rows, epoch, (lengths[0], self.data.target_limit))
    targets, mask = self.answers.padded(self.drawn(rows, epoch), lengths[1], self.data.pad_id)
    return batch | {'targets': targets, 'targets_mask': mask}


def draw_answers(data: TokenizedData, examples: Sequence[Example], tokenizer: Tokenizer, seed: int,
                 cache_dir: str | Path | None = None) -> BatchSource:
  """Returns rows whose targets are drawn anew in each epoch, where any row has several.

  Args:
    data: tokens of the examples.
    examples: the examples; `extra['targets']` holds what may be drawn.
    tokenizer: that of `data`.
    seed: of the draws.
    cache_dir: see `tokenize_examples`.

  Returns:
    `data` itself if no example has more than one target.
  """
  texts = [targets_of(example) for example in examples]
  counts = [len(each) for each in texts]
  if max(counts, default=1) == 1:
    return data
  flat = [Example('', text) for each in texts for text in each]
  tokens = tokenize_examples(flat, tokenizer, max_source_length=1,
                             max_target_length=data.target_limit, cache_dir=cache_dir)
  return DrawnAnswers(data, tokens.targets, np.cumsum([0, *counts]), seed)
