"""Laws of span corruption: nothing is lost, lengths and shares hold, draws are keyed and resume."""

from __future__ import annotations

import gzip
import json
import math

from hypothesis import given, strategies as st
import numpy as np
import pytest

from pemt_jax.data import pipeline
from pemt_jax.data import span_corruption as spans_lib
from pemt_jax.data import text as text_lib
from pemt_jax.data import tokenizer as tokenizer_lib
from pemt_jax.data.keyed_random import keyed_bits
from pemt_jax.errors import UserError

EOS, SENTINELS = 1, 10_000 - np.arange(100)


def merged(inputs, targets):
  """Puts the hidden runs back where their sentinels stand."""
  inputs, targets = inputs.tolist(), targets.tolist()
  assert inputs.pop() == EOS and targets.pop() == EOS
  runs, current = {}, None
  for token in targets:
    if token in SENTINELS:
      current = runs.setdefault(token, [])
    else:
      current.append(token)
  text = [t for token in inputs for t in (runs.pop(token) if token in SENTINELS else [token])]
  assert not runs
  return text


def make_source(chunks=20, input_length=30, seed=0, **settings):
  lengths = spans_lib.lengths_for_input(input_length, **settings)
  tokens = np.arange(100, 100 + chunks * lengths.raw, dtype=np.int32) % 9000 + 2
  return spans_lib.SpanCorruption(
      tokens.reshape(chunks, lengths.raw), np.arange(chunks, dtype=np.int32), lengths,
      SENTINELS[:lengths.spans].astype(np.int32), EOS, 0, seed)


def full_batch(source, epoch=0, rows=None):
  rows = np.arange(len(source)) if rows is None else rows
  return source.assemble(rows, epoch, (source.input_limit, source.target_limit))


def test_published_lengths():
  lengths = spans_lib.lengths_for_input(512)
  assert (lengths.raw, lengths.inputs, lengths.targets) == (568, 512, 114)


@given(st.integers(3, 700), st.floats(0.05, 0.6), st.floats(1, 8))
def test_the_longest_text_is_chosen(input_length, density, mean_span):
  lengths = spans_lib.lengths_for_input(input_length, density, mean_span)
  assert lengths.inputs <= input_length
  assert spans_lib.span_lengths(lengths.raw + 1, density, mean_span).inputs > input_length
  assert abs(lengths.noise - lengths.raw * density) <= 1
  assert 1 <= lengths.spans <= min(lengths.noise, lengths.raw - lengths.noise)


@given(st.integers(3, 90), st.floats(0.05, 0.6), st.floats(1, 5), st.integers(0, 9))
def test_merging_gives_back_the_text(input_length, density, mean_span, epoch):
  source = make_source(6, input_length, noise_density=density, mean_span=mean_span)
  batch = full_batch(source, epoch)
  lengths = source.lengths
  assert batch['inputs'].shape == (6, lengths.inputs)
  assert batch['targets'].shape == (6, lengths.targets)
  for row, text in enumerate(source.chunks):
    inputs, targets = batch['inputs'][row], batch['targets'][row]
    assert merged(inputs, targets) == text.tolist()
    for side in (inputs, targets):  # sentinels come in order, each once
      assert side[np.isin(side, SENTINELS)].tolist() == SENTINELS[:lengths.spans].tolist()
    # runs are apart: no two sentinels touch in the input, none is empty in the target
    assert not (np.isin(inputs[1:], SENTINELS) & np.isin(inputs[:-1], SENTINELS)).any()
    assert not (np.isin(targets[1:-1], SENTINELS) & np.isin(targets[:-2], SENTINELS)).any()


def test_share_of_hidden_tokens_and_mean_run():
  source = make_source(8, 512)
  batch = full_batch(source)
  hidden = (batch['targets'] < SENTINELS.min()) & (batch['targets'] != EOS)
  assert hidden.sum() / source.chunks.size == pytest.approx(0.15, abs=1e-3)
  runs = np.isin(batch['targets'], SENTINELS).sum()
  assert hidden.sum() / runs == pytest.approx(3.0, abs=0.06)


def test_every_cut_is_equally_likely():
  bits = keyed_bits(np.arange(6000)[:, None], np.arange(4)[None])
  parts = spans_lib.random_parts(bits, 3)
  assert (parts.sum(axis=1) == 5).all() and parts.min() >= 1
  found, counts = np.unique(parts, axis=0, return_counts=True)
  assert len(found) == math.comb(4, 2)
  assert np.abs(counts - 1000).max() < 5 * math.sqrt(1000)


def test_kept_and_hidden_runs_are_drawn_apart():
  source = make_source(200, 30, noise_density=0.5)
  assert source.lengths.noise * 2 == source.lengths.raw  # so that equal draws would give equal runs
  batch = full_batch(source)
  kept = (batch['inputs'] == SENTINELS[0]).argmax(axis=1)
  hidden = (batch['targets'] == SENTINELS[1]).argmax(axis=1) - 1
  assert abs(np.corrcoef(kept, hidden)[0, 1]) < 0.25  # 3.5 sigma of 200 independent pairs


def test_draws_depend_on_seed_epoch_and_example_alone():
  source = make_source()
  base = full_batch(source)
  np.testing.assert_array_equal(full_batch(source)['inputs'], base['inputs'])
  rows = np.array([7, 3, -1])
  some = full_batch(source, rows=rows)
  np.testing.assert_array_equal(some['inputs'][:2], base['inputs'][[7, 3]])
  for other in (full_batch(source, epoch=1), full_batch(make_source(seed=1))):
    assert (other['inputs'] != base['inputs']).any(axis=1).mean() > 0.9


def test_filler_rows_are_empty():
  batch = full_batch(make_source(), rows=np.array([2, -1]))
  assert batch['example_ids'].tolist() == [2, -1]
  for name in ('inputs', 'inputs_mask', 'targets', 'targets_mask'):
    assert batch[name][0].all() and not batch[name][1].any()


@given(st.integers(1, 9), st.integers(1, 7), st.integers(0, 30))
def test_streams_cover_and_resume(chunks, batch_size, stop):
  config = pipeline.StreamConfig(batch_size=batch_size, prefetch=0, name='text')
  stream = pipeline.Stream(make_source(chunks), config)
  ids = [next(stream)['example_ids'] for _ in range(stream.steps_per_epoch)]
  assert sorted(i for i in np.concatenate(ids).tolist() if i >= 0) == list(range(chunks))
  for _ in range(stop):
    next(stream)
  again = pipeline.Stream(make_source(chunks), config)
  again.set_state(json.loads(json.dumps(stream.get_state())))
  for _ in range(3):
    left, right = next(stream), next(again)
    for name in left:
      np.testing.assert_array_equal(left[name], right[name])


def test_split_keeps_chunks_apart():
  source = make_source(10)
  train, validation = source.split(3)
  assert train.example_ids.tolist() + validation.example_ids.tolist() == list(range(10))
  [batch] = pipeline.eval_batches(validation, 3, sort=False)
  np.testing.assert_array_equal(batch['inputs'], full_batch(source)['inputs'][7:])
  assert train.fingerprint != validation.fingerprint
  with pytest.raises(UserError, match='validation=10 chunks cannot be taken from 10'):
    source.split(10)


@pytest.fixture(scope='module')
def words(tmp_path_factory):
  texts = [' '.join('abcdefghij')]
  return tokenizer_lib.train_word_tokenizer(texts, tmp_path_factory.mktemp('words'), sentinels=2)


@pytest.fixture
def files(tmp_path):
  (tmp_path / 'b.txt').write_text('a b\nc\n\n\n  d e \n')
  with gzip.open(tmp_path / 'a.txt.gz', 'wt') as out:
    out.write('\nf g\n')
  (tmp_path / 'notes.md').write_text('not text')
  return tmp_path


def test_documents_end_at_blank_lines_and_files(files):
  found = text_lib.find_text_files(files)
  assert [path.name for path in found] == ['a.txt.gz', 'b.txt']
  assert list(text_lib.read_documents(found)) == [['f g'], ['a b', 'c'], ['d e']]
  assert text_lib.find_text_files(str(files / '*.txt')) == [files / 'b.txt']
  assert text_lib.find_text_files([files / 'b.txt', files / 'a.txt.gz']) == found[::-1]


def test_token_stream_is_the_text_and_caches(files, words, tmp_path):
  ids = dict(zip('abcdefg', range(3, 10)), **{'.': words.eos_id})
  for separate, text in ((True, 'fg.abc.de.'), (False, 'fgabcde')):
    for cache in (None, tmp_path / 'cache', tmp_path / 'cache'):
      stream = text_lib.load_token_stream(files, words, separate=separate, cache_dir=cache)
      assert stream.tolist() == [ids[c] for c in text] and stream.dtype == np.int32
  assert len(list((tmp_path / 'cache').iterdir())) == 2
  (files / 'b.txt').write_text('a')
  assert text_lib.load_token_stream(files, words, cache_dir=tmp_path / 'cache')[-2] == ids['a']


def test_chunks_leave_the_rest_out():
  assert text_lib.chunk_tokens(np.arange(7), 3).tolist() == [[0, 1, 2], [3, 4, 5]]
  with pytest.raises(UserError, match='The text has 2 tokens, but one example takes 3'):
    text_lib.chunk_tokens(np.arange(2), 3)


def test_whole_path_from_text(words):
  tokens = text_lib.token_stream([['a b c d e f g h i j'] * 3], words)
  source = spans_lib.make_span_corruption(tokens, words, input_length=9)
  assert source.lengths.inputs == 9 and len(source) == len(tokens) // source.lengths.raw
  batch = next(pipeline.Stream(source, pipeline.StreamConfig(batch_size=2, prefetch=0)))
  assert batch['inputs'].shape == (2, 9)
  assert (batch['targets'][:, 0] == words.sentinel_id(0)).all()
  with pytest.raises(UserError, match="has no sentinel '<extra_id_2>'"):
    spans_lib.make_span_corruption(np.tile(tokens, 9), words, input_length=60)


@pytest.mark.parametrize('settings, sentence', [
    ({'noise_density': 1.0}, 'noise_density=1.0 is not a share between 0 and 1'),
    ({'mean_span': 0.5}, 'mean_span=0.5 is below one token'),
    ({'input_length': 2}, 'input_length=2 is too short for span corruption; give at least 3')])
def test_numbers_out_of_range_end_with_one_sentence(settings, sentence):
  with pytest.raises(UserError, match=sentence):
    spans_lib.lengths_for_input(**{'input_length': 20, **settings})


def test_bad_files_end_with_one_sentence(tmp_path):
  with pytest.raises(UserError, match=r"There is no text file at '/no/\*\.txt'; give a"):
    text_lib.find_text_files('/no/*.txt')
  (tmp_path / 'bad.txt').write_bytes(b'fine\n\xff\xfe\n')
  with pytest.raises(UserError, match=r"Line 2 of .*bad.txt' is not UTF-8 text"):
    list(text_lib.read_documents([tmp_path / 'bad.txt']))
  (tmp_path / 'cut.txt.gz').write_bytes(gzip.compress(b'some words here')[:-6])
  with pytest.raises(UserError, match=r"Cannot read .*cut.txt.gz' after line"):
    list(text_lib.read_documents([tmp_path / 'cut.txt.gz']))
