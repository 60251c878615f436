"""Vectors of tasks from a backbone: embeddings of their texts, Fisher information of adapters.

Source: Ye et al. 2022 (arXiv 2205.12701), section 3 and its programs. The published readings are
options; the default counts real positions and all rows.
"""

from __future__ import annotations

import copy
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np

from pemt_jax.data import pipeline
from pemt_jax.deltas.record import Record
from pemt_jax.errors import UserError, number, one_of
from pemt_jax.experts import tree_files
from pemt_jax.experts.merging.fisher import squared_gradients
from pemt_jax.experts.similarity import SUBLAYERS
from pemt_jax.experts.task_vectors import POOLINGS, TaskVectors, pooled, random_vectors
from pemt_jax.interop.task_vector_files import write_task_vectors
from pemt_jax.methods.base import LossForm, backbone_of, make_loss, shift_right
from pemt_jax.models.encoder_decoder import EncoderDecoder
from pemt_jax.models.segments import join
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.stages.backbone import as_frozen, load_backbone, require_text_to_text
from pemt_jax.stages.expert_set import file_name, on_device
from pemt_jax.stages.rows import ReplicaSpec, RowStore, replica_specs
from pemt_jax.stages.run import StageResult, run_stage
from pemt_jax.trees import Tree, flatten

KINDS = ('random', 'text', 'fine_tuned_text', 'fisher')
READS = ('all', 'first')
SCALES = ('unit', 'none')
OPTIONS, TUNING = 'options.json', 'tuning'
_HEAD = Rule('record', 'lm_head', Record())
Batches = Iterable[Mapping[str, Any]]
Reader = Callable[[Tree, Mapping[str, Any]], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class VectorOptions:
  """How task vectors are made.

  Attributes:
    kind: 'random'; 'text', states of the decoder over the inputs; 'fine_tuned_text', states of the
      encoder after tuning on the task; 'fisher', squared gradients of tuned adapters.
    pooling: of embeddings, see `experts.task_vectors.pooled`. For 'fine_tuned_text' the published
      form also reads the first row of each batch only, and no first and last position.
    read: of 'fine_tuned_text': 'all' positions (published as AVG) or the 'first' (BOS).
    width: of random vectors, and principal components of Fisher information; 0 keeps all entries.
    scale: of Fisher vectors: 'unit' divides all of them by their root mean square, since squared
      gradients may be of any size; 'none' leaves them (published).
    stddev: of the numbers of random vectors.
    batch_size: rows per batch of embeddings, which matters to 'legacy'.
    seed: of random vectors.
  """

  kind: str = 'text'
  pooling: str = 'masked'
  read: str = 'all'
  width: int = 128
  scale: str = 'unit'
  stddev: float = 1.0
  batch_size: int = 8
  seed: int = 0

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word or a number out of its range.
    """
    one_of('the kind of task vectors', self.kind, KINDS)
    one_of('pooling', self.pooling, POOLINGS)
    one_of('read', self.read, READS)
    one_of('scale', self.scale, SCALES)
    number('width', self.width, self.width >= 0, 'of at least 0')
    number('batch_size', self.batch_size, self.batch_size >= 1, 'of at least 1')


def text_reader(model: EncoderDecoder, pooling: str) -> Reader:
  """Returns the compiled (variables, batch) -> ([batch, embed], [batch] weights of the rows).

  A row is the mean of what the head reads while the decoder sees the input, shifted right.
  """
  recorder = model.clone(plan=Plan((*model.plan.rules, _HEAD)))

  @jax.jit
  def read(variables, batch):
    inputs, mask = batch['inputs'], batch['inputs_mask']
    _, aux = recorder.apply(variables, inputs, mask, shift_right(inputs, model.config.start_id),
                            mask)
    return pooled(aux['lm_head/record/state'], mask, pooling), jnp.max(mask, axis=1)

  return read


def encoder_reader(model: EncoderDecoder, read: str, pooling: str) -> Reader:
  """Like `text_reader`, of the encoder's final states; see `VectorOptions`."""
  @jax.jit
  def reader(variables, batch):
    mask = batch['inputs_mask']
    states = model.apply(variables, batch['inputs'], mask, method='encode').states
    rows = jnp.max(mask, axis=1)
    if pooling == 'legacy':
      rows = rows * (jnp.arange(rows.shape[0]) == 0)
    if read == 'first':
      return states[:, 0].astype(jnp.float32), rows
    if pooling == 'legacy':  # The positions of the longest row but for its first and last one.
      states, mask = states[:, 1:-1], mask[:, 2:]
    return pooled(states, mask, pooling), rows

  return reader


def mean_row(reader: Reader, variables: Tree, batches: Batches) -> np.ndarray:
  """Weighted mean [embed] of the rows of all batches."""
  total, count = np.zeros(()), 0.0
  for batch in batches:
    rows, weights = jax.device_get(reader(variables, batch))
    total = total + np.asarray(weights, np.float64) @ np.asarray(rows, np.float64)
    count += float(np.sum(weights))
  return (total / count).astype(np.float32)


def fisher_reader(loss_fn: Callable[..., Any]) -> Callable[[Tree, Tree, Tree, Any], Tree]:
  """Returns the compiled (tuned, frozen, constants, batch) -> squared gradients, summed over rows.

  Args:
    loss_fn: (tuned, frozen, constants, batch, key) -> (loss, metrics), summed over tokens.
  """
  @jax.jit
  def squares(tuned, frozen, constants, batch):
    def loss(values, row):
      one = {name: leaf[None] for name, leaf in row.items()}
      return loss_fn(values, frozen, constants, one, None)[0]

    return squared_gradients(loss, tuned, batch)

  return squares


def fisher_of(reader: Callable[..., Tree], trees: Sequence[Tree], batches: Batches) -> Tree:
  """Canonical tree of mean squared gradients of one task; `trees` are tuned, frozen, constants."""
  totals, rows = [], 0.0
  for batch in batches:
    totals.append(jax.device_get(reader(*trees, batch)))
    rows += float(np.sum(np.max(batch['inputs_mask'], axis=1)))
  return join(jax.tree.map(lambda *leaves: np.sum(leaves, axis=0, dtype=np.float64) / rows,
                           *totals))


def fisher_matrix(squares: Tree) -> np.ndarray:
  """Stacks what belongs to the adapters' kernels, in the published order.

  Args:
    squares: canonical tree of adapters with kernels down [layer, embed, size] and up.

  Returns:
    [matrix, embed * size] float32: the layers of the encoder, then of the decoder; in a layer the
    sub-layers, and of each the down and the up projection, [out, in] laid out in rows.

  Raises:
    UserError: there are no adapters.
  """
  flat, found = flatten(squares), []
  for stack, kinds in SUBLAYERS.items():
    leaves = [leaf for kind in kinds for part in ('down', 'up') for path, leaf in flat.items()
              if path.startswith((f'{stack}/layers/{kind}/', f'{stack}/layers/{kind}_residual/'))
              and path.endswith(f'/{part}/kernel')]
    depth = len(leaves[0]) if leaves else 0
    found += [leaf[layer].T.ravel() for layer in range(depth) for leaf in leaves]
  if not found:
    raise UserError('the method tunes no adapter kernels, which Fisher vectors are made of; choose'
                    ' a config of adapters such as configs/taskmoe/fisher_vectors.py.')
  return np.stack(found).astype(np.float32)


def principal_components(rows: Mapping[str, np.ndarray], width: int) -> TaskVectors:
  """Coordinates of tasks on their first principal components.

  The largest entry of each component is positive, so that signs do not depend on the library.

  Args:
    rows: task -> [number].
    width: components, at most the number of tasks and of numbers.

  Raises:
    UserError: more components than there are.
  """
  from sklearn.decomposition import PCA
  names = tuple(sorted(rows))
  matrix = np.stack([rows[name] for name in names]).astype(np.float64)
  most = min(matrix.shape)
  if width > most:
    raise UserError(f'width is {width}, but {len(names)} tasks have only {most} principal'
                    f' components; give at most {most}, or 0 to keep all numbers.')
  pca = PCA(n_components=width, svd_solver='full')
  found = pca.fit_transform(matrix)
  largest = np.argmax(np.abs(pca.components_), axis=1)
  signs = np.sign(np.take_along_axis(pca.components_, largest[:, None], axis=1))[:, 0]
  return TaskVectors(names, (found * np.where(signs == 0, 1.0, signs)).astype(np.float32))


def _batches(store: RowStore, spec: ReplicaSpec, options: VectorOptions) -> list[dict[str, Any]]:
  """Training rows of a replica; in their own order where it matters."""
  fields, fisher = spec.config.data, options.kind == 'fisher'
  found = pipeline.eval_batches(
      store.tokens(spec, 'train'), options.batch_size, list(fields.buckets) or None,
      list(fields.target_buckets) or None, sort=fisher or options.pooling != 'legacy')
  return [on_device(batch) for batch in found]


def _text(config: mlc.ConfigDict, options: VectorOptions,
          specs: Sequence[ReplicaSpec], output: pathlib.Path) -> TaskVectors:
  """Embeddings by the backbone as it is; the rows of all replicas of a task count."""
  backbone = load_backbone(config, config.seeds[0])
  require_text_to_text(backbone, options.kind)
  store = RowStore(backbone.tokenizer, output / 'cache')
  model = backbone_of(backbone.config, Plan()).clone(compute=backbone.compute)
  variables = {'params': as_frozen(backbone.params, config.model.frozen_dtype)}
  reader, batches = text_reader(model, options.pooling), {}
  for spec in specs:
    batches.setdefault(spec.task, []).extend(_batches(store, spec, options))
  return TaskVectors.of({task: mean_row(reader, variables, own) for task, own in batches.items()})


def _runs(config: mlc.ConfigDict, output: pathlib.Path) -> Iterator[StageResult]:
  """Tunes all tasks in one program, or one after the other, so that one is in memory at a time."""
  if config.together == 'all':
    yield run_stage(config, output / TUNING)
    return
  backbone = load_backbone(config, config.seeds[0])
  for task in config.tasks:
    own = copy.deepcopy(config)
    own.tasks = (task,)
    yield run_stage(own, output / TUNING / file_name(task), backbone)


def _tuned(config: mlc.ConfigDict, options: VectorOptions, output: pathlib.Path) -> TaskVectors:
  """Trains a replica for each task and reads it."""
  rows, reader, fisher = {}, None, options.kind == 'fisher'
  for result in _runs(config, output):
    stage, trained = result.stage, result.trained
    if reader is None:
      form = LossForm(config.train.label_smoothing, 'sum')
      reader = (fisher_reader(make_loss(stage.model, stage.method, form)) if fisher
                else encoder_reader(stage.model, options.read, options.pooling))
    for place, spec in enumerate(stage.specs.values()):
      own = lambda tree, i=place: jax.tree.map(lambda leaf: jnp.asarray(leaf[i]), tree)
      trees = own(trained.tuned), stage.start.frozen, own(trained.constants)
      batches = _batches(stage.store, spec, options)
      rows[spec.task] = (fisher_matrix(fisher_of(reader, trees, batches)).ravel() if fisher
                         else mean_row(reader, stage.method.variables(*trees), batches))
  if not fisher:
    return TaskVectors.of(rows)
  found = principal_components(rows, options.width) if options.width else TaskVectors.of(rows)
  return found.unit() if options.scale == 'unit' else found


def make_task_vectors(config: mlc.ConfigDict, options: VectorOptions,
                      output: str | pathlib.Path) -> TaskVectors:
  """Makes the vectors of the tasks of a config and writes their folder.

  Args:
    config: a stage's config; its tasks and rows, for tuned vectors also what is tuned.
    options: how.
    output: folder for `id2task.json`, `task_vecs.npy` and `options.json`; caches go below it, and
      the runs of tuned replicas below `tuning`, where a run that was stopped goes on.

  Raises:
    UserError: options, tasks, rows or a backbone that do not fit.
  """
  output, specs = pathlib.Path(output), replica_specs(config)
  tasks = [spec.task for spec in specs]
  tuned = options.kind in ('fine_tuned_text', 'fisher')
  if tuned and (len(set(tasks)) < len(tasks) or any(spec.parts for spec in specs)):
    raise UserError(f"'{options.kind}' vectors need one replica for each task; give one seed, one"
                    ' rate and no config.mixture.')
  if options.kind == 'fisher' and options.width > len(tasks):
    raise UserError(f'width is {options.width}, but {len(tasks)} tasks have only {len(tasks)}'
                    f' principal components; give at most {len(tasks)}, or 0 to keep all numbers.')
  if options.kind == 'random':
    names = sorted({task for spec in specs for task in spec.tasks})
    vectors = random_vectors(names, options.width, options.stddev, options.seed)
  elif tuned:
    vectors = _tuned(config, options, output)
  else:
    vectors = _text(config, options, specs, output)
  write_task_vectors(output, vectors)
  tree_files.write_json(output / OPTIONS, dataclasses.asdict(options))
  return vectors
