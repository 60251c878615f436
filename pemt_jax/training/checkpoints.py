"""Checkpoints of a run: its whole state at some step, and the best tuned tree of each replica.

A run checkpoint is one Orbax step folder with the arrays of `RunState` and a JSON record (data
positions, best so far, counters). Best trees lie apart, `best/<replica>/<step>`, are written once
and are removed when no run checkpoint refers to them any more.
"""

from __future__ import annotations

import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable
from typing import Any

import jax

from pemt_jax.errors import UserError
from pemt_jax.experts import tree_files
from pemt_jax.sharding import processes
from pemt_jax.training.state import RunState
from pemt_jax.trees import unflatten

Record = dict[str, Any]


class RunCheckpoints:
  """Run checkpoints below one folder; a save that is cut short leaves the earlier ones readable."""

  def __init__(self, folder: str | os.PathLike, keep: int):
    """Opens or makes the folder.

    Args:
      folder: place of the step folders.
      keep: newest checkpoints to keep, >= 1.
    """
    import orbax.checkpoint as ocp  # pylint: disable=g-import-not-at-top
    self._ocp = ocp
    self.folder = pathlib.Path(folder).absolute()
    self.folder.mkdir(parents=True, exist_ok=True)
    self._keep = keep
    self._open()

  def _open(self) -> None:
    self._manager = self._ocp.CheckpointManager(
        self.folder, options=self._ocp.CheckpointManagerOptions(
            max_to_keep=self._keep, enable_async_checkpointing=False,
            cleanup_tmp_directories=True))

  def close(self) -> None:
    """Ends the manager."""
    self._manager.close()

  def steps(self) -> list[int]:
    """Returns the steps that have a checkpoint, oldest first."""
    return sorted(self._manager.all_steps())

  def save(self, state: RunState, record: Record) -> None:
    """Saves state and record under the state's step; does nothing where that step is saved."""
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    flat = tree_files.storable_leaves(state)
    record = {**record, 'arrays': tree_files.describe(state)}
    with tree_files.orbax_writes(self.folder):
      self._manager.save(step, args=self._ocp.args.Composite(
          state=self._ocp.args.StandardSave(unflatten(flat)),
          record=self._ocp.args.JsonSave(record)))
    if processes.is_first():
      tree_files.write_checksums(self.folder / str(step))

  def record(self, step: int) -> Record:
    """Returns the record of a step."""
    args = self._ocp.args.Composite(record=self._ocp.args.JsonRestore())
    return self._manager.restore(step, args=args)['record']

  def restore(self, make_template: Callable[[Record], RunState],
              damage: Callable[[Record], str | None] = lambda record: None
              ) -> tuple[RunState, Record] | None:
    """Restores the newest checkpoint that is whole.

    Args:
      make_template: record -> state with the names, shapes, types and placement to restore.
      damage: record -> what else the checkpoint needs and is damaged, or None.

    Returns:
      (state, record), or None without a whole checkpoint. A damaged checkpoint is set aside with a
      warning.

    Raises:
      UserError: names or shapes are not those of the template.
    """
    for step in reversed(self.steps()):
      try:
        record = self._whole_record(step, damage)
        if record is None:
          continue
        template = make_template(record)
        tree_files.check_description(record['arrays'], tree_files.describe(template),
                                     self.folder / str(step))
        return self._read(step, template), record
      except UserError:
        raise
      except Exception as error:  # Orbax raises many types for one cause: the files are damaged.
        if tree_files.has_checksums(self.folder / str(step)):
          raise
        self._set_aside(step, type(error).__name__)
    return None

  def _whole_record(self, step: int, damage: Callable[[Record], str | None]) -> Record | None:
    """Returns the record of a checkpoint; None if it is damaged and was set aside."""
    broken = tree_files.damaged_file(self.folder / str(step)) if processes.is_first() else None
    if not processes.any_of(bool(broken)):
      record = self.record(step)
      broken = damage(record) if processes.is_first() else None
      if not processes.any_of(bool(broken)):
        return record
    self._set_aside(step, broken)
    return None

  def _read(self, step: int, template: RunState) -> RunState:
    leaves, treedef = jax.tree.flatten(template)
    names = list(tree_files.named_leaves(template))
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
              for name, leaf in tree_files.storable_leaves(template).items()}
    args = self._ocp.args.Composite(
        state=self._ocp.args.StandardRestore(unflatten(shapes)))
    found = dict(zip(names, leaves))
    found |= tree_files.named_leaves(self._manager.restore(step, args=args)['state'])
    return jax.tree.unflatten(treedef, [found[name] for name in names])

  def _set_aside(self, step: int, cause: str | None) -> None:
    """Renames a checkpoint; the first process, which knows the cause, does it for all."""
    if processes.is_first():
      self._rename_damaged(step, cause)
    processes.wait('set aside')
    self._manager.close()
    self._open()

  def _rename_damaged(self, step: int, cause: str | None) -> None:
    damaged = self.folder / f'damaged-{step}'
    left = [other for other in self.steps() if other < step]
    logging.warning(
        'Checkpoint %s is damaged (%s); it is now called %s, and the run goes on from %s.',
        self.folder / str(step), cause, damaged.name,
        f'the checkpoint of step {left[-1]}' if left else 'its start')
    shutil.rmtree(damaged, ignore_errors=True)
    os.rename(self.folder / str(step), damaged)


class BestTrees:
  """Best tuned tree and constants of each replica, `<folder>/<replica>/<step>`."""

  def __init__(self, folder: str | os.PathLike):
    self.folder = pathlib.Path(folder)

  def path(self, name: str, step: int) -> pathlib.Path:
    """Returns the folder of a replica's tree."""
    return self.folder / name / str(step)

  def save(self, name: str, step: int, tuned: Any, constants: Any) -> None:
    """Writes the trees of ONE replica (no replica axis) in one move; one process does it."""
    if processes.is_first():
      tree_files.write_tree(self.path(name, step), {'tuned': tuned, 'constants': constants})

  def load(self, name: str, step: int) -> tuple[Any, Any]:
    """Returns (tuned, constants) as nested dicts of NumPy arrays.

    Raises:
      UserError: the folder is absent or damaged.
    """
    tree = tree_files.read_tree(self.path(name, step))
    return tree.get('tuned', {}), tree.get('constants', {})

  def damage(self, record: Record) -> str | None:
    """Returns the best tree that a record refers to and that is absent or damaged, or None."""
    for name, book in record.get('progress', {}).items():
      place = self.path(name, book['best_step'])
      if book['best_step'] is None:
        continue
      if not (place / tree_files.MANIFEST).is_file() or tree_files.damaged_file(place):
        return f'its best tree {place}'
    return None

  def prune(self, wanted: Iterable[tuple[str, int | None]]) -> None:
    """Removes all trees but the `wanted` (replica, step)."""
    keep = {self.path(name, step) for name, step in wanted}
    if not processes.is_first():
      return
    for folder in self.folder.glob('*/*'):
      if folder not in keep:
        shutil.rmtree(folder, ignore_errors=True)


class BestTreesInMemory(BestTrees):
  """Best trees that no file holds: a run that is stopped starts again."""

  def __init__(self):
    super().__init__('')
    self._trees: dict[str, tuple[int, Any, Any]] = {}

  def save(self, name: str, step: int, tuned: Any, constants: Any) -> None:
    """Keeps the trees of ONE replica in place of earlier ones."""
    self._trees[name] = step, tuned, constants

  def load(self, name: str, step: int) -> tuple[Any, Any]:
    """Returns (tuned, constants).

    Raises:
      UserError: they are those of another step.
    """
    kept, tuned, constants = self._trees.get(name, (None, None, None))
    if kept != step:
      raise UserError(f"the best tree of '{name}' was kept in memory and is gone; start in a new "
                      'workdir.')
    return tuned, constants

  def damage(self, record: Record) -> str | None:
    """No file can be damaged."""

  def prune(self, wanted: Iterable[tuple[str, int | None]]) -> None:
    """There is nothing to remove."""


def require_same_replicas(record: Record, names: list[str], place: str | os.PathLike) -> None:
  """Checks that a checkpoint is of a run with these replicas.

  Raises:
    UserError: other names or another order.
  """
  if record['replicas'] != names:
    raise UserError(f"{place} holds a run of the replicas {', '.join(record['replicas'])}, the "
                    f"config gives {', '.join(names)}; choose another workdir or the old config.")
