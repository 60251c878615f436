"""Laws of the data pipeline: coverage, exact resume, independence, padding, cache."""

from __future__ import annotations

import json
from types import SimpleNamespace

from hypothesis import given, strategies as st
import numpy as np
import pytest

from pemt_jax.data import buckets as buckets_lib
from pemt_jax.data import keyed_random
from pemt_jax.data import pipeline
from pemt_jax.data import tokenized
from pemt_jax.data import tokenizer as tokenizer_lib
from pemt_jax.errors import UserError


def make_data(lengths, target_lengths=None, task_id=0, limit=None):
  """Rows whose ids are all distinct, so that a wrong gather shows."""
  lengths = np.asarray(lengths, np.int64)
  target_lengths = lengths % 3 + 1 if target_lengths is None else np.asarray(target_lengths)
  size, total = len(lengths), int(lengths.sum())
  inputs = pipeline.Ragged(np.arange(10, 10 + total, dtype=np.int32), lengths)
  targets = pipeline.Ragged(
      np.arange(10**6, 10**6 + target_lengths.sum(), dtype=np.int32), target_lengths)
  return pipeline.TokenizedData(
      inputs, targets, np.full(size, task_id, np.int32), np.arange(size, dtype=np.int32), 0,
      limit or int(lengths.max()), int(target_lengths.max()),
      tokenized.digest(str(lengths), str(target_lengths)))


def make_stream(data, **settings):
  return pipeline.Stream(data, pipeline.StreamConfig(**{'prefetch': 0, **settings}))


def take(stream, count):
  return [next(stream) for _ in range(count)]


def assert_same(left, right):
  assert len(left) == len(right)
  for a, b in zip(left, right):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])


settings_of_streams = st.fixed_dictionaries({
    'seed': st.integers(0, 3), 'lookahead': st.integers(1, 7), 'shuffle': st.booleans(),
    'buckets': st.sampled_from([None, 4, (3, 9), (100,)])})
data_of_any_length = st.lists(st.integers(1, 40), min_size=1, max_size=50).map(make_data)


@given(data_of_any_length, st.integers(1, 12), settings_of_streams)
def test_each_epoch_covers_each_example_once(data, rows, settings):
  stream = make_stream(data, batch_size=rows, **settings)
  for _ in range(2):
    batches = take(stream, stream.steps_per_epoch)
    assert len(batches) == -(-len(data) // rows)
    ids = np.concatenate([b['example_ids'] for b in batches])
    assert sorted(ids[ids >= 0].tolist()) == list(range(len(data)))
    before_last = np.concatenate([b['example_ids'] for b in batches[:-1]] or [np.zeros(1)])
    assert before_last.min() >= 0  # fillers complete the last batch alone


@given(data_of_any_length, st.integers(1, 5), st.integers(1, 4), settings_of_streams)
def test_parts_of_batches_make_up_the_whole_ones(data, rows, processes, settings):
  whole = make_stream(data, batch_size=rows, **settings)
  expected, size = take(whole, 3), -(-rows // processes)
  streams = [make_stream(data, batch_size=rows, **settings) for _ in range(processes)]
  for number, stream in enumerate(streams):
    next(stream)
    stream.keep(np.arange(number * size, (number + 1) * size))
    assert stream.get_state()['position']['next_index'] == 1
  for batch in expected[1:]:
    parts = [next(stream) for stream in streams]
    for name, array in batch.items():
      joined = np.concatenate([part[name] for part in parts])
      np.testing.assert_array_equal(joined[:rows], array)
    assert all(part['inputs'].shape == (size, *batch['inputs'].shape[1:]) for part in parts)
    assert (np.concatenate([part['example_ids'] for part in parts])[rows:] == -1).all()
  assert {str(stream.get_state()) for stream in streams} == {str(whole.get_state())}
  streams[0].keep(None)
  assert_same(take(streams[0], 1), take(whole, 1))


@given(data_of_any_length, st.integers(1, 6), settings_of_streams)
def test_remainder_can_be_dropped(data, batch_size, settings):
  if len(data) < batch_size:
    with pytest.raises(UserError, match='drop_remainder leaves no batch'):
      make_stream(data, batch_size=batch_size, drop_remainder=True, **settings)
    return
  stream = make_stream(data, batch_size=batch_size, drop_remainder=True, **settings)
  ids = np.concatenate([b['example_ids'] for b in take(stream, stream.steps_per_epoch)])
  assert len(set(ids.tolist())) == len(ids) == len(data) // batch_size * batch_size
  assert ids.min() >= 0


@given(data_of_any_length, st.integers(1, 5), settings_of_streams, st.data())
def test_resume_continues_exactly(data, batch_size, settings, draw):
  stream = make_stream(data, batch_size=batch_size, **settings)
  stop = draw.draw(st.integers(0, 3 * stream.steps_per_epoch))
  take(stream, stop)
  state = json.loads(json.dumps(stream.get_state()))
  assert (stream.step, stream.epoch) == (stop, stop // stream.steps_per_epoch)
  again = make_stream(data, batch_size=batch_size, **settings)
  again.set_state(state)
  assert_same(take(stream, 4), take(again, 4))
  assert again.get_state() == stream.get_state()


def test_prefetch_changes_neither_batches_nor_state():
  data = make_data(np.arange(1, 60))
  plain, ahead = (make_stream(data, batch_size=4, prefetch=n) for n in (0, 3))
  for _ in range(20):
    assert_same(take(plain, 1), take(ahead, 1))
    assert plain.get_state() == ahead.get_state()
  ahead.set_state(plain.get_state())  # drops what was made ahead
  assert_same(take(plain, 2), take(ahead, 2))
  ahead.close()


@given(data_of_any_length, st.integers(1, 6), settings_of_streams)
def test_rows_are_whole_and_padding_stays_in_the_bucket(data, batch_size, settings):
  stream = make_stream(data, batch_size=batch_size, target_buckets=2, **settings)
  allowed = buckets_lib.length_buckets(data.input_limit, settings['buckets'])
  for batch in take(stream, stream.steps_per_epoch):
    real = batch['example_ids'][batch['example_ids'] >= 0]
    longest = data.input_lengths[real].max()
    assert batch['inputs'].shape == (batch_size, min(b for b in allowed if b >= longest))
    assert batch['targets'].shape[1] - data.target_lengths[real].max() <= 1
    assert batch['inputs'].dtype == np.int32 and batch['inputs_mask'].dtype == np.float32
    for row, example in enumerate(batch['example_ids']):
      for field, ragged in (('inputs', data.inputs), ('targets', data.targets)):
        kept = batch[field][row][batch[f'{field}_mask'][row] == 1]
        expected = ragged.row(example) if example >= 0 else np.zeros(0)
        np.testing.assert_array_equal(kept, expected)
        assert not batch[field][row][len(expected):].any()


def test_replicas_see_the_same_data_together_and_alone():
  sizes = {'mnli': 40, 'cb': 9, 'rte': 23}
  data = {name: make_data(np.arange(1, n + 1)) for name, n in sizes.items()}
  streams = {name: make_stream(data[name], batch_size=4, name=name) for name in sizes}
  together = [{name: next(stream) for name, stream in streams.items()} for _ in range(25)]
  for name in sizes:
    alone = make_stream(data[name], batch_size=4, name=name)
    assert_same([step[name] for step in together], take(alone, 25))


def test_shuffle_depends_on_seed_name_and_epoch():
  data = make_data(np.full(64, 5))
  def order(epochs=1, **settings):
    stream = make_stream(data, batch_size=64, **settings)
    return take(stream, epochs)[-1]['example_ids'].tolist()
  variants = [order(), order(seed=1), order(name='other'), order(epochs=2)]
  assert len({tuple(v) for v in variants}) == 4
  assert order() == variants[0]
  assert order(shuffle=False) == list(range(64))


def test_lookahead_saves_padding():
  data = make_data(keyed_random.keyed_permutation(256, 'lengths') + 1)
  def filled(lookahead):
    stream = make_stream(data, batch_size=8, lookahead=lookahead)
    stats = [pipeline.batch_stats(b) for b in take(stream, stream.steps_per_epoch)]
    return sum(s['tokens'] for s in stats) / sum(s['positions'] for s in stats)
  assert filled(1) < 0.55  # a random batch of 8 nearly always holds a row above 128
  assert filled(32) > 0.68  # lengths uniform in a power-of-two bucket fill 3/4 of it


def test_streams_that_step_together_meet_like_lengths():
  streams = [make_stream(make_data(keyed_random.keyed_permutation(256 + 40 * i, i) % 256 + 1),
                         batch_size=8, name=str(i)) for i in range(4)]
  lengths = np.array([[next(s)['inputs'].shape[1] for s in streams] for _ in range(32 * 6)])
  # 40, 45, 50 or 55 steps per epoch: windows of the streams end at different steps.
  assert (lengths.max(axis=1) / lengths.mean(axis=1)).mean() < 1.35
  shuffled = np.stack([keyed_random.keyed_permutation(len(lengths), i) for i in range(4)], axis=1)
  independent = np.take_along_axis(lengths, shuffled, axis=0)
  assert independent.max(axis=1).sum() > 1.2 * lengths.max(axis=1).sum()


def test_state_of_other_data_is_refused():
  data, other = make_data([1, 2, 3]), make_data([1, 2, 4])
  state = make_stream(data, batch_size=2, name='rte').get_state()
  for stream in (make_stream(other, batch_size=2, name='rte'), make_stream(data, batch_size=3)):
    with pytest.raises(UserError, match=r"data position of stream .* belongs to other examples"):
      stream.set_state(state)


@pytest.mark.parametrize('settings, sentence', [
    ({'batch_size': 0}, 'batch_size=0 is not a number of examples; give at least 1.'),
    ({'batch_size': 4, 'lookahead': 0}, 'lookahead=0 is not a number of steps'),
    ({'batch_size': 4, 'buckets': 0}, 'buckets=0 is not a length'),
    ({'batch_size': 4, 'buckets': (0, 8)}, 'lengths start at 1')])
def test_impossible_settings_end_with_one_sentence(settings, sentence):
  with pytest.raises(UserError, match=sentence):
    make_stream(make_data([1, 2, 3, 4]), **settings)


def test_no_rows_is_an_error():
  with pytest.raises(UserError, match='There is no example to make batches from'):
    list(pipeline.eval_batches(make_data([1]).__class__(
        pipeline.Ragged.from_lists([]), pipeline.Ragged.from_lists([]), np.zeros(0, np.int32),
        np.zeros(0, np.int32), 0, 4, 4, ''), 2))


@given(data_of_any_length, st.integers(1, 12), st.booleans())
def test_evaluation_covers_each_example_once_in_a_fixed_order(data, rows, sort):
  ids = lambda: np.concatenate([batch['example_ids'] for batch in pipeline.eval_batches(
      data, rows, sort=sort)]).tolist()
  found = ids()
  assert found == ids()
  real = found[:len(data)]
  assert set(found[len(data):]) <= {-1} and sorted(real) == list(range(len(data)))
  if sort:
    assert (np.diff(data.input_lengths[real]) <= 0).all()
  else:
    assert real == list(range(len(data)))


def test_stacked_batches_keep_every_replica():
  left = next(make_stream(make_data([3, 3]), batch_size=2))
  right = next(make_stream(make_data([9, 2, 5], [7, 1, 1]), batch_size=3))
  stacked = pipeline.stack_batches([left, right])
  assert stacked['inputs'].shape == (2, 3, 9) and stacked['targets_mask'].shape == (2, 3, 7)
  assert stacked['example_ids'][0, 2] == -1 and not stacked['inputs_mask'][0, 2].any()
  for replica, batch in enumerate((left, right)):
    for name, array in batch.items():
      window = (replica, *map(slice, array.shape))
      np.testing.assert_array_equal(stacked[name][window], array)
    counts = pipeline.batch_stats({k: v[replica] for k, v in stacked.items()})
    assert counts['tokens'] == pipeline.batch_stats(batch)['tokens']
  assert pipeline.batch_stats(stacked)['examples'] == 5


def test_one_stream_over_several_tasks():
  parts = [make_data([2, 3], task_id=0), make_data([4, 5, 6], task_id=1)]
  data = pipeline.concatenate_data(parts)
  batch = next(make_stream(data, batch_size=5))
  pairs = sorted(zip(batch['task_ids'].tolist(), batch['example_ids'].tolist()))
  assert pairs == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
  for row, (task, example) in enumerate(zip(batch['task_ids'], batch['example_ids'])):
    kept = batch['inputs'][row][batch['inputs_mask'][row] == 1]
    np.testing.assert_array_equal(kept, parts[task].inputs.row(example))


def test_keyed_permutation_is_uniform_enough():
  draws = np.stack([keyed_random.keyed_permutation(4, 'p', i) for i in range(2400)])
  counts = np.unique(draws, axis=0, return_counts=True)[1]
  assert len(counts) == 24 and counts.min() > 60 and counts.max() < 150  # 100 expected, 5 sigma


def test_keyed_bits_are_the_same_on_every_platform():
  def mix(x):  # splitmix64 in Python integers
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31
  weyl, state = 0x9E3779B97F4A7C15, 0
  assert mix(weyl) == 0xE220A8397B1DCDAF  # first published output for seed 0
  for part in (7, 2**64 - 1, 12):
    state = mix((mix((state + weyl) % 2**64) + part) % 2**64)
  assert int(keyed_random.keyed_bits(7, -1, 12)) == state
  assert int(keyed_random.keyed_bits(7, -1, np.arange(20))[12]) == state


@pytest.fixture(scope='module')
def words(tmp_path_factory):
  texts = ['a b c d e f g yes no']
  return tokenizer_lib.train_word_tokenizer(texts, tmp_path_factory.mktemp('words'), sentinels=2)


EXAMPLES = [SimpleNamespace(source=' '.join('abcdefg'[:n]), target=('yes', 'no')[n % 2])
            for n in (3, 7, 1, 5)]


def test_tokenized_rows_are_the_texts(words):
  data = pipeline.tokenize_examples(EXAMPLES, words, max_source_length=5, max_target_length=2,
                                    task_id=3)
  assert data.input_lengths.tolist() == [4, 5, 2, 5]
  assert (data.input_limit, data.target_limit, data.pad_id) == (5, 2, 0)
  texts = words.decode_batch([data.inputs.row(i) for i in range(4)])
  assert texts == ['a b c', 'a b c d', 'a', 'a b c d']
  assert all(data.inputs.row(i)[-1] == words.eos_id for i in range(4))
  assert data.task_ids.tolist() == [3] * 4
  assert pipeline.tokenize_examples(EXAMPLES, words).input_limit == 8


def test_cached_equals_uncached_and_damage_is_repaired(words, tmp_path, monkeypatch):
  plain = pipeline.tokenize_examples(EXAMPLES, words, max_source_length=5)
  def cached():
    return pipeline.tokenize_examples(EXAMPLES, words, max_source_length=5, cache_dir=tmp_path)
  def same(data):
    pairs = [(data.inputs, plain.inputs), (data.targets, plain.targets)]
    return data.fingerprint == plain.fingerprint and all(
        np.array_equal(a.tokens, b.tokens) and np.array_equal(a.lengths, b.lengths)
        for a, b in pairs)
  assert same(cached())
  [file] = tmp_path.iterdir()
  whole = file.read_bytes()
  with monkeypatch.context() as patch:
    patch.setattr(words, 'encode_batch', None)  # the second call must not tokenize
    assert same(cached())
  flipped = bytearray(whole)
  flipped[whole.index(plain.inputs.tokens.tobytes())] ^= 1
  for damage in (b'', b'nonsense', whole[:len(whole) // 2], bytes(flipped)):
    file.write_bytes(damage)
    assert same(cached())
    assert file.read_bytes() != damage
  assert [f.name for f in tmp_path.iterdir()] == [file.name]


def test_cache_key_tells_texts_limits_and_tokenizers_apart(words, tmp_path):
  other = tokenizer_lib.train_word_tokenizer(['a b'], tmp_path / 'other', sentinels=2)
  swapped = [SimpleNamespace(source='a b', target='c'), SimpleNamespace(source='a', target='b c')]
  keys = [pipeline.tokenize_examples(*call, **limits).fingerprint for call, limits in [
      ((EXAMPLES, words), {}), ((EXAMPLES[:3], words), {}), ((EXAMPLES, other), {}),
      ((EXAMPLES, words), {'max_source_length': 4}), ((EXAMPLES, words), {'max_target_length': 4}),
      ((swapped, words), {}), ((swapped[::-1], words), {})]]
  assert len(set(keys)) == len(keys)
  assert tokenized.digest('ab', 'c') != tokenized.digest('a', 'bc')


def test_unwritable_cache_is_one_sentence(words, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match="Cannot write the token cache .*give a cache folder with"):
    pipeline.tokenize_examples(EXAMPLES, words, cache_dir=tmp_path / 'file')
