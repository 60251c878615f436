"""Text of tasks: train inputs alone, once each, in front of the files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pemt_jax.data import text
from pemt_jax.data.datasets import DataConfig
from pemt_jax.data.tokenizer import train_word_tokenizer


def write_rows(path, sentences):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps({'sentence': sentence, 'label': place % 2}) + '\n'
                          for place, sentence in enumerate(sentences)))


@pytest.fixture
def root(tmp_path):
  write_rows(tmp_path / 'glue' / 'sst2' / 'train.jsonl', [f'film {i}' for i in range(12)])
  write_rows(tmp_path / 'glue' / 'sst2' / 'validation.jsonl', ['an unseen film'])
  write_rows(tmp_path / 'glue' / 'cola' / 'train.jsonl', ['They sat\n down.', 'They sat  down.'])
  write_rows(tmp_path / 'glue' / 'cola' / 'validation.jsonl', ['An unseen row.', 'Another.'])
  return tmp_path


def test_rows_of_validation_and_test_are_left_out(root):
  config = DataConfig(root=str(root), validation_rows=4)
  documents = text.task_documents(('sst2',), config)
  held_out = {example.source for split in ('validation', 'test')
              for example in text.load_task('sst2', split, config).examples}
  assert len(documents) == 8 and len(held_out) == 5
  assert not held_out & {paragraph for document in documents for paragraph in document}


def test_inputs_stand_once_on_one_line_without_the_target(root):
  documents = text.task_documents(('glue-cola',), DataConfig(root=str(root)))
  assert documents == [['sentence: They sat down.']]


def test_tasks_stand_in_front_of_files_and_decide_the_cache(root):
  (root / 'a.txt').write_text('plain words\n')
  documents = text.task_documents(('cola',), DataConfig(root=str(root)))
  tokenizer = train_word_tokenizer(['plain words', documents[0][0]], root / 'words', sentinels=2)
  load = lambda given: text.load_token_stream(root / 'a.txt', tokenizer, documents=given,
                                              cache_dir=root / 'cache')
  plain, both = load(()), load(documents)
  tasks = text.token_stream(documents, tokenizer)
  assert tasks[-1] == tokenizer.eos_id
  np.testing.assert_array_equal(both, np.concatenate([tasks, plain]))
  np.testing.assert_array_equal(load(()), plain)


def test_no_tasks_and_no_rows_are_needed():
  assert text.task_documents((), DataConfig()) == []
