"""Lines and chunks of text that become inputs and targets when a batch is made: what they share."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np

from pemt_jax.data.buckets import Batch, FILLER
from pemt_jax.data.tokenized import Ragged
from pemt_jax.errors import UserError

FEWEST_IDS = 3  # of a line; shorter ones are left out


@dataclasses.dataclass(frozen=True)
class TextRows:
  """Texts of any length, each with a stated target or none.

  A subclass has `input_lengths`, `target_lengths` and the rest of a `BatchSource`.

  Attributes:
    texts: ids without special ones around them.
    answers: ids of the stated targets; a row is empty where the target comes from the text.
    example_ids: [row] int32 number of each text.
    eos_id: ends inputs and targets.
    pad_id: fills padded positions.
    seed: of the draws.
  """

  texts: Ragged
  answers: Ragged
  example_ids: np.ndarray
  eos_id: int
  pad_id: int
  seed: int

  def __len__(self) -> int:
    return len(self.example_ids)

  @property
  def input_limit(self) -> int:
    """Greatest input length."""
    return int(self.input_lengths.max())

  @property
  def target_limit(self) -> int:
    """Greatest target length."""
    return int(self.target_lengths.max())

  def contents(self) -> list[str]:
    """Digests of texts and answers for a fingerprint."""
    return [hashlib.sha256(array.tobytes()).hexdigest() for column in (self.texts, self.answers)
            for array in (column.tokens, column.lengths)]

  def empty_batch(self, rows: np.ndarray, lengths: tuple[int, int]) -> Batch:
    """A batch of these rows that is padding everywhere; see `BatchSource.assemble`."""
    numbers = np.where(rows == FILLER, FILLER, self.example_ids[rows])
    batch = {'task_ids': np.zeros(len(rows), np.int32), 'example_ids': numbers.astype(np.int32)}
    for name, length in zip(('inputs', 'targets'), lengths, strict=True):
      batch[name] = np.full((len(rows), length), self.pad_id, np.int32)
      batch[f'{name}_mask'] = np.zeros((len(rows), length), np.float32)
    return batch

  def parts(self, held_out: int, unit: str) -> tuple[Self, Self]:
    """The part without the last `held_out` texts, and these.

    Raises:
      UserError: if a part would be empty; `unit` says what the texts are.
    """
    cuts = cut_off(len(self), held_out,
                   f'validation={held_out} {unit} cannot be taken from {len(self)}')
    return tuple(self._part(cut) for cut in cuts)

  def _part(self, part: slice) -> Self:
    rows = range(len(self))[part]
    texts, answers = (Ragged.from_lists([column.row(index) for index in rows])
                      for column in (self.texts, self.answers))
    return dataclasses.replace(self, texts=texts, answers=answers,
                               example_ids=self.example_ids[part])


def cut_off(size: int, held_out: int, refusal: str) -> tuple[slice, slice]:
  """Places of the first rows and of the `held_out` last ones.

  Raises:
    UserError: if a part would be empty; it begins with `refusal`.
  """
  if not 0 < held_out < size:
    raise UserError(f'{refusal}; give a number from 1 to {size - 1}.')
  return slice(size - held_out), slice(size - held_out, None)


def tabbed_ids(lines: Sequence[str], encode: Callable[..., list[list[int]]]
               ) -> tuple[list[list[int]], list[list[int]]]:
  """Ids of lines and of what stands behind their tabs, without special ones.

  Args:
    lines: texts; an answer stands behind a tab.
    encode: `encode_batch` of a tokenizer.

  Raises:
    UserError: no line has enough ids, answers not counted.
  """
  parts = [line.partition('\t')[::2] for line in lines]
  encoded = [encode([part[i] for part in parts], add_eos=False) for i in (0, 1)]
  kept = [pair for pair in zip(*encoded, strict=True) if len(pair[0]) >= FEWEST_IDS]
  if not kept:
    raise UserError('no line of the text has three tokens; give a longer text.')
  return [pair[0] for pair in kept], [pair[1] for pair in kept]
