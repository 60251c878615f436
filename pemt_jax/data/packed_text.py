"""Plain text as rows of equal length for language models."""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np

from pemt_jax.data.buckets import FILLER, Batch
from pemt_jax.data.text_rows import cut_off
from pemt_jax.data.tokenized import digest
from pemt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PackedText:
  """Windows over one stream of ids, each beginning with the last id of the one before.

  So every id but the first of the text is predicted once. It is a `BatchSource` without targets.

  Attributes:
    chunks: [row, length] int32 ids.
    pad_id: fills filler rows.
  """

  chunks: np.ndarray
  pad_id: int
  target_limit: int = 1

  def __len__(self) -> int:
    return len(self.chunks)

  @property
  def input_limit(self) -> int:
    """Length of every row."""
    return self.chunks.shape[1]

  @property
  def input_lengths(self) -> np.ndarray:
    """[row] the same length for all rows."""
    return np.full(len(self), self.input_limit)

  @property
  def target_lengths(self) -> np.ndarray:
    """[row] ones."""
    return np.ones(len(self), np.int64)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hex digest of the ids."""
    return digest(hashlib.sha256(np.ascontiguousarray(self.chunks).tobytes()).hexdigest(),
                  str(self.chunks.shape))

  def assemble(self, rows: np.ndarray, epoch: int, lengths: tuple[int, int]) -> Batch:
    """Makes a batch.

    Args:
      rows: [batch] row numbers, -1 for filler rows.
      epoch: not read.
      lengths: (input, target) padded lengths; only the first is read.
    """
    del epoch
    real = rows != FILLER
    more = ((0, 0), (0, lengths[0] - self.input_limit))
    ids = np.where(real[:, None], self.chunks[rows], np.int32(self.pad_id))
    mask = np.broadcast_to(real[:, None], ids.shape).astype(np.float32)
    return {'inputs': np.pad(ids, more, constant_values=self.pad_id).astype(np.int32),
            'inputs_mask': np.pad(mask, more), 'task_ids': np.zeros(len(rows), np.int32),
            'example_ids': np.where(real, rows, FILLER).astype(np.int32)}

  def split(self, held_out: int) -> tuple[PackedText, PackedText]:
    """Sets the last rows aside.

    Returns:
      The training part and the held-out part.

    Raises:
      UserError: if a part would be empty.
    """
    cuts = cut_off(len(self), held_out,
                   f'data.validation_chunks is {held_out}, which cannot be taken from the'
                   f' {len(self)} chunks of the text')
    return tuple(dataclasses.replace(self, chunks=self.chunks[part]) for part in cuts)


def pack(tokens: np.ndarray, length: int, pad_id: int) -> PackedText:
  """Cuts a stream of ids into rows; ids at the end that do not fill a row are left out.

  Args:
    tokens: [total] ids.
    length: of a row, at least 2.
    pad_id: fills filler rows.

  Raises:
    UserError: rows of fewer than two ids, or fewer ids than one row.
  """
  if length < 2:
    raise UserError(f'data.max_source_length is {length}; a row of text needs at least 2 tokens.')
  count = (len(tokens) - 1) // (length - 1)
  if count < 1:
    raise UserError(f'The text has {len(tokens)} tokens, but one row takes {length}; give more text'
                    ' or lower data.max_source_length.')
  starts = np.arange(count)[:, None] * (length - 1)
  return PackedText(np.asarray(tokens, np.int32)[starts + np.arange(length)], pad_id)
