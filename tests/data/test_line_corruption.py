"""Laws of span corruption of single lines."""

from __future__ import annotations

import numpy as np
import pytest

from pemt_jax.data.buckets import FILLER
from pemt_jax.data.line_corruption import make_line_corruption
from pemt_jax.data.tokenizer import train_word_tokenizer
from pemt_jax.errors import UserError

LINES = ['a b c d e f g h i j', 'k l m n', 'a c e', 'x y', 'b d f h j l n k i g e c a']


@pytest.fixture(name='tokenizer', scope='module')
def fixture_tokenizer(tmp_path_factory):
  return train_word_tokenizer(LINES, tmp_path_factory.mktemp('words'), sentinels=8)


@pytest.fixture(name='source')
def fixture_source(tokenizer):
  return make_line_corruption(LINES, tokenizer, noise_density=0.3, mean_span=1.5, seed=3)


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
      assert merged == source.lines.row(row).tolist()
      assert length == [source.input_lengths[row], source.target_lengths[row]]


def test_first_token_is_kept_any_other_may_be_hidden(source):
  shape = (source.input_limit, source.target_limit)
  line, hidden = source.lines.row(0), set()
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
