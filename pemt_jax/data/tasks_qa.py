"""Extractive question answering: SQuAD, the MRQA subsets, DROP."""

from __future__ import annotations

from pemt_jax.data import templates_qa
from pemt_jax.data.descriptions import DESCRIPTIONS
from pemt_jax.data.tasks_base import Task

_NO_ANSWER = {'answer': None, 'answers': ['']}

def _mrqa(name: str, config: str, tfds: str, folders: tuple[str, ...] = ()) -> Task:
  return Task(
      name=name, benchmark='mrqa', template=templates_qa.reading, metrics=('squad',),
      description=DESCRIPTIONS[name], size='large', blank=_NO_ANSWER, few_shot_label=None,
      hf=('tau/mrqa', config),
      tfds=f'mrqa/{tfds}', folders=(f'mrqa/{name}', *folders),
      aliases=() if config == name else (config,))


def _drop() -> Task:
  """Returns DROP, scored like SQuAD (not in original: it names no metric for model selection)."""
  return Task(
      name='drop', benchmark='drop', template=templates_qa.drop, metrics=('squad',),
      description=DESCRIPTIONS['drop'], blank={'answers_spans': ['']}, few_shot_label=None,
      hf=('drop', None), tfds='drop',
      splits={'train': 'train', 'validation': 'validation', 'test': 'test'},
      folders=('drop/drop', 'drop'))


def _triviaqa() -> Task:
  """Returns TriviaQA of MRQA (not in original: its entry repeats SQuAD under SQuAD's name)."""
  return _mrqa('triviaqa', 'triviaqa', 'trivia_qa')


TASKS = (
    Task(
        name='squad', benchmark='squad', template=templates_qa.reading, metrics=('squad',),
        description=DESCRIPTIONS['squad'], size='large', blank=_NO_ANSWER, few_shot_label=None,
        hf=('squad', None), tfds='squad/v1.1', folders=('squad/v1', 'squad/squad', 'squad')),
    _mrqa('newsqa', 'newsqa', 'news_qa'),
    _mrqa('searchqa', 'searchqa', 'search_qa'),
    _mrqa('nq', 'natural_questions', 'natural_questions'),
    _mrqa('hotpotqa', 'hotpotqa', 'hotpot_qa', ('hotpot_qa/distractor', 'hotpot_qa/gym')),
    _triviaqa(),
    _drop(),
)
