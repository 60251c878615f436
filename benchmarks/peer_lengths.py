"""The peer's side of the suite `lengths`: each batch is padded to its longest text."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks import lengths
from benchmarks.options import Options
from benchmarks.peer import TrainStep
from benchmarks.timing import timed

_IGNORED = -100  # label of padding


class Steps(TrainStep):
  """Updates whose values are numbers of tokens."""

  def __init__(self, options: Options):
    self._rows = None
    super().__init__(options)

  def _batch(self) -> dict[str, torch.Tensor]:
    if self._rows is None:
      self._rows = lengths.rows_of(self._model.config.vocab_size)
      self._order = np.random.default_rng(1).permutation(len(self._rows))
    size = self._options.batch
    rows = np.take(self._order, np.arange(self._step * size, (self._step + 1) * size), mode='wrap')
    longest = [int(own[rows].max())
               for own in (self._rows.input_lengths, self._rows.target_lengths)]
    batch = self._rows.assemble(rows, 0, tuple(longest))
    self._tokens = int(batch['inputs_mask'].sum() + batch['targets_mask'].sum())
    labels = np.where(batch['targets_mask'] > 0, batch['targets'], _IGNORED)
    arrays = {'input_ids': batch['inputs'], 'attention_mask': batch['inputs_mask'],
              'labels': labels}
    return {name: torch.from_numpy(array).long() for name, array in arrays.items()}

  def run(self, count: int = 1) -> dict[str, list[Any]]:
    """Makes updates; the values are numbers of tokens, see `timing.timed`."""
    def update():
      self._update().item()
      return self._tokens

    return timed(update, count)
