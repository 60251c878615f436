"""Laws of text infilling: a mask for each hidden run, the whole text as target."""

from __future__ import annotations

import dataclasses
import fnmatch

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from pemt_jax.data import text_infilling
from pemt_jax.data.buckets import FILLER
from pemt_jax.data.text_infilling import Noise, infill, infilling_of_chunks, infilling_of_lines
from pemt_jax.data.tokenizer import load_tokenizer, train_word_tokenizer
from pemt_jax.errors import UserError

LINES = ['a b c d e f g h i j', 'k l m . n a ! b', 'a c e\td', 'x y', 'b d f h j l n k . i g e c']


@pytest.fixture(name='tokenizer', scope='module')
def fixture_tokenizer(tmp_path_factory):
  return train_word_tokenizer(LINES, tmp_path_factory.mktemp('words'), sentinels=1)


@pytest.fixture(name='chunks', scope='module')
def fixture_chunks(tokenizer):
  tokens = np.random.default_rng(0).integers(3, 20, 4000).astype(np.int32)
  return infilling_of_chunks(tokens, tokenizer, 41, Noise(), seed=1)


def rows_of(batch, place):
  """Unpadded inputs and targets of one row."""
  found = []
  for name in ('inputs', 'targets'):
    mask = batch[f'{name}_mask'][place]
    np.testing.assert_array_equal(mask, np.arange(len(mask)) < mask.sum())
    found.append(batch[name][place, :int(mask.sum())].tolist())
  return found


def fits(inputs, text, mask):
  """Whether runs in place of the masks can make the text of the input."""
  pattern = ''.join('*' if i == mask else chr(1000 + i) for i in inputs)
  return fnmatch.fnmatchcase(''.join(chr(1000 + i) for i in text), pattern)


@settings(max_examples=30, deadline=None)
@given(length=st.integers(2, 60), density=st.floats(0.05, 0.95), mean=st.floats(0.2, 8.0),
       seed=st.integers(0, 1000))
def test_kept_ids_stay_in_order_and_an_input_is_not_longer_than_its_text(length, density, mean,
                                                                         seed):
  rng = np.random.default_rng(seed)
  hidden = max(1, min(round(length * density), length))
  bits = rng.integers(0, 2**64, 4 * length + 64, dtype=np.uint64)
  sizes = text_infilling.span_sizes(bits, hidden, Noise(mean_span=mean).chances)
  assert sizes.sum() == hidden and len(sizes) <= hidden and sizes.min() >= 0
  text = np.arange(1, length + 1)
  result = infill(text, sizes, rng.permutation(length - hidden + len(sizes)), 0)
  kept = result[result != 0]
  assert len(result) <= length and len(kept) == length - hidden and (np.diff(kept) > 0).all()
  # A run between two kept ids hides what lies between them in the text.
  assert fits(result.tolist(), text.tolist(), 0)


def test_the_lengths_of_runs_are_poisson_numbers():
  bits = np.random.default_rng(0).integers(0, 2**64, 20000, dtype=np.uint64)
  noise = Noise(mean_span=3.0)
  sizes = text_infilling.span_sizes(bits, 45000, noise.chances)
  assert abs(sizes.mean() - 3.0) < 0.05 and abs(sizes.var() - 3.0) < 0.15
  assert abs((sizes == 0).mean() - np.exp(-3.0)) < 0.01


def test_batches_hold_the_text_and_are_drawn_for_each_epoch(chunks, tokenizer):
  shape, rows = (chunks.input_limit, chunks.target_limit), np.array([0, FILLER, 2, 5])
  assert shape == (41, 41)
  batches = [chunks.assemble(rows, epoch, shape) for epoch in (0, 0, 1)]
  for name, leaf in batches[0].items():
    np.testing.assert_array_equal(leaf, batches[1][name])
  assert (batches[0]['inputs'] != batches[2]['inputs']).any()
  assert batches[0]['example_ids'].tolist() == [0, -1, 2, 5]
  assert batches[0]['targets_mask'][1].sum() == 0
  for batch in batches:
    for place, row in ((0, 0), (2, 2), (3, 5)):
      inputs, targets = rows_of(batch, place)
      assert targets == chunks.texts.row(row).tolist() + [tokenizer.eos_id]
      assert fits(inputs, targets, tokenizer.mask_id) and inputs[-1] == tokenizer.eos_id
      assert len(inputs) - inputs.count(tokenizer.mask_id) == 41 - 12  # 30 % of 40 are hidden
  # A row does not depend on its neighbours.
  alone = chunks.assemble(np.array([5]), 1, shape)
  np.testing.assert_array_equal(alone['inputs'][0], batches[2]['inputs'][3])


def test_lines_keep_stated_targets_and_sentences_change_places(tokenizer):
  source = infilling_of_lines(LINES, tokenizer, Noise(density=0.01, permute=True))
  words = lambda ids: tokenizer.decode_batch([ids])[0].split()
  assert len(source) == 4  # 'x y' is too short
  orders = set()
  for epoch in range(20):
    batch = source.assemble(np.arange(4), epoch, (source.input_limit, source.target_limit))
    assert [words(ids) for ids in rows_of(batch, 2)] == [['a', 'c', 'e'], ['d']]
    inputs, targets = rows_of(batch, 1)
    assert words(targets) == LINES[1].split() and inputs.count(tokenizer.mask_id) == 1
    orders.add(tuple(i for i in words(inputs) if i in '.!'))
    assert len(words(inputs)) == 7  # one word is hidden
  assert len(orders) > 1
  still = dataclasses.replace(source, noise=Noise(density=0.01))
  inputs, targets = rows_of(still.assemble(np.array([1]), 0, (9, 9)), 0)
  assert fits(inputs, targets, tokenizer.mask_id)
  assert still.fingerprint != source.fingerprint


def test_the_last_texts_are_held_out(chunks):
  training, held_out = chunks.split(3)
  assert len(training) + 3 == len(chunks) and len(held_out) == 3
  whole = chunks.assemble(np.array([len(chunks) - 1]), 0, (41, 41))
  part = held_out.assemble(np.array([2]), 0, (41, 41))
  for name, leaf in whole.items():
    np.testing.assert_array_equal(leaf, part[name])
  with pytest.raises(UserError, match=f'validation={len(chunks)} texts cannot be taken'):
    chunks.split(len(chunks))


@pytest.mark.parametrize('call, sentence', [
    (lambda t: Noise(density=0.0), 'noise_density=0.0 is not a share'),
    (lambda t: Noise(mean_span=0.0), 'mean_span=0.0 is no mean length'),
    (lambda t: infilling_of_chunks(np.arange(9), t, 2, Noise()), 'give at least 3'),
    (lambda t: infilling_of_lines(['x y'], t, Noise()), 'no line of the text has three tokens')])
def test_mistakes_are_told(call, sentence, tokenizer):
  with pytest.raises(UserError, match=sentence):
    call(tokenizer)


def test_the_vocabulary_of_bart_gives_its_special_ids(shared_root):
  tokenizer = load_tokenizer(shared_root / 'data' / 'tokenizers' / 'bart')
  assert (tokenizer.front_ids, tokenizer.mask_id, tokenizer.pad_id, tokenizer.eos_id) == (
      (0,), 50264, 1, 2)
  texts = [' Hello  wörld 😀', 'a\tb\n c', 'Ünïcode – "quotes" …']
  ids = tokenizer.encode_batch(texts)
  assert all(row[0] == 0 and row[-1] == 2 for row in ids)
  assert tokenizer.decode_batch(ids) == [text.strip() for text in texts]
  assert tokenizer.encode_batch(texts, 4)[1] == [*ids[1][:3], 2]
  source = infilling_of_lines(['One sentence. And two!'], tokenizer, Noise())
  inputs, targets = rows_of(source.assemble(np.array([0]), 0, (20, 20)), 0)
  assert inputs[0] == targets[0] == 0 and inputs[-1] == targets[-1] == 2 and 50264 in inputs
  assert tokenizer.decode_batch([targets]) == ['One sentence. And two!']


def test_texts_are_chunks_where_all_have_one_length(chunks, tokenizer):
  found = chunks.chunks
  assert found.shape == (len(chunks), chunks.texts.lengths[0])
  np.testing.assert_array_equal(found[3], chunks.texts.row(3))
  assert infilling_of_lines(LINES, tokenizer, Noise(), seed=1).chunks is None
