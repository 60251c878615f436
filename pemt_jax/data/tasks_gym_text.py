"""Target tasks of weight ensembling beyond question answering: 19 tasks of the few-shot gym."""

from __future__ import annotations

from collections.abc import Callable

from pemt_jax.data import templates_gym as gym
from pemt_jax.data.gym import gym_task
from pemt_jax.data.tasks_base import GymRule, Task
from pemt_jax.data.templates import Row

_VERDICTS = ('Supports', 'Refutes', 'Not enough info', 'Disputed')
_TRUTH = ('false', 'half-true', 'mostly-true', 'true', 'barely-true', 'pants-fire')


def _only(split: str) -> dict[str, str]:
  return dict.fromkeys(('train', 'validation', 'test'), split)


def _classes(title: str, show: Callable[[Row], str], words: tuple[str, ...],
             hf: tuple[str, str | None], **options) -> Task:
  """A task with label words: text -> word, mean F1 of the classes."""
  rule = GymRule('classification', options.pop('family', 'classification'),
                 options.pop('test', 'split'), options.pop('rows', (0, 0)),
                 options.pop('official_test', None))
  field, metric = options.pop('field', 'label'), options.pop('metric', 'Classification-F1')
  lines = gym.line(show, gym.word_of(words, field))
  if 'skip' in options:
    lines = gym.unless(options.pop('skip'), lines)
  return gym_task(title, rule, lines, metric, hf, blank={field: words[0]}, **options)


def _tweets(part: str, words: tuple[str, ...]) -> Task:
  return _classes(f'tweet_eval-{part}', gym.shown('{text}', gym.clean), words, ('tweet_eval', part),
                  skip=lambda row: not gym.clean(str(row.get('text') or '')), official_test='test')


def _summary(title: str, show: Callable[[Row], str], how: Callable[[str], str]) -> Task:
  rule = GymRule('text', 'summarization', official_test='test')
  return gym_task(title, rule, gym.line(show, gym.answer_in('summary', how)), 'Rouge-L',
                  (title, None), blank={'summary': ''})


def _blimp(part: str) -> Task:
  rule = GymRule('classification', 'linguistics', test='last_fifth')
  return gym_task(f'blimp-{part}', rule, gym.minimal_pair, 'ACC', ('blimp', part),
                  prepare=gym.drawn_first, splits=_only('train'))


def _pair(title: str, first: str, second: str, words: tuple[str, ...],
          hf: tuple[str, str | None], **options) -> Task:
  noun = 'question' if 'question' in first else 'sentence'
  show = gym.shown(f'{noun} 1: {{{first}}} [SEP] {noun} 2: {{{second}}}')
  return _classes(title, show, words, hf, **{'family': 'paraphrase', 'metric': 'ACC'} | options)


TASKS = (
    _classes('amazon_polarity', gym.shown('title: {title} [SEP] content: {content}'),
             ('negative', 'positive'), ('amazon_polarity', None), test='next_rows',
             rows=(10_000, 1_000), splits=_only('train')),
    _classes('financial_phrasebank', gym.shown('{sentence}'), ('negative', 'neutral', 'positive'),
             ('financial_phrasebank', 'sentences_allagree'), test='last_fifth',
             splits=_only('train')),
    _classes('anli', gym.shown('premise: {premise} [SEP] hypothesis: {hypothesis}', gym.flat),
             ('entailment', 'neutral', 'contradiction'), ('anli', None), official_test='test_r1',
             splits={'train': 'train_r1', 'validation': 'dev_r1', 'test': 'dev_r1'}),
    _pair('scitail', 'sentence1', 'sentence2', ('entailment', 'neutral'),
          ('scitail', 'snli_format'), field='gold_label', family='classification',
          metric='Classification-F1', official_test='test'),
    _classes('climate_fever', gym.shown('{claim}'), _VERDICTS, ('climate_fever', None),
             field='claim_label', test='last_fifth', splits=_only('test')),
    _classes('health_fact', lambda row: gym.flat(str(row['claim'])).strip(),
             ('false', 'mixture', 'true', 'unproven'), ('health_fact', None), official_test='test',
             skip=lambda row: row.get('label') in (-1, '-1')),
    _classes('liar', gym.shown('statement: {statement} [SEP] speaker: {speaker} [SEP] context: '
                               '{context}', gym.flat), _TRUTH, ('liar', None),
             official_test='test'),
    _classes('tab_fact', gym.table_rows, ('refuted', 'entailed'), ('tab_fact', 'tab_fact'),
             official_test='test'),
    _tweets('offensive', ('non-offensive', 'offensive')),
    _tweets('sentiment', ('negative', 'neutral', 'positive')),
    _tweets('irony', ('non-irony', 'irony')),
    _pair('glue-mrpc', 'sentence1', 'sentence2', ('not_equivalent', 'equivalent'),
          ('glue', 'mrpc'), official_test='test'),
    _pair('glue-qqp', 'question1', 'question2', ('not_duplicate', 'duplicate'), ('glue', 'qqp')),
    _pair('medical_questions_pairs', 'question_1', 'question_2', ('Similar', 'Dissimilar'),
          ('medical_questions_pairs', None), test='last_fifth', splits=_only('train')),
    _summary('samsum', gym.cleaned('summarize: ', 'dialogue'), gym.clean),
    _summary('xsum', gym.shown('summarize: {document}', gym.flat), gym.flat),
    _blimp('ellipsis_n_bar_1'),
    _blimp('irregular_past_participle_adjectives'),
    _blimp('sentential_negation_npi_scope'),
)
