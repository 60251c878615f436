"""BART's objective: random spans of a text become one mask each, the target is the whole text.

Example with hidden runs "b c" and "", and with "e f g" (Lewis et al. 2020, section 2.2):
  text     a b c d e f g h
  inputs   bos a mask d mask mask h eos
  targets  bos a b c d e f g h eos
Lengths of hidden runs are Poisson numbers; a run of 0 puts a mask between two ids. The number of
hidden ids is fixed by the length of a text. Sentences may change places before that. What is drawn
is a function of (seed, epoch, example).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from pemt_jax.data.buckets import Batch, FILLER
from pemt_jax.data.keyed_random import keyed_bits, keyed_permutation
from pemt_jax.data.text import chunk_tokens
from pemt_jax.data.text_rows import TextRows, tabbed_ids
from pemt_jax.data.tokenized import Ragged, digest
from pemt_jax.data.tokenizer import Tokenizer
from pemt_jax.errors import UserError

ENDS = ('.', '!', '?')  # tokens behind which a sentence ends


@dataclasses.dataclass(frozen=True)
class Noise:
  """How texts are changed.

  Attributes:
    density: share of ids that are hidden, between 0 and 1.
    mean_span: mean length of a hidden run, above 0.
    permute: put sentences in random order.
  """

  density: float = 0.3
  mean_span: float = 3.0
  permute: bool = False

  def __post_init__(self):
    """Checks the numbers.

    Raises:
      UserError: one is out of range.
    """
    if not 0 < self.density < 1:
      raise UserError(f'noise_density={self.density} is not a share between 0 and 1.')
    if self.mean_span <= 0:
      raise UserError(f'mean_span={self.mean_span} is no mean length; give a number above 0.')

  @functools.cached_property
  def chances(self) -> np.ndarray:
    """Probability that a run has at most 0, 1, 2, ... ids; ends near 1."""
    sizes = np.arange(int(4 * self.mean_span + 30))
    logs = sizes * np.log(self.mean_span) - self.mean_span - np.cumsum(np.log(np.maximum(sizes, 1)))
    return np.cumsum(np.exp(logs))


def span_sizes(bits: np.ndarray, hidden: int, chances: np.ndarray) -> np.ndarray:
  """Lengths of the hidden runs of one text.

  Args:
    bits: [draws] random uint64 numbers.
    hidden: sum of the lengths; the last run is cut to it.
    chances: see `Noise`.

  Returns:
    [spans] lengths that sum to `hidden`, at most `hidden` of them.
  """
  drawn = np.searchsorted(chances, bits / 2.0**64)
  drawn = np.minimum(drawn, hidden)
  before = np.cumsum(drawn) - drawn
  sizes = np.minimum(drawn, hidden - before)[before < hidden]
  sizes[-1] += hidden - sizes.sum()
  empty = np.flatnonzero(sizes == 0)  # An input is not longer than its text.
  return np.delete(sizes, empty[:max(len(sizes) - hidden, 0)])


def infill(text: np.ndarray, sizes: np.ndarray, order: np.ndarray, mask_id: int) -> np.ndarray:
  """Puts one mask in place of each hidden run.

  Args:
    text: [length] ids.
    sizes: [spans] lengths of the runs.
    order: [kept + spans] a permutation; the first `spans` of its places become runs.
    mask_id: stands for a run.

  Returns:
    [kept + spans] ids.
  """
  units = np.ones(len(order), np.int64)  # ids that each piece of the text has: 1, or those of a run
  places = np.sort(order[:len(sizes)])
  units[places] = sizes
  starts = np.minimum(np.cumsum(units) - units, len(text) - 1)
  result = text[starts].copy()
  result[places] = mask_id
  return result


def sentences(text: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
  """Cuts ids behind every id that ends a sentence."""
  cuts = np.flatnonzero(np.isin(text, ends)) + 1
  return [part for part in np.split(text, cuts) if len(part)]


@dataclasses.dataclass(frozen=True)
class TextInfilling(TextRows):
  """Texts that are changed when a batch is made; goes into `Stream` and `eval_batches`.

  Where no target is stated it is the text itself.

  Attributes:
    noise: how texts are changed.
    front: ids in front of inputs and targets.
    ends: ids behind which a sentence ends.
    mask_id: stands for a hidden run.
  """

  noise: Noise
  front: tuple[int, ...]
  ends: tuple[int, ...]
  mask_id: int

  @property
  def chunks(self) -> np.ndarray | None:
    """[row, length] ids where all texts have one length and no answer; else None."""
    lengths = self.texts.lengths
    if np.any(lengths != lengths[:1]) or np.any(self.answers.lengths):
      return None
    return self.texts.tokens.reshape(len(lengths), -1)

  @functools.cached_property
  def input_lengths(self) -> np.ndarray:
    """[row] most ids of an input: those of the text, the front and eos."""
    return self.texts.lengths + len(self.front) + 1

  @functools.cached_property
  def target_lengths(self) -> np.ndarray:
    """[row] ids of each target."""
    answers = self.answers.lengths
    return np.where(answers > 0, answers, self.texts.lengths) + len(self.front) + 1

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hex digest of texts, answers and settings."""
    rest = (self.noise, self.front, self.ends, self.mask_id, self.seed)
    return digest('infilling', *self.contents(), repr(rest))

  def assemble(self, rows: np.ndarray, epoch: int, lengths: tuple[int, int]) -> Batch:
    """Makes a batch; each epoch hides other spans.

    Args:
      rows: [batch] row numbers, -1 for filler rows.
      epoch: counts from 0.
      lengths: (input, target) padded lengths.
    """
    batch = self.empty_batch(rows, lengths)
    for place in np.flatnonzero(rows != FILLER):
      for name, ids in zip(('inputs', 'targets'), self._pair(rows[place], epoch), strict=True):
        ids = np.concatenate([self.front, ids, [self.eos_id]])
        batch[name][place, :len(ids)] = ids
        batch[f'{name}_mask'][place, :len(ids)] = 1.0
    return batch

  def _pair(self, row: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of an input and of its target."""
    text, answer = self.texts.row(row), self.answers.row(row)
    return (text, answer) if len(answer) else (self._noised(text, row, epoch), text)

  def _noised(self, text: np.ndarray, row: int, epoch: int) -> np.ndarray:
    key = (self.seed, epoch, int(self.example_ids[row]))
    if self.noise.permute:
      parts = sentences(text, np.array(self.ends))
      text = np.concatenate([parts[i] for i in keyed_permutation(len(parts), 'sentences', *key)])
    hidden = min(max(round(len(text) * self.noise.density), 1), len(text))
    draws = np.arange(int(4 * hidden / self.noise.mean_span) + 32)
    sizes = span_sizes(keyed_bits('sizes', *key, draws), hidden, self.noise.chances)
    order = keyed_permutation(len(text) - hidden + len(sizes), 'places', *key)
    return infill(text, sizes, order, self.mask_id)

  def split(self, validation: int) -> tuple[TextInfilling, TextInfilling]:
    """Sets the last `validation` texts aside; returns the training and the validation part.

    Raises:
      UserError: if a part would be empty.
    """
    return self.parts(validation, 'texts')


def infilling_of_chunks(tokens: np.ndarray, tokenizer: Tokenizer, input_length: int,
                        noise: Noise, seed: int = 0) -> TextInfilling:
  """Cuts a row of ids into texts of one length.

  Args:
    tokens: [total] ids without special ones, as from `load_token_stream` with `tokenizer.plain()`.
    tokenizer: gives the special ids.
    input_length: greatest length of an input, special ids included.
    noise: how texts are changed.
    seed: of the draws.

  Raises:
    UserError: the text is too short, or the vocabulary has no mask.
  """
  length = input_length - len(tokenizer.front_ids) - 1
  if length < 2:
    raise UserError(f'input_length={input_length} is too short for text infilling; give at least '
                    f'{input_length - length + 2}.')
  return _infilling(chunk_tokens(tokens, length).tolist(), None, tokenizer, noise, seed)


def infilling_of_lines(lines: Sequence[str], tokenizer: Tokenizer, noise: Noise,
                       seed: int = 0) -> TextInfilling:
  """Every line is a text; a line with a tab is left as it is, and what follows is its target.

  Lines of fewer than three ids, targets not counted, are left out.

  Args:
    lines: texts.
    tokenizer: gives ids.
    noise: how texts are changed.
    seed: of the draws.

  Raises:
    UserError: no line is left, or the vocabulary has no mask.
  """
  texts, answers = tabbed_ids(lines, tokenizer.plain().encode_batch)
  return _infilling(texts, answers, tokenizer, noise, seed)


def _infilling(texts, answers, tokenizer, noise, seed):
  answers = answers or [[] for _ in texts]
  return TextInfilling(
      Ragged.from_lists(texts), Ragged.from_lists(answers), np.arange(len(texts), dtype=np.int32),
      tokenizer.eos_id, tokenizer.pad_id, seed, noise, tokenizer.front_ids,
      (tokenizer.eos_id, *tokenizer.known_ids(ENDS)), tokenizer.mask_id)
