"""The `config.train` part of every stage."""

from __future__ import annotations

from typing import Any

import ml_collections as mlc
from ml_collections import config_dict

from pemt_jax.errors import UserError
from pemt_jax.methods.base import REDUCTIONS
from pemt_jax.training import optimisers, profiling, schedules


def _steps_or_word(word: str) -> config_dict.FieldReference:
  """A field that holds a word or a number of steps."""
  return config_dict.FieldReference(word, field_type=object)


def default_train_config() -> mlc.ConfigDict:
  """Returns the fields of `config.train` with the values of the original programs' trainer."""
  config = mlc.ConfigDict()
  # Length of the run.
  config.steps = 0               # updates, >= 0; 0 takes `epochs`
  config.epochs = 5.0            # passes over the training rows, > 0; counts where `steps` is 0
  config.seed = 42               # >= 0; initialisation, dropout and data order
  # Loss.
  config.label_smoothing = 0.0   # share of the target's probability for all tokens, in [0, 1)
  config.reduction = 'mean'      # 'mean' | 'sum' over the target tokens of a batch
  # Optimiser.
  config.optimizer = 'adamw'     # a name of optimisers.OPTIMISERS
  config.learning_rate = 3e-4    # peak rate, >= 0
  config.schedule = 'linear'     # a name of schedules.SCHEDULES
  config.schedule_power = 1.0    # 'polynomial': of the share of steps that are left, > 0
  config.schedule_end = 1e-7     # 'polynomial': last rate, >= 0, below the peak rate
  config.schedule_floor = 0.0    # 'linear': rate that it does not fall below, in [0, peak rate]
  config.schedule_cycles = 1     # 'cosine_w_restarts': falls from the peak rate to 0, >= 1
  config.warmup_steps = 0        # updates from rate 0 to the peak, >= 0
  config.first_group = ''        # group that alone moves in the first steps (ProPETL: 'scores')
  config.first_steps = 1         # number of these steps, >= 1; the schedule starts behind them
  config.first_factor = 3.0      # rate of the group in them, of the peak rate, >= 0
  config.group_multipliers = mlc.ConfigDict()  # learning-rate group -> factor, >= 0; 1 if absent
  config.beta1 = 0.9             # decay of the first moment, in [0, 1)
  config.beta2 = 0.999           # decay of the second moment, in [0, 1)
  config.epsilon = 1e-8          # > 0, added before bias correction
  config.weight_decay = 0.0      # per unit of learning rate, >= 0
  config.no_decay = ('.*/bias',)  # patterns of whole parameter paths without decay
  config.second_decay = 0.8      # Adafactor: decay of its moment is 1 - step^-second_decay, > 0
  config.clip_rms = 1.0          # Adafactor: largest root mean square of a tensor's update, > 0
  config.counters = 'always'     # 'always' | 'from_first_gradient' | 'nonzero_gradient'
  config.row_axes = ()           # ((path pattern, n), ...): the first n axes are separate tensors
  config.clip_norm = 1.0         # largest global gradient norm, >= 0; 0 does not clip
  config.accumulate = 1          # microbatches per batch, >= 1, a divisor of the batch size
  config.accumulation = 'mean'   # 'mean' | 'sum' of the gradients of microbatches
  # Evaluation, selection, early stop.
  config.eval_every = _steps_or_word('epoch')  # 'epoch' | 'never' | updates, >= 1
  config.eval_after = 0          # first updates without evaluation, >= 0; the last has one anyway
  config.metric = 'average'      # name in the evaluation that selects the best step; '' = the last
  config.greater_is_better = True
  config.ties_improve = False    # whether an equal value counts as an improvement
  config.patience = 0            # evaluations without improvement before a stop, >= 0; 0 = no stop
  config.vanishing_loss = 0.0    # a step's loss below this counts against patience, >= 0; 0 = off
  config.vanishing_keeps_best = False  # True: such an evaluation saves, yet the best value stays
  config.evaluate_last = True    # whether the last step is evaluated where eval_every skips it
  config.selection_split = 'validation'  # split that is evaluated during training
  config.final_split = 'test'    # split that is evaluated once with the best step; '' = none
  # Files and display.
  config.log_every = 50          # updates between metric lines, >= 1
  config.checkpoint_every = _steps_or_word('evaluation')  # 'evaluation' | 'never' | updates, >= 1
  config.best_trees = 'disk'     # 'disk' | 'memory': a run that is stopped starts again
  config.keep = 2                # run checkpoints to keep, >= 1: the older if the newest is damaged
  config.progress = 'auto'       # 'auto' (only in a terminal) | 'always' | 'never'
  config.profile = ''            # folder for a trace of JAX's profiler; '' traces nothing
  config.profile_steps = '10:15'  # first and last traced step of this call, the first one is 1
  config.peak_flops = 0.0        # operations per second of all devices, for utilisation; 0: unknown
  config.tensorboard = True      # whether to write TensorBoard files beside metrics.jsonl
  return config


def _is_count(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_train_config(config: mlc.ConfigDict) -> None:
  """Checks the values of `config.train`.

  Raises:
    UserError: the first value out of its range.
  """
  ranges = {
      'steps': config.steps >= 0, 'epochs': config.epochs > 0 or config.steps > 0,
      'seed': config.seed >= 0, 'learning_rate': config.learning_rate >= 0,
      'warmup_steps': config.warmup_steps >= 0, 'beta1': 0 <= config.beta1 < 1,
      'beta2': 0 <= config.beta2 < 1, 'epsilon': config.epsilon > 0,
      'weight_decay': config.weight_decay >= 0, 'clip_norm': config.clip_norm >= 0,
      'accumulate': config.accumulate >= 1, 'patience': config.patience >= 0,
      'second_decay': config.second_decay > 0, 'clip_rms': config.clip_rms > 0,
      'label_smoothing': 0 <= config.label_smoothing < 1, 'first_steps': config.first_steps >= 1,
      'first_factor': config.first_factor >= 0, 'schedule_power': config.schedule_power > 0,
      'schedule_end': config.schedule != 'polynomial' or (
          0 <= config.schedule_end < config.learning_rate),
      'schedule_floor': 0 <= config.schedule_floor <= config.learning_rate,
      'schedule_cycles': config.schedule_cycles >= 1,
      'vanishing_loss': config.vanishing_loss >= 0,
      'eval_after': config.eval_after >= 0,
      'log_every': config.log_every >= 1, 'keep': config.keep >= 1,
      'peak_flops': config.peak_flops >= 0,
  }
  for name, right in ranges.items():
    if not right:
      raise UserError(f'config.train.{name} is {config[name]}, which is out of range; see '
                      'pemt_jax/training/config.py for the ranges.')
  profiling.steps_of(config.profile_steps)
  words = {
      'optimizer': tuple(optimisers.OPTIMISERS), 'schedule': tuple(schedules.SCHEDULES),
      'counters': optimisers.COUNTERS, 'reduction': REDUCTIONS,
      'progress': ('auto', 'always', 'never'), 'accumulation': ('mean', 'sum'),
  }
  for name, allowed in words.items():
    if config[name] not in allowed:
      raise UserError(f"config.train.{name} is '{config[name]}'; choose one of "
                      f"{', '.join(allowed)}.")
  for name, allowed in (('eval_every', ('epoch', 'never')),
                        ('checkpoint_every', ('evaluation', 'never'))):
    if config[name] not in allowed and not _is_count(config[name]):
      raise UserError(f"config.train.{name} is '{config[name]}'; give '{allowed[0]}', "
                      f"'{allowed[1]}' or a number of steps >= 1.")
