"""How far each replica is: best step, early stop, time."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from pemt_jax.errors import UserError
from pemt_jax.training.experiment import Replica


@dataclasses.dataclass
class Progress:
  """Book of one replica; JSON-able by `dataclasses.asdict`.

  Attributes:
    step: updates made.
    finished: whether no update will follow.
    stopped_early: whether patience ended it.
    best_step: step of the best evaluation, or None.
    best_value: value of the selecting metric there, or None.
    best_metrics: all metrics of that evaluation.
    evaluations_since_best: evaluations without improvement, or with a vanished loss.
    seconds: training time of the program while this replica was live; compilation is in it,
      evaluation and saving are not.
  """

  step: int = 0
  finished: bool = False
  stopped_early: bool = False
  best_step: int | None = None
  best_value: float | None = None
  best_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
  evaluations_since_best: int = 0
  seconds: float = 0.0

  def improves(self, value: float | None, config: Any) -> bool:
    """Whether a value beats the best; without a selecting metric the last one does."""
    if self.best_value is None or value is None or math.isnan(self.best_value):
      return True
    if value == self.best_value:
      return config.ties_improve
    return (value > self.best_value) == config.greater_is_better and not math.isnan(value)

  def record(self, metrics: dict[str, float] | None, config: Any, name: str,
             loss: float | None = None) -> bool:
    """Enters an evaluation at the present step; returns whether its tree is to be kept.

    Args:
      metrics: of the evaluation, or None if there was none; then this step is the best.
      config: `config.train`.
      name: of the replica.
      loss: training loss of this step, or None. One below `config.vanishing_loss` counts against
        patience whatever the value is; the tree of a better value is still kept.

    Raises:
      UserError: the selecting metric is not among the metrics.
    """
    value = None
    if metrics is not None and config.metric:
      if config.metric not in metrics:
        raise UserError(f"config.train.metric is '{config.metric}', the evaluation of '{name}' "
                        f"gives {', '.join(metrics) or 'nothing'}; choose one of these or ''.")
      value = float(metrics[config.metric])
    improves = self.improves(value, config)
    vanished = loss is not None and loss < config.vanishing_loss
    self.evaluations_since_best = 0 if improves and not vanished else (
        self.evaluations_since_best + 1)
    if config.patience and self.evaluations_since_best >= config.patience:
      self.finished = self.stopped_early = True
    if not improves:
      return False
    self.best_step = self.step
    if not (vanished and config.vanishing_keeps_best and self.best_value is not None):
      self.best_value, self.best_metrics = value, dict(metrics or {})
    return True


def evaluation_is_due(replica: Replica, step: int, every: Any, steps_per_epoch: int) -> bool:
  """Whether a replica is evaluated after `step` updates; it always is at its last one.

  Args:
    replica: the replica.
    step: updates made.
    every: 'epoch', 'never' or a number of updates.
    steps_per_epoch: updates per pass over its data.
  """
  if step == replica.total_steps:
    return True
  if every == 'never':
    return False
  return step % (steps_per_epoch if every == 'epoch' else every) == 0
