"""Laws of span corruption of single lines."""

from __future__ import annotations

import numpy as np
import pytest

from pemt_jax.data.buckets import FILLER
from pemt_jax.data.line_corruption import make_line_corruption, make_prefixes
from pemt_jax.data.text import read_documents
from pemt_jax.data.tokenizer import train_word_tokenizer
from pemt_jax.errors import UserError

LINES = ['a b c d e f g h i j', 'k l m n', 'a c e', 'x y', 'b d f h j l n k i g e c a']

STATED = ['a b c\td', 'k l m n', 'x y\tk', 'a b c d e f g h i j', 'a c e\t', 'b d f h j\tc e']
STATED_ROWS = {0: ('a b c', 'd'), 4: ('b d f h j', 'c e')}   # 'x y' is too short


@pytest.fixture(name='tokenizer', scope='module')
def fixture_tokenizer(tmp_path_factory):
  return train_word_tokenizer(LINES, tmp_path_factory.mktemp('words'), sentinels=8)


@pytest.fixture(name='source')
def fixture_source(tokenizer):
  return make_line_corruption(LINES, tokenizer, noise_density=0.3, mean_span=1.5, seed=3)


@pytest.fixture(name='mixed')
def fixture_mixed(tokenizer):
  return make_line_corruption(STATED, tokenizer, noise_density=0.3, mean_span=1.5, seed=3)


def _cut(batch, place):
  """Unpadded inputs and targets of one row, which stand where the masks are one."""
  found = []
  for name in ('inputs', 'targets'):
    mask = batch[f'{name}_mask'][place]
    length = int(mask.sum())
    np.testing.assert_array_equal(mask, np.arange(len(mask)) < length)
    found.append(batch[name][place, :length].tolist())
  return found


def _merged(inputs, targets, sentinels):
  """Puts the hidden runs of a target back in place of the sentinels of an input."""
  runs, current = {}, None
  for token in targets:
    if token in sentinels:
      current = runs.setdefault(int(token), [])
    else:
      current.append(int(token))
  return [t for token in inputs for t in (runs[int(token)] if token in sentinels else [int(token)])]


def test_inputs_and_targets_together_are_the_line(source, tokenizer):
  rows = np.array([0, 1, FILLER, 3, 2])
  for epoch in range(3):
    batch = source.assemble(rows, epoch, (source.input_limit, source.target_limit))
    for place, row in enumerate(rows):
      length = [int(batch[f'{name}_mask'][place].sum()) for name in ('inputs', 'targets')]
      if row == FILLER:
        assert length == [0, 0] and batch['example_ids'][place] == FILLER
        continue
      inputs, targets = batch['inputs'][place, :length[0]], batch['targets'][place, :length[1]]
      assert inputs[-1] == targets[-1] == tokenizer.eos_id
      merged = _merged(inputs[:-1], targets[:-1], set(source.sentinels.tolist()))
      assert merged == source.texts.row(row).tolist()
      assert length == [source.input_lengths[row], source.target_lengths[row]]


def test_first_token_is_kept_any_other_may_be_hidden(source):
  shape = (source.input_limit, source.target_limit)
  line, hidden = source.texts.row(0), set()
  for epoch in range(40):
    inputs = source.assemble(np.array([0]), epoch, shape)['inputs'][0].tolist()
    assert inputs[0] == line[0]
    hidden |= set(line.tolist()) - set(inputs)
  assert hidden == set(line.tolist()[1:])


def test_split_keeps_numbers_so_that_the_noise_of_a_line_stays(source):
  _, held_out = source.split(2)
  shape = (source.input_limit, source.target_limit)
  alone, together = held_out.assemble(np.array([1]), 0, shape), source.assemble(
      np.array([3]), 0, shape)
  np.testing.assert_array_equal(alone['inputs'], together['inputs'])


def test_text_without_a_long_line_is_an_error(tokenizer):
  with pytest.raises(UserError) as error:
    make_line_corruption(['x y'], tokenizer)
  assert str(error.value) == 'no line of the text has three tokens; give a longer text.'


def test_what_follows_a_tab_is_the_target(mixed, tokenizer):
  assert len(mixed) == 5
  for epoch in range(3):
    rows = np.array([2, FILLER, 0, 1, 3, FILLER, 4])
    batch = mixed.assemble(rows, epoch, (mixed.input_limit, mixed.target_limit))
    np.testing.assert_array_equal(batch['example_ids'], rows)
    sentinels = set(mixed.sentinels.tolist())
    for place, row in enumerate(rows):
      inputs, targets = _cut(batch, place)
      for name, ids in zip(('inputs', 'targets'), (inputs, targets)):
        assert (batch[name][place, len(ids):] == tokenizer.pad_id).all()
      if row == FILLER:
        assert inputs == targets == []
        continue
      assert [len(inputs), len(targets)] == [mixed.input_lengths[row], mixed.target_lengths[row]]
      if row in STATED_ROWS:
        assert [inputs, targets] == tokenizer.encode_batch(list(STATED_ROWS[row]), add_eos=True)
      else:
        merged = _merged(inputs[:-1], targets[:-1], sentinels)
        assert sentinels & set(targets) and merged == mixed.texts.row(row).tolist()


def test_lines_with_and_without_a_tab_do_not_change_each_other(mixed):
  shape = (mixed.input_limit, mixed.target_limit)
  together = mixed.assemble(np.arange(5), 1, shape)
  for row in range(5):
    alone = mixed.assemble(np.array([row]), 1, shape)
    for name, values in alone.items():
      np.testing.assert_array_equal(values[0], together[name][row])


def test_limits_hold_the_longest_text_and_answer(tokenizer):
  source = make_line_corruption(['a b c', 'a b c d e f\tg h i j k l'], tokenizer)
  assert (source.input_limit, source.target_limit) == (7, 7)
  only_stated = make_line_corruption(['a b c\td'], tokenizer)
  assert (only_stated.input_limit, only_stated.target_limit) == (4, 2)


def test_the_answer_of_a_line_that_is_left_out_leaves_too(tokenizer):
  source = make_line_corruption(['x y\tk', 'a b c\td'], tokenizer)
  inputs, targets = _cut(source.assemble(np.array([0]), 0, (4, 2)), 0)
  assert [inputs, targets] == tokenizer.encode_batch(['a b c', 'd'], add_eos=True)
  with pytest.raises(UserError):
    make_line_corruption(['x y\tk l m n'], tokenizer)


def test_split_keeps_texts_with_their_answers(mixed):
  shape = (mixed.input_limit, mixed.target_limit)
  parts = mixed.split(3)
  assert [len(part) for part in parts] == [2, 3]
  found = [part.assemble(np.arange(len(part)), 0, shape) for part in parts]
  whole = mixed.assemble(np.arange(5), 0, shape)
  for name, values in whole.items():
    np.testing.assert_array_equal(np.concatenate([batch[name] for batch in found]), values)


def test_fingerprint_changes_with_texts_and_answers(tokenizer):
  prints = {make_line_corruption(lines, tokenizer).fingerprint for lines in (
      ['a b c\td', 'e f g'], ['a b c\te', 'e f g'], ['a b c', 'e f g'], ['a b d\td', 'e f g'],
      ['a b c', 'e f g\td'])}
  assert len(prints) == 5
  again = make_line_corruption(['a b c\td', 'e f g'], tokenizer)
  assert again.fingerprint in prints


def test_a_text_file_keeps_the_tab(tmp_path, tokenizer):
  (tmp_path / 'a.txt').write_text('a b c\td\n')
  lines = [line for document in read_documents([tmp_path / 'a.txt']) for line in document]
  assert make_line_corruption(lines, tokenizer).answers.lengths.tolist() == [1]


def test_prefixes_and_their_continuations_are_the_text(tokenizer):
  tokens = np.arange(10, 33)
  source = make_prefixes(tokens, tokenizer, prefix=4, continuation=3)
  assert len(source) == 3 and (source.input_limit, source.target_limit) == (5, 4)
  batch = source.assemble(np.array([2, FILLER, 0]), 5, (6, 4))
  for place, start in ((0, 24), (2, 10)):
    inputs, targets = _cut(batch, place)
    assert inputs == [*range(start, start + 4), tokenizer.eos_id]
    assert targets == [*range(start + 4, start + 7), tokenizer.eos_id]
  assert not batch['inputs_mask'][1].any() and batch['example_ids'].tolist() == [2, FILLER, 0]
  training, held_out = source.split(1)
  assert [part.texts.row(0)[0] for part in (training, held_out)] == [10, 24]
  with pytest.raises(UserError, match='has 23 tokens'):
    make_prefixes(tokens, tokenizer, prefix=20, continuation=4)
