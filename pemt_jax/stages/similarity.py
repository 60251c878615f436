"""Similarity of source experts to target tasks: references, tables and what the command does."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pemt_jax.data.tasks import get_task
from pemt_jax import guards
from pemt_jax.errors import UserError
from pemt_jax.evaluation.postprocess import AVERAGE, score
from pemt_jax.experts import similarity, tree_files
from pemt_jax.experts.library import CARD, FOLDER, load_expert
from pemt_jax.experts.similarity import METRICS
from pemt_jax.interop import ensembling_files as tables
from pemt_jax.interop.ensembling_files import Matrix
from pemt_jax.models.segments import join
from pemt_jax.sharding import processes
from pemt_jax.stages.expert_set import (
    ExpertSet, LoadedSource, Source, file_name, load_sources)
from pemt_jax.stages.similarity_rows import (
    GRADIENT_PARTS, ROW_METRICS, Measurer, SimilarityOptions, gradient_caps)
from pemt_jax.training.records import RESULT
from pemt_jax.trees import Tree

SUMMARY = 'similarity.json'
SPLIT = 'validation'


@dataclasses.dataclass(frozen=True)
class References:
  """What some metrics compare the sources with.

  Attributes:
    tuned: folders of experts tuned on the targets from random values (kl, cosine, block_cosine).
    moved: every source after some steps on every target (euclidean): a run over all targets with
      the sources as its `config.starts`, or a folder with `<target>/experts/<source>` or
      `<target>/<source>`.
    scores: dev scores before and after these steps (performance): such a run, or a folder with
      `zero_result_dev.tsv` and `<target>/result.tsv`.
  """

  tuned: tuple[str, ...] = ()
  moved: str = ''
  scores: str = ''

  def check(self, metrics: Sequence[str]) -> None:
    """Checks that what the metrics need is there.

    Raises:
      UserError: a metric lacks its reference.
    """
    for name in metrics:
      field = METRICS[name].reference if name in METRICS else ''
      if field and not getattr(self, field):
        raise UserError(f"similarity '{name}' needs --{field}; give it, or leave the metric out.")


def measure(sources: Sequence[str], targets: Sequence[str], options: SimilarityOptions,
            references: References, output: pathlib.Path, config: Any = None,
            zero_shot: bool = False) -> dict[str, Matrix | dict[Any, Matrix]]:
  """Measures all wanted metrics and writes their tables and `similarity.json`.

  Args:
    sources: folders of experts, of runs or of libraries.
    targets: tasks; empty takes those of the sources.
    options: how.
    references: what some metrics need.
    output: folder for the tables; the token cache goes below it.
    config: in place of the config that the first source was trained with.
    zero_shot: also decode the targets under every source and write `zero_result_dev.tsv`.

  Returns:
    metric -> table, or {part: table} of metrics by block or layer.

  Raises:
    UserError: experts, tasks, rows or options that do not fit.
  """
  options.check()
  references.check(options.metrics)
  loaded = load_sources(sources)
  tasks = [get_task(name).name for name in targets] or [s.card.task for s in loaded]
  own = _own_experts(references, tasks)
  experts = ExpertSet(loaded, tasks, output, config, tuple(own.values()))
  found = _by_rows(experts, tasks, options, own)
  found |= _by_weights(loaded, experts, tasks, options, own, references)
  names = tuple(map(file_name, tasks))
  if 'performance' in options.metrics:
    found['performance'] = gains(references.scores, experts, tasks)
  if zero_shot:
    scores = zero_shot_scores(experts, tasks).values
  result = {name: _as_matrix(found[name], names, experts.names) for name in options.metrics}
  if processes.is_first():
    if zero_shot:
      tables.write_zero_shot(output / tables.ZERO_SHOT, scores)
    write(output, result, options, {'targets': tasks, 'sources': [str(s.folder) for s in loaded]})
  return result


def _own_experts(references: References, tasks: Sequence[str]) -> dict[str, LoadedSource]:
  """Task -> its own expert, where experts are given.

  Raises:
    UserError: a target without one.
  """
  if not references.tuned:
    return {}
  by_task = {source.card.task: source for source in load_sources(references.tuned)}
  for task in tasks:
    if task not in by_task:
      raise UserError(f"--tuned holds no expert of target '{task}' (it has"
                      f" {', '.join(by_task)}); tune one on it.")
  return {task: by_task[task] for task in tasks}


def _by_rows(experts, tasks, options, own) -> dict[str, list[Any]]:
  """metric -> one entry per target, of the metrics that read rows."""
  wanted = [name for name in options.metrics if name in (*ROW_METRICS, *GRADIENT_PARTS)]
  if not wanted:
    return {}
  batches = experts.batches(tasks, SPLIT, options.batch_size)
  measurer = Measurer(experts.runner, options, batches[tasks[0]][0])
  first = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)
  rows = []
  for task in tasks:
    reference = first(experts.trees_of([own[task]])) if own else None
    caps = gradient_caps(task, len(get_task(task).label_words or ()), options)
    rows.append(measurer.measure(batches[task], reference, caps))
  return {name: [row[name] for row in rows] for name in wanted}


def _by_weights(loaded, experts, tasks, options, own, references) -> dict[str, list[np.ndarray]]:
  """metric -> one row per target, of the metrics that compare weights."""
  found: dict[str, list[np.ndarray]] = {}
  stacked = experts.runner.stacked[0]
  count = similarity.tensor_count(jax.tree.map(lambda leaf: leaf[0], _joined(stacked)))
  if 'cosine' in options.metrics:
    found['cosine'] = [similarity.weight_cosine(
        jax.tree.map(lambda leaf: leaf[0], _joined(experts.trees_of([own[task]])[0])),
        _joined(stacked)) for task in tasks]
  if 'euclidean' in options.metrics:
    found['euclidean'] = []
    for task in tasks:
      moved = experts.trees_of(moved_experts(references.moved, task, loaded))[0]
      gaps = similarity.weight_distance(_joined(stacked), _joined(moved))
      found['euclidean'].append(similarity.normalise(gaps, count, options.normalise))
  return found


def _joined(stacked: Tree) -> Tree:
  """Canonical form of a tree with a leading [source] axis."""
  count = jax.tree.leaves(stacked)[0].shape[0]
  each = [join(jax.tree.map(lambda leaf, i=i: leaf[i], stacked)) for i in range(count)]
  return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def moved_experts(place: str, task: str, loaded: Sequence[LoadedSource]) -> list[LoadedSource]:
  """The sources after some steps on a target, in the order of the sources.

  Raises:
    UserError: one is missing.
  """
  found = []
  for source in loaded:
    parent = pathlib.Path(place) / file_name(task)
    folders = [pathlib.Path(place) / FOLDER / f'{file_name(task)}-from-{source.folder.name}',
               parent / FOLDER / source.name, parent / source.name]
    folder = next((f for f in folders if (f / CARD).is_file()), None)
    if folder is None:
      raise UserError(f"--moved has no expert of source '{source.name}' for target '{task}' at"
                      f' {folders[0]}; tune every source on every target.')
    found.append(LoadedSource(source.name, folder, *load_expert(folder)))
  return found


def gains(place: str, experts: ExpertSet, tasks: Sequence[str]) -> list[np.ndarray]:
  """What each source gains by some steps on each target, one row per target.

  Args:
    place: tables of scores, or a run over all targets with the sources as its `config.starts`; the
      scores before its steps are decoded here.
    experts: the sources.
    tasks: the targets.

  Raises:
    UserError: neither, or a run that did not keep steps by the average of the task's metrics.
  """
  folder, names = pathlib.Path(place), list(map(file_name, tasks))
  if (folder / tables.ZERO_SHOT).is_file() or not (folder / RESULT).is_file():
    before = tables.read_zero_shot(folder / tables.ZERO_SHOT, names, experts.names).values
    after = tables.read_tuned_scores(folder, names).chosen(names, experts.names, str(folder))
    return list(similarity.gain(after, before))
  with guards.reading(folder / RESULT):
    results = tree_files.read_json(folder / RESULT)['replicas']
    after = [[_best(results, f'{name}-from-{source.folder.name}', folder / RESULT)
              for source in experts.sources] for name in names]
  return list(similarity.gain(np.array(after), zero_shot_scores(experts, tasks).values))


def _best(results: dict[str, Any], replica: str, place: pathlib.Path) -> float:
  found = results.get(replica, {})
  if found.get('metric') != AVERAGE:
    raise UserError(f"{place} has no '{AVERAGE}' of replica '{replica}'; run all targets with the"
                    f' sources as config.starts and config.train.metric={AVERAGE}.')
  return float(found['best_value'])


def _as_matrix(rows: list[Any], targets: tuple[str, ...], sources: tuple[str, ...]) -> Any:
  if not isinstance(rows[0], dict):
    return Matrix(targets, sources, np.array(rows, np.float64))
  return {part: _as_matrix([row[part] for row in rows], targets, sources) for part in rows[0]}


def folder_of(name: str) -> str:
  """Folder of a metric's tables."""
  return METRICS[name].folder if name in METRICS else {
      'grand_by_block': 'GraNd_block', 'grand_by_layer': 'GraNd_layer'}[name]


def write(output: pathlib.Path, result: Mapping[str, Any], options: SimilarityOptions,
          about: Mapping[str, Any]) -> None:
  """Writes `<metric>/result.tsv`, or one table per block or layer, and `similarity.json`."""
  summary = dict(about) | {'options': dataclasses.asdict(options), 'metrics': {}}
  for name, found in result.items():
    place = output / folder_of(name)
    metric = METRICS.get(name, METRICS['grand'])
    entry = {'sign': metric.sign, 'temperature': metric.temperature}
    if isinstance(found, Matrix):
      tables.write_similarity(place / tables.RESULT, found)
      entry |= {'values': found.values.tolist()}
    else:
      for part, matrix in found.items():
        tables.write_similarity(place / tables.part_file(*part), matrix)
      entry |= {'parts': {'_'.join(map(str, part)): matrix.values.tolist()
                          for part, matrix in found.items()}}
    summary['metrics'][name] = entry
  tree_files.write_json(output / SUMMARY, summary)


def best_lines(name: str, found: Matrix | Mapping[Any, Matrix]) -> str:
  """One line per target: its most similar source but its own, or the number of parts."""
  if not isinstance(found, Matrix):
    return f'{name}: {len(found)} tables'
  lines = []
  for target, row in zip(found.targets, found.values, strict=True):
    others = [(METRICS[name].sign * value, source, value)
              for source, value in zip(found.sources, row, strict=True) if source != target]
    if others:
      _, source, value = max(others)
      lines.append(f'{name}: {target} <- {source} ({value:.6g})')
  return '\n'.join(lines)


def zero_shot_scores(experts: ExpertSet, tasks: Sequence[str], split: str = SPLIT) -> Matrix:
  """Average metric of every source on every target as it is, in one program."""
  rows = [scores_of(experts, experts.runner.stacked, task, split) for task in tasks]
  return Matrix(tuple(map(file_name, tasks)), experts.names, np.array(rows, np.float64))


def scores_of(experts: ExpertSet, stacked: Source, task: str, split: str) -> list[float]:
  """Average metric on a task of each expert of a stack, see `ExpertSet.trees_of`."""
  (tuned, constants), spec = stacked, experts.specs[task]
  names = [spec.name] * jax.tree.leaves(tuned)[0].shape[0]
  texts, _ = experts.stage.evaluator.predictions(tuned, experts.runner.frozen, constants, names,
                                                 split)
  data = experts.stage.store.examples(spec, split)
  return [score(data.task, found, data.examples)[AVERAGE] for found in texts]
