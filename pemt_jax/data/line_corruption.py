"""Span corruption of single lines: every line of a text is an example of its own length.

Unlike a chunk of running text (`span_corruption`), a line keeps its first token and the end mark,
so that its target ends with one more sentinel. A line with a tab is not corrupted: what follows the
tab is the target, so that text-to-text tasks can join the mixture as in T5 v1.0 (Raffel et al.
2020, section 3.5.3).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from pemt_jax.data.buckets import Batch, FILLER
from pemt_jax.data.keyed_random import keyed_bits
from pemt_jax.data.span_corruption import SpanLengths, corrupt, random_parts, span_lengths
from pemt_jax.data.text import chunk_tokens
from pemt_jax.data.text_rows import TextRows, tabbed_ids
from pemt_jax.data.tokenized import Ragged, digest
from pemt_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class LineCorruption(TextRows):
  """Lines that become inputs and targets when a batch is made.

  Goes into `Stream` and `eval_batches`. Where no target is stated the line is corrupted.

  Attributes:
    shapes: number of ids of a line -> its `SpanLengths`.
    sentinels: [spans + 1] int32 ids, enough for the longest line.
  """

  shapes: dict[int, SpanLengths]
  sentinels: np.ndarray

  @functools.cached_property
  def input_lengths(self) -> np.ndarray:
    """[row] ids per input, eos included."""
    corrupted = np.array([self.shapes[int(n)].inputs for n in self.texts.lengths])
    return np.where(self.answers.lengths > 0, self.texts.lengths + 1, corrupted)

  @functools.cached_property
  def target_lengths(self) -> np.ndarray:
    """[row] ids per target, the last sentinel and eos included."""
    corrupted = np.array([self.shapes[int(n)].targets + 1 for n in self.texts.lengths])
    return np.where(self.answers.lengths > 0, self.answers.lengths + 1, corrupted)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hex digest of lines, answers and settings."""
    return digest(*self.contents(), repr(sorted(self.shapes.items())), str(self.seed))

  def assemble(self, rows: np.ndarray, epoch: int, lengths: tuple[int, int]) -> Batch:
    """Makes a batch; each epoch hides other spans.

    Args:
      rows: [batch] row numbers, -1 for filler rows.
      epoch: counts from 0.
      lengths: (input, target) padded lengths.
    """
    filler = rows == FILLER
    batch = self.empty_batch(rows, lengths)
    stated = ~filler & (self.answers.lengths[rows] > 0)
    for name, column in (('inputs', self.texts), ('targets', self.answers)):
      self._set_rows(batch, name, np.flatnonzero(stated), self._ended(column, rows[stated]))
    sizes = np.where(filler | stated, 0, self.texts.lengths[rows])
    for size in np.unique(sizes[sizes > 0]):
      places = np.flatnonzero(sizes == size)
      corrupted = self._corrupt(rows[places], int(size), epoch)
      for name, ids in zip(('inputs', 'targets'), corrupted, strict=True):
        self._set_rows(batch, name, places, (ids, np.ones(ids.shape, np.float32)))
    return batch

  def _set_rows(self, batch, name, places, filled) -> None:
    """Writes (ids, mask) [row, length] into the rows `places` of a batch."""
    ids, mask = filled
    batch[name][places, :ids.shape[1]] = ids
    batch[f'{name}_mask'][places, :ids.shape[1]] = mask

  def _ended(self, column: Ragged, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Padded ids with eos and their mask."""
    lengths = column.lengths[rows]
    ids, _ = column.padded(rows, int(lengths.max(initial=0)) + 1, self.pad_id)
    ids[np.arange(len(rows)), lengths] = self.eos_id
    return ids, (np.arange(ids.shape[1]) <= lengths[:, None]).astype(np.float32)

  def _corrupt(self, rows: np.ndarray, size: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of rows that have `size` ids."""
    shape = self.shapes[size]
    texts, _ = self.texts.padded(rows, size, self.pad_id)
    texts = np.pad(texts, ((0, 0), (0, 1)), constant_values=self.eos_id)
    key = ('spans', self.seed, epoch, self.example_ids[rows][:, None])
    kept = random_parts(keyed_bits('kept', *key, np.arange(size - shape.noise)), shape.spans + 1)
    hidden = random_parts(keyed_bits('hidden', *key, np.arange(shape.noise - 1)), shape.spans)
    inputs, targets = corrupt(texts, kept, hidden, self.sentinels[:shape.spans + 1], self.eos_id)
    return inputs[:, :-1], targets

  def split(self, validation: int) -> tuple[LineCorruption, LineCorruption]:
    """Sets the last `validation` lines aside; returns the training and the validation part.

    Raises:
      UserError: if a part would be empty.
    """
    return self.parts(validation, 'lines')


def make_prefixes(tokens: np.ndarray, tokenizer: Tokenizer, prefix: int,
                  continuation: int) -> LineCorruption:
  """Cuts a row of ids into chunks whose beginning is the input and whose end the target.

  The prefix language model of Raffel et al. (2020, section 3.2.1), to which Lester et al. (2021)
  adapt T5 before they freeze it: after span corruption alone the first token of a target is a
  sentinel whatever the input says.

  Args:
    tokens: [total] ids, as from `load_token_stream`.
    tokenizer: gives eos and pad.
    prefix: ids of an input, eos not counted.
    continuation: ids of a target, eos not counted.

  Raises:
    UserError: if the text is too short.
  """
  chunks = chunk_tokens(tokens, prefix + continuation)
  column = lambda part: Ragged(np.ascontiguousarray(part, np.int32).reshape(-1),
                               np.full(len(part), part.shape[1]))
  return LineCorruption(
      column(chunks[:, :prefix]), column(chunks[:, prefix:]),
      np.arange(len(chunks), dtype=np.int32), tokenizer.eos_id, tokenizer.pad_id, 0,
      {prefix: span_lengths(prefix)}, np.zeros(0, np.int32))


def make_line_corruption(
    lines: Sequence[str], tokenizer: Tokenizer, *, noise_density: float = 0.15,
    mean_span: float = 3.0, seed: int = 0) -> LineCorruption:
  """Tokenizes lines to be corrupted, or to be mapped to what follows their tab.

  Lines of fewer than three ids, answers not counted, are left out.

  Args:
    lines: texts; an answer stands behind a tab.
    tokenizer: gives ids and sentinels.
    noise_density: share of ids that are hidden.
    mean_span: mean length of a hidden run.
    seed: of the span draws.

  Raises:
    UserError: if a number is out of range, no line is left, or sentinels are lacking.
  """
  rows, answers = tabbed_ids(lines, tokenizer.encode_batch)
  shapes = {}
  for size in sorted({len(row) for row in rows}):
    shape = span_lengths(size, noise_density, mean_span)
    spans = min(shape.spans, size - shape.noise)
    shapes[size] = dataclasses.replace(shape, spans=spans)
  most = max(shape.spans for shape in shapes.values()) + 1
  sentinels = np.array([tokenizer.sentinel_id(i) for i in range(most)], np.int32)
  return LineCorruption(
      Ragged.from_lists(rows), Ragged.from_lists(answers), np.arange(len(rows), dtype=np.int32),
      tokenizer.eos_id, tokenizer.pad_id, seed, shapes, sentinels)
