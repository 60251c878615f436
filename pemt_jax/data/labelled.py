"""Rows with class numbers or values for encoders with a head; texts alone or in pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pemt_jax.data.buckets import Batch, FILLER
from pemt_jax.data.tasks_base import Task
from pemt_jax.data.templates import Example
from pemt_jax.data.tokenized import Ragged, cached_arrays, digest
from pemt_jax.data.tokenizer import Tokenizer
from pemt_jax.errors import UserError

SECOND = 'second'  # key of `Example.extra` with the second text of a pair
_FORMAT = 'labelled-1'


@dataclasses.dataclass(frozen=True)
class TextForm:
  """How a backbone wants its texts: start A end [between] B end.

  Attributes:
    start_id: id at the front.
    end_id: id behind every text.
    between: ids in front of the second text (RoBERTa repeats the end).
    types: whether the second text has token type 1 (BERT); otherwise batches have no types.
    max_length: most ids of a row.
  """

  start_id: int
  end_id: int
  between: tuple[int, ...] = ()
  types: bool = False
  max_length: int = 128


def cut_pair(first: int, second: int, room: int) -> tuple[int, int]:
  """Lengths of two texts that fit into `room` ids: the longer one loses its end first.

  Ids are taken one by one, from the second text where both are as long.
  """
  surplus = max(first + second - room, 0)
  alone = min(surplus, abs(first - second))
  if first > second:
    first -= alone
  else:
    second -= alone
  rest = surplus - alone
  return max(first - rest // 2, 0), max(second - (rest + 1) // 2, 0)


def encode_texts(firsts: Sequence[str], seconds: Sequence[str | None], tokenizer: Tokenizer,
                 form: TextForm) -> tuple[list[list[int]], list[int]]:
  """Ids of texts or pairs, special ids included.

  Args:
    firsts: texts.
    seconds: second texts; None where there is one text only.
    tokenizer: gives the ids.
    form: special ids and the limit.

  Returns:
    Ids of each row, and the number of ids in front of its second text (all, where there is none).

  Raises:
    UserError: the limit leaves no room for a text.
  """
  pairs = [second is not None for second in seconds]
  specials = 3 + len(form.between) if any(pairs) else 2
  if form.max_length <= specials:
    raise UserError(f'max_source_length={form.max_length} leaves no room beside {specials} special'
                    ' ids; give more.')
  def plain(texts):
    rows = tokenizer.encode_batch(list(texts), add_eos=False)
    return [row[1:] if row and row[0] == form.start_id else row for row in rows]

  rows, fronts = [], []
  found = iter(plain([second for second in seconds if second is not None]))
  for first, pair in zip(plain(firsts), pairs, strict=True):
    second = next(found) if pair else []
    room = form.max_length - (3 + len(form.between) if pair else 2)
    one, two = cut_pair(len(first), len(second), room)
    row = [form.start_id, *first[:one], form.end_id]
    front = len(row) + len(form.between)
    if pair:
      row += [*form.between, *second[:two], form.end_id]
    rows.append(row)
    fronts.append(front if pair else len(row))
  return rows, fronts


def label_of(example: Example, task: Task) -> float:
  """Number of an example's label word, or its target as a value where a task has no label words.

  Raises:
    UserError: the target is neither.
  """
  if task.label_words:
    if example.target in task.label_words:
      return task.label_words.index(example.target)
    raise UserError(f"task '{task.name}' has a row with target '{example.target}', which is none of"
                    f" its labels ({', '.join(task.label_words)}); choose a template that gives"
                    ' one label per row.')
  try:
    return float(example.target)
  except ValueError:
    raise UserError(f"task '{task.name}' has no label words, and '{example.target}' is no number;"
                    ' an encoder with a head needs one or the other.') from None


@dataclasses.dataclass(frozen=True)
class LabelledData:
  """A `BatchSource` whose batches have `labels` in place of targets.

  Attributes:
    inputs: ids of the texts, special ids included.
    fronts: [row] ids in front of the second text.
    labels: [row] float32 class numbers or values.
    types: whether batches have `token_types`.
    pad_id: fills padded positions.
    input_limit: greatest length of an input.
    fingerprint: hex digest of texts, labels, tokenizer and form.
  """

  inputs: Ragged
  fronts: np.ndarray
  labels: np.ndarray
  types: bool
  pad_id: int
  input_limit: int
  fingerprint: str
  target_limit: int = 1

  def __len__(self) -> int:
    return len(self.labels)

  @property
  def input_lengths(self) -> np.ndarray:
    """[row] ids per input."""
    return self.inputs.lengths

  @property
  def target_lengths(self) -> np.ndarray:
    """[row] ones: a label is one number."""
    return np.ones(len(self), np.int64)

  def assemble(self, rows: np.ndarray, epoch: int, lengths: tuple[int, int]) -> Batch:
    """Makes a batch; see `data.tokenized.TokenizedData.assemble`."""
    del epoch
    inputs, mask = self.inputs.padded(rows, lengths[0], self.pad_id)
    filler = rows == FILLER
    batch = {'inputs': inputs, 'inputs_mask': mask,
             'labels': np.where(filler, 0, self.labels[rows]).astype(np.float32),
             'task_ids': np.zeros(len(rows), np.int32),
             'example_ids': np.where(filler, FILLER, rows).astype(np.int32)}
    if self.types:
      second = np.arange(lengths[0]) >= self.fronts[rows][:, None]
      batch['token_types'] = (second & (mask > 0)).astype(np.int32)
    return batch


def label_examples(examples: Sequence[Example], task: Task | None, tokenizer: Tokenizer,
                   form: TextForm, cache_dir: str | Path | None = None) -> LabelledData:
  """Tokenizes examples and numbers their labels, or reads the ids of an earlier call.

  Args:
    examples: `source` is the first text, `extra['second']` the second one of a pair.
    task: names the labels; None where there are none, which gives zeros.
    tokenizer: gives the ids.
    form: special ids and the limit.
    cache_dir: folder of cache files; None does without.

  Raises:
    UserError: a target that is no label, or no room for texts.
  """
  labels = np.array([label_of(example, task) if task else 0.0 for example in examples], np.float32)
  firsts = [example.source for example in examples]
  seconds = [example.extra.get(SECOND) for example in examples]
  shown = [f'={second}' if second is not None else '' for second in seconds]
  key = digest(_FORMAT, tokenizer.fingerprint, repr(form), str(len(firsts)), *firsts, *shown)

  def build():
    rows, fronts = encode_texts(firsts, seconds, tokenizer, form)
    ids = Ragged.from_lists(rows)
    return {'inputs': ids.tokens, 'input_lengths': ids.lengths,
            'fronts': np.array(fronts, np.int64)}

  arrays = cached_arrays(cache_dir, key, build, lambda found: len(found['fronts']) == len(firsts))
  return LabelledData(
      Ragged(arrays['inputs'], arrays['input_lengths']), arrays['fronts'], labels, form.types,
      tokenizer.pad_id, form.max_length, digest(key, labels.tobytes().hex()))
