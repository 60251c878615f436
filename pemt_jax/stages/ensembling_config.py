"""The fields of a weight-ensembling run: sources, similarities, merges, targets."""

from __future__ import annotations

import ml_collections as mlc

from pemt_jax.errors import UserError, number, one_of
from pemt_jax.experts.similarity import METRICS
from pemt_jax.stages.merging import ROWS, VECTORS

ENSEMBLING = 'ensembling'
AVERAGE = 'average'
MERGES = (AVERAGE, *METRICS, *VECTORS, *ROWS)


def ensembling_config(source: mlc.ConfigDict, target: mlc.ConfigDict) -> mlc.ConfigDict:
  """All steps of weight ensembling (Lv et al. 2023, ACL short 24) as one run.

  Args:
    source: config that trains one expert per source task on all of its rows.
    target: config of the same deltas that tunes one expert per target task on few rows.
  """
  config = mlc.ConfigDict()
  config.stage = ENSEMBLING
  config.source = source
  config.target = target
  config.model = ''               # backbone of both configs; '' leaves what they say
  config.root = ''                # folder of local rows of both configs; '' likewise
  config.sources = ()             # folders of source experts; () trains them with config.source
  config.seeds = (42,)            # each draws few-shot rows of its own and repeats all but sources
  config.intermediate_steps = 200  # updates of every source on every target
  config.intermediate_every = 50  # updates between their evaluations
  config.metrics = tuple(METRICS)  # similarities that are measured
  config.merges = (AVERAGE, *METRICS, 'task_arithmetic', 'ties', 'dare', 'fisher', 'search')
  config.temperatures = mlc.ConfigDict()  # metric -> in place of the published one
  config.scale = 1.0              # factor of merged task vectors
  config.batch_size = 50          # rows per batch of a similarity
  config.relations = mlc.ConfigDict()   # target -> {source task: share}, where it is known
  return config


def check_ensembling(config: mlc.ConfigDict) -> None:
  """Checks the values.

  Raises:
    UserError: an unknown metric or merge, a merge by a metric that is not measured, configs of
      different stages, or numbers out of their range.
  """
  if config.source.stage != config.target.stage:
    raise UserError(f"config.source is of stage '{config.source.stage}', config.target of"
                    f" '{config.target.stage}'; merges need the same deltas in both.")
  number('config.intermediate_steps', config.intermediate_steps, config.intermediate_steps >= 1,
         'of at least 1')
  for name in config.metrics:
    one_of('config.metrics', name, tuple(METRICS))
  for name in config.merges:
    one_of('config.merges', name, MERGES)
    if name in METRICS and name not in config.metrics:
      raise UserError(f"config.merges names '{name}', which config.metrics does not measure; add it"
                      ' there or leave the merge out.')
  for name in config.temperatures:
    one_of('config.temperatures', name, tuple(METRICS))


def set_shared(config: mlc.ConfigDict) -> None:
  """Writes `model` and `root` of the run into both configs."""
  for part in (config.source, config.target):
    if config.model:
      part.model.name = config.model
    if config.root:
      part.data.root = config.root
