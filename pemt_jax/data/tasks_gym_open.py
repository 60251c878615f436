"""Further tasks of the few-shot gym with free answers: questions, summaries, facts, other texts."""

from __future__ import annotations

from pemt_jax.data import templates_gym as gym
from pemt_jax.data import templates_gym_open as rows
from pemt_jax.data.gym import listed
from pemt_jax.data.tasks_base import Task
from pemt_jax.data.tasks_gym_classes import TEST
from pemt_jax.data.tasks_gym_text import only
from pemt_jax.data.templates import Row, text_field
from pemt_jax.data.templates_gym import Lines

_TRAIN = only('train')
_READING = 'question: {question} context: {context}'


def _text(title: str, show: str, answer: str, hf: tuple[str, str | None], **options) -> Task:
  """A task with one text as its answer."""
  return listed(title, gym.line(gym.shown(show, gym.flat), gym.answer_in(answer, gym.flat)), hf,
                **{'blank': {answer: ''}} | options)


def _cleaned(show: str):
  """Row -> a cleaned pattern."""
  shown = gym.shown(show)
  return lambda row: gym.clean(shown(row))


def _kilt(title: str, config: str, answers=rows.kilt_distinct, how=gym.flat) -> Task:
  return listed(f'kilt_{title}', gym.line(gym.shown('{input}', how), answers),
                ('kilt_tasks', config), blank={'output': [{'answer': '-'}]})


def _lama(part: str, lines: Lines, **options) -> Task:
  return listed(f'lama-{part}', lines, ('lama', part), test='last_share', splits=_TRAIN,
                blank={'obj_label': ''}, **options)


def _tifu(answer: str) -> Task:
  return listed(f'reddit_tifu-{answer}', gym.line(
      gym.cleaned('summarize: ', 'documents'), gym.answer_in(answer, gym.clean)),
                ('reddit_tifu', 'long'), test='last_share', splits=_TRAIN, blank={answer: ''})


def _decomposed(config: str) -> Task:
  return _text(f'break-{config}', 'question: {question_text}', 'decomposition',
               ('break_data', config))


def _tweet(row: Row) -> str:
  return gym.clean(f"question: {text_field(row, 'Question')} context: {text_field(row, 'Tweet')}")


def _clue(row: Row) -> str:
  question = text_field(row, 'question').strip("'")
  return f"question: {question} [SEP] category: {text_field(row, 'category')}"


def _plot(row: Row) -> str:
  return gym.clean(f"question: {text_field(row, 'question')} context: {text_field(row, 'plot')}")


def _passage(row: Row) -> str:
  context = gym.clean(text_field(row, 'context'))
  return f"question: {text_field(row, 'question')} context: {context}"


def _role(row: Row) -> str:
  return f"question: {' '.join(gym.texts_in(row, 'question'))} context: {row['sentence']}"


_QUESTIONS = (
    listed('aqua_rat', rows.cut_options, ('aqua_rat', 'raw'), blank={'correct': 'A'}),
    listed('math_qa', rows.comma_options, ('math_qa', None), blank={'correct': 'a'}),
    listed('social_i_qa', rows.story_options, ('social_i_qa', None), blank={'label': '1'}),
    listed('superglue-multirc', rows.multirc, ('super_glue', 'multirc'),
           prepare=rows.grouped(rows.multirc_key, 'rows'), blank={'label': 0}),
    listed('biomrc', gym.line(gym.shown('question: {title} context: {abstract}', gym.flat),
                              gym.answer_in('answer')), ('biomrc', 'biomrc_large_B'),
           test='first_share', share=0.1, blank={'answer': ''}),
    listed('duorc', gym.unless(rows.no_plot, gym.line(_plot, rows.several('answers', gym.clean))),
           ('duorc', 'SelfRC')),
    listed('quoref', gym.line(gym.shown(_READING, gym.flat), rows.listed_answers('answers')),
           ('quoref', None)),
    listed('ropes', gym.line(gym.shown(
        'question: {question} [SEP] situation: {situation} [SEP] background: {background}',
        gym.flat), rows.listed_answers('answers')), ('ropes', None)),
    listed('squad-no_context', gym.line(gym.shown('question: {question}', gym.flat),
                                        rows.several('answers')), ('squad', None)),
    listed('squad-with_context', gym.line(_passage, rows.several('answers')), ('squad', None)),
    listed('tweet_qa', gym.line(_tweet, rows.listed_answers('Answer', gym.clean)),
           ('tweet_qa', None), blank={'Answer': ['-']}),
    listed('freebase_qa', gym.line(gym.shown('{RawQuestion}'), rows.freebase_names),
           ('freebase_qa', None), blank={'Parses': [{'AnswersName': ['-']}]}),
    listed('jeopardy', gym.line(_clue, gym.answer_in('answer')), ('jeopardy', None),
           test='last_share', splits=_TRAIN, blank={'answer': ''}),
)

_FACTS = (
    _kilt('ay2', 'aidayago2', rows.kilt_answers),
    _kilt('fever', 'fever', how=gym.clean),
    _kilt('hotpotqa', 'hotpotqa', rows.kilt_answers),
    _kilt('nq', 'nq'),
    _kilt('trex', 'trex'),
    _kilt('wow', 'wow', rows.kilt_answers),
    _kilt('zsre', 'structured_zeroshot'),
    _lama('squad', gym.line(gym.shown('{masked_sentence}'), gym.answer_in('obj_label'))),
    _lama('trex', gym.line(gym.filled_relation, gym.answer_in('obj_label')), share=0.01),
)

_SUMMARIES = (
    listed('aeslc', gym.line(gym.cleaned('summarize: ', 'email_body'),
                             gym.answer_in('subject_line', gym.clean)), ('aeslc', None),
           blank={'subject_line': ''}),
    _text('gigaword', 'summarize: {document}', 'summary', ('gigaword', None)),
    _text('multi_news', 'summarize: {document}', 'summary', ('multi_news', None)),
    _tifu('title'),
    _tifu('tldr'),
)


def _drug(part: str, config: str, answer: str) -> Task:
  return _text(f'ade_corpus_v2-{part}', '{text} [SEP] {drug}', answer,
               ('ade_corpus_v2', f'Ade_corpus_v2_{config}'), test='last_share', splits=_TRAIN)


def _run_together(row: Row) -> str:
  return ''.join(text_field(row, 'example').split()).lower()


_OTHERS = (
    listed('acronym_identification', rows.acronym, ('acronym_identification', None)),
    _drug('dosage', 'drug_dosage_relation', 'dosage'),
    _drug('effect', 'drug_ade_relation', 'effect'),
    listed('aslg_pc12', gym.line(lambda row: text_field(row, 'text').strip(),
                                 gym.answer_in('gloss', str.strip)), ('aslg_pc12', None),
           test='last_share', splits=_TRAIN, blank={'gloss': ''}),
    _decomposed('QDMR'),
    _decomposed('QDMR-high-level'),
    listed('common_gen', rows.concepts, ('common_gen', None),
           prepare=rows.grouped(lambda row: row['concept_set_idx'], 'rows'), blank={'target': ''}),
    listed('cos_e', gym.line(rows.explained_choice, gym.answer_in('abstractive_explanation')),
           ('cos_e', 'v1.11'), blank={'abstractive_explanation': ''}),
    listed('crawl_domain', gym.line(_run_together, gym.answer_in('example')),
           ('crawl_domain', None)),
    listed('definite_pronoun_resolution', rows.two_candidates,
           ('definite_pronoun_resolution', None), splits=TEST, blank={'label': 0}),
    _text('e2e_nlg_cleaned', '{meaning_representation}', 'human_reference',
          ('e2e_nlg_cleaned', None)),
    listed('empathetic_dialogues', rows.dialogue, ('empathetic_dialogues', None),
           test='first_share', share=0.2, prepare=rows.grouped(rows.dialogue_key, 'rows'),
           blank={'utterance': ''}),
    listed('limit', rows.moving, ('limit', None), splits=TEST,
           blank={'motion': 'yes', 'motion_entities': [{'entity': ''}]}),
    listed('proto_qa', gym.line(lambda row: str(rows.inside(row, 'question', 'normalized')),
                                lambda row: tuple(rows.inside(row, 'answers', 'raw'))),
           ('proto_qa', None), test='last_share', splits=_TRAIN,
           blank={'answers': {'raw': {'-': 1}}}),
    listed('qa_srl', gym.line(_role, rows.listed_answers('answers')), ('qa_srl', None)),
    listed('spider', gym.line(_cleaned('{question}'), gym.answer_in('query', gym.clean)),
           ('spider', None), blank={'query': ''}),
    listed('wiki_bio', rows.biography, ('wiki_bio', None), test='first_share', share=0.01,
           splits={'train': 'train', 'validation': 'val', 'test': 'val'},
           blank={'target_text': ''}),
    _text('wiki_split', 'sentence 1: {simple_sentence_1} [SEP] sentence 2: {simple_sentence_2}',
          'complex_sentence', ('wiki_split', None)),
    listed('wikisql', gym.line(_cleaned('{question}'), lambda row: (
        str(rows.inside(row, 'sql', 'human_readable')).strip(),)), ('wikisql', None),
           blank={'sql': {'human_readable': ''}}),
)

TASKS = (*_QUESTIONS, *_FACTS, *_SUMMARIES, *_OTHERS)
