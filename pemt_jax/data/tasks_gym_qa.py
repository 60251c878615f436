"""Question answering of the few-shot gym: the 32 tasks of weight ensembling, in their order."""

from __future__ import annotations

import functools

from pemt_jax.data import templates_gym as gym
from pemt_jax.data.gym import gym_task
from pemt_jax.data.tasks_base import GymRule, Task
from pemt_jax.data.templates import Row

_TRAIN_ONLY = {'train': 'train', 'validation': 'train', 'test': 'train'}
_NO_YES = ('no', 'yes')
_FIRST, _KEY = {'label': 0}, {'answerKey': 'A'}  # what makes a row without a label readable
_reading = GymRule('text', 'machine_reading_comprehension')
_choice = GymRule('text', 'multiple_choice_qa')
_choice_official = GymRule('text', 'multiple_choice_qa', official_test='test')
_closed = GymRule('text', 'closed_book_qa')
_closed_fifth = GymRule('text', 'closed_book_qa', test='last_share')


def _boolq_answer(row: Row) -> tuple[str, ...]:
  return gym.word_of(_NO_YES, 'answer' if 'answer' in row else 'label')(row)


def _article(row: Row) -> str:
  return gym.shown(' [SEP] {article}', gym.flat)(row)


def _story(row: Row) -> str:
  return gym.shown(' [SEP] {context}', gym.flat)(row)


def _steps(row: Row) -> str:
  return f" [SEP] {' '.join(gym.texts_in(row, 'question_para_step'))}"


def _dialogue(row: Row) -> str:
  return f"{row['question']} [SEP] {' '.join(gym.texts_in(row, 'dialogue'))} [SEP] "


_MACHINE_READING = (
    gym_task('adversarialqa', _reading, gym.line(
        gym.shown('question: {question} context: {context}'), gym.first_answer),
             'QA-F1', ('adversarial_qa', 'adversarialQA')),
    gym_task('hotpot_qa', _reading, gym.line(gym.supporting_context, gym.answer_in('answer')),
             'QA-F1', ('hotpot_qa', 'distractor'), blank={'answer': ''}),
    gym_task('superglue-record', _reading, gym.line(
        gym.shown('question: {query} context: {passage}', gym.flat), gym.first_answer),
             'QA-F1', ('super_glue', 'record')),
)


def _quartz(name: str, show: str) -> Task:
  return gym_task(name, _choice_official, gym.named_choices(gym.shown(show)), 'ACC',
                  ('quartz', None), blank=_KEY)


def _race(level: str) -> Task:
  return gym_task(f'race-{level}', _choice_official, gym.listed_choices(
      gym.shown('{question}', gym.flat), 'options', 'answer', _article, 'ABCD'), 'ACC',
                  ('race', level), blank={'answer': 'A'})


_MULTIPLE_CHOICE = (
    gym_task('ai2_arc', _choice_official, gym.named_choices(gym.shown('{question}')), 'ACC',
             ('ai2_arc', 'ARC-Challenge'), blank=_KEY),
    gym_task('codah', _choice_official, gym.listed_choices(
        gym.shown('{question_propmt}'), 'candidate_answers', 'correct_answer_idx'),
             'Classification-F1', ('codah', 'fold_0'), blank={'correct_answer_idx': 0}),
    gym_task('commonsense_qa', _choice, gym.named_choices(gym.shown('{question}', gym.clean)),
             'ACC', ('commonsense_qa', None), blank=_KEY),
    gym_task('cosmos_qa', _choice, gym.listed_choices(
        gym.shown('{question} [SEP] {context} [SEP] '),
        ('answer0', 'answer1', 'answer2', 'answer3'), 'label'), 'ACC', ('cosmos_qa', None),
             blank=_FIRST),
    gym_task('dream', _choice_official, gym.quoted_choices(_dialogue, 'choice', 'answer'), 'ACC',
             ('dream', None), blank={'answer': ''}),
    gym_task('hellaswag', _choice, gym.listed_choices(gym.shown('{ctx}'), 'endings', 'label'),
             'ACC', ('hellaswag', None), blank=_FIRST),
    gym_task('openbookqa', _choice_official, gym.named_choices(
        gym.shown('{question_stem}'), letters=True), 'ACC', ('openbookqa', 'main'), blank=_KEY),
    gym_task('qasc', _choice, gym.named_choices(gym.shown('{question}')), 'ACC', ('qasc', None),
             blank=_KEY),
    gym_task('quail', _choice, gym.listed_choices(
        gym.shown('{question}', gym.flat), 'answers', 'correct_answer_id', _story,
        write=gym.tight_options), 'ACC', ('quail', None), blank={'correct_answer_id': 0}),
    gym_task('quarel', _choice_official, gym.two_options_inside, 'ACC', ('quarel', None),
             blank={'answer_index': 0}),
    _quartz('quartz-no_knowledge', '{question}'),
    _quartz('quartz-with_knowledge', '{question}{para}'),
    _race('high'),
    _race('middle'),
    gym_task('sciq', _choice_official, gym.shuffled_science, 'ACC', ('sciq', None),
             prepare=gym.shuffled_choices),
    gym_task('superglue-copa', _choice, gym.either_choice, 'ACC', ('super_glue', 'copa'),
             published=gym.either_choice_published, blank=_FIRST),
    gym_task('swag', _choice, gym.listed_choices(
        gym.shown('{startphrase}'), ('ending0', 'ending1', 'ending2', 'ending3'), 'label'), 'ACC',
             ('swag', 'regular'), blank=_FIRST),
    gym_task('wino_grande', _choice, gym.listed_choices(
        gym.shown('{sentence}'), ('option1', 'option2'), 'answer', numbers=('1', '2')), 'ACC',
             ('winogrande', 'winogrande_xl'), more_folders=('winogrande/winogrande',),
             blank={'answer': '1'}),
    gym_task('wiqa', _choice_official, gym.named_choices(
        gym.shown('{question_stem}', gym.flat), 'answer_label_as_choice', _steps), 'ACC',
             ('wiqa', None), blank={'answer_label_as_choice': 'A'}),
)

_BINARY = (
    gym_task('boolq', GymRule('classification', 'binary'), gym.line(
        gym.shown('question: {question} [SEP] context: {passage}'), _boolq_answer), 'ACC',
             ('boolq', None), more_folders=('super_glue/boolq',), blank={'answer': 'no'}),
    gym_task('mc_taco', GymRule('classification', 'binary', test='last_share'), gym.line(
        gym.shown('{sentence} [SEP] {question} [SEP] {answer}'), gym.word_of(_NO_YES)), 'ACC',
             ('mc_taco', None), splits=dict.fromkeys(_TRAIN_ONLY, 'validation'),
             blank=_FIRST),
)


def _explain(part: str) -> Task:
  show = gym.shown('{title} [SEP] {selftext}')
  return gym_task(
      f'eli5-{part}', GymRule('text', 'long_form_qa', test='first_share', share=0.1),
      gym.line(lambda row: gym.clean(show(row)), functools.partial(gym.all_answers, how=gym.clean)),
      'Rouge-L', ('eli5', None), splits={
          'train': f'train_{part}', 'validation': f'validation_{part}',
          'test': f'validation_{part}'})


_LONG_FORM = tuple(_explain(part) for part in ('askh', 'asks', 'eli5'))

_CLOSED_BOOK = (
    gym_task('lama-conceptnet', _closed_fifth, gym.line(
        gym.shown('{masked_sentence}'), gym.answer_in('obj_label')), 'EM', ('lama', 'conceptnet'),
             splits=_TRAIN_ONLY, blank={'obj_label': ''}),
    gym_task('lama-google_re', _closed_fifth, gym.line(
        gym.filled_relation, gym.answer_in('obj_label')), 'EM', ('lama', 'google_re'),
             splits=_TRAIN_ONLY, blank={'obj_label': ''}),
    gym_task('numer_sense', _closed_fifth, gym.line(
        lambda row: str(row['sentence']).replace('<mask>', '[MASK]'), gym.answer_in('target')),
             'EM', ('numer_sense', None), splits=_TRAIN_ONLY, blank={'target': ''}),
    gym_task('search_qa', GymRule('text', 'closed_book_qa', official_test='test'), gym.line(
        gym.shown('question: {question}category: {category}'), gym.answer_in('answer')), 'EM',
             ('search_qa', 'train_test_val'), blank={'answer': ''}),
    gym_task('web_questions', _closed_fifth, gym.line(gym.shown('{question}'), gym.all_answers),
             'EM', ('web_questions', None), splits=_TRAIN_ONLY),
)

TASKS = (*_MACHINE_READING, *_MULTIPLE_CHOICE, *_BINARY, *_LONG_FORM, *_CLOSED_BOOK)
