"""The fields of a study: columns (methods) under conditions (targets and few-shot sizes)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_collections as mlc

from pemt_jax.errors import UserError, number, one_of

STUDY = 'study'
BANKS = ('trained', 'shuffled', 'unrelated')


def study_config(stage1: mlc.ConfigDict) -> mlc.ConfigDict:
  """A study without columns and conditions; add them with `add_column` and `add_condition`.

  Args:
    stage1: config of the sources' stage; it runs unless `config.sources` names experts.
  """
  config = mlc.ConfigDict()
  config.stage = STUDY
  config.stage1 = stage1
  config.model = ''               # backbone of all stages; '' leaves what their configs say
  config.root = ''                # folder of local rows of all stages; '' likewise
  config.sources = ()             # folders of source experts; () trains them with config.stage1
  config.seeds = (0, 1, 2)        # paired: a seed draws the same few-shot rows for every column
  config.learning_rates = ()      # the grid of every column
  config.selection_seeds = 1      # first seeds, which choose the rate of a column and task on dev
  config.reference = ''           # the column that is compared with the best other one
  config.frozen = True            # a column of the backbone alone
  config.reused = True            # a column of the best source expert on dev, as it is
  config.relations = mlc.ConfigDict()   # target -> {source task: share}
  config.columns = mlc.ConfigDict()
  config.conditions = mlc.ConfigDict()
  config.order = ()               # names of the conditions to run, one after the other
  return config


def add_column(study: mlc.ConfigDict, name: str, config: mlc.ConfigDict, bank: str = 'trained',
               rates_of: str = '') -> None:
  """Adds a method.

  Args:
    study: changed.
    name: of the column.
    config: stage config; tasks, seeds, rates, few-shot size and sources are set by the study.
    bank: 'trained' source experts, 'shuffled' ones (entries of each matrix permuted), or those
      'unrelated' to all targets of the condition.
    rates_of: column whose chosen rates it takes over; '' chooses its own.
  """
  study.columns[name] = mlc.ConfigDict({'config': config, 'bank': bank, 'rates_of': rates_of})


def add_condition(study: mlc.ConfigDict, name: str, tasks: Sequence[str], few_shot: int,
                  columns: Sequence[str], steps: int = 0) -> None:
  """Adds targets under one few-shot size.

  A column chooses its rate for a target in the first condition that has both; `task@options` of the
  playground counts as the same target.

  Args:
    study: changed.
    name: of the condition.
    tasks: targets.
    few_shot: rows per label; 0 takes all rows.
    columns: names of columns.
    steps: of each run, with an evaluation after each half; 0 leaves what the columns say.
  """
  study.conditions[name] = mlc.ConfigDict({'tasks': tuple(tasks), 'few_shot': few_shot,
                                           'columns': tuple(columns), 'steps': steps})
  study.order = (*study.order, name)


def ordered(study: mlc.ConfigDict) -> dict[str, mlc.ConfigDict]:
  """Conditions in the order of their run (a ConfigDict itself goes by names)."""
  return {name: study.conditions[name] for name in study.order}


def check_study(config: mlc.ConfigDict) -> None:
  """Checks the values.

  Raises:
    UserError: no condition, an unknown column or word, or numbers that do not fit.
  """
  if not config.order:
    raise UserError('the study has no condition; give config.conditions targets and columns.')
  for name in config.order:
    one_of('config.order', name, tuple(config.conditions))
  if not config.learning_rates:
    raise UserError('the study has no grid of rates; set config.learning_rates.')
  number('config.selection_seeds', config.selection_seeds,
         1 <= config.selection_seeds <= len(config.seeds), f'from 1 to {len(config.seeds)}')
  columns = tuple(config.columns)
  for condition in ordered(config).values():
    number('conditions.steps', condition.steps, condition.steps >= 0, 'at least 0')
    for name in condition.columns:
      one_of('conditions.columns', name, columns)
  for column in config.columns.values():
    one_of('columns.bank', column.bank, BANKS)
    if column.rates_of:
      one_of('columns.rates_of', column.rates_of, columns)
  if config.reference:
    one_of('config.reference', config.reference, columns)


def stage_configs(study: mlc.ConfigDict) -> list[mlc.ConfigDict]:
  """Configs of the first stage and of all columns."""
  return [study.stage1, *(column.config for column in study.columns.values())]


def set_shared(study: mlc.ConfigDict) -> None:
  """Writes `model` and `root` of the study into the configs of its stages."""
  for config in stage_configs(study):
    if study.model:
      config.model.name = study.model
    if study.root:
      config.data.root = study.root


def base_task(name: str) -> str:
  """The target without the options that stand behind an `@`."""
  return name.partition('@')[0]


def related(relations: Mapping[str, Mapping[str, float]], tasks: Sequence[str]) -> set[str]:
  """Source tasks with a share in one of the targets."""
  return {source for task in tasks for source in relations.get(base_task(task), {})}
