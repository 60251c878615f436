"""What the published recipes of MPOE and HyperFormer share.

`published=1` adds what this library otherwise does in a sounder way: the best step is chosen on the
test split, every split loses its last row, targets are cut to the training length before they are
scored, the length of free texts enters the average.
"""

from __future__ import annotations

from typing import Any

import ml_collections as mlc

from pemt_jax.data.tasks_hyperformer import HYPERFORMER_PREFIX, MIXTURE
from pemt_jax.errors import one_of
from pemt_jax.methods import moe, mpo
from pemt_jax.stages.config import base_config

TOKENS = 128
ADAPTER_REDUCTION = 32
# Form of the feed-forwards -> stage, and experts where tokens are routed.
FORMS = {'dense': ('full', None), 'mpo': (mpo.NAME, None), 'switch': (moe.SWITCH, 'dense'),
         'mpoe': (moe.SWITCH, 'mpo'), 'top2': (moe.TOP2, 'dense'), 'mpoe_top2': (moe.TOP2, 'mpo')}


def recipe(stage: str, tasks: tuple[str, ...], *, rate: float, batch: int, warmup: int,
           every: int, published: bool = False) -> mlc.ConfigDict:
  """Returns the config of a recipe on T5; the caller sets the length of the run.

  Args:
    stage: of the method.
    tasks: one, or several that share what is trained.
    rate: peak learning rate.
    batch: rows per step.
    warmup: steps to the peak.
    every: steps between evaluations.
    published: see the module.
  """
  config = base_config(stage)
  config.tasks = tasks
  data, train = config.data, config.train
  data.batch_size = data.eval_batch_size = batch
  data.max_source_length = data.max_target_length = TOKENS
  data.compat_drop_last = data.compat_truncated_targets = published
  config.generation.by_task = True
  config.generation.compat_length_in_average = published
  train.learning_rate, train.warmup_steps, train.eval_every = rate, warmup, every
  train.label_smoothing, train.reduction = 0.1, 'sum'
  train.selection_split = 'test' if published else 'validation'
  if len(tasks) > 1:
    mixture = config.mixture
    mixture.sampling, mixture.temperature, mixture.batches = 'temperature', 10.0, 'drawn'
    mixture.average, mixture.seed = 'values', 0 if published else None
  return config


def whole_model(form: str, experts: int, tasks: tuple[str, ...], **numbers: Any) -> mlc.ConfigDict:
  """Returns the config of a model whose parameters are all tuned; the text names the task.

  Args:
    form: of the feed-forwards, a key of `FORMS`.
    experts: of each feed-forward, where tokens are routed.
    tasks: see `recipe`.
    **numbers: see `recipe`.

  Raises:
    UserError: an unknown form.
  """
  one_of('config argument form', form, tuple(FORMS))
  stage, kind = FORMS[form]
  config = recipe(stage, tasks, **numbers)
  if kind:
    config.method.experts, config.method.count = kind, experts
  config.data.template = 'name_in_front'
  return config


def one_task(name: str) -> tuple[str, ...]:
  """The task of a name without its prefix."""
  return (HYPERFORMER_PREFIX + name,)


def single_task(form: str, experts: int, task: str, *, rate: float, epochs: float, batch: int = 32,
                published: bool = False) -> mlc.ConfigDict:
  """Returns the config of one task alone.

  Args:
    form: see `whole_model`.
    experts: see `whole_model`.
    task: name without prefix.
    rate: peak learning rate.
    epochs: passes over the rows.
    batch: rows per step.
    published: see the module.
  """
  config = whole_model(form, experts, one_task(task), rate=rate, batch=batch, warmup=320, every=250,
                       published=published)
  config.train.epochs = epochs
  config.train.checkpoint_every = 500
  return config


def adapters(stage: str, task: str, reduction: int, published: bool) -> mlc.ConfigDict:
  """Returns the config of adapters on a frozen backbone whose norms are trained.

  Args:
    stage: a name of adapters of several tasks in the zoo.
    task: name without prefix of one task; '' for the mixture.
    reduction: embed // units of an adapter.
    published: see the module.
  """
  config = recipe(stage, one_task(task) if task else MIXTURE, rate=3e-4, batch=32, warmup=500,
                  every=1000, published=published)
  config.train.steps = 65536
  config.method.reduction = reduction
  return config
