"""What the published ProPETL recipes on T5 share.

`published=1` adds what this library otherwise does in a sounder way: the sum of token losses, the
mask of the last task in the first layer, scores of a mask that keeps everything, a first step of
the scores alone, counters of Adam per task, the last step in place of the best, published splits,
evaluation against targets cut to the training length, with the length of texts in the average.
"""

from __future__ import annotations

import ml_collections as mlc

from pemt_jax.errors import one_of
from pemt_jax.stages.config import base_config

FORMS = ('propetl', 'adapter', 'finetune')
GLUE = tuple(f'propetl/{name}' for name in (
    'rte', 'sst2', 'mrpc', 'stsb', 'qqp', 'mnli', 'qnli', 'cola'))
# Leaves whose first axes are separate tensors in the original: layers, tasks.
ROW_AXES = ((r'(.*/)?propetl[a-z_]*/layer_task_.*', 2),
            (r'(.*/)?propetl[a-z_]*/(task|layer_[a-z_]+)/.*', 1))


def recipe(form: str, tasks: tuple[str, ...], reduction: int, *, rate: float, batch: int,
           steps: int, lengths: tuple[int, int], published: bool = False) -> mlc.ConfigDict:
  """Returns the config of a recipe.

  Args:
    form: 'propetl', 'adapter' (unshared, without masks) or 'finetune'.
    tasks: one, or several that are mixed.
    reduction: embed // units of the adapter.
    rate: peak learning rate.
    batch: rows per step.
    steps: of the run.
    lengths: greatest number of tokens of an input and of a target.
    published: see the module.

  Raises:
    UserError: an unknown form.
  """
  one_of('config argument form', form, FORMS)
  config = base_config('full' if form == 'finetune' else 'propetl')
  config.tasks = tasks
  _mix(config, published)
  data, train = config.data, config.train
  data.batch_size = batch
  data.max_source_length, data.max_target_length = lengths
  data.compat_splits = data.compat_truncated_targets = published
  config.generation.by_task = True
  config.generation.compat_length_in_average = published
  train.learning_rate, train.steps, train.warmup_steps = rate, steps, 500
  train.label_smoothing = 0.1
  train.reduction = 'sum' if published else 'mean'
  if published:
    train.metric = ''
  if form == 'finetune':
    data.template = 'name_in_front'
    return config
  method = config.method
  method.reduction = reduction
  if form == 'propetl':
    several = len(tasks) > 1
    method.owners = ('task', 'layer') if several else ('layer',)
    method.density = 0.3 if several else 0.5
    method.first_layer = len(tasks) - 1 if published and several else None
    train.group_multipliers = {'scores': 10.0}
  else:
    method.place, method.density, method.owners = 'layer', 1.0, ('layer_task',)
    method.full_masks = published
  if published:
    train.first_group = 'scores'
    train.counters, train.row_axes = 'from_first_gradient', ROW_AXES
  return config


def _mix(config: mlc.ConfigDict, published: bool) -> None:
  """Several tasks train one prototype, each batch is of one of them."""
  if len(config.tasks) == 1:
    return
  mixture = config.mixture
  mixture.sampling, mixture.temperature, mixture.batches = 'temperature', 10.0, 'drawn'
  mixture.average = 'values'
  mixture.seed = 0 if published else None
