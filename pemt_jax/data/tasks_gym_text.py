"""Target tasks of weight ensembling beyond question answering: 19 tasks of the few-shot gym."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pemt_jax.data import templates_gym as gym
from pemt_jax.data.gym import listed
from pemt_jax.data.tasks_base import Task
from pemt_jax.data.templates import Row

_VERDICTS = ('Supports', 'Refutes', 'Not enough info', 'Disputed')
_TRUTH = ('false', 'half-true', 'mostly-true', 'true', 'barely-true', 'pants-fire')


def only(split: str) -> dict[str, str]:
  """Splits of a task that reads one split of its data set."""
  return dict.fromkeys(('train', 'validation', 'test'), split)


def classes(title: str, show: Callable[[Row], str], words: tuple[str, ...],
            hf: tuple[str, str | None], **options: Any) -> Task:
  """Builds a task with label words: text -> word.

  Args:
    title: published name.
    show: row -> input text.
    words: label words in class order.
    hf: Hugging Face data set and config.
    **options: field with the class (`field`), row -> whether it gives no line (`skip`), and those
      of `gym.listed`.
  """
  field, skip = options.pop('field', 'label'), options.pop('skip', None)
  lines = gym.line(show, gym.word_of(words, field))
  return listed(title, gym.unless(skip, lines) if skip else lines, hf,
                **{'blank': {field: words[0]}} | options)


def tweets(part: str, words: tuple[str, ...], **options: Any) -> Task:
  """Builds a task of TweetEval; empty texts give no line."""
  return classes(f'tweet_eval-{part}', gym.shown('{text}', gym.clean), words, ('tweet_eval', part),
                 skip=lambda row: not gym.clean(str(row.get('text') or '')), **options)


def _summary(title: str, show: Callable[[Row], str], how: Callable[[str], str]) -> Task:
  return listed(title, gym.line(show, gym.answer_in('summary', how)), (title, None),
                official_test='test', blank={'summary': ''})


def blimp(part: str) -> Task:
  """Builds a task of BLiMP."""
  return listed(f'blimp-{part}', gym.pair_of('sentence_good', 'sentence_bad'), ('blimp', part),
                test='last_share', prepare=gym.drawn_first, splits=only('train'))


def pair(title: str, first: str, second: str, words: tuple[str, ...],
         hf: tuple[str, str | None], **options: Any) -> Task:
  """Builds a task on two sentences, or questions if the fields are called so."""
  noun = 'question' if 'question' in first else 'sentence'
  show = gym.shown(f'{noun} 1: {{{first}}} [SEP] {noun} 2: {{{second}}}')
  return classes(title, show, words, hf, **options)


TASKS = (
    classes('amazon_polarity', gym.shown('title: {title} [SEP] content: {content}'),
            ('negative', 'positive'), ('amazon_polarity', None), test='next_rows',
            rows=(10_000, 1_000), splits=only('train')),
    classes('financial_phrasebank', gym.shown('{sentence}'), ('negative', 'neutral', 'positive'),
            ('financial_phrasebank', 'sentences_allagree'), test='last_share',
            splits=only('train')),
    classes('anli', gym.shown('premise: {premise} [SEP] hypothesis: {hypothesis}', gym.flat),
            ('entailment', 'neutral', 'contradiction'), ('anli', None), official_test='test_r1',
            splits={'train': 'train_r1', 'validation': 'dev_r1', 'test': 'dev_r1'}),
    pair('scitail', 'sentence1', 'sentence2', ('entailment', 'neutral'),
         ('scitail', 'snli_format'), field='gold_label', official_test='test'),
    classes('climate_fever', gym.shown('{claim}'), _VERDICTS, ('climate_fever', None),
            field='claim_label', test='last_share', splits=only('test')),
    classes('health_fact', lambda row: gym.flat(str(row['claim'])).strip(),
            ('false', 'mixture', 'true', 'unproven'), ('health_fact', None), official_test='test',
            skip=lambda row: row.get('label') in (-1, '-1')),
    classes('liar', gym.shown('statement: {statement} [SEP] speaker: {speaker} [SEP] context: '
                               '{context}', gym.flat), _TRUTH, ('liar', None),
            official_test='test'),
    classes('tab_fact', gym.table_rows, ('refuted', 'entailed'), ('tab_fact', 'tab_fact'),
            official_test='test'),
    tweets('offensive', ('non-offensive', 'offensive'), official_test='test'),
    tweets('sentiment', ('negative', 'neutral', 'positive'), official_test='test'),
    tweets('irony', ('non-irony', 'irony'), official_test='test'),
    pair('glue-mrpc', 'sentence1', 'sentence2', ('not_equivalent', 'equivalent'),
         ('glue', 'mrpc'), official_test='test'),
    pair('glue-qqp', 'question1', 'question2', ('not_duplicate', 'duplicate'), ('glue', 'qqp')),
    pair('medical_questions_pairs', 'question_1', 'question_2', ('Similar', 'Dissimilar'),
         ('medical_questions_pairs', None), test='last_share', splits=only('train')),
    _summary('samsum', gym.cleaned('summarize: ', 'dialogue'), gym.clean),
    _summary('xsum', gym.shown('summarize: {document}', gym.flat), gym.flat),
    blimp('ellipsis_n_bar_1'),
    blimp('irregular_past_participle_adjectives'),
    blimp('sentential_negation_npi_scope'),
)
