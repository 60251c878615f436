"""How many programs a run compiles."""

from __future__ import annotations

from pemt_jax.training.run import Run
from tests.training import toy


class Uneven(toy.ToyStream):
  """Every second batch is shorter."""

  def __next__(self):
    batch = super().__next__()
    rows = toy.BATCH - 4 * (self.position[1] % 2)
    return {name: leaf[:rows] for name, leaf in batch.items()}


def test_the_step_is_compiled_once_for_each_shape_of_a_batch(tmp_path):
  experiment = toy.make_experiment(
      {'a': 20, 'b': 20}, stream=lambda replica: Uneven(replica.name, replica.seed))
  run = Run(experiment, toy.make_config().train, tmp_path)
  run.restore_or_start()
  for _ in range(7):
    run.update()
  assert run.train_step._cache_size() == 2  # pylint: disable=protected-access
