"""Rows with labels: pairs as Hugging Face cuts them, token types, labels, cache, mistakes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, strategies as st

from pemt_jax.data import labelled
from pemt_jax.data.labelled import TextForm, cut_pair, encode_texts, label_examples
from pemt_jax.data.tasks import get_task
from pemt_jax.data.templates import Example
from pemt_jax.data.tokenizer import load_tokenizer, train_word_tokenizer
from pemt_jax.errors import UserError

ROBERTA = TextForm(2, 1, (1,), False, 12)
BERT = dataclasses.replace(ROBERTA, between=(), types=True)
WORDS = 'a b c d e f g h i j'.split()


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  return train_word_tokenizer([' '.join(WORDS)], tmp_path_factory.mktemp('words'), sentinels=0)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 20))
def test_the_longer_text_loses_its_end_first(first, second, room):
  one, two = first, second
  while one + two > room:  # one id after the other
    one, two = (one - 1, two) if one > two else (one, two - 1)
  assert cut_pair(first, second, room) == (one, two)


def test_texts_and_pairs_have_their_special_ids(tokenizer):
  ids = {word: tokenizer.encode_batch([word])[0][0] for word in WORDS}
  rows, fronts = encode_texts(['a b', 'c'], [None, 'd e'], tokenizer, ROBERTA)
  assert rows == [[2, ids['a'], ids['b'], 1], [2, ids['c'], 1, 1, ids['d'], ids['e'], 1]]
  assert fronts == [4, 4]
  rows, fronts = encode_texts(['c'], ['d e'], tokenizer, BERT)
  assert rows == [[2, ids['c'], 1, ids['d'], ids['e'], 1]] and fronts == [3]
  rows, _ = encode_texts([' '.join(WORDS)] * 2, [None, ' '.join(WORDS)], tokenizer, ROBERTA)
  assert [len(row) for row in rows] == [12, 12] and rows[1].count(1) == 3


@pytest.mark.parametrize('length', [16, 128])
def test_pairs_are_those_of_transformers(shared_root, length):
  transformers = pytest.importorskip('transformers')
  folder = shared_root / 'data' / 'tokenizers' / 'roberta'
  if not folder.is_dir():
    pytest.skip('no RoBERTa vocabulary beside the repository')
  theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
  firsts = ['A cat sat on the mat, and it was happy.', 'Yes', 'one two three four five six seven']
  seconds = ['The dog ran far away from home today.', 'No, never again did he say so to me.', None]
  form = TextForm(0, 2, (2,), False, length)
  rows, _ = encode_texts(firsts, seconds, load_tokenizer(folder), form)
  for row, first, second in zip(rows, firsts, seconds, strict=True):
    expected = theirs(first, second, truncation='longest_first', max_length=length)['input_ids']
    assert row == expected


def test_batches_have_labels_types_and_fillers(tokenizer):
  task = get_task('rte')
  examples = [Example('a b', 'entailment', {'second': 'c'}),
              Example('d', 'not_entailment', {'second': 'e f g'})]
  data = label_examples(examples, task, tokenizer, BERT)
  batch = data.assemble(np.array([1, 0, -1]), 0, (8, 1))
  assert batch['labels'].tolist() == [1, 0, 0] and batch['example_ids'].tolist() == [1, 0, -1]
  assert batch['inputs_mask'].sum(1).tolist() == [7, 6, 0]
  assert batch['token_types'].tolist() == [[0, 0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1, 0, 0],
                                           [0] * 8]
  plain = label_examples(examples, task, tokenizer, ROBERTA)
  assert 'token_types' not in plain.assemble(np.array([0]), 0, (8, 1))
  assert plain.fingerprint != data.fingerprint


def test_the_cache_gives_the_same_rows_and_labels_are_not_in_it(tokenizer, tmp_path, monkeypatch):
  task = get_task('stsb')
  make = lambda label: label_examples([Example('a', label, {'second': 'b'})], task, tokenizer,
                                      ROBERTA, tmp_path)
  first = make('2.5')
  monkeypatch.setattr(labelled, 'encode_texts', None)
  second = make('4.25')
  np.testing.assert_array_equal(first.inputs.tokens, second.inputs.tokens)
  assert (first.labels[0], second.labels[0]) == (2.5, 4.25)
  assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize('task, target, sentence', [
    ('rte', 'maybe', "task 'rte' has a row with target 'maybe', which is none of its labels"),
    ('stsb', 'high', "task 'stsb' has no label words, and 'high' is no number")])
def test_targets_that_are_no_labels_are_told(tokenizer, task, target, sentence):
  with pytest.raises(UserError, match=sentence):
    label_examples([Example('a', target)], get_task(task), tokenizer, ROBERTA)


def test_no_room_for_a_text_is_told(tokenizer):
  with pytest.raises(UserError, match='max_source_length=4 leaves no room beside 4 special ids'):
    encode_texts(['a'], ['b'], tokenizer, dataclasses.replace(ROBERTA, max_length=4))


@pytest.mark.parametrize('name', ['cola', 'mrpc', 'stsb', 'propetl/mrpc', 'propetl/stsb'])
def test_templates_of_pairs(name):
  row = {'sentence': 'x', 'sentence1': 'y', 'sentence2': 'z',
         'label': 3.25 if name.endswith('stsb') else 1}
  example, = get_task(name).template_named('pair')(row)
  if name == 'cola':
    assert (example.source, example.extra, example.target) == ('x', {}, 'acceptable')
    return
  assert (example.source, example.extra) == ('y', {'second': 'z'})
  assert example.target == {'mrpc': 'equivalent', 'propetl/mrpc': '1'}.get(name, '3.25')
