"""Dimension squeezing: run after run with one rank less (Liu et al. 2021, arXiv 2106.02205).

The first run trains at the ranks of its config. Each further one starts from the cores of the run
before, made canonical and cut by the least of the singular values of one component. Ranks are
shapes, so that each round is a run of its own, with its own program and new moments; the same
command goes on where it was stopped.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import pathlib
import time
from typing import Any

import ml_collections as mlc
import numpy as np

from pemt_jax.errors import UserError, number
from pemt_jax.experts import tree_files
from pemt_jax.experts.library import load_card
from pemt_jax.methods import mpo
from pemt_jax.stages.backbone import load_backbone
from pemt_jax.stages.config import optional, options_of
from pemt_jax.stages.run import run_stage
from pemt_jax.training import records

SQUEEZING = 'squeezing'
# Component -> its field in the options of the method, and its published share of the draws.
FIELDS = {'mlp': 'mlp_rank', 'attention': 'attention_rank', 'word_embed': 'embed_rank',
          'pooler': 'pooler_rank'}
SHARES = {'mlp': 0.33, 'attention': 0.17, 'word_embed': 0.5, 'pooler': 0.0}
_COMPONENTS = {'wi': 'mlp', 'wo': 'mlp'}

Ranks = dict[str, int]


@dataclasses.dataclass
class Round:
  """One run: its ranks by component, numbers that its expert stores, best score, folder."""

  ranks: Ranks
  stored: int
  value: float
  expert: str


@dataclasses.dataclass
class SqueezingResult:
  """All rounds, the first one with the ranks of the config; wall-clock seconds."""

  rounds: list[Round]
  seconds: float


def squeezing_config(run: mlc.ConfigDict) -> mlc.ConfigDict:
  """The fields of a series of runs.

  Args:
    run: config of the first one: stage 'mpo', one replica.
  """
  config = mlc.ConfigDict()
  config.stage = SQUEEZING
  config.run = run
  config.model = ''               # backbone; '' leaves what `run` says
  config.root = ''                # folder of local rows; '' likewise
  config.rounds = 10              # runs behind the first, >= 0
  config.step = 1                 # ranks that a round takes from its component, >= 1
  config.least = 1                # rank below which none falls, >= 1
  config.steps = 0                # updates of each further round; 0 takes those of `run`
  config.shares = mlc.ConfigDict(SHARES)  # component -> chance that a round is its, >= 0
  config.seed = 42                # of the draws of components
  config.tolerance = optional(None, float)  # ends once the score is worse by more; None: never
  return config


def check_squeezing(config: mlc.ConfigDict) -> None:
  """Checks the values.

  Raises:
    UserError: another stage, several replicas, or numbers out of their range.
  """
  run = config.run
  if run.stage != mpo.NAME:
    raise UserError(f"config.run is of stage '{run.stage}', but only '{mpo.NAME}' has ranks; choose"
                    ' a config of that stage.')
  if max(map(len, (run.tasks, run.seeds, run.learning_rates, run.batch_sizes))) > 1 or run.starts:
    raise UserError('config.run has several replicas or starts, but a series squeezes one model;'
                    ' give one task, one seed and no starts.')
  if run.train.eval_every == 'never':
    raise UserError("config.run.train.eval_every is 'never', but rounds are compared by their"
                    ' scores; give a number of updates or an epoch.')
  for name, least in (('rounds', 0), ('step', 1), ('least', 1), ('steps', 0)):
    number(f'config.{name}', config[name], config[name] >= least, f'of at least {least}')
  for name, share in config.shares.items():
    number(f'config.shares.{name}', share, share >= 0, 'of at least 0')


def planned_ranks(config: mlc.ConfigDict, backbone: Any) -> list[Ranks]:
  """Ranks of all rounds; rounds end early where no component can lose any.

  Args:
    config: see `squeezing_config`.
    backbone: config of the backbone.
  """
  options, full = options_of(config.run), {}
  for matrix in mpo.matrices(backbone, options.parts, options.tied):
    component = _COMPONENTS.get(matrix.part, matrix.part)
    largest = max(mpo.delta_for(options, backbone, matrix).ranks)
    full[component] = max(full.get(component, 0), largest)
  rng, found = np.random.default_rng(config.seed), [full]
  for _ in range(config.rounds):
    ranks = found[-1]
    shares = {name: config.shares.get(name, 0.0) for name in ranks if ranks[name] > config.least}
    total = math.fsum(shares.values())
    if not total:
      break
    chosen = str(rng.choice(list(shares), p=[share / total for share in shares.values()]))
    found.append(ranks | {chosen: max(ranks[chosen] - config.step, config.least)})
  return found


def run_squeezing(config: mlc.ConfigDict, workdir: str | pathlib.Path) -> SqueezingResult:
  """Runs all rounds, or what is left of them.

  Args:
    config: see `squeezing_config`.
    workdir: `round000` ... and `result.json` go below it.

  Raises:
    UserError: see `check_squeezing` and `run_stage`.
  """
  check_squeezing(config)
  workdir, began = records.check_workdir(workdir), time.monotonic()
  if config.model:
    config.run.model.name = config.model
  if config.root:
    config.run.data.root = config.root
  backbone, rounds = load_backbone(config.run, config.run.seeds[0]), []
  for index, ranks in enumerate(planned_ranks(config, backbone.config)):
    own = _config_of_round(config, ranks, workdir / rounds[-1].expert if rounds else None)
    result = run_stage(own, workdir / f'round{index:03d}', backbone)
    (name, folder), = result.experts.items()
    stored = sum(math.prod(leaf['shape']) for leaf in load_card(folder).shapes.values())
    value = float(result.trained.results[name]['best_value'])
    rounds.append(Round(ranks, stored, value, str(folder.relative_to(workdir))))
    print(f'round {index}: ranks {ranks}, {own.train.metric} {value:.4g}', flush=True)
    if _is_worse(config, rounds):
      break
  found = SqueezingResult(rounds, time.monotonic() - began)
  _write(found, own, workdir)
  return found


def _config_of_round(config, ranks, start):
  """The config of the first run, or of one from the expert of the run before."""
  own = copy.deepcopy(config.run)
  if start is None:
    return own
  with own.unlocked():
    own.starts = (str(start),)
    own.train.steps = config.steps or own.train.steps
    for component, rank in ranks.items():
      own.method[FIELDS[component]] = rank
  return own


def _is_worse(config, rounds):
  if config.tolerance is None:
    return False
  lost = rounds[0].value - rounds[-1].value
  return (lost if config.run.train.greater_is_better else -lost) > config.tolerance


def _write(result, config, workdir):
  task, metric = config.tasks[0], f'{config.train.selection_split} {config.train.metric}'
  rows = [{'task': task, 'method': f'round {index}', 'metric': metric, 'value': one.value,
           'replica': one.expert} for index, one in enumerate(result.rounds)]
  columns = [*result.rounds[0].ranks, 'numbers stored']
  table = [{'name': f'round {index}', 'cells': {
      **{name: str(rank) for name, rank in one.ranks.items()}, 'numbers stored': f'{one.stored:,}'}}
      for index, one in enumerate(result.rounds)]
  tree_files.write_json(workdir / 'result.json', {
      'records': rows, 'seconds': result.seconds, 'figures': [],
      'rounds': [dataclasses.asdict(one) for one in result.rounds],
      'tables': [{'title': 'Ranks of the rounds', 'corner': 'round', 'columns': columns,
                  'rows': table, 'caption': 'Largest rank of each component.'}]})
