"""T5 span corruption: random spans of a text become sentinels, the target lists what they hid.

Example with spans "b c" and "e":
  text     a b c d e
  inputs   a <0> d <1> eos
  targets  <0> b c <1> e eos
The number of hidden ids and of spans is fixed by the length, so every row of a batch has the same
shape and nothing is padded. Where the spans lie is drawn for each (seed, epoch, example).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np

from pemt_jax.data.buckets import Batch, FILLER
from pemt_jax.data.keyed_random import keyed_bits
from pemt_jax.data.text import chunk_tokens
from pemt_jax.data.text_rows import cut_off
from pemt_jax.data.tokenized import digest
from pemt_jax.data.tokenizer import Tokenizer
from pemt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class SpanLengths:
  """Numbers of ids of one example.

  Attributes:
    raw: ids of the text.
    noise: ids that are hidden.
    spans: runs of hidden ids.
  """
  raw: int
  noise: int
  spans: int

  @property
  def inputs(self) -> int:
    """Length of the corrupted input: what is kept, one sentinel per span, eos."""
    return self.raw - self.noise + self.spans + 1

  @property
  def targets(self) -> int:
    """Length of the target: what is hidden, one sentinel per span, eos."""
    return self.noise + self.spans + 1


def span_lengths(raw: int, noise_density: float = 0.15, mean_span: float = 3.0) -> SpanLengths:
  """Lengths that follow from a text of `raw` >= 2 ids.

  Args:
    raw: ids of the text.
    noise_density: share of ids that are hidden, between 0 and 1.
    mean_span: mean length of a hidden run, at least 1.

  Raises:
    UserError: if a number is out of range.
  """
  if not 0 < noise_density < 1:
    raise UserError(f'noise_density={noise_density} is not a share between 0 and 1.')
  if mean_span < 1:
    raise UserError(f'mean_span={mean_span} is below one token; give at least 1.')
  if raw < 2:
    raise UserError(f'A text of {raw} tokens cannot be corrupted; at least 2 are needed.')
  noise = min(max(round(raw * noise_density), 1), raw - 1)
  return SpanLengths(raw, noise, max(1, min(round(noise / mean_span), raw - noise)))


def lengths_for_input(
    input_length: int, noise_density: float = 0.15, mean_span: float = 3.0) -> SpanLengths:
  """Lengths of the longest text whose corrupted input has at most `input_length` ids.

  For 512, 0.15 and 3 the text has 568 ids and the target 114.

  Raises:
    UserError: if no text fits or a number is out of range.
  """
  chosen = span_lengths(2, noise_density, mean_span)
  if chosen.inputs > input_length:
    raise UserError(f'input_length={input_length} is too short for span corruption; give at least '
                    f'{chosen.inputs}.')
  while True:
    longer = span_lengths(chosen.raw + 1, noise_density, mean_span)
    if longer.inputs > input_length:
      return chosen
    chosen = longer


def random_parts(bits: np.ndarray, parts: int) -> np.ndarray:
  """Cuts total = places + 1 things into non-empty parts, every way equally likely.

  Args:
    bits: [row, places] random numbers, one for each place between two things.
    parts: number of parts.

  Returns:
    [row, parts] sizes that sum to places + 1.
  """
  rows, places = bits.shape
  cuts = np.sort(np.argsort(bits, axis=1, kind='stable')[:, :parts - 1], axis=1) + 1
  ends = np.full((rows, 1), places + 1)
  return np.diff(np.concatenate([np.zeros((rows, 1), np.int64), cuts, ends], axis=1), axis=1)


def corrupt(
    texts: np.ndarray, kept_parts: np.ndarray, noise_parts: np.ndarray, sentinels: np.ndarray,
    eos_id: int) -> tuple[np.ndarray, np.ndarray]:
  """Replaces spans by sentinels.

  Args:
    texts: [row, raw] ids.
    kept_parts: [row, spans] sizes of the kept runs, with which a text starts; [row, spans + 1]
      if it also ends with one, and its target with one more sentinel.
    noise_parts: [row, spans] sizes of the hidden runs.
    sentinels: one id for each kept run.
    eos_id: ends inputs and targets.

  Returns:
    inputs [row, raw - noise + spans + 1] and targets [row, noise + kept runs + 1], int32.
  """
  rows, spans = noise_parts.shape
  pairs = np.stack([kept_parts[:, :spans], noise_parts], axis=2).reshape(rows, 2 * spans)
  runs = np.concatenate([pairs, kept_parts[:, spans:]], axis=1)
  starts = np.zeros(texts.shape, np.int64)
  np.put_along_axis(starts, np.cumsum(runs, axis=1) - runs, 1, axis=1)
  run = np.cumsum(starts, axis=1) - 1
  hidden, first = run % 2 == 1, starts == 1
  marked = np.where(first, sentinels[run // 2], texts)
  end = np.full((rows, 1), eos_id)
  inputs = np.where(hidden, marked, texts)[~hidden | first].reshape(rows, -1)
  targets = np.where(hidden, texts, marked)[hidden | first].reshape(rows, -1)
  return (np.concatenate([inputs, end], axis=1).astype(np.int32),
          np.concatenate([targets, end], axis=1).astype(np.int32))


@dataclasses.dataclass(frozen=True)
class SpanCorruption:
  """Chunks of text that are corrupted when a batch is made; goes into `Stream`, `eval_batches`.

  Attributes:
    chunks: [row, raw] int32 ids.
    example_ids: [row] int32 number of each chunk in the text.
    lengths: of every row.
    sentinels: [spans] int32 ids.
    eos_id: ends inputs and targets.
    pad_id: fills filler rows.
    seed: of the span draws.
  """
  chunks: np.ndarray
  example_ids: np.ndarray
  lengths: SpanLengths
  sentinels: np.ndarray
  eos_id: int
  pad_id: int
  seed: int

  def __len__(self) -> int:
    return len(self.chunks)

  @property
  def input_limit(self) -> int:
    """Length of every input."""
    return self.lengths.inputs

  @property
  def target_limit(self) -> int:
    """Length of every target."""
    return self.lengths.targets

  @functools.cached_property
  def input_lengths(self) -> np.ndarray:
    """[row] the same length for all rows."""
    return np.full(len(self), self.lengths.inputs)

  @functools.cached_property
  def target_lengths(self) -> np.ndarray:
    """[row] the same length for all rows."""
    return np.full(len(self), self.lengths.targets)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hex digest of texts and settings."""
    content = hashlib.sha256(np.ascontiguousarray(self.chunks).tobytes()).hexdigest()
    return digest(content, repr(self.lengths), str(self.sentinels.tolist()), str(self.seed))

  def assemble(self, rows: np.ndarray, epoch: int, lengths: tuple[int, int]) -> Batch:
    """Makes a batch.

    Args:
      rows: [batch] row numbers, -1 for filler rows.
      epoch: each epoch hides other spans.
      lengths: (input, target) padded lengths.
    """
    real = (rows != FILLER)[:, None]
    key = ('spans', self.seed, epoch, self.example_ids[rows][:, None])
    spans, noise = self.lengths.spans, self.lengths.noise
    kept = self.lengths.raw - noise
    inputs, targets = corrupt(
        self.chunks[rows],
        random_parts(keyed_bits('kept', *key, np.arange(kept - 1)), spans),
        random_parts(keyed_bits('hidden', *key, np.arange(noise - 1)), spans),
        self.sentinels, self.eos_id)
    batch = {'task_ids': np.zeros(len(rows), np.int32),
             'example_ids': np.where(real[:, 0], self.example_ids[rows], FILLER).astype(np.int32)}
    for name, ids, length in (('inputs', inputs, lengths[0]), ('targets', targets, lengths[1])):
      columns = ((0, 0), (0, length - ids.shape[1]))
      ids = np.where(real, ids, np.int32(self.pad_id))
      batch[name] = np.pad(ids, columns, constant_values=self.pad_id)
      batch[f'{name}_mask'] = np.pad(np.broadcast_to(real, ids.shape).astype(np.float32), columns)
    return batch

  def split(self, validation: int) -> tuple[SpanCorruption, SpanCorruption]:
    """Sets the last `validation` chunks aside.

    Returns:
      The training part and the validation part.

    Raises:
      UserError: if a part would be empty.
    """
    cuts = cut_off(len(self), validation,
                   f'validation={validation} chunks cannot be taken from {len(self)}')
    return tuple(dataclasses.replace(self, chunks=self.chunks[part],
                                     example_ids=self.example_ids[part]) for part in cuts)


def make_span_corruption(
    tokens: np.ndarray, tokenizer: Tokenizer, input_length: int = 512, *,
    noise_density: float = 0.15, mean_span: float = 3.0, seed: int = 0) -> SpanCorruption:
  """Cuts a row of ids into chunks to be corrupted.

  Args:
    tokens: [total] ids, as from `load_token_stream`.
    tokenizer: gives sentinels, eos and pad.
    input_length: greatest length of a corrupted input, sentinels and eos included.
    noise_density: share of ids that are hidden.
    mean_span: mean length of a hidden run.
    seed: of the span draws.

  Raises:
    UserError: if a number is out of range, the text is too short, or sentinels are lacking.
  """
  lengths = lengths_for_input(input_length, noise_density, mean_span)
  sentinels = [tokenizer.sentinel_id(i) for i in range(lengths.spans)]
  chunks = chunk_tokens(tokens, lengths.raw)
  return SpanCorruption(chunks, np.arange(len(chunks), dtype=np.int32), lengths,
                        np.array(sentinels, np.int32), tokenizer.eos_id, tokenizer.pad_id, seed)
