"""The tasks of GLUE."""

from __future__ import annotations

from collections.abc import Mapping

from pemt_jax.data import templates
from pemt_jax.data.descriptions import DESCRIPTIONS
from pemt_jax.data.tasks_base import Task

PAIR = 'pair'  # template for backbones that read two texts apart; scores are not rounded
_ENTAILMENT = ('entailment', 'neutral', 'contradiction')
_PAIR = {'sentence1': 'sentence1', 'sentence2': 'sentence2'}


def _task(name: str, fields: Mapping[str, str], words: tuple[str, ...], size: str = 'small',
          **options) -> Task:
  options.setdefault('metrics', ('accuracy',))
  template = templates.fields_to_label(fields, words)
  return Task(
      name=name, benchmark='glue', template=template,
      variants={PAIR: templates.texts_apart(tuple(fields.values()), template)},
      description=DESCRIPTIONS[name], label_words=words, size=size, target_tokens=8,
      hf=('glue', name), tfds=f'glue/{name}', folders=(f'glue/{name}',),
      aliases=(f'glue-{name}',), **options)


TASKS = (
    _task('cola', {'sentence': 'sentence'}, ('unacceptable', 'acceptable'),
          metrics=('matthews_corrcoef',)),
    _task('sst2', {'sentence': 'sentence'}, ('negative', 'positive'), size='large'),
    _task('mrpc', _PAIR, ('not_equivalent', 'equivalent'), reported=('f1_score_with_invalid',)),
    _task('qqp', {'question1': 'question1', 'question2': 'question2'},
          ('not_duplicate', 'duplicate'), size='large', reported=('f1_score_with_invalid',)),
    Task(
        name='stsb', benchmark='glue', template=templates.similarity(templates.round_to_tenth),
        variants={'steps_of_one_fifth': templates.similarity(templates.round_to_fifth),
                  PAIR: templates.texts_apart(('sentence1', 'sentence2'),
                                              templates.similarity(repr))},
        metrics=('pearson_corrcoef', 'spearman_corrcoef'), description=DESCRIPTIONS['stsb'],
        size='small', target_tokens=8, few_shot_label=None, hf=('glue', 'stsb'), tfds='glue/stsb',
        folders=('glue/stsb',), aliases=('glue-stsb',)),
    _task('mnli', {'premise': 'premise', 'hypothesis': 'hypothesis'}, _ENTAILMENT, size='mapped',
          splits={'train': 'train', 'validation': 'validation_mismatched',
                  'test': 'validation_matched'}),
    _task('qnli', {'question': 'question', 'sentence': 'sentence'},
          ('entailment', 'not_entailment'), size='large'),
    _task('rte', _PAIR, ('entailment', 'not_entailment')),
    _task('wnli', _PAIR, ('not_entailment', 'entailment')),
)
