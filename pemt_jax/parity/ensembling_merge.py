"""Merges of weight ensembling: weights, merged tensors and the heat map, from original names."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from pemt_jax.errors import UserError
from pemt_jax.experts import similarity
from pemt_jax.experts.merging import weights as merging
from pemt_jax.interop import ensembling_files as tables
from pemt_jax.interop import files

Flat = dict[str, np.ndarray]


def under(state: files.TensorFiles, prefix: str) -> Flat:
  """The tensors below a prefix, without it.

  Raises:
    UserError: there is none.
  """
  found = {name[len(prefix):]: state[name] for name in state if name.startswith(prefix)}
  if not found:
    raise UserError(f"'{state.source}' has no tensor below '{prefix}'; correct the case's files.")
  return found


def _stacked(state: files.TensorFiles, prefix: str, tasks: Sequence[str]) -> Flat:
  return merging.stack_sources([under(state, f'{prefix}{task}/') for task in tasks])


def _weights(scores: np.ndarray, tasks: Sequence[str], sign: int, temperature: float) -> np.ndarray:
  return merging.similarity_weights(scores, merging.leave_one_out(tasks, tasks), sign, temperature)


def _named(prefix: str, tasks: Sequence[str], merged: Flat) -> Flat:
  """Arrays `<prefix><task>/<tensor>` of leaves [target, ...]."""
  return {f'{prefix}{task}/{name}': leaf[i] for i, task in enumerate(tasks)
          for name, leaf in merged.items()}


def _without_own(matrix: np.ndarray) -> np.ndarray:
  """[N, N] -> [N, N - 1] without the diagonal."""
  return matrix[~np.eye(len(matrix), dtype=bool)].reshape(len(matrix), -1)


def _by_temperature(case: dict, scores: np.ndarray, stacked: Flat, sign: int) -> Flat:
  tasks, found = case['method_config']['tasks'], {}
  for temperature in case['method_config']['temperatures']:
    weights = _weights(scores, tasks, sign, temperature)
    found[f'weights/tem{temperature}'] = _without_own(weights)
    found[f'heatmap/tem{temperature}'] = weights
    found |= _named(f'merged/tem{temperature}/', tasks, merging.weighted_sum(stacked, weights))
  return found


def _average(case: dict, state: files.TensorFiles, folder: pathlib.Path) -> Flat:
  del folder
  tasks, found = case['method_config']['tasks'], {}
  weights = merging.mean_weights(merging.leave_one_out(tasks, tasks))
  for delta in dict.fromkeys(name.split('/', 1)[0] for name in state):
    stacked = _stacked(state, f'{delta}/source/', tasks)
    found |= _named(f'{delta}/', tasks, merging.weighted_sum(stacked, weights))
  return found


def _cosine(case: dict, state: files.TensorFiles, folder: pathlib.Path) -> Flat:
  del folder
  tasks = case['method_config']['tasks']
  stacked = _stacked(state, 'source/', tasks)
  scores = np.stack([similarity.weight_cosine(under(state, f'random_tuned/{task}/'), stacked)
                     for task in tasks])
  return _by_temperature(case, scores, stacked, similarity.METRICS['cosine'].sign)


def _euclidean(case: dict, state: files.TensorFiles, folder: pathlib.Path) -> Flat:
  del folder
  tasks = case['method_config']['tasks']
  stacked = _stacked(state, 'source/', tasks)
  scores = np.stack([similarity.weight_distance(stacked, _stacked(state, f'tuned/{task}/', tasks))
                     for task in tasks])
  return _by_temperature(case, scores, stacked, similarity.METRICS['euclidean'].sign)


def _performance(case: dict, state: files.TensorFiles, folder: pathlib.Path) -> Flat:
  options = case['method_config']
  tasks, sign = options['tasks'], -1 if options['sign'] == '-' else 1
  before = tables.read_zero_shot(folder / 'files' / tables.ZERO_SHOT, tasks, tasks).values
  after = tables.read_tuned_scores(folder / 'files', tasks).chosen(tasks, tasks, str(folder))
  weights = _weights(similarity.gain(after, before), tasks, sign, options['temperature'])
  # Each target has its own bank here: all sources after their steps on it.
  banks = merging.stack_sources([_stacked(state, f'tuned/{task}/', tasks) for task in tasks])
  merged = jax.vmap(merging.weighted_sum)(banks, weights)
  return {'weights': _without_own(weights), 'zero_shot_dev': before,
          'best_dev_after_tuning': after} | _named('merged/', tasks, merged)


def _table(case: dict, state: files.TensorFiles, folder: pathlib.Path) -> Flat:
  options = case['method_config']
  tasks = options['tasks']
  path = folder / 'files' / tables.RESULT
  scores = tables.read_similarity(path).chosen(tasks, tasks, str(path))
  sign = -1 if options['sign'] == '-' else 1
  stacked = _stacked(state, 'source/', tasks)
  return {'similarity': scores} | _by_temperature(case, scores, stacked, sign)


_CASES: dict[str, Callable[[dict, files.TensorFiles, pathlib.Path], Flat]] = {
    'merge_average': _average, 'merge_cos': _cosine, 'merge_euclidean': _euclidean,
    'merge_performance': _performance, 'merge_performance3': _performance,
    'merge_weights_loss32': _table}


def compute(case_dir: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Computes every array that a merge case names.

  Args:
    case_dir: folder with case.json, deltas.safetensors and the tables in `files`.

  Returns:
    name -> array, in the types that the case states.

  Raises:
    UserError: another case, files that do not fit it, or a required array that it lacks.
  """
  folder = pathlib.Path(case_dir)
  case = json.loads((folder / 'case.json').read_text(encoding='utf-8'))
  if case['case'] not in _CASES:
    raise UserError(f"{folder} is the case '{case['case']}'; choose one of {', '.join(_CASES)}.")
  state = files.read_tensors(folder / 'deltas.safetensors')
  found, wanted = _CASES[case['case']](case, state, folder), case['arrays']
  missing = [name for name, entry in wanted.items() if entry.get('required') and name not in found]
  if missing:
    raise UserError(f"{folder / 'case.json'} requires '{missing[0]}', which the case"
                    f" '{case['case']}' does not produce; correct its arrays.")
  return {name: np.asarray(found[name]).astype(entry['dtype'])
          for name, entry in wanted.items() if name in found}
