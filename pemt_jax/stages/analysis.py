"""What a run tells about its tasks: mean gates, similarity of prompts, predictions, sizes."""

from __future__ import annotations

import json
import pathlib
import resource
import sys

import jax
import numpy as np

from pemt_jax.experts import mask_analysis, tree_files
from pemt_jax.interop.files import write_text
from pemt_jax.sharding import processes
from pemt_jax.stages.backbone import count
from pemt_jax.stages.build import Stage
from pemt_jax.stages.evaluate import observations
from pemt_jax.stages.route_records import write_best
from pemt_jax.stages.sources import PROMPT
from pemt_jax.training import usage
from pemt_jax.training.loop import TrainResult
from pemt_jax.training.records import METRICS
from pemt_jax.trees import flatten, unflatten

STACKS = ('encoder', 'decoder')
# getrusage counts kilobytes on Linux and bytes on macOS.
_RSS_UNIT = 1 if sys.platform == 'darwin' else 1024


def write(stage: Stage, trained: TrainResult, workdir: pathlib.Path) -> None:
  """Writes predictions, gates, load, correlation, masks, routes and sizes below the workdir.

  Predictions and gates are those of the final split with the best step of each replica. Of several
  processes the first one writes; all take part, since routes may read sharded arrays.
  """
  write_best(stage.method, stage.specs,
             (trained.tuned, stage.start.frozen, trained.constants), workdir)
  if processes.is_first():
    _write_files(stage, trained, workdir)


def _write_files(stage, trained, workdir):
  names = list(stage.specs)
  evaluated = [name for name in names if stage.specs[name].config.train.final_split]
  for name in evaluated:
    split = stage.specs[name].config.train.final_split
    _write_predictions(stage, name, split, stage.evaluator.latest[name, split][0], workdir)
  _write_tasks(stage, trained, workdir)
  _write_gates(stage, evaluated, workdir)
  _write_correlation(stage, trained, names, workdir)
  _write_masks(stage, trained, workdir)
  tuned = flatten(stage.start.tuned_shapes())
  tree_files.write_json(workdir / 'parameters.json', {
      'tuned_parameters_per_replica': count(tuned), 'frozen_parameters': count(stage.start.frozen),
      'tuned_parameters_by_name': {path: int(np.prod(leaf.shape)) for path, leaf in tuned.items()}})


def write_resources(workdir: pathlib.Path, seconds: float) -> None:
  """Writes resources.json: seconds of this call, peak memory in bytes, and what all calls used.

  Memory is that of one process, and of the fullest of its devices where they tell it.
  """
  if not processes.is_first():
    return
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  peaks = [found['peak_bytes_in_use'] for found in stats if 'peak_bytes_in_use' in found]
  host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
  tree_files.write_json(workdir / 'resources.json', {
      'seconds': seconds, 'peak_host_bytes': host,
      'peak_device_bytes': max(peaks, default=None),
      **usage.combined([workdir, *sorted((workdir / 'replicas').glob('*'))])})


def _write_predictions(stage, name, split, texts, workdir):
  folder = workdir / 'predictions'
  examples = stage.store.examples(stage.specs[name], split).examples
  if not len(examples):  # Plain text of which nothing was to be continued.
    return
  lines = [json.dumps({'source': example.source, 'target': example.target, 'prediction': text})
           for example, text in zip(examples, texts, strict=True)]
  write_text(folder / f'{name}.{split}.jsonl', '\n'.join(lines) + '\n')


def _write_tasks(stage, trained, workdir):
  """Writes results/<replica>.<task>.jsonl: what a mixture scored on each of its tasks, by step."""
  mixtures = {name: spec for name, spec in stage.specs.items() if spec.parts}
  if not mixtures:
    return
  folder = workdir / 'results'
  for name, spec in mixtures.items():
    lines = [line for file in _metric_files(workdir)
             for line in map(json.loads, file.read_text(encoding='utf-8').splitlines())
             if line['replica'] == name]
    result = trained.results[name]
    final = {f'{spec.config.train.final_split}/{key}': value
             for key, value in (result.get('final_metrics') or {}).items()}
    lines.append({'step': result['best_step'], 'replica': name, **final})
    for task in spec.tasks:
      found = [own for line in lines for own in _of_task(line, task)]
      text = ''.join(json.dumps(own) + '\n' for own in found)
      write_text(folder / f'{name}.{task.replace("/", "-")}.jsonl', text)


def _metric_files(workdir):
  places = (workdir, *sorted((workdir / 'replicas').glob('*')))
  return [place / METRICS for place in places if (place / METRICS).is_file()]


def _of_task(line, task):
  """The part of a line of metrics that belongs to a task: one dict for each split in it."""
  found = {}
  for key, value in line.items():
    split, _, rest = key.partition('/')
    if rest.startswith(f'{task}/'):
      own = found.setdefault(split, {'step': line['step'], 'split': split})
      own[rest.removeprefix(f'{task}/')] = value
  return found.values()


def mean_gates(stage: Stage, name: str, kind: str = 'gates') -> dict[str, np.ndarray]:
  """Mean gates of a replica on the last evaluation of its final split; {} without a mixture.

  Args:
    stage: what was trained.
    name: of the replica.
    kind: 'gates' of sources, or 'load' of experts to which tokens are sent.

  Returns:
    stack -> [layer, source].
  """
  split = stage.specs[name].config.train.final_split
  found = observations(stage.evaluator.latest[name, split][1]) if split else {}
  return {stack: found[f'{kind}/{stack}'] for stack in STACKS if f'{kind}/{stack}' in found}


def _write_gates(stage, names, workdir):
  for kind in ('gates', 'load'):
    found = [mean_gates(stage, name, kind) for name in names]
    if not any(found) or kind == 'gates' and stage.sources is None:
      continue
    arrays = {stack: np.stack([own[stack] for own in found]) for stack in found[0]}
    count = next(iter(arrays.values())).shape[-1]
    sources = (stage.sources.names if kind == 'gates'
               else [f'expert {number}' for number in range(count)])
    tree_files.write_npz(workdir / f'{kind}.npz', {
        'sources': np.array(sources), 'replicas': np.array(names),
        'targets': np.array([stage.specs[name].task for name in names]), **arrays})


def prompt_similarity(first: np.ndarray, second: np.ndarray) -> float:
  """Cosine of the mean rows of two prompts [prompt, embed]."""
  a, b = first.mean(axis=0), second.mean(axis=0)
  return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12))


def _write_correlation(stage, trained, names, workdir):
  """Similarity of tuned prompts to the source prompts, or to each other in a first stage."""
  tuned, constants = flatten(trained.tuned), flatten(trained.constants)
  if f'{PROMPT}/table' not in tuned:
    return
  tables, masks = tuned[f'{PROMPT}/table'], constants[f'{PROMPT}/mask']
  own = [table[mask > 0] for table, mask in zip(tables, masks, strict=True)]
  rows, others, columns = names, own, names
  if stage.sources is not None and stage.sources.shape.prompt_lengths:
    stacked = flatten(stage.sources.params)[f'{PROMPT}/sources']
    lengths = stage.sources.shape.prompt_lengths
    others = [table[len(table) - n:] for table, n in zip(stacked, lengths, strict=True)]
    columns = list(stage.sources.names)
  matrix = np.array([[prompt_similarity(a, b) for b in others] for a in own])
  tree_files.write_npz(workdir / 'correlation.npz', {
      'matrix': matrix, 'rows': np.array(rows), 'columns': np.array(columns)})


def _write_masks(stage, trained, workdir):
  """Overlaps and densities of masks in the best tree of each replica."""
  tuned, found = flatten(trained.tuned), []
  for index, spec in enumerate(stage.specs.values()):
    own = unflatten({path: leaf[index] for path, leaf in tuned.items()})
    tasks = spec.tasks if spec.parts else (spec.task,)
    found.append(mask_analysis.analyse(own, stage.method.plan, tasks))
  first = found[0] if found else None
  if first is None or first.expected == 1.0:
    return
  stack = lambda get: np.stack([get(own) for own in found])
  arrays = {'joined': stack(lambda own: own.joined), 'expected': stack(lambda own: own.expected)}
  for owner, members in first.members.items():
    arrays[owner] = np.array(members)
    arrays[f'{owner}_overlap'] = stack(lambda own, owner=owner: own.overlaps[owner])
    arrays[f'{owner}_density'] = stack(lambda own, owner=owner: own.densities[owner])
  if first.across is not None:
    arrays['task_layer_overlap'] = stack(lambda own: own.across)
  tree_files.write_npz(workdir / 'masks.npz', {
      'replicas': np.array(list(stage.specs)), 'matrices': np.array(first.matrices),
      'joined_rows': np.array(first.layers), 'joined_columns': np.array(first.tasks), **arrays})
