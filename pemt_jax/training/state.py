"""What a run changes while it trains; every tree has a leading replica axis, even for one."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from pemt_jax.errors import UserError
from pemt_jax.sharding.placement import fetch


@flax.struct.dataclass
class RunState:
  """Everything that a step changes; the frozen parameters are not in it."""

  step: jax.Array            # [] int32, updates made so far
  tuned: Any                 # {path: [replica, ...]}, the only differentiated leaves
  moments: Any               # optimiser state of `tuned`, [replica, ...]
  constants: Any             # method state that has no gradient, [replica, ...]
  key: jax.Array             # [replica, 2] uint32, key data of each replica
  active: jax.Array          # [replica] bool, False once finished or stopped early
  first_bad_step: jax.Array  # [replica] int32, first non-finite update (1 based) or -1


@flax.struct.dataclass
class Rates:
  """Hyper-parameters of each replica; arrays, so that other values need no other program."""

  peak: jax.Array    # [replica] float32, learning rate after warm-up
  warmup: jax.Array  # [replica] int32, steps
  total: jax.Array   # [replica] int32, steps


def replica_key(name: str, seed: int) -> np.ndarray:
  """Returns [2] uint32 key data made from a replica's name and seed, whatever its position."""
  key = jax.random.fold_in(jax.random.key(seed), np.uint32(zlib.crc32(name.encode('utf-8'))))
  return np.array(jax.random.key_data(key))


def _named_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): np.shape(leaf)
          for path, leaf in leaves}


def stack_replicas(trees: Sequence[Any]) -> Any:
  """Stacks equal trees on a new leading [replica] axis, on the host (nothing is compiled).

  Raises:
    UserError: names or shapes differ between replicas.
  """
  first = _named_shapes(trees[0])
  for index, tree in enumerate(trees[1:], start=1):
    shapes = _named_shapes(tree)
    for name in sorted(set(first) | set(shapes)):
      if first.get(name) != shapes.get(name):
        raise UserError(f"'{name}' has shape {shapes.get(name, 'absent')} in replica {index} and "
                        f"{first.get(name, 'absent')} in replica 0; replicas of one run need equal "
                        'shapes, so pad them or train these replicas one by one.')
  return jax.tree.map(lambda *leaves: np.stack(leaves), *fetch(list(trees)))


def take_replicas(tree: Any, indices: Sequence[int]) -> Any:
  """Selects replicas: every leaf [replica, ...] becomes [len(indices), ...].

  It goes through the host, where nothing is compiled: selections are rare and differ in size.
  """
  chosen = np.asarray(indices, np.int32)
  return jax.tree.map(lambda leaf: jnp.asarray(leaf[chosen]), fetch(tree))


def take_state(state: RunState, indices: Sequence[int]) -> RunState:
  """Selects replicas of a run state; shares no buffer with it, so that either may be donated."""
  mapped = ('tuned', 'moments', 'constants', 'key', 'active', 'first_bad_step')
  chosen = {name: take_replicas(getattr(state, name), indices) for name in mapped}
  return state.replace(step=jnp.copy(state.step), **chosen)


def init_state(tuned: Any, constants: Any, keys: np.ndarray,
               tx: optax.GradientTransformation) -> RunState:
  """Builds the state before the first update.

  Args:
    tuned: tree of [replica, ...].
    constants: tree of [replica, ...], may be empty.
    keys: [replica, 2] uint32 from `replica_key`.
    tx: optimiser; its state is made for each replica.
  """
  replicas = len(keys)
  tuned, constants = jax.tree.map(jnp.asarray, (tuned, constants))
  return RunState(
      step=jnp.zeros((), jnp.int32), tuned=tuned, moments=jax.jit(jax.vmap(tx.init))(tuned),
      constants=constants, key=jnp.asarray(keys), active=jnp.ones((replicas,), bool),
      first_bad_step=jnp.full((replicas,), -1, jnp.int32))
