"""The fields of few-shot tuning: tasks of the gym, five draws each, a grid of rates and batches."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import ml_collections as mlc

from pemt_jax.data import gym_files, gym_table
from pemt_jax.data.gym import GYM_PREFIX, SPACED, title_of
from pemt_jax.data.tasks import get_task
from pemt_jax.errors import UserError, number, one_of
from pemt_jax.stages.config import base_config

FEW_SHOT = 'few_shot'
KEEP = ('nothing', 'experts')
# Published length and decoding of the gym's programs.
_SOURCE, _TARGET, _BEAMS = 512, 64, 4


def few_shot_config(tuned: mlc.ConfigDict) -> mlc.ConfigDict:
  """The published grid over a stage.

  Args:
    tuned: config of the stage; its tasks, seeds, rates and batch sizes are set by this one.
  """
  config = mlc.ConfigDict()
  config.stage = FEW_SHOT
  config.tuned = tuned
  config.model = ''               # backbone; '' leaves what `tuned` says
  config.root = ''                # folder of the draws; '' likewise
  config.tasks = ()               # gym tasks; () takes a part of a split
  config.partition = gym_table.RANDOM
  config.part = 'test'            # 'train' | 'dev' | 'test' of the split
  config.skip_missing = False     # leave tasks without a folder or without test rows out
  config.samples = gym_table.SEEDS  # few-shot seeds; each is the seed of its replicas too
  config.learning_rates = (1e-5, 2e-5, 5e-5)
  config.batch_sizes = (2, 4, 8)
  config.replicas = 45            # most replicas of one program
  config.keep = 'nothing'         # 'nothing' | 'experts' beside tables and predictions
  config.routed = routed = mlc.ConfigDict()  # start from routed layers: `task_moe_start`
  routed.expert = ''              # folder of their expert; '' starts as `tuned` says
  routed.vectors = ''             # folder with vectors of the tasks
  routed.routes = 'router'        # 'router' | 'average' | 'random'
  routed.random_experts = 1       # experts of a layer that random routes use
  routed.seed = 42                # of random routes
  routed.train_routes = False     # train the logits of the route
  routed.factor = 100.0           # of their rate
  routed.squeeze = False          # the plain backbone of the strongest experts
  return config


def gym_recipe(config: mlc.ConfigDict) -> mlc.ConfigDict:
  """Sets texts, lengths, loss and optimiser of the gym's programs in a stage's config.

  AdamW with decay 0.01 that leaves biases out, gradients clipped to 0.1, the token sum of the loss
  with label smoothing 0.1, beam search with 4 beams.

  Args:
    config: of a stage; changed.

  Returns:
    The config.
  """
  config.data.source = 'crossfit'
  config.data.template = SPACED
  config.data.gym_scores = 'all_classes'
  config.data.max_source_length = _SOURCE
  config.data.max_target_length = _TARGET
  config.generation.max_length = _TARGET
  config.generation.num_beams = _BEAMS
  config.train.label_smoothing = 0.1
  config.train.reduction = 'sum'
  config.train.weight_decay = 0.01
  config.train.clip_norm = 0.1
  return config


def few_shot_stage(stage: str = 'full') -> mlc.ConfigDict:
  """The published few-shot stage: 1000 updates, warm-up 100, an evaluation every 100."""
  config = gym_recipe(base_config(stage))
  config.data.eval_batch_size = 32
  config.train.steps = 1000
  config.train.warmup_steps = 100
  config.train.eval_every = 100
  config.train.log_every = 100
  config.train.checkpoint_every = 'never'
  config.train.best_trees = 'memory'
  config.train.tensorboard = False
  return config


def titles_of(config: mlc.ConfigDict) -> tuple[str, ...]:
  """Published names of the tasks to tune.

  Raises:
    UserError: an unknown task, split or part; no task is left.
  """
  one_of('config.part', config.part, gym_table.PARTS)
  titles = tuple(config.tasks) or gym_table.partition(config.partition)[config.part]
  titles = tuple(title_of(get_task(GYM_PREFIX + title_of(name)).name) for name in titles)
  if config.skip_missing:
    titles = tuple(title for title in titles if _is_there(config.tuned.data, title))
  if not titles:
    raise UserError(f"no task is left to tune (config.partition '{config.partition}', config.part "
                    f"'{config.part}'); set config.tasks or correct config.root.")
  return titles


def _is_there(data: Mapping, title: str) -> bool:
  if data['source'] != 'crossfit':
    return True
  folder = pathlib.Path(data['root'] or '') / title
  return folder.is_dir() and gym_files.has_test(folder)


def set_shared(config: mlc.ConfigDict) -> None:
  """Writes `model` and `root` into the config of the stage."""
  if config.model:
    config.tuned.model.name = config.model
  if config.root:
    config.tuned.data.root = config.root


def check_few_shot(config: mlc.ConfigDict) -> None:
  """Checks the values.

  Raises:
    UserError: an empty grid, a word or number that does not fit.
  """
  one_of('config.keep', config.keep, KEEP)
  for name in ('samples', 'learning_rates', 'batch_sizes'):
    if not config[name]:
      raise UserError(f'config.{name} is empty; give at least one value.')
  cells = len(config.learning_rates) * len(config.batch_sizes)
  number('config.replicas', config.replicas, config.replicas >= cells,
         f'of at least {cells}, the cells of the grid of one sample')
