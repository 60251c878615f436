"""What a measured program computes; plain values that travel to a child process as JSON."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Options:
  """One program of either side.

  Attributes:
    folder: Hugging Face T5 folder with the weights that both sides load; on an accelerator also a
      published size, whose weights each side draws.
    batch: rows per step and replica.
    source: tokens of each input.
    target: tokens of each target, or new tokens when decoding.
    rank: of the LoRA pairs on the feed-forward's `wo`; alpha equals it.
    dropout: rate of the backbone.
    replicas: sources, beyond six seeds of one, in one program; in the suite `similarity` as many
      targets too.
    scan_layers: loop over layers by scan (False unrolls, None is the config's default); the
      library's side only.
    prompt: rows of a trained task prompt; 0 is none. The library's side only.
    tuned: file for first values of the LoRA pairs: written by the library, read by the peer.
    threads: of PyTorch; the library uses all cores.
    learning_rate: of AdamW.
    stage: of the library's side.
    metric: similarity that is measured; in the suite `moe` 'forward' or 'gradient'.
    experts: of a routed feed-forward.
    form: of its products; '' for a dense one.
    dtype: of activations, products and frozen weights; of all weights of the peer.
    device: of the peer.
    compiled: the peer's model through `torch.compile`.
    remat: what the library's backward pass recomputes, see `config.model.remat`.
    lengths: how rows of real lengths make batches, one of `lengths.FORMS`; '' for equal lengths.
  """

  folder: str
  batch: int = 16
  source: int = 128
  target: int = 8
  rank: int = 64
  dropout: float = 0.0
  replicas: int = 1
  scan_layers: bool | None = None
  prompt: int = 0
  tuned: str = ''
  threads: int = 1
  learning_rate: float = 5e-4
  stage: str = 'pemt/stage1'
  metric: str = ''
  experts: int = 0
  form: str = ''
  dtype: str = 'float32'
  device: str = 'cpu'
  compiled: bool = False
  remat: str = 'none'
  lengths: str = ''


def batch_of(options: Options, vocab: int, step: int) -> dict[str, np.ndarray]:
  """Synthetic tokens without padding; the same for both sides.

  Args:
    options: sizes.
    vocab: ids are drawn from [2, vocab).
    step: number of the batch.

  Returns:
    `inputs` [batch, source] and `targets` [batch, target], int32.
  """
  rng = np.random.default_rng(step)
  shape = lambda length: (options.batch, length)
  return {name: rng.integers(2, vocab, size=shape(length), dtype=np.int32)
          for name, length in (('inputs', options.source), ('targets', options.target))}
