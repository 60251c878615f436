"""Which stages can train on rows that hold several examples (`config.data.packing`)."""

from __future__ import annotations

from collections.abc import Sequence

from pemt_jax.errors import UserError
from pemt_jax.methods.base import Method
from pemt_jax.stages.backbone import Backbone
from pemt_jax.stages.rows import ReplicaSpec


def front_positions(method: Method, backbone: Backbone, specs: Sequence[ReplicaSpec]) -> int:
  """Positions that packed rows keep free in front of each input; 0 where rows are not packed.

  Args:
    method: recipe; each of its deltas says whether it reads examples or rows.
    backbone: frozen backbone.
    specs: of the replicas.

  Raises:
    UserError: packed rows for a backbone or a method that cannot read them, or for some tasks of a
      mixture only.
  """
  packing = {part.config.data.packing for spec in specs for part in (spec.parts or (spec,))}
  if True not in packing:
    return 0
  if len(packing) > 1:
    raise UserError('config.data.packing differs between the tasks of this run; set it for all of'
                    ' them or for none.')
  if not (backbone.config.encoder_layers and backbone.config.decoder_layers):
    raise UserError(f"config.data.packing needs an encoder and a decoder, which '{backbone.name}'"
                    ' has not; choose a T5 or a BART, or leave it out.')
  if method.transform_loss is not None:
    raise _refusal(f"method '{method.name}' cuts batches into single examples")
  for rule in method.plan.rules:
    if not rule.delta.packs:
      raise _refusal(f"{type(rule.delta).__name__} at '{rule.site}' of method '{method.name}' has"
                     ' one value for all positions of a row')
  fronts = [rule.delta.front_positions for rule in method.plan.rules if rule.delta.front_positions]
  if len(fronts) > 1:
    raise _refusal(f"method '{method.name}' has {len(fronts)} prompts")
  return sum(fronts)


def _refusal(reason: str) -> UserError:
  return UserError(f'config.data.packing puts several examples into one row, but {reason}; set it'
                   ' to False.')
