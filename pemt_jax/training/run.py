"""The phases of the training loop and what they change."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.errors import UserError
from pemt_jax.experts import tree_files
from pemt_jax.sharding import placement, processes
from pemt_jax.training import checkpoints, display, optimisers, records
from pemt_jax.training import schedules, state as state_lib, step as step_lib, usage as usage_lib
from pemt_jax.training import waiting
from pemt_jax.training.experiment import Experiment, Replica
from pemt_jax.training.flops import count_flops
from pemt_jax.training.progress import Progress, evaluation_is_due


class NonFiniteError(UserError):
  """The loss or a gradient of a replica is infinite or not a number."""


def make_step(experiment: Experiment, options: Any, tx: optimisers.Optimiser,
              state: state_lib.RunState) -> Callable[..., Any]:
  """The compiled train step of a job, to be called and lowered in the scope of its placement.

  Args:
    experiment: see there.
    options: the `train` part of a config.
    tx: optimiser of `options`.
    state: a state of the job; its shapes suffice.
  """
  placement = experiment.placement
  return step_lib.make_train_step(
      experiment.loss_fn, tx, schedules.make_schedule(options, experiment.rules),
      step_lib.StepOptions(
          options.clip_norm, options.accumulate, options.accumulation == 'sum',
          experiment.transform_gradients, experiment.transform_clipped,
          experiment.next_constants, placement.replica_axis),
      placement.state(state) if placement.mesh else None)


class Run:
  """What one call of `loop.train` changes; one method per phase.

  `members` are the replicas that are in the state, in its order; `live` are those that go on.
  """

  def __init__(self, experiment: Experiment, options: Any, workdir: pathlib.Path):
    names = [replica.name for replica in experiment.replicas]
    if not names or len(set(names)) < len(names):
      raise UserError(f"The replicas of a run need distinct names, these are '{', '.join(names)}'.")
    self.experiment, self.options, self.workdir = experiment, options, workdir
    self.replicas = {replica.name: replica for replica in experiment.replicas}
    self.progress = {name: Progress() for name in names}
    self.epoch = {r.name: experiment.steps_per_epoch(r) for r in experiment.replicas}
    self.placement = experiment.placement
    self.placement.require_replicas(len(names))
    self.frozen = jax.tree.map(jnp.asarray, experiment.frozen)
    self.tx = optimisers.make_optimiser(options, experiment.rules)
    self.store = checkpoints.RunCheckpoints(workdir / 'checkpoints' / 'run', options.keep)
    self.best = (checkpoints.BestTrees(workdir / 'checkpoints' / 'best')
                 if options.best_trees == 'disk' else checkpoints.BestTreesInMemory())
    self.recent: dict[int, list[Any]] = {}  # step -> example ids of each member, until checked
    self.losses: dict[str, float] = {}  # of the last log
    self.step = 0
    self.clock = display.Clock()
    self._shapes: set[Any] = set()  # of batches that the step is compiled for

  # Start.

  def restore_or_start(self) -> None:
    """Restores in this order: record, members, arrays, data positions, metric files."""
    restored = self.store.restore(self._template, self.best.damage)
    times = self.workdir / records.TIMES
    if restored is not None and times.exists():
      self.clock = display.Clock(tree_files.read_json(times))
    if restored is None:
      self.state = self._fresh_state(list(self.replicas.values()))
      positions = {}
    else:
      self.state, record = restored
      self.step = record['step']
      self.progress = {name: Progress(**fields) for name, fields in record['progress'].items()}
      positions = record['streams']
    self.streams = {r.name: self.experiment.stream(r) for r in self.live}
    for name, position in positions.items():
      self.streams[name].set_state(position)
    self.usage = usage_lib.Usage(self.workdir, self.clock.seconds, self.options.peak_flops)
    if self.live:  # A finished run that is asked again uses nothing.
      self.usage.begin(self.step, usage_lib.logged_step(self.workdir / records.METRICS))
    self.writer = records.MetricWriter(self.workdir, self.step, self.options.tensorboard)
    self._prepare_members()
    self.train_step = self._make_step()
    self.meter = display.Meter()

  def _make_step(self) -> Any:
    return self.placement.bound(make_step(self.experiment, self.options, self.tx, self.state))

  def _template(self, record: checkpoints.Record) -> state_lib.RunState:
    checkpoints.require_same_replicas(record, list(self.replicas), self.workdir)
    return self._fresh_state([self.replicas[name] for name in record['members']])

  def _fresh_state(self, members: list[Replica]) -> state_lib.RunState:
    self.members = members
    tuned, constants = zip(*(self.experiment.init(replica) for replica in members))
    keys = np.stack([state_lib.replica_key(replica.name, replica.seed) for replica in members])
    return self.placement.placed(state_lib.init_state(
        state_lib.stack_replicas(tuned), state_lib.stack_replicas(constants), keys, self.tx))

  def _prepare_members(self) -> None:
    """Derives what depends on who is in the state and who of them is live."""
    self.rates = state_lib.Rates(
        peak=np.array([r.learning_rate for r in self.members], np.float32),
        warmup=np.array([r.warmup_steps for r in self.members], np.int32),
        total=np.array([r.total_steps for r in self.members], np.int32))
    active = [not self.progress[replica.name].finished for replica in self.members]
    self.state = self.placement.placed(self.state.replace(active=jnp.asarray(active)))
    self.streams = {replica.name: self.streams[replica.name] for replica in self.live}
    self.part = self._share_rows()

  def _share_rows(self) -> placement.BatchPart | None:
    """Lets the streams assemble what this process holds of a batch; None where that is all."""
    if processes.count() == 1 or not self.streams:
      return None
    rows = max(stream.batch_size for stream in self.streams.values())
    part = self.placement.part_of_batch(rows)
    for stream in self.streams.values():
      stream.keep(part.places)
    return part

  @property
  def live(self) -> list[Replica]:
    """Members that will make another update."""
    return [replica for replica in self.members if not self.progress[replica.name].finished]

  # One update.

  def update(self) -> dict[str, jax.Array]:
    """Makes one update of all live members and returns its metrics, still on the device."""
    live = [replica.name for replica in self.live]
    with self.clock.phase('input'):
      drawn = {name: self._draw(name) for name in live}
      # A finished member that is still in the state reads another one's batch, without effect.
      batch = self.experiment.stack([drawn.get(r.name, drawn[live[0]]) for r in self.members])
    shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch))
    timed = shapes in self._shapes
    with self.clock.phase('step' if timed else 'compilation'):
      batch = self.placement.batch(batch, part=self.part)
      self.state, metrics = self.train_step(self.state, self.frozen, batch, self.rates)
    self._shapes.add(shapes)
    self.usage.add(shapes, lambda: self._count_flops(batch), timed)
    self.step += 1
    for name in live:
      self.progress[name].step = self.step
    self.recent[self.step] = [
        self.experiment.batch_ids(drawn[r.name]) if r.name in drawn else () for r in self.members]
    self.meter.add({name: self.experiment.count_tokens(rows) for name, rows in drawn.items()})
    return metrics

  def _count_flops(self, batch: Any) -> float:
    """Operations of a step with this batch; from shapes, on the host."""
    arrays = jax.eval_shape(lambda *args: args, self.state, self.frozen, batch, self.rates)
    with self.placement.scope():  # A mesh cannot be entered while a program is traced.
      return count_flops(self.train_step.__wrapped__, *arrays)

  def _draw(self, name: str) -> dict[str, np.ndarray]:
    try:
      with waiting.announced(f"the next training batch of '{name}'"):
        return next(self.streams[name])
    except StopIteration as error:
      raise UserError(f"The training data of '{name}' ended at step {self.step}; its stream must "
                      'be endless and its split not empty.') from error

  # Metrics.

  def log(self, metrics: dict[str, jax.Array]) -> tuple[float, float]:
    """Writes one line per live member; returns (mean loss, tokens per second of all)."""
    with self.clock.phase('step'):  # The device works behind the program until it is asked.
      values = placement.fetch(metrics)
    self._check_finite()
    seconds, steps_per_second, tokens_per_second = self.meter.read()
    used = {f'train/{name}': value for name, value in self.usage.read(seconds).items()}
    if self.part is not None:
      share = len(self.part.places) / self.part.rows
      tokens_per_second = {name: own / share
                           for name, own in processes.mean(tokens_per_second).items()}
    self.losses = {}
    for index, replica in enumerate(self.members):
      if self.progress[replica.name].finished:
        continue
      mine = {f'train/{name}': value[index] for name, value in values.items() if name != 'finite'}
      self.writer.write(self.step, replica.name, {
          **mine, 'train/steps_per_second': steps_per_second,
          'train/tokens_per_second': tokens_per_second.get(replica.name, 0.0), **used})
      self.progress[replica.name].seconds += seconds
      self.losses[replica.name] = float(values['loss'][index])
    return float(np.mean(list(self.losses.values()))), sum(tokens_per_second.values())

  def _check_finite(self) -> None:
    """Looks at the first bad steps that the device has kept since the last look."""
    bad = placement.fetch(self.state.first_bad_step)
    if (bad >= 0).any():
      step = int(bad[bad >= 0].min())
      index = int(np.flatnonzero(bad == step)[0])
      ids = ', '.join(map(str, processes.joined(self.recent[step][index]))) or 'unknown'
      saved = self.store.steps()
      good = f'{self.store.folder / str(saved[-1])}' if saved else 'none'
      raise NonFiniteError(
          f"The loss or gradient of replica '{self.members[index].name}' is not finite at step "
          f'{step} (example ids {ids}; last good checkpoint: {good}); lower '
          'config.train.learning_rate or look at these examples.')
    self.recent.clear()

  # Evaluation.

  def due(self) -> list[Replica]:
    """Live members whose evaluation is due at this step."""
    every, early = self.options.eval_every, self.step <= self.options.eval_after
    return [r for r in self.live if evaluation_is_due(r, self.step, every, self.epoch[r.name])
            and (self.step >= r.total_steps or not early)]

  def evaluate(self, due: list[Replica]) -> list[str]:
    """Evaluates, keeps best trees, ends replicas; returns a line to show for each of them."""
    if not due:
      return []
    with self.meter.paused(), self.clock.phase('evaluation'):
      scored = [replica for replica in due if not self._ends_unseen(replica)]
      lines = self._score(scored) if scored else []
      for replica in due:
        self.progress[replica.name].finished |= self.step >= replica.total_steps
      self._prune()
      self._leave()
    return lines

  def _ends_unseen(self, replica: Replica) -> bool:
    """Whether a replica ends here without the evaluation that `eval_every` does not ask for."""
    every, epoch = self.options.eval_every, self.epoch[replica.name]
    regular = every != 'never' and self.step % (epoch if every == 'epoch' else every) == 0
    seen = self.progress[replica.name].best_step is not None
    return not self.options.evaluate_last and not regular and seen

  def _score(self, due: list[Replica]) -> list[str]:
    tuned, constants = self.state.tuned, self.state.constants
    if len(due) < len(self.members):
      chosen = [self.members.index(replica) for replica in due]
      tuned, constants = state_lib.take_replicas((tuned, constants), chosen)
    split, evaluated = self.options.selection_split, self.options.eval_every != 'never'
    results = [{}] * len(due)
    if evaluated:
      results = self.experiment.evaluate(tuned, self.frozen, constants, tuple(due), split)
    if self.experiment.watch is not None:
      self.experiment.watch(tuned, self.frozen, constants, tuple(due), self.step, self.workdir)
    for index, (replica, result) in enumerate(zip(due, results)):
      progress, result = self.progress[replica.name], records.plain_metrics(result)
      if evaluated:
        named = {f'{split}/{name}': value for name, value in result.items()}
        self.writer.write(self.step, replica.name, named)
      if progress.record(result if evaluated else None, self.options, replica.name,
                         self.losses.get(replica.name)):
        mine = jax.tree.map(lambda x, i=index: x[i], placement.fetch((tuned, constants)))
        self.best.save(replica.name, self.step, *mine)
    return [f'{r.name} at step {self.step}: ' + ', '.join(f'{k} {v:.4g}' for k, v in result.items())
            for r, result in zip(due, results)]

  def _leave(self) -> None:
    """Takes finished members out of the state once a quarter has finished: few new programs."""
    live = self.live
    small_enough = 0 < len(live) <= 0.75 * len(self.members)
    if small_enough and not self.placement.replica_axis:
      self.state = state_lib.take_state(self.state, [self.members.index(r) for r in live])
      self.members = live
    self._prepare_members()

  # Files.

  def wants_checkpoint(self, due: list[Replica]) -> bool:
    """Whether a run checkpoint belongs to this step."""
    every = self.options.checkpoint_every
    if every == 'never' or self.options.best_trees == 'memory':
      return False
    if not self.live:
      return True
    return bool(due) if every == 'evaluation' else self.step % every == 0

  def save(self) -> None:
    """Saves the run; one whose best trees are in memory only cannot go on and is not saved."""
    if self.options.best_trees == 'memory':
      return
    with self.clock.phase('step'):
      self._check_finite()
    with self.meter.paused(), self.clock.phase('checkpoint'):
      self.store.save(self.state, {
          'step': self.step, 'replicas': list(self.replicas),
          'members': [replica.name for replica in self.members],
          'progress': {name: dataclasses.asdict(p) for name, p in self.progress.items()},
          'streams': {name: stream.get_state() for name, stream in self.streams.items()}})
      self._prune()
    self._write_times()
    self.usage.save(self.step, self.store.steps())

  def _write_times(self) -> None:
    """Writes the seconds of all phases, of earlier calls too."""
    if processes.is_first():
      tree_files.write_json(self.workdir / records.TIMES, self.clock.seconds)

  def _prune(self) -> None:
    """Removes best trees that neither this run nor one of its checkpoints refers to."""
    wanted = [(name, progress.best_step) for name, progress in self.progress.items()]
    for step in self.store.steps():
      books = self.store.record(step)['progress']
      wanted += [(name, book['best_step']) for name, book in books.items()]
    self.best.prune(wanted)

  def __enter__(self) -> Run:
    return self

  def __exit__(self, *unused: Any) -> None:
    self.writer.close()
    with self.clock.phase('checkpoint'):
      self.store.close()
    self._write_times()
    self.usage.write()
