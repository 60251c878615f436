"""A delta that changes nothing and shows what a site reads."""

from __future__ import annotations

import dataclasses
from typing import Any

from pemt_jax.deltas.base import Delta, Values
from pemt_jax.models.sites import Aux, Base, Rule, Site, SiteContext


@dataclasses.dataclass(frozen=True)
class Record(Delta):
  """y = base(x); auxiliary `state`: x."""

  def act(self, values: Values, base: Base, x: Any, context: SiteContext,
          site: Site) -> tuple[Any, Aux]:
    """The operation as it is."""
    return base(x), {'state': x}


# The output of a block is what the next block's first norm reads, or the stack's last norm.
BLOCK_RULES = (Rule('record', '*/self_attention_norm', Record()),
               Rule('record', '*/final_norm', Record()))
