"""The library's side of the suite `lengths`."""

from __future__ import annotations

import jax

from benchmarks import lengths
from benchmarks.options import Options
from benchmarks.ours import TrainStep
from pemt_jax.training.experiment import Batch, count_tokens


class _Counted:
  """A stream that remembers the tokens of its last batch."""

  def __init__(self, batches):
    self._batches, self.tokens = batches, 0

  def __next__(self) -> Batch:
    batch = next(self._batches)
    self.tokens = count_tokens(batch)
    return batch


class Steps(TrainStep):
  """Updates whose values are numbers of tokens; shapes of a window are compiled before."""

  def __init__(self, options: Options):
    super().__init__(options)
    vocab, (name,) = self._loop.frozen['shared']['embedding'].shape[0], self._loop.streams
    ahead, seen = lengths.stream(options, vocab), set()
    for _ in range(lengths.WINDOW):
      batch = next(ahead)
      shape = batch['inputs'].shape, batch['targets'].shape
      if shape not in seen:
        self._loop.streams[name] = iter([batch])
        self._loop.update()
      seen.add(shape)
    ahead.close()
    self._stream = self._loop.streams[name] = _Counted(lengths.stream(options, vocab))
    jax.block_until_ready(self._loop.state)

  def _update(self) -> float:
    loss = super()._update()
    return self._stream.tokens if hasattr(self, '_stream') else loss
