"""Checks what processes exchange, as one of them; a program that prints 'done'."""

from __future__ import annotations

import os
import pathlib
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from pemt_jax import cli
from pemt_jax.experts import tree_files
from pemt_jax.sharding import processes
from pemt_jax.sharding.mesh import MeshShape, make_mesh
from pemt_jax.sharding.placement import Placement, fetch
from pemt_jax.training.interruption import Interruption

DIES = flags.DEFINE_integer('dies', -1, 'Index of a process that is killed instead.')
cli.define_process_flags()


def batches(index):
  """Batches out of the rows of each process are those of one process, on any mesh."""
  for shape, rows, places in (
      (MeshShape(), 8, range(4 * index, 4 * index + 4)),
      (MeshShape(tensor=2), 6, range(3 * index, 3 * index + 3)),
      (MeshShape(data=1, tensor=4), 4, range(4)),
      (MeshShape(data=1, fsdp=2, replica=2), 4, range(4)),
      (MeshShape(), 6, range(6)),  # 4 devices do not divide them
      (MeshShape(), 4, range(2 * index, 2 * index + 2))):
    placement = Placement(make_mesh(shape))
    part = placement.part_of_batch(rows)
    assert part.places.tolist() == list(places), (shape, rows, part)
    whole = {'inputs': np.arange(2 * rows * 3).reshape(2, rows, 3), 'ids': np.arange(2 * rows)
             .reshape(2, rows)}
    own = {name: leaf[:, part.places] for name, leaf in whole.items()}
    made = placement.batch(own, part=part)
    for name, leaf in whole.items():
      assert made[name].sharding == placement.batch(whole)[name].sharding
      np.testing.assert_array_equal(fetch(made)[name], leaf)


def agreement(index):
  """All processes get one answer, from whichever of them it comes."""
  assert processes.any_of(index == 1) and not processes.any_of(False)
  assert processes.joined([3, 1] if index else [2]) == [1, 2, 3]
  assert processes.mean({'a': index, 'b': 4.0}) == {'a': 0.5, 'b': 4.0}
  interruption = Interruption()
  answers = []
  for step in range(5):
    if (step, index) == (1, 1):
      interruption.signal_number = 15
    answers.append(interruption.agreed())
  assert answers == [None, None, 0, 15, 15], answers


def turns(index, place):
  """The first process makes what the others find."""
  with processes.first_before_others('file'):
    assert place.exists() == bool(index)
    place.write_text('made')


def written_alone(index, folder):
  """The first process writes arrays of its device without the others."""
  if not index:
    tree_files.write_tree(folder, {'a': jnp.arange(3.0)})
    np.testing.assert_array_equal(tree_files.read_tree(folder)['a'], np.arange(3.0))


def loss(index):
  """One process is killed while the others do something alone."""
  if index == DIES.value:
    os.kill(os.getpid(), signal.SIGKILL)
  time.sleep(30)


def main(argv: list[str]) -> None:
  """Runs all checks."""
  del argv
  index = jax.process_index()
  if DIES.value >= 0:
    loss(index)
    return
  batches(index)
  agreement(index)
  turns(index, pathlib.Path(PLACE))
  written_alone(index, pathlib.Path(PLACE).with_suffix('.tree'))
  print('done')


if __name__ == '__main__':
  PLACE = sys.argv.pop(1)
  cli.run(main, processes.as_member)
