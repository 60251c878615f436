"""Tokenized examples: ragged arrays, their cache on disk, and their assembly into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import functools
import hashlib
from pathlib import Path
import tempfile
from typing import Protocol
import zipfile

import numpy as np

from pemt_jax.data.buckets import Batch, FILLER
from pemt_jax.data.tokenizer import Tokenizer
from pemt_jax.errors import UserError
from pemt_jax.sharding import processes

_FORMAT = 'tokens-1'  # Part of every cache key; a new file layout takes a new name.


class HasText(Protocol):
  """An example: input text and target text."""
  source: str
  target: str


@dataclasses.dataclass(frozen=True)
class Ragged:
  """Rows of ids without padding.

  Attributes:
    tokens: [total] int32 ids of all rows, one after the other.
    lengths: [row] int64 ids per row.
  """
  tokens: np.ndarray
  lengths: np.ndarray

  @classmethod
  def from_lists(cls, rows: Sequence[Sequence[int]]) -> Ragged:
    """Packs lists of ids."""
    lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
    tokens = np.fromiter((i for row in rows for i in row), np.int32, int(lengths.sum()))
    return cls(tokens, lengths)

  @functools.cached_property
  def offsets(self) -> np.ndarray:
    """[row] start of each row in `tokens`."""
    return np.cumsum(self.lengths) - self.lengths

  def row(self, index: int) -> np.ndarray:
    """Ids of one row."""
    return self.tokens[self.offsets[index]:self.offsets[index] + self.lengths[index]]

  def padded(self, rows: np.ndarray, length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Gathers rows into a rectangle.

    Args:
      rows: [batch] row numbers; a filler (-1) gives a row of padding.
      length: columns; at least the length of every row.
      pad_id: fills what the rows leave free.

    Returns:
      ids [batch, length] int32 and mask [batch, length] float32.
    """
    lengths = np.where(rows == FILLER, 0, self.lengths[rows])
    columns = np.arange(length)
    mask = columns < lengths[:, None]
    places = np.where(mask, self.offsets[rows][:, None] + columns, 0)
    return np.where(mask, self.tokens[places], np.int32(pad_id)), mask.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class TokenizedData:
  """Tokenized examples of one task, or of several.

  Attributes:
    inputs: ids of the input texts, eos included.
    targets: ids of the target texts, eos included.
    task_ids: [row] int32 number of the task of each row.
    example_ids: [row] int32 number of the example within its task's list.
    pad_id: fills padded positions.
    input_limit: greatest length an input may have; target_limit: the same for targets.
    fingerprint: hex digest of texts, tokenizer and limits.
  """
  inputs: Ragged
  targets: Ragged
  task_ids: np.ndarray
  example_ids: np.ndarray
  pad_id: int
  input_limit: int
  target_limit: int
  fingerprint: str

  def __len__(self) -> int:
    return len(self.example_ids)

  @property
  def input_lengths(self) -> np.ndarray:
    """[row] ids per input."""
    return self.inputs.lengths

  @property
  def target_lengths(self) -> np.ndarray:
    """[row] ids per target."""
    return self.targets.lengths

  def assemble(self, rows: np.ndarray, epoch: int, lengths: tuple[int, int]) -> Batch:
    """Makes a batch.

    Args:
      rows: [batch] row numbers, -1 for filler rows.
      epoch: has no influence; other sources vary with it.
      lengths: (input, target) padded lengths.
    """
    del epoch
    inputs, inputs_mask = self.inputs.padded(rows, lengths[0], self.pad_id)
    targets, targets_mask = self.targets.padded(rows, lengths[1], self.pad_id)
    filler = rows == FILLER
    return {'inputs': inputs, 'inputs_mask': inputs_mask,
            'targets': targets, 'targets_mask': targets_mask,
            'task_ids': np.where(filler, 0, self.task_ids[rows]).astype(np.int32),
            'example_ids': np.where(filler, FILLER, self.example_ids[rows]).astype(np.int32)}


def tokenize_examples(
    examples: Sequence[HasText], tokenizer: Tokenizer, *, max_source_length: int | None = None,
    max_target_length: int | None = None, task_id: int = 0,
    cache_dir: str | Path | None = None) -> TokenizedData:
  """Tokenizes examples in parallel, or reads the result of an earlier call from the cache.

  Args:
    examples: have `source` and `target` texts.
    tokenizer: gives the ids.
    max_source_length: greatest input length, eos included; longer texts lose their end.
    max_target_length: the same for targets.
    task_id: number of the task, given to every row.
    cache_dir: folder of cache files, made if absent; None does without.

  Raises:
    UserError: if a limit leaves no room for eos or the cache folder cannot be written.
  """
  sources = [example.source for example in examples]
  targets = [example.target for example in examples]
  key = digest(_FORMAT, tokenizer.fingerprint, str(max_source_length), str(max_target_length),
               str(len(sources)), *sources, *targets)

  def build() -> dict[str, np.ndarray]:
    inputs = Ragged.from_lists(tokenizer.encode_batch(sources, max_source_length,
                                                      tokenizer.ends_sources))
    outputs = Ragged.from_lists(tokenizer.encode_batch(targets, max_target_length))
    return {'inputs': inputs.tokens, 'input_lengths': inputs.lengths,
            'targets': outputs.tokens, 'target_lengths': outputs.lengths}

  arrays = cached_arrays(cache_dir, key, build, _sound)
  inputs = Ragged(arrays['inputs'], arrays['input_lengths'])
  outputs = Ragged(arrays['targets'], arrays['target_lengths'])
  size = len(sources)
  return TokenizedData(
      inputs, outputs, np.full(size, task_id, np.int32), np.arange(size, dtype=np.int32),
      tokenizer.pad_id, max_source_length or int(inputs.lengths.max(initial=1)),
      max_target_length or int(outputs.lengths.max(initial=1)), key)


def concatenate_data(parts: Sequence[TokenizedData]) -> TokenizedData:
  """Joins the data of several tasks; a row is known by its (task id, example id).

  Raises:
    UserError: if the parts come from tokenizers with other pad ids.
  """
  pads = sorted({part.pad_id for part in parts})
  if len(pads) != 1:
    raise UserError(f'Data with pad ids {pads} cannot be joined; use one tokenizer for all tasks.')

  def join(pick: Callable[[TokenizedData], np.ndarray]) -> np.ndarray:
    return np.concatenate([pick(part) for part in parts])

  ids = [f'{part.fingerprint} {part.task_ids.tolist()[:1]}' for part in parts]
  return TokenizedData(
      Ragged(join(lambda p: p.inputs.tokens), join(lambda p: p.inputs.lengths)),
      Ragged(join(lambda p: p.targets.tokens), join(lambda p: p.targets.lengths)),
      join(lambda p: p.task_ids), join(lambda p: p.example_ids), pads[0],
      max(p.input_limit for p in parts), max(p.target_limit for p in parts), digest(*ids))


def digest(*texts: str) -> str:
  """Hex sha256 of a list of texts; the cuts between them count."""
  total = hashlib.sha256()
  for text in texts:
    data = text.encode('utf-8', 'surrogatepass')
    total.update(len(data).to_bytes(8, 'little'))
    total.update(data)
  return total.hexdigest()


def _sound(arrays: dict[str, np.ndarray]) -> bool:
  """Whether lengths and tokens fit each other."""
  return (len(arrays['input_lengths']) == len(arrays['target_lengths'])
          and arrays['input_lengths'].sum() == len(arrays['inputs'])
          and arrays['target_lengths'].sum() == len(arrays['targets']))


def cached_arrays(
    cache_dir: str | Path | None, key: str, build: Callable[[], dict[str, np.ndarray]],
    sound: Callable[[dict[str, np.ndarray]], bool]) -> dict[str, np.ndarray]:
  """Reads arrays from `<cache_dir>/<key>.npz`; builds and writes them if that fails.

  Of several processes, which must all call this, the first one builds what the others then read.

  Args:
    cache_dir: None always builds.
    key: decides the content.
    build: makes the arrays.
    sound: tells whether arrays read from a file are whole; a damaged file is made anew.

  Raises:
    UserError: if the folder cannot be written.
  """
  if cache_dir is None:
    return build()
  path = Path(cache_dir) / f'{key[:40]}.npz'
  with processes.first_before_others('token cache'):
    return _cached(path, key, build, sound)


def _cached(path, key, build, sound):
  found = _read_arrays(path, key, sound)
  if found is not None:
    return found
  arrays = build()
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix='.part', delete=False) as part:
      np.savez(part, key=np.array(key), **arrays)
    Path(part.name).replace(path)
  except OSError as error:
    raise UserError(f'Cannot write the token cache {str(path)!r} ({error.strerror}); give a cache '
                    'folder with room that is writable.') from error
  return arrays


def _read_arrays(
    path: Path, key: str, sound: Callable[[dict[str, np.ndarray]], bool]
) -> dict[str, np.ndarray] | None:
  if not path.is_file():
    return None
  try:
    with open(path, 'rb') as file, np.load(file, allow_pickle=False) as stored:
      arrays = {name: stored[name] for name in stored.files}
    return arrays if str(arrays.pop('key')) == key and sound(arrays) else None
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return None
