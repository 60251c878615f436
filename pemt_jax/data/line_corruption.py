"""Span corruption of single lines: every line of a text is an example of its own length.

Unlike a chunk of running text (`span_corruption`), a line keeps its first token and the end mark,
so that its target ends with one more sentinel.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from pemt_jax.data.buckets import Batch, FILLER
from pemt_jax.data.keyed_random import keyed_bits
from pemt_jax.data.span_corruption import SpanLengths, corrupt, random_parts, span_lengths
from pemt_jax.data.tokenized import Ragged, digest
from pemt_jax.data.tokenizer import Tokenizer
from pemt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class LineCorruption:
  """Lines that are corrupted when a batch is made; goes into `Stream` and `eval_batches`.

  Attributes:
    lines: ids without eos.
    example_ids: [row] int32 number of each line in the text.
    shapes: number of ids of a line -> its `SpanLengths`.
    sentinels: [spans + 1] int32 ids, enough for the longest line.
    eos_id: ends inputs and targets.
    pad_id: fills padded positions.
    seed: of the span draws.
  """

  lines: Ragged
  example_ids: np.ndarray
  shapes: dict[int, SpanLengths]
  sentinels: np.ndarray
  eos_id: int
  pad_id: int
  seed: int

  def __len__(self) -> int:
    return len(self.example_ids)

  @functools.cached_property
  def input_lengths(self) -> np.ndarray:
    """[row] ids per corrupted input."""
    return np.array([self.shapes[int(n)].inputs for n in self.lines.lengths])

  @functools.cached_property
  def target_lengths(self) -> np.ndarray:
    """[row] ids per target, the last sentinel included."""
    return np.array([self.shapes[int(n)].targets + 1 for n in self.lines.lengths])

  @property
  def input_limit(self) -> int:
    """Greatest input length."""
    return int(self.input_lengths.max())

  @property
  def target_limit(self) -> int:
    """Greatest target length."""
    return int(self.target_lengths.max())

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hex digest of lines and settings."""
    return digest(self.lines.tokens.tobytes().hex(), repr(sorted(self.shapes.items())),
                  str(self.seed))

  def assemble(self, rows: np.ndarray, epoch: int, lengths: tuple[int, int]) -> Batch:
    """Makes a batch; each epoch hides other spans.

    Args:
      rows: [batch] row numbers, -1 for filler rows.
      epoch: counts from 0.
      lengths: (input, target) padded lengths.
    """
    filler = rows == FILLER
    batch = {'task_ids': np.zeros(len(rows), np.int32),
             'example_ids': np.where(filler, FILLER, self.example_ids[rows]).astype(np.int32)}
    for name, length in zip(('inputs', 'targets'), lengths, strict=True):
      batch[name] = np.full((len(rows), length), self.pad_id, np.int32)
      batch[f'{name}_mask'] = np.zeros((len(rows), length), np.float32)
    sizes = np.where(filler, 0, self.lines.lengths[rows])
    for size in np.unique(sizes[sizes > 0]):
      places = np.flatnonzero(sizes == size)
      corrupted = self._corrupt(rows[places], int(size), epoch)
      for name, ids in zip(('inputs', 'targets'), corrupted, strict=True):
        batch[name][places, :ids.shape[1]] = ids
        batch[f'{name}_mask'][places, :ids.shape[1]] = 1.0
    return batch

  def _corrupt(self, rows: np.ndarray, size: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of rows that have `size` ids."""
    shape = self.shapes[size]
    texts, _ = self.lines.padded(rows, size, self.pad_id)
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
    if not 0 < validation < len(self):
      raise UserError(f'validation={validation} lines cannot be taken from {len(self)}; give a '
                      f'number from 1 to {len(self) - 1}.')
    cut = len(self) - validation
    return self._part(slice(cut)), self._part(slice(cut, None))

  def _part(self, part: slice) -> LineCorruption:
    rows = range(len(self))[part]
    lines = Ragged.from_lists([self.lines.row(index) for index in rows])
    return dataclasses.replace(self, lines=lines, example_ids=self.example_ids[part])


def make_line_corruption(
    lines: Sequence[str], tokenizer: Tokenizer, *, noise_density: float = 0.15,
    mean_span: float = 3.0, seed: int = 0) -> LineCorruption:
  """Tokenizes lines to be corrupted; lines of fewer than three ids are left out.

  Args:
    lines: texts.
    tokenizer: gives ids and sentinels.
    noise_density: share of ids that are hidden.
    mean_span: mean length of a hidden run.
    seed: of the span draws.

  Raises:
    UserError: if a number is out of range, no line is left, or sentinels are lacking.
  """
  rows = [row for row in tokenizer.encode_batch(lines, add_eos=False) if len(row) > 2]
  if not rows:
    raise UserError('no line of the text has three tokens; give a longer text.')
  shapes = {}
  for size in sorted({len(row) for row in rows}):
    shape = span_lengths(size, noise_density, mean_span)
    spans = min(shape.spans, size - shape.noise)
    shapes[size] = dataclasses.replace(shape, spans=spans)
  most = max(shape.spans for shape in shapes.values()) + 1
  sentinels = np.array([tokenizer.sentinel_id(i) for i in range(most)], np.int32)
  return LineCorruption(Ragged.from_lists(rows), np.arange(len(rows), dtype=np.int32), shapes,
                        sentinels, tokenizer.eos_id, tokenizer.pad_id, seed)
