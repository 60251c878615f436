"""The tasks of SuperGLUE."""

from __future__ import annotations

from pemt_jax.data import templates, templates_qa
from pemt_jax.data.descriptions import DESCRIPTIONS
from pemt_jax.data.tasks_base import Task

_BOOLEAN = ('False', 'True')
_PAIR = {'premise': 'premise', 'hypothesis': 'hypothesis'}


def _task(name: str, template: templates.Template, words: tuple[str, ...] = (), **options) -> Task:
  options.setdefault('metrics', ('accuracy',))
  options.setdefault('size', 'small')
  options.setdefault('folders', (f'super_glue/{name}',))
  options.setdefault('aliases', (f'super_glue-{name}',))
  options.setdefault('target_tokens', 8 if words else None)
  return Task(
      name=f"superglue-{name.replace('.', '-')}", benchmark='super_glue', template=template,
      label_words=words, description=DESCRIPTIONS[f"superglue-{name.replace('.', '-')}"],
      hf=('super_glue', name), tfds=f'super_glue/{name}', **options)


def _classes(name: str, fields: dict[str, str], words: tuple[str, ...], **options) -> Task:
  return _task(name, templates.fields_to_label(fields, words), words, **options)


TASKS = (
    _classes('boolq', {'question': 'question', 'passage': 'passage'}, _BOOLEAN),
    _classes('rte', _PAIR, ('entailment', 'not_entailment')),
    _classes('cb', _PAIR, ('entailment', 'contradiction', 'neutral'),
             reported=('mean_multiclass_f1',)),
    _classes('copa', {'premise': 'premise', 'choice1': 'choice1', 'choice2': 'choice2'},
             ('choice1', 'choice2')),
    _task('multirc', templates.multirc(_BOOLEAN), _BOOLEAN, postprocess='multirc_groups',
          metrics=('multirc_f1_over_all_answers', 'multirc_exact_match'),
          blank={'label': 1, 'idx': {'question': 0}}),
    _classes('wic', {'sentence1': 'sentence1', 'sentence2': 'sentence2', 'word': 'word'}, _BOOLEAN),
    _task('wsc.fixed', templates.coreference(_BOOLEAN), _BOOLEAN,
          folders=('super_glue/wsc.fixed', 'super_glue/wsc'),
          aliases=('superglue-wsc.fixed', 'super_glue-wsc.fixed', 'super_glue-wsc-fixed')),
    _task('record', templates_qa.record, metrics=('squad',), size='large', few_shot_label=None,
          postprocess='all_answers', blank={'answers': []},
          variants={'one_row_per_query': templates_qa.record_once}),
)
