"""The programs of a shaped stage: its train step and its prediction, with their arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pemt_jax.methods.language_modelling import is_language
from pemt_jax.sharding.placement import Placement
from pemt_jax.sharding.rules import replicated
from pemt_jax.stages.build import Stage
from pemt_jax.stages.classification import make_class_predict
from pemt_jax.stages.config import generation_config
from pemt_jax.stages.evaluate import make_predict
from pemt_jax.stages.language_modelling import make_statistics
from pemt_jax.stages.rows import programs_of
from pemt_jax.stages.shapes import Shaped, with_shardings
from pemt_jax.training.optimisers import make_optimiser
from pemt_jax.training.run import make_step
from pemt_jax.training.state import Rates, RunState, init_state


@dataclasses.dataclass(frozen=True)
class Program:
  """A function to compile.

  Attributes:
    function: jitted.
    arguments: shapes with shardings.
    placement: of the arguments.
    rows: of a batch, those of all replicas.
    tokens: positions of a row's input and, if it has one, of its target or what is decoded.
    turns: of its loops that end early, at most (decoding).
  """

  function: Callable[..., Any]
  arguments: tuple[Any, ...]
  placement: Placement
  rows: int
  tokens: tuple[int, ...]
  turns: int = 1

  def compile(self) -> Any:
    """Compiles for the devices of the placement."""
    with self.placement.scope():
      return self.function.lower(*self.arguments).compile()


def train_program(stage: Stage) -> Program:
  """The train step of all replicas that share a program.

  Args:
    stage: made by `stages.shapes.shaped_stage`.
  """
  experiment, placement = stage.experiment(), stage.start.placement
  optimiser = make_optimiser(stage.config.train, experiment.rules)
  state = _state(stage, optimiser)
  number = lambda dtype: Shaped(state.active.shape, dtype, sharding=replicated(placement.mesh))
  rates = Rates(number(jnp.float32), number(jnp.int32), number(jnp.int32))
  step = make_step(experiment, stage.config.train, optimiser, state)
  batch = _batch(stage, 'batch_size')
  return Program(step, (state, stage.start.frozen, batch, rates), placement, _rows(batch),
                 _tokens(batch))


def predict_program(stage: Stage) -> Program:
  """Evaluation of one batch: encoder and decoding, classes, or the loss of a text.

  Args:
    stage: made by `stages.shapes.shaped_stage`.
  """
  options = generation_config(stage.config, stage.backbone.config)
  turns = options.max_length
  if stage.backbone.has_head:
    function, turns = make_class_predict(stage.model, stage.method), 1
  elif is_language(stage.config.stage):
    function, turns = make_statistics(stage.model, stage.method), 1
  else:
    function = make_predict(stage.model, stage.method, options)
  state = _state(stage, make_optimiser(stage.config.train, stage.method.tuned))
  batch = _batch(stage, 'eval_batch_size')
  tokens = (*_tokens(batch)[:1], *([turns] if turns > 1 else []))
  return Program(function, (state.tuned, stage.start.frozen, state.constants, batch),
                 stage.start.placement, _rows(batch), tokens, turns)


def _specs(stage: Stage) -> list[Any]:
  """Replicas of one program."""
  return next(iter(programs_of(stage.config, stage.specs.values()).values()))


def _batch(stage: Stage, rows: str) -> dict[str, Shaped]:
  batch = stage.store.batch(_specs(stage), rows)
  return with_shardings(batch, stage.start.placement.of_batch(batch))


def _rows(batch: dict[str, Shaped]) -> int:
  replicas, rows = batch['example_ids'].shape
  return replicas * rows


def _tokens(batch: dict[str, Shaped]) -> tuple[int, ...]:
  texts = (batch[name] for name in ('inputs', 'targets') if name in batch)
  return tuple(leaf.shape[2] for leaf in texts if len(leaf.shape) > 2)


def _state(stage: Stage, optimiser: Any) -> RunState:
  """State of the replicas as shapes where they stand."""
  start, count = stage.start, len(_specs(stage))
  stacked = lambda dtype: lambda leaf: Shaped((count, *leaf.shape), dtype or leaf.dtype)
  tuned = jax.tree.map(stacked(jnp.float32), start.tuned)
  constants = jax.tree.map(stacked(None), start.constants)
  keys = Shaped((count, 2), jnp.uint32)
  state = jax.eval_shape(lambda *trees: init_state(*trees, optimiser), tuned, constants, keys)
  return with_shardings(state, start.placement.state(state))
