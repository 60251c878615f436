"""The tasks of HyperFormer and MPOE: texts of every task, splits, scores, rows that are lost."""

from __future__ import annotations

import json

import pytest

from pemt_jax.data.datasets import DataConfig, load_all_splits
from pemt_jax.data.splits import plan_split, randperm
from pemt_jax.data.tasks import get_task
from pemt_jax.data.tasks_hyperformer import HYPERFORMER_TASKS, MIXTURE
from pemt_jax.errors import UserError
from pemt_jax.evaluation.postprocess import AVERAGE, score

PAIR = {'sentence1': 'A', 'sentence2': 'B'}
NLI = {'premise': 'A', 'hypothesis': 'B'}
# name -> (row, source, target)
TEXTS = {
    'mrpc': (PAIR | {'label': 1}, 'sentence1: A sentence2: B', '1'),
    'cola': ({'sentence': 'A', 'label': 0}, 'sentence: A', '0'),
    'sst2': ({'sentence': 'A', 'label': 1}, 'sentence: A', '1'),
    'stsb': (PAIR | {'label': 3.456}, 'sentence1: A sentence2: B', '3.5'),
    'qqp': ({'question1': 'A', 'question2': 'B', 'label': 1}, 'question1: A question2: B', '1'),
    'mnli': (NLI | {'label': 2}, 'premise: A hypothesis B', '2'),
    'qnli': ({'question': 'A', 'sentence': 'B', 'label': 1}, 'question: A sentence: B', '1'),
    'rte': (PAIR | {'label': 1}, 'sentence1: A sentence2: B', '1'),
    'wnli': (PAIR | {'label': 0}, 'sentence1: A sentence2: B', '0'),
    'superglue-boolq': ({'question': 'A', 'passage': 'B', 'label': 1}, 'question: A passage: B',
                        '1'),
    'superglue-rte': (NLI | {'label': 1}, 'premise: A hypothesis: B', '1'),
    'superglue-cb': (NLI | {'label': 2}, 'premise: A hypothesis: B', '2'),
    'paws': (PAIR | {'label': 1}, 'sentence1: A sentence2: B', '1'),
    'imdb': ({'text': 'A', 'label': 1}, 'A', '1'),
    'snli': (NLI | {'label': 2}, 'premise: A hypothesis: B', '2'),
    'scitail': (PAIR | {'gold_label': 'neutral'}, 'sentence1: A sentence2: B', '1'),
    'trec': ({'text': 'A', 'label-coarse': 5}, 'sentence: A', '5'),
    'yelp_polarity': ({'text': 'A', 'label': 0}, 'sentence: A', '0'),
    'social_i_qa': ({'question': 'A', 'context': 'B', 'answerA': 'a', 'answerB': 'b',
                     'answerC': 'c', 'label': '3'},
                    'question: A context: B answerA: a answerB: b answerC: c', '2'),
    'cosmos_qa': ({'question': 'A', 'context': 'B', 'answer0': 'a', 'answer1': 'b', 'answer2': 'c',
                   'answer3': 'd', 'label': 3},
                  'question: A context: B answer0: a answer1: b answer2: c answer3: d', '3'),
    'winogrande': ({'sentence': 'A', 'option1': 'a', 'option2': 'b', 'answer': '2'},
                   'sentence: A option1: a option2: b', '2'),
    'hellaswag': ({'ctx': 'A', 'endings': ['a', 'b', 'c', 'd'], 'label': '3'},
                  'ctx: A ending0: a ending1: b ending2: c ending3: d', '3'),
    'commonsense_qa': ({'question': 'A', 'choices': {'text': ['a', 'b', 'c', 'd', 'e']},
                        'answerKey': 'E'}, 'question: A A: a B: b C: c D: d E: e', '4'),
    'sick': (NLI | {'label': 'CONTRADICTION'}, 'premise: A hypothesis: B', '2'),
}
LANGUAGES = {'en': 'English', 'ro': 'Romanian', 'cs': 'Czech', 'fi': 'Finnish', 'hi': 'Hindi',
             'nl': 'Dutch'}
# name -> (languages of input and target, Hugging Face data set and config)
TRANSLATIONS = {
    'wmt16-en-ro': ('en', 'ro', 'wmt16', 'ro-en'), 'wmt16-ro-en': ('ro', 'en', 'wmt16', 'ro-en'),
    'wmt16-en-cs': ('en', 'cs', 'wmt16', 'cs-en'), 'wmt16-en-fi': ('en', 'fi', 'wmt16', 'fi-en'),
    'wmt14-hi-en': ('en', 'hi', 'wmt14', 'hi-en'),
    'iwslt2017-ro-nl': ('ro', 'nl', 'iwslt2017', 'iwslt2017-ro-nl'),
    'iwslt2017-en-nl': ('en', 'nl', 'iwslt2017', 'iwslt2017-en-nl')}
NUMBERS = {'mrpc': 'integers', 'qqp': 'integers', 'cola': 'integers', 'stsb': 'decimals'}
METRICS = {'mrpc': ('binary_f1', 'accuracy'), 'qqp': ('binary_f1', 'accuracy'),
           'cola': ('matthews_corrcoef',), 'stsb': ('pearson_corrcoef', 'spearman_corrcoef')}
HALVED = {'cola', 'wnli', 'rte', 'trec', 'superglue-cb', 'sick', 'mrpc', 'stsb', 'imdb',
          'commonsense_qa', 'superglue-boolq'}
CUT = {'yelp_polarity', 'qqp', 'qnli', 'social_i_qa', 'cosmos_qa', 'winogrande', 'hellaswag',
       'sst2'}


def _task(name):
  return get_task(f'hyperformer/{name}')


@pytest.mark.parametrize('name', TEXTS)
def test_texts_with_and_without_the_name_in_front(name):
  row, source, target = TEXTS[name]
  task = _task(name)
  plain, = task.template(row)
  named, = task.template_named('name_in_front')(row)
  assert (plain.source, plain.target) == (source, target)
  assert (named.source, named.target) == (f'{name} {source}', target)
  assert task.postprocess == NUMBERS.get(name, 'text')
  assert task.metrics == METRICS.get(name, ('accuracy',))


@pytest.mark.parametrize('name', TRANSLATIONS)
def test_translations_name_their_languages_for_full_tuning_only(name):
  source, target, data, pair = TRANSLATIONS[name]
  row, task = {'translation': {source: 'A b.', target: 'C d.'}}, _task(name)
  plain, = task.template(row)
  named, = task.template_named('name_in_front')(row)
  assert (plain.source, plain.target) == ('A b.', 'C d.')
  assert named.source == f'Translate {LANGUAGES[source]} to {LANGUAGES[target]} A b.'
  assert task.metrics == ('bleu',) and task.hf == (data, pair)
  assert dict(task.decoding) == {'max_length': 300, 'num_beams': 4}


def test_there_are_31_tasks_and_their_splits_are_the_published_ones():
  names = {name.removeprefix('hyperformer/') for name in HYPERFORMER_TASKS}
  assert names == {*TEXTS, *TRANSLATIONS} and len(names) == 31 and set(MIXTURE) <= set(
      HYPERFORMER_TASKS)
  parts = {}
  for name, task in HYPERFORMER_TASKS.items():
    assert name == task.name and not task.aliases
    plans = {split: plan_split(task, split, 'published')
             for split in ('train', 'validation', 'test')}
    parts.setdefault(plans['validation'].part, set()).add(name.removeprefix('hyperformer/'))
    assert plans['train'].read == 'train'
  assert parts['first_half'] == HALVED and parts['head'] == CUT
  read = lambda name: [plan_split(_task(name), split, 'published').read
                       for split in ('validation', 'test')]
  assert read('mnli') == ['validation_mismatched', 'validation_matched']
  assert read('superglue-rte') == ['validation', 'validation']
  assert read('imdb') == read('trec') == ['test', 'test']
  assert read('yelp_polarity') == ['train', 'test']
  assert read('paws') == ['validation', 'test']


def test_scores_of_similarity_end_with_the_longest_fifth():
  texts = _task('stsb').decode_texts
  assert len(texts) == 26 and (texts[0], texts[1], texts[-1]) == ('0.0', '0.2', '5.0')


def test_texts_that_are_no_class_count_as_the_other_class():
  examples = [example for label in (1, 1, 0, 1)
              for example in _task('mrpc').template(PAIR | {'label': label})]
  found = score(_task('mrpc'), ['1', 'x', '7', ' 1'], examples)
  # Given 1, 0, 1, 1 for 1, 1, 0, 1.
  assert found == {'f1': pytest.approx(200 / 3), 'accuracy': 50.0, AVERAGE: pytest.approx(175 / 3)}


def _write(folder, split, count):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / f'{split}.jsonl').write_text(''.join(
      json.dumps({'sentence': str(i), 'label': i % 2}) + '\n' for i in range(count)))


def test_the_published_program_loses_the_last_row_and_trains_on_no_validation_row(tmp_path):
  _write(tmp_path / 'glue' / 'sst2', 'train', 40)
  _write(tmp_path / 'glue' / 'sst2', 'validation', 10)
  numbers = lambda data: [int(e.source.removeprefix('sentence: ')) for e in data.examples]
  config = DataConfig(root=str(tmp_path), validation_rows=15, compat_drop_last=True)
  found = load_all_splits('hyperformer/sst2', config)
  order = randperm(40).tolist()
  assert numbers(found['validation']) == order[:14] and numbers(found['train']) == order[15:39]
  assert numbers(found['test']) == list(range(9))
  assert found['train'].provenance['compat_drop_last']
  assert found['validation'].provenance['notes'] == []
  sound = load_all_splits('hyperformer/sst2', DataConfig(root=str(tmp_path), validation_rows=15))
  assert [len(sound[split].examples) for split in ('train', 'validation', 'test')] == [25, 15, 10]


def test_unknown_names_suggest_close_ones():
  with pytest.raises(UserError, match='close names are hyperformer/wmt16-en-ro'):
    get_task('hyperformer/wmt16-en')
