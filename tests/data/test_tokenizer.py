"""Laws of tokenizers: two file forms agree, truncation keeps eos, special ids are found."""

from __future__ import annotations

import functools
import gzip
import json

import numpy as np
import pytest

from pemt_jax.data import tokenizer as tokenizer_lib
from pemt_jax.errors import UserError

TEXTS = ['the cat sat on the mat', 'a dog ran', 'the dog  and\tthe cat']


@pytest.fixture(scope='module')
def words(tmp_path_factory):
  return tokenizer_lib.train_word_tokenizer(TEXTS, tmp_path_factory.mktemp('words'), sentinels=5)


_load = functools.cache(tokenizer_lib.load_tokenizer)


@pytest.fixture
def t5_folder(shared_root):
  return shared_root / 'data' / 'tokenizers' / 't5'


@pytest.fixture
def t5_json(t5_folder):
  return _load(t5_folder)


@pytest.fixture
def t5_pieces(t5_folder, tmp_path):
  for name in ('spiece.model', 'tokenizer_config.json'):
    (tmp_path / name).write_bytes((t5_folder / name).read_bytes())
  return tokenizer_lib.load_tokenizer(tmp_path)


def test_word_ids_follow_count_then_code_point(words):
  # counts: the 4, cat 2, dog 2, then a, and, mat, on, ran, sat once each
  assert words.encode_batch(['the cat dog a and mat on ran sat']) == [[*range(3, 12), 1]]
  assert (words.pad_id, words.eos_id, words.vocab_size) == (0, 1, 17)


def test_first_sentinel_has_the_highest_id(words):
  assert [words.sentinel_id(i) for i in range(5)] == [16, 15, 14, 13, 12]
  assert words.encode_batch(['cat <extra_id_0> dog']) == [[4, 16, 5, 1]]
  with pytest.raises(UserError, match=r"has no sentinel '<extra_id_5>'"):
    words.sentinel_id(5)


def test_unknown_words_share_one_id_and_decoding_skips_specials(words):
  assert words.encode_batch(['zebra cat']) == [[2, 4, 1]]
  rows = np.array([[3, 4, 1, 0], [16, 5, -100, 99]])
  assert words.decode_batch(rows) == ['the cat', 'dog']
  assert words.decode_batch([]) == []


def test_training_is_deterministic(words, tmp_path):
  again = tokenizer_lib.train_word_tokenizer(iter(TEXTS), tmp_path, sentinels=5)
  assert again.fingerprint == words.fingerprint
  other = tokenizer_lib.train_word_tokenizer(TEXTS + ['new'], tmp_path / 'b', sentinels=5)
  assert other.fingerprint != words.fingerprint


@pytest.mark.parametrize('max_length', [1, 2, 4, 7, 100])
def test_truncation_keeps_eos(words, max_length):
  full = words.encode_batch(TEXTS)
  for row, cut in zip(full, words.encode_batch(TEXTS, max_length)):
    assert len(cut) == min(len(row), max_length)
    assert cut == row[:len(cut) - 1] + [words.eos_id]
  bare = words.encode_batch(TEXTS, max_length, add_eos=False)
  assert bare == [row[:-1][:max_length] for row in full]


def test_empty_text_is_eos_alone(words):
  assert words.encode_batch(['', ' ']) == [[1], [1]]
  assert words.encode_batch([]) == []


def test_no_room_for_eos_is_an_error(words):
  with pytest.raises(UserError, match='max_length=0 leaves no room for eos; give at least 1.'):
    words.encode_batch(['a'], 0)


def test_t5_special_ids(t5_json, t5_pieces):
  for tokenizer in (t5_json, t5_pieces):
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.vocab_size) == (0, 1, 32100)
    assert (tokenizer.sentinel_id(0), tokenizer.sentinel_id(99)) == (32099, 32000)
    # The ids of "Hello world" are those published for T5.
    assert tokenizer.encode_batch(['Hello world']) == [[8774, 296, 1]]


def test_t5_file_forms_agree(t5_json, t5_pieces, shared_root):
  path = shared_root / 'data' / 'glue' / 'mnli' / 'validation_matched.jsonl.gz'
  with gzip.open(path, 'rt', encoding='utf-8') as lines:
    texts = [json.loads(line)['premise'] for line, _ in zip(lines, range(500))]
  texts += ['', '  two  spaces ', 'new\nline', 'naïve “quotes” ½ ﬁ', '<extra_id_100> < b',
            'a<extra_id_0>b <extra_id_10>', 'x </s> y']
  assert t5_json.encode_batch(texts, 48) == t5_pieces.encode_batch(texts, 48)
  ids = t5_json.encode_batch(texts)
  assert t5_json.decode_batch(ids) == t5_pieces.decode_batch(ids)


def test_t5_truncation_equals_transformers(t5_json, t5_folder):
  transformers = pytest.importorskip('transformers')
  reference = transformers.PreTrainedTokenizerFast(
      tokenizer_file=str(t5_folder / 'tokenizer.json'), eos_token='</s>', pad_token='<pad>')
  texts = ['question: is it so? context: ' + 'word ' * n for n in (0, 3, 20)]
  expected = reference(texts, max_length=12, truncation=True)['input_ids']
  assert t5_json.encode_batch(texts, 12) == expected


def test_saved_tokenizer_is_the_same(words, tmp_path):
  words.save(tmp_path / 'again')
  again = tokenizer_lib.load_tokenizer(tmp_path / 'again')
  assert again.fingerprint == words.fingerprint
  assert again.sentinel_id(0) == words.sentinel_id(0)


def test_saved_pieces_are_the_same(t5_pieces, tmp_path):
  t5_pieces.save(tmp_path / 'again')
  assert tokenizer_lib.load_tokenizer(tmp_path / 'again').fingerprint == t5_pieces.fingerprint


def test_bad_places_end_with_one_sentence(tmp_path, monkeypatch):
  with pytest.raises(UserError, match=r"Tokenizer folder '/no/such/place' does not exist; give a"):
    tokenizer_lib.load_tokenizer('/no/such/place')
  with pytest.raises(UserError, match='holds neither tokenizer.json nor spiece.model'):
    tokenizer_lib.load_tokenizer(tmp_path)
  for name in ('spiece.model', 'tokenizer.json'):
    (tmp_path / name).write_text('{}')
    with pytest.raises(UserError, match=f'Cannot read tokenizer file .*{name}.*; fetch it again.'):
      tokenizer_lib.load_tokenizer(tmp_path)
  (tmp_path / 'tokenizer_config.json').write_text('[')
  with pytest.raises(UserError, match='tokenizer_config.json.* is not valid JSON'):
    tokenizer_lib.load_tokenizer(tmp_path)


def test_missing_pad_token_is_named(words, tmp_path):
  tokenizer_lib.train_word_tokenizer(TEXTS, tmp_path, sentinels=1)
  (tmp_path / 'tokenizer_config.json').write_text('{"pad_token": "[PAD]"}')
  with pytest.raises(UserError, match=r"has no pad_token '\[PAD\]'; name the right token in"):
    tokenizer_lib.load_tokenizer(tmp_path)


def test_hub_failure_is_one_sentence(monkeypatch):
  transformers = pytest.importorskip('transformers')

  def refuse(source, trust_remote_code):
    assert trust_remote_code is False
    raise OSError(f'cannot reach {source}\nmore lines')
  monkeypatch.setattr(transformers.AutoTokenizer, 'from_pretrained', refuse)
  with pytest.raises(UserError) as caught:
    tokenizer_lib.load_tokenizer('flan-t5-small')
  assert str(caught.value) == (
      "Tokenizer 'flan-t5-small' is neither a local folder nor available from the Hugging Face hub "
      "as 'google/flan-t5-small' (cannot reach google/flan-t5-small); give a folder with "
      'tokenizer.json or spiece.model.')


@pytest.mark.parametrize('name, hub', [
    ('t5-small', 'google-t5/t5-small'), ('t5-v1_1-base', 'google/t5-v1_1-base'),
    ('t5-base-lm-adapt', 'google/t5-base-lm-adapt'), ('bart-base', 'facebook/bart-base'),
    ('gpt2', 'openai-community/gpt2'), ('me/mine', 'me/mine')])
def test_short_names(name, hub):
  assert tokenizer_lib._hub_id(name) == hub
