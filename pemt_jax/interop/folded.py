"""Experts as plain models: their deltas folded into the backbone, for Hugging Face to load."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from pemt_jax.deltas.fold import fold
from pemt_jax.errors import UserError
from pemt_jax.experts import library
from pemt_jax.interop import backbones, cards
from pemt_jax.methods import zoo
from pemt_jax.methods.base import Method, backbone_of, boxed_shapes
from pemt_jax.models.roberta import Roberta
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.models.segments import cut, join, join_shapes
from pemt_jax.trees import Tree, flatten, unflatten

KIND = 'folded'
ABOUT = 'Hugging Face folder of an expert whose deltas are folded into its backbone; written only'


def method_of(card: library.ExpertCard, config: Any) -> tuple[dict[str, Any], Method]:
  """({name: options}, method) of an expert on a backbone.

  Raises:
    UserError: a method that makes no single delta.
  """
  names = zoo.names_of(card.method)
  if not names:
    raise UserError(f"expert '{card.name}' is of method '{card.method}', which needs more than its"
                    ' backbone; convert an expert of one stage.')
  values = card.extra.get('options', {})
  values = values if len(names) > 1 else {names[0]: values}
  options = {name: cards.options_of(zoo.ZOO[name].options, values[name]) for name in names}
  own = options if len(names) > 1 else options[names[0]]
  return options, zoo.make(card.method, own, config, 0)


def whole(tuned: Tree, method: Method, config: Any, backbone: Tree, name: str) -> Tree:
  """All parameters of an expert's model, canonical.

  Args:
    tuned: of the expert.
    method: that made it.
    config: of the backbone.
    backbone: its parameters.
    name: of the expert, for messages.

  Raises:
    UserError: frozen values that are neither the backbone's nor made from them.
  """
  own, plain = flatten(join(tuned)), flatten(backbone)
  shapes = flatten(join_shapes(_shapes(config, method, own)))
  empty = {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in shapes.items()}
  start = empty | {path: plain[path] for path in shapes.keys() & plain.keys()}
  made = flatten(method.first_values(backbone, unflatten(start), jax.random.key(0))) | own
  left = [path for path in shapes if made[path] is empty[path]]
  if left:
    raise UserError(f"expert '{name}' has '{left[0]}' neither stored nor from its backbone; keep it"
                    ' as an expert.')
  return unflatten({path: made[path] for path in shapes})


def _shapes(config, method, tuned):
  model = backbone_of(config, method.plan)
  if isinstance(config, RobertaConfig) and 'head/out/kernel' in tuned:
    model = Roberta(config, method.plan, labels=tuned['head/out/kernel'].shape[-1])
  return nn.meta.unbox(boxed_shapes(model))['params']


def from_expert(source: str | pathlib.Path, target: str | pathlib.Path,
                backbone: str | None = None) -> list[str]:
  """Reads an expert and writes a plain backbone that computes the same.

  Args:
    source: folder of the expert.
    target: folder to write.
    backbone: that it stands on; default is that of the card.

  Returns:
    No paths; everything has a place.

  Raises:
    UserError: another backbone, or deltas that no matrix can replace.
  """
  tuned, _, card = library.load_expert(source)
  name = backbone or card.backbone_id
  config, params = backbones.load(name)
  library.check_backbone(card, name, library.backbone_hash(params))
  _, method = method_of(card, config)
  found = whole(tuned, method, config, params, card.name)
  plain = fold(cut(found, _shapes(config, method, flatten(found))), method.plan)
  backbones.save(target, config, jax.tree.map(np.asarray, join(plain)))
  return []
