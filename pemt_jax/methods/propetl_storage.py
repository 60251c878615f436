"""What ProPETL stores for a backbone and a number of tasks, against an adapter for each task."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from flax import linen as nn

from pemt_jax.experts.packed import Storage, storage_of
from pemt_jax.methods.base import backbone_of, boxed_shapes
from pemt_jax.methods.propetl import ProPETLOptions
from pemt_jax.methods.propetl_roberta import propetl_of
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.models.t5_config import T5Config
from pemt_jax.trees import flatten


def storage(options: ProPETLOptions, config: T5Config | RobertaConfig,
            dtype: str = 'float32') -> tuple[Storage, int]:
  """Storage of a method, and the number of parameters of the backbone; takes no memory.

  Args:
    options: of the method; the network behind a prefix is left out, as its rows are stored.
    config: of the backbone; a head is not counted.
    dtype: of the floats.
  """
  method = propetl_of(dataclasses.replace(options, hidden=0), config, 0)
  leaves = flatten(nn.meta.unbox(boxed_shapes(backbone_of(config, method.plan)))['params'])
  known = set(flatten(boxed_shapes(backbone_of(config))['params']))
  backbone = sum(math.prod(leaf.shape) for path, leaf in leaves.items() if path in known)
  own = {path: leaf for path, leaf in leaves.items() if path not in known}
  return storage_of(own, method.plan, dtype), backbone


def unshared(options: ProPETLOptions) -> ProPETLOptions:
  """The same form with weights of its own in every layer and no masks."""
  return dataclasses.replace(options, owners=(), place='layer', density=1.0, first_layer=None)


@dataclasses.dataclass(frozen=True)
class TaskStorage:
  """Bytes for each of several tasks.

  Attributes:
    tasks: their number.
    shared: bytes per task of one prototype with masks of tasks and layers.
    separate: bytes per task of a delta for each task, without masks.
    share: `shared` in percent of the backbone's float32 parameters.
  """

  tasks: int
  shared: float
  separate: float
  share: float


def per_task(options: ProPETLOptions, config: T5Config | RobertaConfig,
             counts: Sequence[int] = (1, 8, 100), dtype: str = 'float32') -> list[TaskStorage]:
  """Storage per task for several numbers of tasks.

  Args:
    options: with masks of tasks; their number is replaced.
    config: of the backbone.
    counts: numbers of tasks.
    dtype: of the floats.
  """
  alone, backbone = storage(unshared(options), config, dtype)
  found = []
  for count in counts:
    own, _ = storage(dataclasses.replace(options, tasks=count, first_layer=None), config, dtype)
    found.append(TaskStorage(count, own.bits / 8 / count, alone.bits / 8,
                             own.share(backbone, count)))
  return found
