"""The frozen backbone of a stage: its config, parameters, tokenizer and identity."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np
from flax import linen as nn

from pemt_jax.data.tokenizer import Tokenizer, load_tokenizer
from pemt_jax.errors import UserError, number, one_of
from pemt_jax.experts.library import backbone_hash
from pemt_jax.interop import backbones
from pemt_jax.methods.base import backbone_of, boxed_shapes, initialiser
from pemt_jax.models.attention import FORMS
from pemt_jax.models.bart_config import BartConfig
from pemt_jax.models.blocks import Config
from pemt_jax.models.families import family_of, place
from pemt_jax.models.gpt2_config import GPT2Config
from pemt_jax.models.layers import Compute
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.models.stack import REMAT
from pemt_jax.sharding.mesh import MeshShape, make_mesh
from pemt_jax.sharding.placement import PRECISIONS, Placement
from pemt_jax.trees import Tree

DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class Backbone:
  """A loaded backbone.

  Attributes:
    name: as given in the config.
    config: shapes and constants; a `RobertaConfig` says that it is an encoder with a head.
    params: canonical parameter tree.
    tokenizer: text to ids; None where a backbone is only planned with.
    hash: of the parameters; experts refer to it.
    compute: how to compute.
  """

  name: str
  config: Config
  params: Tree
  tokenizer: Tokenizer | None
  hash: str
  compute: Compute

  @property
  def has_head(self) -> bool:
    """Whether it is an encoder with a head for whole texts and not text to text."""
    return isinstance(self.config, RobertaConfig)


def _reshaped(shapes: Any, changes: dict[str, Any]) -> Any:
  unknown = sorted(set(changes) - {field.name for field in dataclasses.fields(shapes)})
  if unknown:
    raise UserError(f"model.shape names '{unknown[0]}', which is no field of"
                    f' {type(shapes).__name__}; correct it.')
  return dataclasses.replace(shapes, **changes)


def load_backbone(config: mlc.ConfigDict, seed: int = 0,
                  tokenizer: Tokenizer | None = None) -> Backbone:
  """Loads what `config.model` names.

  Args:
    config: a stage's config.
    seed: of random weights.
    tokenizer: in place of the one that the config names.

  Raises:
    UserError: nothing there, unknown dtype, or a vocabulary larger than the embedding.
  """
  model, compute = config.model, _compute(config.model)
  tokenizer = tokenizer or load_tokenizer(place(model.tokenizer or model.name))
  if model.weights == 'random':
    shapes = _shapes(model)
    if isinstance(shapes, (BartConfig, GPT2Config)):
      shapes = _with_ids(shapes, tokenizer, model.shape)
    params, _ = initialiser(backbone_of(shapes))(jax.random.key(seed))
    params = jax.tree.map(np.asarray, params)
  elif model.weights == 'pretrained':
    shapes, params = backbones.load(place(model.name))
  else:
    raise UserError(f"model.weights is '{model.weights}'; choose 'pretrained' or 'random'.")
  if not shapes.encoder_layers:
    tokenizer = tokenizer.plain()
  if tokenizer.vocab_size > shapes.vocab_size:
    raise UserError(
        f"tokenizer '{model.tokenizer or model.name}' has {tokenizer.vocab_size} ids but backbone"
        f" '{model.name}' only {shapes.vocab_size} embeddings; set model.tokenizer to the"
        " backbone's own.")
  return Backbone(model.name, shapes, params, tokenizer, backbone_hash(params), compute)


def shaped_backbone(config: mlc.ConfigDict) -> Backbone:
  """What `config.model` names, without files: shapes in place of parameters, no tokenizer.

  Args:
    config: a stage's config; `model.name` is a published name or a folder with `config.json`.

  Raises:
    UserError: an unknown name or dtype.
  """
  shapes, compute = _shapes(config.model), _compute(config.model)
  params = nn.meta.unbox(boxed_shapes(backbone_of(shapes)))['params']
  return Backbone(config.model.name, shapes, params, None, '', compute)


def _shapes(model: mlc.ConfigDict) -> Config:
  """Shapes that a name and `model.shape` state."""
  name = place(model.name)
  return _reshaped(family_of(name).read(name), model.shape.to_dict())


def _compute(model: mlc.ConfigDict) -> Compute:
  allowed = {'dtype': DTYPES, 'frozen_dtype': ('auto', *DTYPES), 'remat': REMAT,
             'attention': FORMS}
  for field, words in allowed.items():
    one_of(f'model.{field}', model[field], words)
  rate = model.attention_dropout
  if rate is not None:
    number('model.attention_dropout', rate, 0.0 <= rate < 1.0, 'of at least 0 and below 1')
  one_of('model.matmul_precision', model.matmul_precision, PRECISIONS)
  return Compute(dtype=model.dtype, scan_layers=model.scan_layers, remat=model.remat,
                 attention=model.attention, attention_dropout=rate)


def storage_dtype(frozen_dtype: str, platform: str = '') -> str:
  """Storage type of frozen parameters; 'auto' is float32 on a CPU and bfloat16 elsewhere.

  Args:
    frozen_dtype: of `config.model`.
    platform: of the devices; '' is that of the default one.
  """
  if frozen_dtype != 'auto':
    return frozen_dtype
  return 'float32' if (platform or jax.default_backend()) == 'cpu' else 'bfloat16'


def _with_ids(shapes: Config, tokenizer: Tokenizer, given: Mapping[str, Any]) -> Config:
  """Shapes of random weights with the special ids of a tokenizer, where `given` has none."""
  end, front = tokenizer.eos_id, (*tokenizer.front_ids, None)[0]
  ids = {'pad_id': tokenizer.pad_id, 'eos_id': end, 'start_id': end}
  if isinstance(shapes, BartConfig):
    forced = {'forced_bos_token_id': front, 'forced_eos_token_id': end}
    ids['bos_id'] = end if front is None else front
    ids['generation'] = tuple((name, forced.get(name, value)) for name, value in shapes.generation)
  return dataclasses.replace(
      shapes, **{name: value for name, value in ids.items() if name not in given})


def require_decoder_alone(backbone: Backbone, stage: str) -> None:
  """Checks that a backbone continues texts.

  Raises:
    UserError: it has an encoder.
  """
  if backbone.config.encoder_layers:
    raise UserError(f"stage {stage} needs a backbone without an encoder, and '{backbone.name}' has"
                    ' one; choose a GPT-2.')


def require_text_to_text(backbone: Backbone, stage: str, encoder: bool = True) -> None:
  """Checks that a backbone can write texts.

  Args:
    backbone: the backbone.
    stage: for the message.
    encoder: whether the stage needs an encoder.

  Raises:
    UserError: it is an encoder with a head, or has no encoder where one is needed.
  """
  if encoder and not backbone.config.encoder_layers:
    raise UserError(f"stage {stage} needs an encoder, and '{backbone.name}' has none; choose a T5"
                    ' or a BART.')
  if backbone.has_head:
    raise UserError(f"stage {stage} needs a text-to-text backbone, and '{backbone.name}' is an"
                    ' encoder with a head; choose a T5 or a BART.')


def placement_of(config: mlc.ConfigDict, boxed: Tree) -> Placement:
  """Where `config.mesh` puts the parameters of a model.

  Args:
    config: a stage's config.
    boxed: their shapes with logical axes.

  Raises:
    UserError: a mesh that does not fit the devices.
  """
  placement = Placement.of(make_mesh(MeshShape(**config.mesh)), boxed)
  return dataclasses.replace(placement, matmul_precision=config.model.matmul_precision)


def as_frozen(params: Tree, dtype: str, placement: Placement = Placement()) -> Tree:
  """Moves frozen parameters to their devices in their storage type; packed bits stay as they are.

  They take that type on the host, so that no device ever holds the whole model.
  """
  stored = jnp.dtype(storage_dtype(dtype))
  kind = lambda leaf: stored if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
  return placement.frozen(jax.tree.map(
      lambda leaf: np.asarray(leaf).astype(kind(leaf), copy=False), params))


def count(tree: Any) -> int:
  """Number of parameters."""
  return int(sum(np.size(leaf) for leaf in jax.tree.leaves(tree)))
