"""A stage as shapes: all that its programs read, without weights, rows, tokenizer or devices."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np
from flax import linen as nn

from pemt_jax.data.labelled import LabelledData
from pemt_jax.data.packed_text import PackedText
from pemt_jax.data.tokenized import Ragged, TokenizedData
from pemt_jax.errors import at_least, one_of
from pemt_jax.methods.base import boxed_shapes
from pemt_jax.methods.language_modelling import NAME, is_language
from pemt_jax.methods.pemt import BankShape
from pemt_jax.sharding.placement import Placement
from pemt_jax.sharding.mesh import MeshShape, make_mesh
from pemt_jax.sharding.rules import param_shardings
from pemt_jax.stages import prompt_sources
from pemt_jax.stages.backbone import Backbone, shaped_backbone, storage_dtype
from pemt_jax.stages.build import Stage, recipe
from pemt_jax.stages.prompt_sources import PromptSources
from pemt_jax.stages.rows import ReplicaSpec, replica_specs
from pemt_jax.stages.sources import Sources
from pemt_jax.training.rules import split_params
from pemt_jax.trees import Tree, flatten

Shaped = jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True)
class Assumed:
  """What a run would read from files.

  Attributes:
    sources: number of source experts.
    expert: 'lora' or 'adapter', their form.
    width: their rank, or their hidden units.
    prompt: rows of a prompt, where `config.prompt.length` does not say it.
  """

  sources: int = 6
  expert: str = 'lora'
  width: int = 64
  prompt: int = 32

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown form, or a number below 1.
    """
    one_of('expert', self.expert, ('lora', 'adapter'))
    at_least(self, 1, 'sources', 'width', 'prompt')


class ShapedStart:
  """The arrays of a stage as shapes with shardings, in the place of `stages.build.Start`.

  Attributes:
    shapes: {'params', 'constants'} of the model.
    placement: where they stand; a mesh of one device counts.
    frozen: frozen parameters in their storage type, with shardings.
    tuned: what one replica trains, with shardings.
    constants: of one replica.
  """

  def __init__(self, config: mlc.ConfigDict, model: Any, method: Any, devices: Sequence[Any]):
    boxed = boxed_shapes(model)
    mesh = make_mesh(MeshShape(**config.mesh), devices)
    self.placement = Placement(mesh, flatten(param_shardings(boxed['params'], mesh)),
                               config.model.matmul_precision)
    self.shapes = nn.meta.unbox(boxed)
    frozen, tuned = split_params(self.shapes['params'], method.tuned)
    self.tuned = with_shardings(tuned, self.placement.of_params(tuned))
    kind = storage_dtype(config.model.frozen_dtype, devices[0].platform)
    stored = jax.tree.map(lambda leaf: Shaped(leaf.shape, _stored(leaf.dtype, kind)), frozen)
    self.frozen = with_shardings(stored, self.placement.of_params(stored))
    self.constants = self.shapes.get('constants', {})
    if method.first_constants is not None:
      self.constants = jax.eval_shape(method.first_constants, self.constants)


class ShapedRows:
  """Batches of zeros in the form of a stage's rows, in the place of `stages.rows.RowStore`."""

  def __init__(self, config: mlc.ConfigDict, backbone: Backbone):
    self._config, self._backbone = config, backbone

  def examples(self, spec: ReplicaSpec, split: str) -> None:
    """There are none."""

  def steps_per_epoch(self, spec: ReplicaSpec) -> int:
    """A stand-in; rates are arguments of the program."""
    return 1

  def batch(self, specs: Sequence[ReplicaSpec], rows: str) -> dict[str, np.ndarray]:
    """The longest batch of all replicas, [replica, batch, ...].

    Args:
      specs: of the replicas.
      rows: the field of `config.data` with their number.
    """
    size = max(spec.config.data[rows] for spec in specs)
    lengths = tuple(max(spec.config.data[name] for spec in specs)
                    for name in ('max_source_length', 'max_target_length'))
    one = self._source(size, *lengths).assemble(np.arange(size), 0, lengths)
    return {name: np.stack([leaf] * len(specs)) for name, leaf in one.items()}

  def _source(self, size: int, source: int, target: int) -> Any:
    shapes = self._backbone.config
    texts = lambda length: Ragged(np.zeros(size * length, np.int32), np.full(size, length))
    numbers = np.arange(size, dtype=np.int32)
    if self._backbone.has_head:
      return LabelledData(texts(source), np.full(size, source), np.zeros(size, np.float32),
                          shapes.kind == 'bert', shapes.pad_id, source, '')
    if is_language(self._config.stage):
      return PackedText(np.zeros((size, source), np.int32), shapes.pad_id)
    return TokenizedData(texts(source), texts(target), numbers * 0, numbers, shapes.pad_id, source,
                         target, '')


def shaped_stage(config: mlc.ConfigDict, devices: Sequence[Any],
                 assumed: Assumed = Assumed()) -> Stage:
  """A stage whose arrays are shapes; its experiment can be compiled and not run.

  Args:
    config: see `stages.config.base_config`; experts to start from are not read.
    devices: that `config.mesh` divides.
    assumed: stands for what is in files.

  Raises:
    UserError: whatever in the config does not fit.
  """
  config = _without_files(config)
  specs = {spec.name: spec for spec in _specs(config)}
  if len(config.tasks) == 1:
    config = next(iter(specs.values())).config
  backbone = shaped_backbone(config)
  compute = dataclasses.replace(backbone.compute, platform=devices[0].platform)
  backbone = dataclasses.replace(backbone, compute=compute)
  length = config.prompt.length or assumed.prompt
  given = _given(config, backbone, assumed, length)
  method, model = recipe(config, backbone, specs.values(), length, given)
  start = ShapedStart(config, model, method, devices)
  return Stage(config, backbone, method, model, specs, ShapedRows(config, backbone), start, None,
               given[0])


def _without_files(config: mlc.ConfigDict) -> mlc.ConfigDict:
  config = copy.deepcopy(config)
  config.starts = ()
  if 'vectors' in config.method:
    config.method.vectors = ''
  return config


def _specs(config: mlc.ConfigDict) -> tuple[ReplicaSpec, ...]:
  if config.stage != 'span_corruption':
    return replica_specs(config)
  return tuple(ReplicaSpec(f'backbone-seed{seed}', NAME, seed, None, None, config)
               for seed in config.seeds)


def _given(config: mlc.ConfigDict, backbone: Backbone, assumed: Assumed,
           length: int) -> tuple[Sources | None, PromptSources | None]:
  """Sources and source prompts of a stage, as shapes."""
  names = tuple(f'source{number}' for number in range(assumed.sources))
  if config.stage == 'pemt/stage2':
    bank = BankShape(assumed.expert, assumed.sources, assumed.width,
                     prompt_lengths=(length,) * assumed.sources)
    return Sources(names, bank, {}), None
  if not prompt_sources.reads_prompts(config):
    return None, None
  tables = Shaped((assumed.sources, length, backbone.config.embed), jnp.float32)
  return None, PromptSources(names, tables)


def _stored(dtype: Any, kind: str) -> Any:
  """Storage type of a frozen parameter."""
  return kind if jnp.issubdtype(dtype, jnp.floating) else dtype


def with_shardings(tree: Tree, shardings: Tree) -> Tree:
  """Shapes, or arrays, as shapes with shardings."""
  return jax.tree.map(lambda leaf, sharding: Shaped(leaf.shape, leaf.dtype, sharding=sharding),
                      tree, shardings)
