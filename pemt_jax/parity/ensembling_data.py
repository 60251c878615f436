"""Recorded cases of weight ensembling without a backbone: data, metrics, loop control."""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import ml_collections as mlc
import numpy as np

from pemt_jax.data import gym, gym_files, gym_splits
from pemt_jax.data.datasets import DataConfig, load_task
from pemt_jax.data.tasks import get_task
from pemt_jax.data.templates import Example, Row
from pemt_jax.errors import UserError
from pemt_jax.evaluation import answers
from pemt_jax.training import config as train_config, loop
from pemt_jax.training.experiment import Experiment, Replica

_PER_EXAMPLE = {
    'EM': answers.same_words, 'ACC': answers.same_letters, 'QA-F1': answers.shared_words,
    'Rouge-L': answers.longest_common_words}
_TRUTH = ('EM', 'ACC')  # written as truth values
_OVERALL = {'cls': 'Classification-F1', 'mcc': 'Matthew-Correlation',
            'pearson': 'Pearson-Correlation'}
_VANISHED = 1e-7
_IGNORED = -100  # label of a position that does not count


def compute(case_dir: str | pathlib.Path) -> Any:
  """Computes a case from case.json and inputs.json; outputs are never read.

  Args:
    case_dir: folder of one of the cases data_tasks, data_indexing, eval_metrics, loop_control.

  Returns:
    An object in the layout of outputs.json.

  Raises:
    UserError: another case.
  """
  folder = pathlib.Path(case_dir)
  case = json.loads((folder / 'case.json').read_text(encoding='utf-8'))
  inputs = json.loads((folder / 'inputs.json').read_text(encoding='utf-8'))
  makers = {'data_tasks': _tasks, 'data_indexing': _indexing, 'eval_metrics': _metrics,
            'loop_control': _loops}
  if case['case'] not in makers:
    raise UserError(f"{folder} holds the case '{case['case']}', which is not among "
                    f"{', '.join(makers)}; choose another folder.")
  return makers[case['case']](inputs, case.get('method_config') or {})


def _tasks(inputs: dict[str, Any], _: dict[str, Any]) -> dict[str, Any]:
  return {title: _task(title, given) for title, given in inputs.items()}


def _task(title: str, given: dict[str, Any]) -> dict[str, list[list[str]]]:
  """Text lines of a few-shot draw, and of the test part."""
  task = get_task(gym.GYM_PREFIX + title)
  template = task.variants.get('published_plain', task.variants[gym.PLAIN])

  def read(split: str) -> list[Example]:
    rows: Sequence[Row] = given['splits'][split]
    rows = rows if task.prepare is None else task.prepare(rows)
    return [example for row in rows for example in template(row)]

  rule = gym_splits.GymSplits(task, given['k'], given['seed'], given['seed'], 'gym', {})
  splits = {'train': 'train', 'dev': 'validation', 'test': 'test'}
  return {name: [[example.source, '\t'.join(example.extra['answers'])]
                 for example in rule.examples(split, read)[0]]
          for name, split in splits.items()}


def _indexing(inputs: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
  title = settings['task']
  with tempfile.TemporaryDirectory() as root:
    folder = pathlib.Path(root) / title
    folder.mkdir()
    (folder / f'{title}_dev.tsv').write_text(inputs['file'], encoding='utf-8', newline='\n')
    return {name: _variant(root, title, options, settings)
            for name, options in inputs['variants'].items()}


def _variant(root: str, title: str, options: dict[str, Any], settings: dict[str, Any]
             ) -> dict[str, Any]:
  def load(limit: int | None) -> list[Example]:
    config = DataConfig(
        source='crossfit', root=root, max_validation_rows=limit, compat_misaligned_labels=True,
        lowercase=bool(options.get('do_lowercase')),
        extra_bos=bool(options.get('append_another_bos')))
    return list(load_task(gym.GYM_PREFIX + title, 'validation', config).examples)

  every, kept = load(None), load(options.get('choose_valid_lines'))
  ends = np.cumsum([0] + [len(gym.targets_of(example)) for example in kept]).tolist()
  ids, length = _toy_ids, settings['max_output_length']
  labels = [ids(text, length) for example in kept for text in gym.targets_of(example)]
  sources = [ids(example.source, settings['max_input_length']) for example in kept]
  rows = [ids(example.target, length) for example in kept]
  prefix, = gym_files.prefixes(pathlib.Path(root) / title, title)
  return {
      'input_texts': [example.source for example in every],
      'output_texts': [text for example in every for text in gym.targets_of(example)],
      'metadata': [list(pair) for pair in zip(ends, ends[1:])],
      'labels': [_masked(row) for row in labels],
      'decoder_attention_mask': [_mask(row) for row in labels],
      'n': len(kept), 'eval_label_row': [labels.index(row, i) for i, row in enumerate(rows)],
      'eval_items_first2': [[source, _mask(source), _masked(row), _mask(row)]
                            for source, row in list(zip(sources, rows))[:2]],
      'cache_file': [f'{prefix}_dev-T5Tokenized.pth'],
      'gold': [list(example.extra['answers']) for example in kept]}


def _toy_ids(text: str, length: int) -> list[int]:
  """Ids of the case's toy tokenizer: the code points of each word, 1 at the end, 0 to pad."""
  ids = [3 + sum(map(ord, word)) % 97 for word in text.split()][:length - 1] + [1]
  return ids + [0] * (length - len(ids))


def _mask(ids: list[int]) -> list[int]:
  return [int(i != 0) for i in ids]


def _masked(ids: list[int]) -> list[int]:
  return [i if i else _IGNORED for i in ids]


def _metrics(inputs: dict[str, Any], _: dict[str, Any]) -> dict[str, Any]:
  given = inputs['text']['pred'], inputs['text']['gold']
  scores = {name: answers.best_over_answers(compare, *given)
            for name, compare in _PER_EXAMPLE.items()}
  outputs: dict[str, Any] = {name: float(np.mean(values)) for name, values in scores.items()}
  outputs['per_example'] = {name: [bool(value) for value in values] if name in _TRUTH else values
                            for name, values in scores.items()}
  for key, name in _OVERALL.items():
    metric = answers.ANSWER_METRICS[gym.METRIC_NAMES[name]]
    value, = metric(inputs[key]['pred'], [[text] for text in inputs[key]['gold']]).values()
    outputs[name] = value / 100.0
  return outputs


def _loops(inputs: list[dict[str, Any]], _: dict[str, Any]) -> list[dict[str, Any]]:
  return [_loop(scenario) for scenario in inputs]


class _Losses:
  """An endless stream of scripted losses, one per update."""

  def __init__(self, losses: Sequence[float]):
    self._losses, self._step = losses, 0

  def __next__(self) -> dict[str, np.ndarray]:
    loss = self._losses[self._step] if self._step < len(self._losses) else 1.0
    self._step += 1
    return {'loss': np.full((1,), loss, np.float32)}

  def get_state(self) -> dict[str, int]:
    return {'step': self._step}

  def set_state(self, state: dict[str, int]) -> None:
    self._step = state['step']


def _loop(scenario: dict[str, Any]) -> dict[str, Any]:
  """Runs the training loop with scripted losses and scores; returns what it did and when."""
  scores, validations, saved = iter(scenario['metrics']), [], set()
  with tempfile.TemporaryDirectory() as folder:
    places = pathlib.Path(folder) / 'checkpoints'

    def look() -> None:
      saved.update(int(path.name) for path in (places / 'best').glob('*/*') if path.name.isdigit())

    def evaluate(*_: Any) -> list[dict[str, float]]:
      look()
      step = scenario['vi'] * (len(validations) + 1)
      validations.append(step)
      return [{'score': next(scores)}]

    replica = Replica('run', 42, 0.0, 0, scenario['iters'])
    experiment = Experiment(
        replicas=(replica,), frozen={}, evaluate=evaluate, steps_per_epoch=lambda _: scenario['nb'],
        init=lambda _: ({'weight': np.zeros(1, np.float32)}, {}),
        loss_fn=lambda tuned, frozen, constants, batch, key: (
            jnp.mean(batch['loss']) + 0.0 * tuned['weight'].sum(), {}),
        stream=lambda _: _Losses(scenario.get('losses') or ()))
    result = loop.train(experiment, _loop_config(scenario), folder).results['run']
    look()
    seen = [int(path.name) for path in (places / 'run').iterdir() if path.name.isdigit()]
  epoch = lambda step: (step - 1) // scenario['nb']
  # A run that ends before its first regular evaluation makes one, since it must leave a best tree.
  validations = [step for step in validations if step <= result['step']]
  saved = {step for step in saved if step in validations}
  events = [(step, 0, ['valid', epoch(step), step]) for step in validations]
  events += [(step, 1, ['save', 'checkpoint-best.pt', epoch(step), step]) for step in saved]
  events += [(step, 2, ['save', f'checkpoint@{epoch(step)}-{step}.pt', epoch(step), step])
             for step in seen if step % scenario['oi'] == 0]
  best = result['best_value'] if validations else -1
  return {'best': best, 'events': [event for *_, event in sorted(events)],
          'updates': result['step']}


def _loop_config(scenario: dict[str, Any]) -> mlc.ConfigDict:
  train = train_config.default_train_config()
  train.update({
      'steps': scenario['iters'], 'schedule': 'constant', 'eval_every': scenario['vi'],
      'log_every': scenario['li'], 'checkpoint_every': scenario['oi'], 'keep': scenario['iters'],
      'patience': max(scenario['es'], 0), 'metric': 'score', 'ties_improve': True,
      'vanishing_loss': _VANISHED, 'vanishing_keeps_best': True, 'evaluate_last': False,
      'final_split': '', 'progress': 'never', 'tensorboard': False})
  return mlc.ConfigDict({'train': train})
