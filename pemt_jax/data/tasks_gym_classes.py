"""Further tasks of the few-shot gym with few different answers: labels, one of two, scores.

The tasks that weight ensembling uses as well are those of `tasks_gym_text` and `tasks_gym_qa`.
"""

from __future__ import annotations

from collections.abc import Callable

from pemt_jax.data import templates_gym as gym
from pemt_jax.data import templates_gym_open as rows
from pemt_jax.data.gym import listed
from pemt_jax.data.gym_table import words_of
from pemt_jax.data.tasks_base import Task
from pemt_jax.data.tasks_gym_text import blimp, classes, only, pair, tweets
from pemt_jax.data.templates import Row, text_field

TEST = {'train': 'train', 'validation': 'test', 'test': 'test'}
_DEV = {'train': 'train', 'validation': 'dev', 'test': 'dev'}
_MATCHED = {'train': 'train', 'validation': 'validation_matched', 'test': 'validation_matched'}
_ENTAILS = ('entailment', 'not_entailment')
_FALSE_TRUE = ('false', 'true')
_SIGNS = ('negative', 'positive')
_STANCES = ('none', 'against', 'favor')
_ANSWERS = ('Yes', 'No', 'In the middle, neither yes nor no', 'Yes, subject to some conditions',
            'Other')
_FIRST_OR_SECOND = ('hypothesis 1', 'hypothesis 2')
_LABEL = {'label': 0}


def _stripped(field: str) -> Callable[[Row], str]:
  return lambda row: text_field(row, field).strip()


def _marked(show: str) -> Callable[[Row], str]:
  """A text whose written out line breaks become blanks."""
  shown = gym.shown(show)
  return lambda row: shown(row).replace('\\n', ' ').replace('\n', ' ')


def _ethos(field: str, words: tuple[str, str] = _FALSE_TRUE) -> Task:
  return classes(f'ethos-{field}', _stripped('text'), words, ('ethos', 'multilabel'), field=field,
                 test='last_share', splits=only('train'))


def _above(limit: int, field: str) -> Callable[[Row], bool]:
  """Whether a label is no class number up to a limit."""
  return lambda row: not 0 <= int(row.get(field, 0)) <= limit


_GLUE = (
    classes('glue-cola', gym.shown('{sentence}'), ('unacceptable', 'acceptable'), ('glue', 'cola')),
    classes('glue-mnli', gym.shown('premise: {premise} [SEP] hypothesis: {hypothesis}'),
            ('entailment', 'neutral', 'contradiction'), ('glue', 'mnli'), splits=_MATCHED),
    classes('glue-qnli', gym.shown('question: {question} [SEP] sentence: {sentence}'), _ENTAILS,
            ('glue', 'qnli')),
    pair('glue-rte', 'sentence1', 'sentence2', _ENTAILS, ('glue', 'rte')),
    classes('glue-sst2', gym.shown('sentence: {sentence}'), _SIGNS, ('glue', 'sst2')),
    pair('glue-wnli', 'sentence1', 'sentence2', _ENTAILS[::-1], ('glue', 'wnli')),
    classes('superglue-cb', gym.shown('premise: {premise} [SEP] hypothesis: {hypothesis}'),
            ('entailment', 'contradiction', 'neutral'), ('super_glue', 'cb')),
    classes('superglue-rte', gym.shown('premise: {premise} [SEP] hypothesis: {hypothesis}'),
            _ENTAILS, ('super_glue', 'rte')),
    classes('superglue-wic', gym.shown(
        'word: {word} [SEP] sentence 1: {sentence1} [SEP] sentence 2: {sentence2}'), _FALSE_TRUE,
            ('super_glue', 'wic')),
    classes('superglue-wsc', gym.shown(
        'text: {text} [SEP] span1_text{span1_text} [SEP] span2_text: {span2_text}'), _FALSE_TRUE,
            ('super_glue', 'wsc.fixed'), more_folders=('super_glue/wsc',)),
)

_TEXTS = (
    classes('ade_corpus_v2-classification', gym.shown('{text}'), ('Not Related', 'Related'),
            ('ade_corpus_v2', 'Ade_corpus_v2_classification'), test='last_share',
            splits=only('train')),
    classes('ag_news', gym.shown('{text}'), ('World', 'Sports', 'Business', 'Sci/Tech'),
            ('ag_news', None), splits=TEST),
    classes('circa', gym.shown('context: {context} [SEP] question X: {question-X} [SEP] answer Y: '
                               '{answer-Y}'), _ANSWERS, ('circa', None), field='goldstandard2',
            test='last_share', splits=only('train'), skip=_above(4, 'goldstandard2')),
    classes('dbpedia_14', gym.cleaned('', 'content'), words_of('dbpedia_14'), ('dbpedia_14', None),
            test='first_share', share=0.05, splits=TEST),
    classes('discovery', gym.shown('sentence 1: {sentence1} [SEP] sentence 2: {sentence2}'),
            words_of('discovery'), ('discovery', 'discovery'), test='first_share', share=0.1),
    classes('emo', _stripped('text'), ('others', 'happy', 'sad', 'angry'), ('emo', None),
            splits=TEST),
    classes('emotion', _stripped('text'), ('sadness', 'joy', 'love', 'anger', 'fear', 'surprise'),
            ('emotion', None)),
    listed('google_wellformed_query', rows.wellformed, ('google_wellformed_query', None),
           blank={'rating': 1.0}),
    classes('hate_speech18', gym.shown('{text}'), ('noHate', 'hate'), ('hate_speech18', None),
            test='last_share', splits=only('train'), skip=_above(1, 'label')),
    classes('hate_speech_offensive', gym.shown('{tweet}', gym.flat),
            ('hate speech', 'offensive language', 'neither'), ('hate_speech_offensive', None),
            field='class', test='last_share', splits=only('train')),
    listed('hatexplain', rows.majority(('hatespeech', 'normal', 'offensive')),
           ('hatexplain', None), blank={'annotators': {'label': [1]}}),
    classes('imdb', gym.cleaned('', 'text'), _SIGNS, ('imdb', None), splits=TEST),
    classes('onestop_english', rows.levelled, ('elementary', 'intermediate', 'advance'),
            ('onestop_english', None), test='last_share', splits=only('train')),
    listed('paws', gym.line(gym.shown('sentence 1: {sentence1} [SEP] sentence 2: {sentence2}'),
                            gym.answer_in('label')), ('paws', 'labeled_final'),
           more_folders=('paws',), blank=_LABEL),
    classes('poem_sentiment', gym.shown('{verse_text}'), (*_SIGNS, 'no_impact', 'mixed'),
            ('poem_sentiment', None)),
    classes('rotten_tomatoes', gym.shown('{text}'), _SIGNS, ('rotten_tomatoes', None)),
    classes('scicite', rows.citation, ('method', 'background', 'result'), ('scicite', None)),
    pair('sick', 'sentence_A', 'sentence_B', ('entailment', 'neutral', 'contradiction'),
         ('sick', None)),
    classes('sms_spam', _stripped('sms'), ('ham', 'spam'), ('sms_spam', None), test='last_share',
            splits=only('train')),
    classes('trec', gym.shown('{text}'), ('DESC', 'ENTY', 'ABBR', 'HUM', 'NUM', 'LOC'),
            ('trec', None), field='label-coarse', test='last_share', splits=only('train')),
    classes('trec-finegrained', gym.shown('{text}'), words_of('trec-finegrained'), ('trec', None),
            field='label-fine', test='last_share', splits=only('train')),
    classes('wiki_auto', gym.shown(
        'normal sentence: {normal_sentence} [SEP] simple_sentence: {simple_sentence}'),
            ('notAligned', 'aligned'), ('wiki_auto', 'manual'), field='alignment_label',
            splits=_DEV),
    classes('wiki_qa', gym.shown('question: {question} [SEP] answer: {answer}'), _FALSE_TRUE,
            ('wiki_qa', None)),
    classes('yahoo_answers_topics', lambda row: gym.clean(gym.shown(
        'question_title: {question_title} [SEP] question_content: {question_content} [SEP] '
        'best_answer: {best_answer}')(row)), words_of('yahoo_answers_topics'),
            ('yahoo_answers_topics', None), field='topic', splits=TEST),
    classes('yelp_polarity', _marked('{text}'), _SIGNS, ('yelp_polarity', None),
            test='first_share', share=0.2, splits=TEST),
)

_TWEETS = (
    tweets('emoji', words_of('tweet_eval-emoji')),
    tweets('emotion', ('anger', 'joy', 'optimism', 'sadness')),
    tweets('hate', ('non-hate', 'hate')),
    *(tweets(f'stance_{topic}', _STANCES)
      for topic in ('abortion', 'atheism', 'climate', 'feminist', 'hillary')),
    _ethos('directed_vs_generalized', ('generalied', 'directed')),
    *(_ethos(field) for field in (
        'disability', 'gender', 'national_origin', 'race', 'religion', 'sexual_orientation')),
)

_PAIRS = (
    *(blimp(part) for part in (
        'anaphor_gender_agreement', 'anaphor_number_agreement',
        'determiner_noun_agreement_with_adj_irregular_1', 'ellipsis_n_bar_2',
        'existential_there_quantifiers_1', 'sentential_negation_npi_licensor_present',
        'wh_questions_object_gap')),
    listed('crows_pairs', gym.pair_of('sent_more', 'sent_less'), ('crows_pairs', None),
           test='last_share', prepare=gym.drawn_first, splits=only('test')),
    listed('art', gym.line(gym.shown(
        'observation 1: {observation_1} [SEP] observation 2: {observation_2} [SEP] hypothesis 1: '
        '{hypothesis_1} [SEP] hypothesis 2: {hypothesis_2}'),
                           rows.numbered('label', _FIRST_OR_SECOND)), ('art', None),
           blank={'label': 1}),
    listed('piqa', gym.line(gym.shown('goal: {goal} [SEP] solution 1{sol1} [SEP] solution 2{sol2}'),
                            gym.answer_in('label')), ('piqa', None), blank=_LABEL),
)

_SCORES = (
    listed('app_reviews', gym.line(gym.shown('review: {review}', gym.flat), gym.answer_in('star')),
           ('app_reviews', None), test='last_share', splits=only('train'), blank={'star': 1}),
    listed('mocha', rows.whole_score, ('mocha', None), blank={'score': 1}),
    listed('yelp_review_full', gym.line(_marked('{text}'), lambda row: (
        str(int(text_field(row, 'label')) + 1),)), ('yelp_review_full', None), splits=TEST,
           blank=_LABEL),
)

TASKS = (*_GLUE, *_TEXTS, *_TWEETS, *_PAIRS, *_SCORES)
