"""Predictions for files of rows; scores of label words."""

from __future__ import annotations

import csv
import json

import jax
import numpy as np
import pytest

from pemt_jax.data import pipeline
from pemt_jax.data.datasets import load_task
from pemt_jax.data.tasks import get_task
from pemt_jax.data.templates import Example
from pemt_jax.errors import UserError
from pemt_jax.methods.base import make_loss
from pemt_jax.stages import predict
from pemt_jax.stages.artefacts import open_expert
from pemt_jax.stages.config import data_config
from tests.stages import small

NAME = small.TARGET.replace('/', '-')


@pytest.fixture(scope='module')
def expert(stage2):
  return open_expert(stage2.experts[NAME], stage2.stage.backbone)


@pytest.fixture(scope='module')
def rows(stage2):
  """Texts of the test split in the order of their examples."""
  found = load_task(small.TARGET, 'test', data_config(stage2.stage.config)).examples
  return [example.source for example in found][:5]


def predicted(stage2, folder, name, write):
  source, target = folder / name, folder / 'out.jsonl'
  with source.open('w', newline='') as file:
    write(file)
  count = predict.predict_file(stage2.experts[NAME], source, target, {})
  lines = [json.loads(line) for line in target.read_text().splitlines()]
  assert count == len(lines) and not list(folder.glob('.*'))
  return lines


def test_a_file_of_sources_and_a_file_of_fields_give_the_predictions_of_the_run(
    stage2, rows, workdir):
  text = (stage2.trained.workdir / 'predictions' / f'{NAME}.test.jsonl').read_text()
  expected = [json.loads(line) for line in text.splitlines()][:len(rows)]

  def as_json(file):
    file.writelines(json.dumps({'source': row}) + '\n' for row in rows)

  def as_fields(file):
    writer = csv.writer(file, delimiter='\t', lineterminator='\n')
    writer.writerows([['text'], *([row] for row in rows)])

  first = predicted(stage2, workdir, 'rows.jsonl', as_json)
  assert [line['source'] for line in first] == rows
  assert [line['prediction'] for line in first] == [line['prediction'] for line in expected]
  assert predicted(stage2, workdir, 'rows.tsv', as_fields) == first


def test_label_scores_are_log_probabilities_of_whole_labels(expert, rows):
  words = get_task(small.TARGET).label_words
  _, scores = predict.predict_examples(expert, [Example(row, '', {}) for row in rows])
  assert scores.shape == (len(rows), len(words)) and (np.exp(scores).sum(1) < 1).all()
  stage = expert.stage
  tuned, constants = (jax.tree.map(lambda leaf: leaf[0], tree)
                      for tree in (expert.tuned, expert.constants))
  loss_fn = make_loss(stage.model, stage.method)
  loss = jax.jit(lambda batch: loss_fn(tuned, stage.start.frozen, constants, batch, None)[1])

  def log_probability(row, word):
    data = pipeline.tokenize_examples([Example(row, word, {})], stage.backbone.tokenizer,
                                      max_source_length=24, max_target_length=4)
    batch, = pipeline.eval_batches(data, 1)
    metrics = loss(batch)
    assert metrics['weight'] == 2  # the word and the end mark
    return -2 * float(metrics['cross_entropy_nats'])

  expected = [[log_probability(row, word) for word in words] for row in rows]
  np.testing.assert_allclose(scores, expected, rtol=1e-4)
  np.testing.assert_array_equal(np.argmax(scores, 1), np.argmax(expected, 1))


@pytest.mark.parametrize('task, fields, source', [
    ('rte', {'sentence1': 'a', 'sentence2': 'b', 'label': -1}, 'sentence1: a sentence2: b'),
    ('stsb', {'sentence1': 'a', 'sentence2': 'b'}, 'sentence1: a sentence2: b'),
    ('scitail', {'sentence1': 'a', 'sentence2': 'b'}, 'premise: a hypothesis: b'),
    ('superglue-multirc', {'question': 'q', 'answer': 'a', 'paragraph': 'p'},
     'question: q answer: a paragraph: p'),
    ('superglue-record', {'query': 'q', 'entities': ['e', 'f'], 'passage': 'p'},
     'record query: q entities: e, f passage: p'),
    ('squad', {'question': 'q', 'context': 'c', 'answers': {'text': []}}, 'question: q context: c'),
    ('nq', {'question': 'q', 'context': 'c'}, 'question: q context: c'),
    ('drop', {'question': 'q', 'passage': 'c'}, 'question: q context: c'),
    ('snli', {'premise': 'p', 'hypothesis': 'h', 'label': -1}, 'premise: p hypothesis: h'),
    ('winogrande', {'sentence': 's', 'option1': 'a', 'option2': 'b', 'answer': ''},
     'sentence: s option1: a option2: b'),
    ('piqa', {'goal': 'g', 'sol1': 'a', 'sol2': 'b'}, 'question: g choice1: a choice2: b'),
    ('social_i_qa', {'question': 'q', 'context': 'c', 'answerA': 'a', 'answerB': 'b',
                     'answerC': 'c'},
     'question: q context: c || choice0: a || choice1: b || choice2: c'),
    ('commonsense_qa', {'question': 'q', 'choices': ['a', 'b', 'c', 'd', 'e']},
     'question: q choice1: a choice2: b choice3: c choice4: d choice5: e'),
    ('playground/charm', {'text': 'a fox'}, 'a fox'),
])
def test_rows_without_labels_are_readable(workdir, task, fields, source):
  (workdir / 'rows.jsonl').write_text(json.dumps(fields) + '\n')
  example, = predict.read_examples(workdir / 'rows.jsonl', task)
  assert example.source == source


def test_the_template_of_the_training_is_used(workdir):
  (workdir / 'rows.jsonl').write_text(json.dumps({'goal': 'g', 'sol1': 'abc', 'sol2': 'bcd'}))
  example, = predict.read_examples(workdir / 'rows.jsonl', 'piqa', 'first_character')
  assert example.source == 'question: g choice1: a choice2: b'


def sentence_of(call, *arguments):
  with pytest.raises(UserError) as error:
    call(*arguments)
  return str(error.value)


def test_files_that_cannot_be_predicted(stage1, stage2, workdir):
  place, bad = stage2.experts[NAME], workdir / 'bad.jsonl'
  bad.write_text('{"text": "a fox"}\n{"txt": "a fox"}\n')
  (workdir / 'empty.jsonl').write_text('')
  (workdir / 'rows.xyz').write_text('a')
  out = workdir / 'out.jsonl'
  cases = [
      ((place, workdir / 'none.tsv', out), f"there is no file '{workdir / 'none.tsv'}' of rows to "
       'predict; correct the path of --input.'),
      ((place, workdir / 'empty.jsonl', out), f"{workdir / 'empty.jsonl'} holds no rows; give a "
       'file with rows to predict.'),
      ((place, bad, out), f"line 2 of {bad}: field 'text' is missing (fields found: txt, label); "
       'fix the row or remove it.'),
      ((place, bad, workdir / 'none' / 'out'), f"there is no folder '{workdir / 'none'}' for the "
       'predictions; make it or correct the path of --output.'),
      ((stage1.trained.workdir, bad, out), f'{stage1.trained.workdir} holds 2 experts '
       '(playground-omen, playground-tide); give the folder of one of them.'),
      ((workdir, bad, out), f'{workdir} holds no expert; give the folder of an expert or of a '
       'finished run.')]
  for arguments, sentence in cases:
    assert sentence_of(predict.predict_file, *arguments, {}) == sentence
  assert not out.exists() and not list(workdir.glob('.*'))
