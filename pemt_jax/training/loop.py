"""The one training loop: every stage of every method, any number of replicas."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import jax
import numpy as np

from pemt_jax.experts import tree_files
from pemt_jax.sharding import processes
from pemt_jax.training import config as config_lib, display, lock, profiling, records
from pemt_jax.training import run as run_lib
from pemt_jax.training.experiment import Experiment, Replica
from pemt_jax.training.interruption import Interruption, RunInterrupted


@dataclasses.dataclass
class TrainResult:
  """What a run leaves.

  Attributes:
    replicas: all replicas of the experiment, in its order.
    tuned: best tuned tree of each, leaves [replica, ...] (NumPy).
    constants: method state that belongs to it, leaves [replica, ...] (NumPy).
    results: {replica name: what result.json says of it}.
    workdir: the folder of the run.
  """

  replicas: tuple[Replica, ...]
  tuned: Any
  constants: Any
  results: dict[str, dict[str, Any]]
  workdir: pathlib.Path


def train(experiment: Experiment, config: Any, workdir: str | os.PathLike) -> TrainResult:
  """Trains all replicas of an experiment to their end; resumes what the workdir holds.

  Args:
    experiment: the job.
    config: whole ConfigDict; the loop reads `config.train` and writes all of it to config.json.
    workdir: folder of the run; checkpoints, metrics and results go below it.

  Returns:
    The best step of each replica. With `config.train.eval_every='never'` or no metric, the last.

  Raises:
    UserError: a bad config, a workdir of another run or in use by one, a selecting metric that
      does not exist.
    OSError: a file cannot be written; what was saved before stays.
    NonFiniteError: names step, replica, example ids and the last good checkpoint.
    RunInterrupted: SIGTERM or SIGINT; the state is saved.
  """
  config_lib.check_train_config(config.train)
  with lock.locked(workdir) as folder:
    return _train(experiment, config, folder)


def _train(experiment: Experiment, config: Any, workdir: pathlib.Path) -> TrainResult:
  """Trains in a workdir that is this run's own."""
  options = config.train
  run = run_lib.Run(experiment, options, workdir)
  records.write_config(run.workdir, config, bool(run.store.steps()), experiment.notes)
  run.restore_or_start()
  longest = max(replica.total_steps for replica in experiment.replicas)
  trace = profiling.Trace(options.profile, options.profile_steps)
  bar = display.Bar(options.progress, run.step, longest)
  with Interruption() as interruption, run, bar, trace:
    while run.live:
      trace.before()
      metrics = run.update()
      trace.after(metrics)
      bar.advance()
      due = run.due()
      if due or run.step % options.log_every == 0:
        bar.show(*run.log(metrics))
      for line in run.evaluate(due):
        bar.note(line)
      if run.wants_checkpoint(due):
        run.save()
      signal_number = interruption.agreed(run.state.step)
      if signal_number:
        run.save()
        raise RunInterrupted(signal_number, f'Stopped by a signal at step {run.step}; '
                             f'{run.workdir} holds its state, and the same command goes on.')
    interruption.restore()  # All is saved, so that a signal may end the run at once.
    return finish(run)


def finish(run: run_lib.Run) -> TrainResult:
  """Loads the best trees, evaluates the final split and writes result.json."""
  processes.wait('best trees')
  trees = [run.best.load(name, p.best_step) for name, p in run.progress.items()]
  tuned, constants = (
      jax.tree.map(lambda *leaves: np.stack(leaves), *column) for column in zip(*trees))
  final = [{}] * len(trees)
  split = run.options.final_split
  replicas = tuple(run.replicas.values())
  if split:
    with run.clock.phase('evaluation'):
      final = run.experiment.evaluate(tuned, run.frozen, constants, replicas, split)
  results = {
      name: {**dataclasses.asdict(p), 'metric': run.options.metric,
             'steps_per_second': p.step / p.seconds if p.seconds else None,
             'final_split': split, 'final_metrics': records.plain_metrics(metrics)}
      for (name, p), metrics in zip(run.progress.items(), final)}
  if processes.is_first():
    tree_files.write_json(run.workdir / records.RESULT, {'replicas': results})
  return TrainResult(replicas, tuned, constants, results, run.workdir)

