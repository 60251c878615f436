"""Merged experts: for every target one expert `without_<target>` made of the other sources.

Weighted methods (average, families, similarity, weights, search) also leave `final_weight.txt` and
a heat map. A merge has the form of its sources: it can be evaluated as it is, and `config.starts`
names its folder to tune from it.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pemt_jax.data.tasks import get_task
from pemt_jax.errors import UserError, number, one_of
from pemt_jax.experts import tree_files
from pemt_jax.experts.library import ExpertCard, expert_folder, load_expert, save_expert
from pemt_jax.experts.merging import arithmetic, weights
from pemt_jax.experts.similarity import METRICS
from pemt_jax.interop import ensembling_files as tables
from pemt_jax.methods.base import initialiser
from pemt_jax.models.segments import cut, join
from pemt_jax.reports.heatmap import HEAT_MAP, write_heat_map
from pemt_jax.sharding import processes
from pemt_jax.stages.expert_set import ExpertSet, LoadedSource, file_name, load_sources
from pemt_jax.stages.merging_rows import RowMerger
from pemt_jax.stages.similarity import moved_experts
from pemt_jax.stages.starts import WITHOUT
from pemt_jax.trees import Tree, flatten, unflatten

SUMMARY = 'merge.json'
WEIGHTED = ('average', 'families', 'similarity', 'weights')
VECTORS = ('task_arithmetic', 'ties', 'dare')
ROWS = ('fisher', 'search')


@dataclasses.dataclass(frozen=True)
class MergeOptions:
  """How sources are merged.

  Attributes:
    method: 'average', 'families', 'similarity', 'weights', 'task_arithmetic', 'ties', 'dare',
      'fisher' or 'search'.
    similarity: table `result.tsv`, or a folder of metrics as launch/similarity.py writes it.
    metric: name of the similarity metric; decides sign and temperature.
    version: whose sign and temperature: 'current' or 'historical'.
    sign: 1 or -1 in place of the metric's; 0 takes the metric's.
    temperature: in place of the metric's; 0 takes the metric's.
    weights: a `final_weight.txt`.
    families: JSON file family -> list of tasks; '' takes the families of the few-shot gym's tasks.
    base: expert whose values are theta_0 of task vectors; '' takes neutral values, see
      `neutral_values`.
    moved: merge the sources after some steps on the target, see `similarity.References`.
    scale: factor of a merged task vector.
    keep: share of entries that TIES keeps.
    rate: share of entries that DARE drops.
    dare_ties: merge by TIES what DARE leaves, in place of adding it.
    rows: rows per source (fisher) or per batch (search).
    labels: Fisher of the 'data' labels or of labels drawn from the 'model'.
    candidates: of a round of the search.
    rounds: of the search.
    simplex: search among weights at least 0 with sum 1.
    seed: of DARE, of drawn labels and of the search.
  """

  method: str = 'average'
  similarity: str = ''
  metric: str = 'loss'
  version: str = 'current'
  sign: int = 0
  temperature: float = 0.0
  weights: str = ''
  families: str = ''
  base: str = ''
  moved: str = ''
  scale: float = 1.0
  keep: float = 0.2
  rate: float = 0.5
  dare_ties: bool = False
  rows: int = 50
  labels: str = 'model'
  candidates: int = 64
  rounds: int = 3
  simplex: bool = True
  seed: int = 0

  def check(self) -> None:
    """Checks what can be checked without files.

    Raises:
      UserError: a value that is not allowed, or a method without its file.
    """
    one_of('the merge method', self.method, (*WEIGHTED, *VECTORS, *ROWS))
    one_of('the similarity metric', self.metric, METRICS)
    one_of('labels', self.labels, ('data', 'model'))
    number('rows', self.rows, self.rows >= 1, 'of at least 1')
    if self.method in ('similarity', 'weights') and not getattr(self, self.method):
      raise UserError(f"merging by '{self.method}' needs a file; give it as --{self.method}.")
    if self.moved and self.method in ROWS:
      raise UserError(f"merging by '{self.method}' reads the sources as they are; leave --moved"
                      ' out, or choose another method.')

  def softmax(self) -> tuple[int, float]:
    """(sign, temperature)."""
    sign, temperature = METRICS[self.metric].softmax(self.version)
    return self.sign or sign, self.temperature or temperature


def merge_experts(sources: Sequence[str], targets: Sequence[str], options: MergeOptions,
                  output: pathlib.Path, config: Any = None) -> dict[str, pathlib.Path]:
  """Merges sources for every target and writes the experts; nothing is written before all is done.

  Args:
    sources: folders of experts, of runs or of libraries.
    targets: tasks; empty takes those of the sources.
    options: how.
    output: experts go to `<output>/experts/without_<target>`.
    config: in place of the config that the first source was trained with.

  Returns:
    target -> folder of its expert.

  Raises:
    UserError: experts, files or options that do not fit.
  """
  options.check()
  loaded = load_sources(sources)
  tasks = [get_task(name).name for name in targets] or [s.card.task for s in loaded]
  _check_shapes(loaded)
  table = _weights_of(loaded, tasks, options)
  merged, table = _merge(loaded, tasks, options, table, output, config)
  folders = {}
  for i, task in enumerate(tasks):
    own = None if table is None else dict(zip(table.sources, table.values[i].tolist(), strict=True))
    card = _card(loaded, task, options, own, config)
    folders[task] = expert_folder(output, card.name)
    if processes.is_first():
      save_expert(folders[task], merged[i], loaded[0].constants, card)
  if not processes.is_first():
    return folders
  if table is not None:
    tables.write_weights(output / tables.FINAL_WEIGHTS, table)
    write_heat_map(output / HEAT_MAP, table.values, table.targets, table.sources)
  tree_files.write_json(output / SUMMARY, {
      'options': dataclasses.asdict(options), 'targets': tasks,
      'sources': [str(source.folder) for source in loaded],
      'weights': None if table is None else table.values.tolist()})
  return folders


def _check_shapes(loaded: Sequence[LoadedSource]) -> None:
  """Checks that all trees are alike, and what is not trained equal."""
  first = loaded[0]
  for source in loaded[1:]:
    tree_files.check_description(tree_files.describe(source.tuned),
                                 tree_files.describe(first.tuned), source.folder)
    own, other = flatten(source.constants), flatten(first.constants)
    if own.keys() != other.keys() or not all(np.array_equal(own[k], other[k]) for k in own):
      raise UserError(f'{source.folder} has other constants than {first.folder}, so that a sum of'
                      ' their weights means nothing; train all sources with one config and seed.')


def named_like(known: Sequence[str], tasks: Sequence[str]) -> Callable[[str], str]:
  """How a file names tasks: as folders do, in full, or by their last part.

  Args:
    known: names in the file.
    tasks: canonical names that should be among them.

  Returns:
    Canonical name -> name in the file; that of folders where no form fits.
  """
  forms = (file_name, str, lambda task: task.rpartition('/')[2])
  return next((form for form in forms if {form(task) for task in tasks} <= set(known)), file_name)


def _weights_of(loaded: Sequence[LoadedSource], tasks: Sequence[str],
                options: MergeOptions) -> tables.Matrix | None:
  """Weights [target, source] of the weighted methods, from the files that they need."""
  if options.method not in WEIGHTED:
    return None
  names, own = tuple(s.name for s in loaded), [s.card.task for s in loaded]
  allowed = weights.leave_one_out(tasks, own)
  if options.method == 'average':
    values = weights.mean_weights(allowed)
  elif options.method == 'families':
    families = {name: [get_task(task).name for task in members]
                for name, members in families_of(options.families, (*tasks, *own)).items()}
    values = weights.mean_weights(weights.within_families(tasks, own, families))
  elif options.method == 'weights':
    form = named_like(tables.targets_of_weights(options.weights), tasks)
    table = tables.read_weights(options.weights, list(map(form, own)))
    values = table.chosen(list(map(form, tasks)), list(map(form, own)), options.weights)
  else:
    path = pathlib.Path(options.similarity)
    path = path / METRICS[options.metric].folder / tables.RESULT if path.is_dir() else path
    table = tables.read_similarity(path)
    form = named_like((*table.targets, *table.sources), (*tasks, *own))
    scores = table.chosen(list(map(form, tasks)), list(map(form, own)), str(path))
    values = weights.similarity_weights(scores, allowed, *options.softmax())
  return tables.Matrix(tuple(map(file_name, tasks)), names, values)


def families_of(path: str, tasks: Sequence[str]) -> Mapping[str, Sequence[str]]:
  """family -> tasks of a JSON file, or of the few-shot gym without one.

  Args:
    path: the file, or ''.
    tasks: canonical names that are grouped where there is no file.

  Raises:
    UserError: a file of another form, or a task without a family.
  """
  if not path:
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(tasks):
      rule = get_task(name).gym
      if rule is None:
        raise UserError(f"task '{name}' states no family; write family -> [task, ...] to a JSON"
                        ' file and give it as --families.')
      found.setdefault(rule.family, []).append(name)
    return found
  families = tree_files.read_json(path)
  if not isinstance(families, dict) or not all(
      isinstance(members, list) and all(isinstance(name, str) for name in members)
      for members in families.values()):
    raise UserError(f'{path} is no JSON object of lists of tasks; write family -> [task, ...].')
  return families


def _merge(loaded: Sequence[LoadedSource], tasks: Sequence[str], options: MergeOptions,
           table: tables.Matrix | None, output: pathlib.Path,
           config: Any) -> tuple[list[Tree], tables.Matrix | None]:
  """One merged tree per target, and the weights of the sources where a method has them."""
  own = [source.card.task for source in loaded]
  allowed = weights.leave_one_out(tasks, own)
  stacked = weights.stack_sources([source.tuned for source in loaded])
  read = own if options.method == 'fisher' else tasks
  with_base = options.method in (*VECTORS, 'search')
  experts = None
  if options.method in ROWS or with_base and not options.base:
    experts = ExpertSet(loaded, read, output, config)
  rows = RowMerger(experts, read, options) if options.method in ROWS else None
  base = None
  if with_base:
    base = _tuned_of(options.base, loaded[0]) if options.base else neutral_values(experts)
  merged, found = [], []
  for i, task in enumerate(tasks):
    if options.moved:
      stacked = _moved(options.moved, task, loaded)
    if table is not None:
      merged.append(weights.weighted_sum(stacked, table.values[i]))
      continue
    chosen = np.flatnonzero(allowed[i])
    own = jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], stacked)
    if options.method == 'fisher':
      merged.append(rows.fisher_mean(own, chosen))
    elif options.method == 'search':
      coefficients = rows.search(task, base, chosen)
      merged.append(arithmetic.add_to_base(base, weights.weighted_sum(
          arithmetic.task_vectors(own, base), coefficients), 1.0))
      found.append(np.zeros(len(loaded)))
      found[-1][chosen] = coefficients
    else:
      merged.append(_by_vectors(own, base, options))
  if found:
    names = tuple(source.name for source in loaded)
    table = tables.Matrix(tuple(map(file_name, tasks)), names, np.stack(found))
  return [jax.tree.map(np.asarray, tree) for tree in merged], table


def _by_vectors(stacked: Tree, base: Tree, options: MergeOptions) -> Tree:
  if options.method == 'task_arithmetic':
    return arithmetic.task_arithmetic(stacked, base, options.scale)
  if options.method == 'ties':
    return arithmetic.ties(stacked, base, options.keep, options.scale)
  return arithmetic.dare(stacked, base, jax.random.key(options.seed), options.rate, options.scale,
                         options.keep if options.dare_ties else None)


def _moved(place: str, task: str, loaded: Sequence[LoadedSource]) -> Tree:
  found = moved_experts(place, task, loaded)
  _check_shapes([loaded[0], *found])
  return weights.stack_sources([source.tuned for source in found])


def _tuned_of(folder: str, source: LoadedSource) -> Tree:
  """Values of an expert of the form of a source."""
  tuned, _, _ = load_expert(folder)
  tree_files.check_description(tree_files.describe(tuned), tree_files.describe(source.tuned),
                               folder)
  return tuned


def neutral_values(experts: ExpertSet) -> Tree:
  """theta_0 of task vectors where no expert is given, a canonical tree.

  A leaf has the backbone's value if the backbone has it, its first value if that is no random one
  (ones for what multiplies), and zeros otherwise.
  """
  stage = experts.stage
  known = flatten(stage.backbone.params)
  init = initialiser(stage.model, cut(stage.backbone.params, stage.start.shapes['params']))
  first, second = (flatten(join(init(jax.random.key(seed))[0])) for seed in (0, 1))
  found = {}
  for path, leaf in flatten(experts.sources[0].tuned).items():
    fixed = path in first and np.array_equal(first[path], second[path])
    value = known[path] if path in known else first[path] if fixed else np.zeros(leaf.shape)
    found[path] = np.asarray(value, np.float32)
  return unflatten(found)


def _card(loaded: Sequence[LoadedSource], task: str, options: MergeOptions,
          own: dict[str, float] | None, config: Any) -> ExpertCard:
  """The card of a merge: that of its sources, of the target's task, without metrics."""
  card = loaded[0].card
  extra = dict(card.extra) | {'merge': {
      'options': dataclasses.asdict(options), 'weights': own,
      'sources': [source.name for source in loaded if source.card.task != task]}}
  if config is not None:
    extra['config'] = config.to_dict()
  return dataclasses.replace(card, name=f'{WITHOUT}{file_name(task)}', task=task, metrics={},
                             extra=extra)
