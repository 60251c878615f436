"""Laws of scoring a task: post-processing, the selection average, figures beside it."""

from __future__ import annotations

import pytest

from pemt_jax.data.tasks import TASKS, Example, get_task
from pemt_jax.errors import UserError
from pemt_jax.evaluation.postprocess import AVERAGE, score


def _examples(targets):
  return [Example('s', target) for target in targets]


@pytest.mark.parametrize('name', sorted(TASKS))
def test_right_answers_give_every_task_its_full_average(name):
  words = TASKS[name].label_words or ('1.0', '2.0', '3.0')
  extra = {'group': 0, 'answers': None}
  examples = [Example('s', word, extra) for word in words]
  values = score(TASKS[name], [f' {word} ' for word in words], examples)
  assert values[AVERAGE] == pytest.approx(100.0)


def test_the_average_is_over_the_selection_metrics_only():
  examples = _examples(['equivalent', 'equivalent', 'equivalent', 'not_equivalent'])
  given = ['equivalent', 'equivalent', 'junk', 'equivalent']
  assert score(get_task('mrpc'), given, examples) == {
      'accuracy': 50.0, AVERAGE: 50.0, 'f1': pytest.approx(200 / 3)}
  examples = _examples(['entailment', 'contradiction', 'neutral'])
  assert score(get_task('superglue-cb'), ['entailment', 'contradiction', 'junk'], examples) == {
      'accuracy': pytest.approx(200 / 3), AVERAGE: pytest.approx(200 / 3),
      'f1_multiclass': pytest.approx(200 / 3)}


def test_multirc_averages_answers_and_whole_questions():
  examples = [Example('s', target, {'group': group}) for target, group in (
      ('True', 0), ('False', 0), ('True', 1))]
  values = score(get_task('superglue-multirc'), ['True', 'True', 'True'], examples)
  assert values == {'f1': pytest.approx(80.0), 'em': 50.0, AVERAGE: pytest.approx(65.0)}


def test_record_accepts_every_answer_of_a_row():
  examples = [Example('s', 'Ann', {'answers': ['Ann', 'Bob Li']}),
              Example('s', 'Bob Li', {'answers': ['Ann', 'Bob Li']})]
  values = score(get_task('superglue-record'), ['bob li', 'Li'], examples)
  assert values['em'] == 50.0 and values['f1'] == pytest.approx((100 + 200 / 3) / 2)
  assert score(get_task('squad'), ['Li', 'Li'], examples)['em'] == 0.0


def test_mistakes_end_with_one_sentence():
  with pytest.raises(UserError) as error:
    score(get_task('rte'), ['entailment'], [])
  assert str(error.value) == ("task 'rte' has 0 examples but 1 predictions; give one prediction "
                              'for each example.')
  with pytest.raises(UserError) as error:
    score(get_task('rte'), [], [])
  assert str(error.value) == "task 'rte' has no examples to score; give a split that has rows."
