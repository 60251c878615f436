"""Laws of the task tables, the templates and the look-up by name."""

from __future__ import annotations

import pytest

from pemt_jax.data import templates
from pemt_jax.data.tasks import TASKS, RowError, get_task
from pemt_jax.data.tasks_base import SIZES, SPLITS
from pemt_jax.errors import UserError
from pemt_jax.evaluation.metrics import METRICS, get_metric
from pemt_jax.evaluation.postprocess import POSTPROCESS

# Templates of the published run where the task's own template differs.
PUBLISHED = {'piqa': 'first_character', 'social_i_qa': 'first_character',
             'snli': 'two_spaces_before_hypothesis'}


def _triples(examples):
  return [(example.source, example.target, dict(example.extra)) for example in examples]


def _check_examples(name: str, rows, wanted) -> None:
  template = get_task(name).template_named(PUBLISHED.get(name, 'default'))
  made = [example for row in rows for example in template(row)]
  expected = [(row['source'], row['target'], row['extra_fields']) for row in wanted]
  assert _triples(made)[:len(expected)] == expected, name


def test_templates_reproduce_every_golden_row(golden_examples):
  for name, case in golden_examples.items():
    _check_examples(name, case['raw_train_rows'], case['splits']['train']['first_rows'])
    limit = get_task(name).target_tokens or 128
    assert limit == case['max_target_length'], name


def test_halved_validation_rows_reproduce_the_golden_splits(golden_examples):
  halved = [name for name, case in golden_examples.items() if case['raw_validation_rows']]
  assert len(halved) == 13
  for name in halved:
    case = golden_examples[name]
    for split, key in (('validation', 'validation_half_indices'), ('test', 'test_half_indices')):
      rows = [case['raw_validation_rows'][i] for i in case[key]]
      _check_examples(name, rows, case['splits'][split]['first_rows'])


def test_tables_name_only_known_parts():
  assert len(TASKS) == 34
  for task in TASKS.values():
    assert set(task.splits) == set(SPLITS) and task.size in SIZES
    assert task.postprocess in POSTPROCESS
    assert task.folders and task.hf and task.metrics
    assert all(get_metric(name) for name in task.metrics)
    assert all(name in (*METRICS, 'mean_multiclass_f1') for name in task.reported)
    assert task.description.startswith('Given ') and ', the task is to ' in task.description
    assert task.description.endswith('.') and 12 <= len(task.description.split()) <= 40


def test_the_published_sizes():
  sizes = {size: {task.name for task in TASKS.values() if task.size == size} for size in SIZES}
  assert sizes['small'] == {
      'cola', 'wnli', 'rte', 'mrpc', 'stsb', 'scitail', 'superglue-cb', 'superglue-copa',
      'superglue-multirc', 'superglue-wic', 'superglue-wsc-fixed', 'superglue-rte',
      'superglue-boolq'}
  assert sizes['large'] == {
      'qqp', 'qnli', 'sst2', 'superglue-record', 'squad', 'snli', 'yelp_polarity',
      'amazon_polarity', 'winogrande', 'newsqa', 'searchqa', 'triviaqa', 'nq', 'hotpotqa'}


@pytest.mark.parametrize('alias, name', [
    ('superglue-wsc.fixed', 'superglue-wsc-fixed'), ('superglue-wsc-fixed', 'superglue-wsc-fixed'),
    ('glue-mnli', 'mnli'), ('natural_questions', 'nq'), ('super_glue-cb', 'superglue-cb')])
def test_aliases_name_the_same_task(alias, name):
  assert get_task(alias) is TASKS[name]


def test_unknown_task_suggests_close_names():
  with pytest.raises(UserError) as error:
    get_task('superglu-cb')
  assert str(error.value) == ("there is no task 'superglu-cb'; close names are superglue-cb, "
                              'super_glue-cb, superglue-wic.')


def test_unknown_template_is_an_error():
  with pytest.raises(UserError) as error:
    get_task('piqa').template_named('whole')
  assert str(error.value) == ("task 'piqa' has no template 'whole'; choose one of default, "
                              'first_character.')


def test_natural_test_split_is_never_the_validation_split():
  assert get_task('cola').natural_split('test') == 'test'
  assert get_task('mnli').natural_split('test') == 'validation_matched'
  assert get_task('mnli').natural_split('validation') == 'validation_mismatched'


@pytest.mark.parametrize('label', [1, '1', 'neutral', True, 1.0])
def test_label_forms_mean_the_same_class(label):
  row = {'premise': 'a', 'hypothesis': 'b', 'label': label}
  assert _triples(get_task('mnli').template(row)) == [('premise: a hypothesis: b', 'neutral', {})]


@pytest.mark.parametrize('label, end', [
    (9, "field 'label' has value 9, which is not among 0..2 (entailment, neutral, contradiction); "
        'fix the row or remove it'),
    ('maybe', "field 'label' has value 'maybe', which is not among 0..2 (entailment, neutral, "
              'contradiction); fix the row or remove it'),
    (-1, "field 'label' has value -1, which marks a row without a label; choose a split that has "
         'labels or remove the row'),
    (None, "field 'label' is null; fix the row or remove it")])
def test_labels_outside_the_label_words_are_named(label, end):
  with pytest.raises(RowError) as error:
    get_task('mnli').template({'premise': 'a', 'hypothesis': 'b', 'label': label})
  assert str(error.value) == end


def test_whole_choices_are_shown_by_default():
  row = {'goal': 'open a jar', 'sol1': 'twist', 'sol2': 'shout', 'label': 0}
  assert _triples(get_task('piqa').template(row)) == [
      ('question: open a jar choice1: twist choice2: shout', '0', {})]
  row = {'question': 'q', 'context': 'c', 'answerA': 'one', 'answerB': 'two', 'answerC': 'three',
         'label': '3'}
  assert _triples(get_task('social_i_qa').template(row)) == [
      ('question: q context: c || choice0: one || choice1: two || choice2: three', '2', {})]


def test_amazon_reviews_have_title_and_content():
  row = {'title': 'Great', 'content': 'Works well.', 'label': 1}
  assert _triples(get_task('amazon_polarity').template(row)) == [
      ('title: Great content: Works well.', '1', {})]


def test_similarity_is_written_in_tenths_or_in_fifths():
  row = {'sentence1': 'a', 'sentence2': 'b', 'label': 2.72}
  task = get_task('stsb')
  assert task.template(row)[0].target == '2.7'
  assert task.template_named('steps_of_one_fifth')(row)[0].target == '2.8'


def test_snli_rows_without_agreement_give_no_example():
  row = {'premise': 'a', 'hypothesis': 'b', 'label': -1}
  assert get_task('snli').template(row) == []


def test_record_gives_one_example_per_answer_and_marks_highlights():
  row = {'passage': 'One "two"\n@highlight\nthree\n@highlight\nfour', 'query': '@placeholder ran',
         'entities': ['A', 'B'], 'answers': ['A', 'B']}
  source = 'record query: @placeholder ran entities: A, B passage: One "two" three. four'
  task = get_task('superglue-record')
  assert _triples(task.template(row)) == [
      (source, 'A', {'answers': ['A', 'B']}), (source, 'B', {'answers': ['A', 'B']})]
  assert len(task.template_named('one_row_per_query')(row)) == 1
  assert task.template({**row, 'answers': []})[0].target == '<unk>'


def test_record_lists_may_be_json_text():
  row = {'passage': 'p', 'query': 'q', 'entities': '["A", "B"]', 'answers': '["A"]'}
  made = get_task('superglue-record').template(row)
  assert _triples(made) == [('record query: q entities: A, B passage: p', 'A', {'answers': ['A']})]


@pytest.mark.parametrize('row, source', [
    (dict(text='I saw Bob and he ran', span1_index=2, span1_text='Bob', span2_index=4,
          span2_text='he'), 'text: I saw * Bob * and # he # ran'),
    (dict(text='he and he met he', span1_index=0, span1_text='he', span2_index=2, span2_text='he'),
     'text: * he * and # he # met he'),
    (dict(text='he saw Bob.', span1_index=2, span1_text='Bob', span2_index=0, span2_text='he'),
     'text: # he # saw * Bob *.'),
    (dict(text='I saw Bob and he ran', span1_index=3, span1_text='Bob', span2_index=5,
          span2_text='he'), 'text: I saw * Bob * and # he # ran')])
def test_coreference_marks_both_spans_also_where_the_index_is_off(row, source):
  assert get_task('superglue-wsc-fixed').template({**row, 'label': 1})[0].source == source


def test_question_answering_accepts_every_answer_and_context_form():
  template = get_task('hotpotqa').template
  context = {'title': ['T', 'S'], 'sentences': [['Bob', ' ran.'], ['x']]}
  assert _triples(template({'question': 'Who?', 'context': context, 'answer': 'Bob'})) == [
      ('question: Who ?  context: T : Bob ran . S : x', 'Bob', {})]
  for answers in ({'text': ['Bob', 'he']}, ['Bob', 'he'], '["Bob"]'):
    row = {'question': 'Who', 'context': 'Bob ran', 'answers': answers}
    assert _triples(template(row)) == [('question: Who context: Bob ran', 'Bob', {})]


def test_padded_punctuation_keeps_words_numbers_marks_and_underscores():
  assert templates.pad_punctuation('a_b (1)\u0301!') == 'a_b ( 1 ) \u0301 ! '
