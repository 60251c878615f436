"""Recorded cases of ProPETL without a model: texts of its tasks, splits, batches, metrics."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

from pemt_jax.data import mixture, splits
from pemt_jax.data.task_sampler import TaskSampler
from pemt_jax.data.tasks import get_task
from pemt_jax.data.tasks_base import Task
from pemt_jax.data.tasks_propetl_base import NAME_IN_FRONT, PROPETL_PREFIX
from pemt_jax.data.templates import Example, Row
from pemt_jax.errors import UserError
from pemt_jax.evaluation import generated, metrics
from pemt_jax.evaluation.postprocess import POSTPROCESS

_ROWS = 12  # batches of an epoch that are compared
# The published list gives these names to the task of another language.
_PUBLISHED_TASK = {'wikiann_hsb': 'wikiann_yo'}
# Metric of this library -> published metric.
_METRICS = {
    'accuracy': 'accuracy', 'binary_f1': 'f1_score_with_invalid',
    'matthews_corrcoef': 'matthews_corrcoef', 'pearson_corrcoef': 'pearson_corrcoef',
    'spearman_corrcoef': 'spearman_corrcoef', 'bleu': 'bleu', 'rouge': 'rouge',
    'span_f1': 'NER_f1', 'tag_accuracy': 'POS_acc', 'word_f1': 'QA_f1',
    'word_match': 'QA_exactmatch'}
# Published metric -> key of its value, where it differs.
_VALUES = {'accuracy': 'acc', 'matthews_corrcoef': 'mcc', 'pearson_corrcoef': 'pearson_corrcoef',
           'spearman_corrcoef': 'spearman_corrcoef', 'POS_acc': 'acc',
           'QA_exactmatch': 'exact_match'}
_POSTPROCESS = {'text': 'none', 'integers': 'int', 'decimals': 'float'}
_FUNCTIONS = {'string_to_float': 'decimals', 'string_to_int': 'integers'}
_LABELS = {'social_i_qa': {'label': '2'}, 'winogrande': {'answer': '2'},
           'commonsense_qa': {'answerKey': 'D'}, 'trec': {'label-coarse': 4},
           'stsb': {'label': 3.5}, 'sick': {'label': 'NEUTRAL'},
           'scitail': {'gold_label': 'neutral'}}
_STRUCTURES: Row = {
    'tokens': ['Tok1', 'tok2', 'tok3'], 'upos': [7, 0, 12], 'spans': ['PER: A B', 'LOC: C'],
    'answers': {'text': ['first answer']}, 'endings': ['e0', 'e1', 'e2', 'e3'],
    'choices': {'text': ['c0', 'c1', 'c2', 'c3', 'c4']}}


def compute(case_dir: str | pathlib.Path) -> tuple[str, Any]:
  """Computes a case from case.json and its inputs; outputs are never read.

  Args:
    case_dir: folder of one of the cases data_task_templates, data_split_indices,
      data_multitask_sampler, data_metrics.

  Returns:
    ('npz', name -> array) or ('json', object) in the layout of the case's outputs.

  Raises:
    UserError: another case.
  """
  folder = pathlib.Path(case_dir)
  case = json.loads((folder / 'case.json').read_text(encoding='utf-8'))
  of_json = {'data_task_templates': _templates, 'data_metrics': _all_metrics}
  of_arrays = {'data_split_indices': _splits, 'data_multitask_sampler': _sampler}
  if case['case'] in of_json:
    inputs = json.loads((folder / 'inputs.json').read_text(encoding='utf-8'))
    return 'json', of_json[case['case']](inputs)
  if case['case'] not in of_arrays:
    raise UserError(f"{folder} holds the case '{case['case']}', which is not among "
                    f"{', '.join((*of_json, *of_arrays))}; choose another folder.")
  with np.load(folder / 'inputs.npz') as archive:
    found = of_arrays[case['case']](dict(archive), case)
  found['loss'] = np.float64(0)  # a placeholder of all array cases
  wanted = case['arrays']
  return 'npz', {name: np.asarray(found[name]).astype(spec['dtype'])
                 for name, spec in wanted.items() if name in found}


def _sampler(inputs: dict[str, np.ndarray], case: dict[str, Any]) -> dict[str, np.ndarray]:
  """Weights, counts and first batches at each temperature; of two ranks at the first one."""
  sizes, found = tuple(inputs['dataset_sizes'].tolist()), {}
  options = int(inputs['batch_size']), int(case['method_config'].get('seed', 0))
  temperatures = inputs['temperatures'].tolist()
  for temperature in temperatures:
    weights = mixture.shares(sizes, 'temperature', temperature)
    sampler = TaskSampler(sizes, weights, *options)
    found[f'T{temperature}/weights'] = weights
    found[f'T{temperature}/num_batches'] = sampler.batches_per_epoch
    for epoch in _epochs(case, f'T{temperature}/'):
      found[f'T{temperature}/epoch{epoch}/first12'] = sampler.rows(epoch)[:_ROWS]
  weights = mixture.shares(sizes, 'temperature', temperatures[0])
  for rank in (0, 1):
    sampler = TaskSampler(sizes, weights, *options, 2, rank)
    found[f'rep2/rank{rank}/first12'] = sampler.rows(0)[:_ROWS]
    found[f'rep2/rank{rank}/num_batches'] = sampler.batches_per_epoch
  return found


def _epochs(case: dict[str, Any], start: str) -> list[int]:
  names = [name for name in case['arrays'] if name.startswith(f'{start}epoch')]
  return sorted(int(name.split('/')[1].removeprefix('epoch')) for name in names)


def _splits(inputs: dict[str, np.ndarray], _: dict[str, Any]) -> dict[str, np.ndarray]:
  seed, found = int(inputs.pop('seed')), {}
  for name, count in inputs.items():
    rule, task, _ = name.split('/')
    order = lambda part, kept=1000: splits.split_indices(
        splits.SplitPlan('', part, kept), int(count), seed)
    if rule == 'half':
      found[f'{rule}/{task}/validation'] = order('first_half')
      found[f'{rule}/{task}/test'] = order('second_half')
    else:
      rest = order('rest')
      found |= {f'{rule}/{task}/validation': order('head'),
                f'{rule}/{task}/train_head100': rest[:100],
                f'{rule}/{task}/train_tail100': rest[-100:]}
  return found


class _AnyField(dict):
  """A row that has every field: a label is 1, any other field `<its name>`."""

  def __contains__(self, name: object) -> bool:
    return name != 'translation' or super().__contains__(name)

  def __missing__(self, name: str) -> Any:
    return 1 if name == 'label' else f'<{name}>'

  def get(self, name: str, default: Any = None) -> Any:
    """As the row does."""
    return self[name] if name in self else default


def _row(title: str) -> Row:
  row = _AnyField({**_STRUCTURES, **_LABELS.get(title, {})})
  if title.startswith(('wmt', 'iwslt')):
    languages = 'ro', 'en', 'fr', 'cs', 'de', 'fi', 'hi', 'nl'
    row['translation'] = {language: f'<text in {language}>' for language in languages}
  return row


def _templates(inputs: dict[str, Any]) -> dict[str, Any]:
  return {'tasks': {title: _task(title) for title in inputs['tasks']}}


def _task(title: str) -> dict[str, Any]:
  """What a task makes of a row whose fields print their names."""
  task = get_task(PROPETL_PREFIX + _PUBLISHED_TASK.get(title, title))
  plain, = task.template(_row(title))
  prefixed, = task.template_named(NAME_IN_FRONT)(_row(title))
  texts = list(task.decode_texts or task.label_words) or None
  return {'src': plain.source, 'tgt': plain.target, 'src_with_prefix': prefixed.source,
          'task_field': task.name.removeprefix(PROPETL_PREFIX), 'split_map': _split_map(task),
          'metrics': [_METRICS[name] for name in task.metrics], 'label_list': texts,
          'decode': ('max tokenised length of label_list incl. EOS' if texts
                     else dict(task.decoding)),
          'post': _POSTPROCESS[task.postprocess]}


def _split_map(task: Task) -> dict[str, str]:
  return dict(task.splits)


def _all_metrics(inputs: dict[str, Any]) -> dict[str, Any]:
  return {'cases': [_metric(**case) for case in inputs['cases']],
          'postprocessors': [_read(**each) for each in inputs['postprocessors']]}


def _metric(metric: str, predictions: list[Any], targets: list[Any]) -> dict[str, float]:
  if metric == 'rouge':  # Every text is one sentence.
    found = generated.rouge_bootstrap(predictions, targets, split=lambda text: [text])
    return {name: round(value, 4) for name, value in found.items()}
  ours = next(name for name, published in _METRICS.items() if published == metric)
  found = metrics.get_metric(ours)(predictions, targets)
  if metric == 'bleu':
    return {name: round(value, 4) for name, value in found.items()}
  (name, value), = found.items()
  return {_VALUES.get(metric, name): value}


def _read(fn: str, x: str) -> float:
  (value,), _ = POSTPROCESS[_FUNCTIONS[fn]]([x], [Example('', '')])
  return value
