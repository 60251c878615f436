"""Tasks of multi-task ProPETL in several languages: translation, inference, reading, tags."""

from __future__ import annotations

from pemt_jax.data import templates_propetl as forms
from pemt_jax.data.tasks_base import Task
from pemt_jax.data.tasks_propetl_base import DIGITS, NATURAL, propetl_task
from pemt_jax.data.templates_gym import shown

_NAMES = {'cs': 'Czech', 'de': 'German', 'en': 'English', 'fi': 'Finnish', 'hi': 'Hindi',
          'nl': 'Dutch', 'ro': 'Romanian',
          'fr': 'Frecnch'}  # As published.
_XNLI = ('ar', 'bg', 'de', 'el', 'en', 'es', 'fr', 'hi', 'ru', 'sw', 'th', 'tr', 'ur', 'vi', 'zh')
_PAWS = ('en', 'fr', 'es', 'de', 'zh', 'ja', 'ko')
_MLQA = ('en', 'de', 'ar', 'es', 'vi', 'hi', 'zh')
_TREEBANKS = {
    'en': 'en_ewt', 'ar': 'ar_padt', 'br': 'br_keb', 'zh': 'zh_gsd', 'is': 'is_pud',
    'kk': 'kk_ktb', 'ta': 'ta_ttb', 'tr': 'tr_imst', 'yo': 'yo_ytb', 'fo': 'fo_oft',
    'gn': 'gun_thomas', 'hsb': 'hsb_ufal', 'mt': 'mt_mudt', 'sa': 'sa_ufal', 'ug': 'ug_udt',
    'yue': 'yue_hk'}


def translation(name: str, data: str, pair: str, source: str, target: str,
                aliases: tuple[str, ...] = (), plain: bool | None = None) -> Task:
  """Makes a task that translates.

  Args:
    name: published name.
    data: WMT or IWSLT of a year.
    pair: its languages as the data set names them.
    source: language of the inputs.
    target: language of the targets.
    aliases: other published names.
    plain: inputs are the text alone, not `Translate X to Y: text`; None: those of IWSLT are.
  """
  words = f'Translate {_NAMES[source]} to {_NAMES[target]}'
  text, iwslt = forms.translated(source), data.startswith('iwslt')
  plain = iwslt if plain is None else plain
  template = forms.texts(text if plain else lambda row: f'{words}: {text(row)}',
                         forms.translated(target))
  config = f'{data}-{pair}' if iwslt else pair
  return propetl_task(
      name, template, front=words if plain else None, aliases=aliases, metrics=('bleu',),
      splits=NATURAL, decoding={'max_length': 300, 'num_beams': 4}, hf=(data, config),
      folders=(f'{data}/{config}',), blank={target: ''}, few_shot_label=None,
      description=f"Given a text in {_full(source)}, the task is to translate it into "
                  f'{_full(target)}.')


def _full(language: str) -> str:
  return 'French' if language == 'fr' else _NAMES[language]


def _inference(language: str) -> Task:
  """XNLI (not in original: all languages but English read English rows)."""
  words = DIGITS[:3]
  return propetl_task(
      f'xnli_{language}', forms.texts(shown('premise: {premise} hypothesis {hypothesis}'),
                                      forms.class_in('label', words)),
      metrics=('accuracy',), label_words=words, splits=NATURAL, hf=('xnli', language),
      folders=(f'xnli/{language}',),
      description='Given a premise and a hypothesis in one language, the task is to tell whether '
                  'the hypothesis follows, stays open or conflicts.')


def _paraphrase(language: str) -> Task:
  words = DIGITS[:2]
  return propetl_task(
      f'paws_{language}', forms.texts(shown('sentence1: {sentence1} sentence2: {sentence2}'),
                                      forms.class_in('label', words)),
      metrics=('accuracy',), label_words=words, splits=NATURAL, hf=('paws-x', language),
      folders=(f'paws-x/{language}',),
      description='Given two sentences of one language that share their words, the task is to tell '
                  'whether they mean the same.')


def _reading(language: str) -> Task:
  """MLQA: trained on SQuAD, or on its translation; tested on MLQA."""
  english = language == 'en'
  trained = ('squad', None) if english else ('mlqa', f'mlqa-translate-train.{language}')
  tested = 'mlqa', f'mlqa.{language}.{language}'
  folders = ('squad/v1', 'squad/squad', 'squad') if english else ('/'.join(trained),)
  question = 'question: {question} context: {context}'
  source = question if english else f'question answering: {question} answer:'
  return propetl_task(
      f'mlqa_{language}', forms.texts(shown(source), forms.first_answer),
      metrics=('word_match', 'word_f1'), splits=NATURAL, decoding={'max_length': 10}, hf=trained,
      hf_splits={'test': tested}, folders=(*folders, '/'.join(tested)),
      blank={'answers': {'text': ['']}}, few_shot_label=None,
      description='Given a question and a text that holds its answer, the task is to copy the '
                  'answer.')


def _entities(language: str) -> Task:
  """WikiANN (not in original: Upper Sorbian reads the rows and bears the name of Yoruba)."""
  config = 'zh-yue' if language == 'yue' else language
  return propetl_task(
      f'wikiann_{language}', forms.texts(forms.words_behind('tag entity:'), forms.spans),
      metrics=('span_f1',), splits=NATURAL, decoding={'max_length': 64}, hf=('wikiann', config),
      folders=(f'wikiann/{config}',), blank={'spans': []}, few_shot_label=None,
      description='Given a sentence, the task is to name the people, places and organisations in '
                  'it.')


def _speech(language: str) -> Task:
  config = _TREEBANKS[language]
  return propetl_task(
      f'ud_{language}', forms.texts(forms.words_behind('tag part-of-speech:'), forms.tags),
      metrics=('tag_accuracy',), splits=NATURAL, decoding={'max_length': 256},
      hf=('universal_dependencies', config), folders=(f'universal_dependencies/{config}',),
      blank={'upos': []}, few_shot_label=None,
      description='Given a sentence, the task is to number the part of speech of each word.')


TRANSLATION = (
    translation('wmt16-ro-en', 'wmt16', 'ro-en', 'ro', 'en'),
    translation('wmt15-fr-en', 'wmt15', 'fr-en', 'fr', 'en', ('wmt15_fr-en',)),
    translation('wmt18-cs-en', 'wmt18', 'cs-en', 'cs', 'en', ('wmt18_cs-en',)),
    translation('wmt18-de-en', 'wmt18', 'de-en', 'de', 'en', ('wmt18_de-en',)),
    translation('wmt18-fi-en', 'wmt18', 'fi-en', 'fi', 'en', ('wmt18_fi-en',)),
    # Translates from English, whatever the published name says.
    translation('wmt14-hi-en', 'wmt14', 'hi-en', 'en', 'hi', ('wmt14_hi-en', 'wmt14-en-hi')),
    translation('wmt16-en-ro', 'wmt16', 'ro-en', 'en', 'ro'),
    translation('wmt16-en-cs', 'wmt16', 'cs-en', 'en', 'cs', ('wmt16_en-cs',)),
    translation('wmt16-en-fi', 'wmt16', 'fi-en', 'en', 'fi'),
    translation('iwslt2017-ro-nl', 'iwslt2017', 'ro-nl', 'ro', 'nl'),
    translation('iwslt2017-en-nl', 'iwslt2017', 'en-nl', 'en', 'nl'),
)

TASKS = (
    *map(_inference, _XNLI), *map(_paraphrase, _PAWS), *map(_reading, _MLQA),
    *map(_entities, _TREEBANKS), *map(_speech, _TREEBANKS))
