"""Draws of PyTorch's generator, and the sampler built on them."""

from __future__ import annotations

from hypothesis import given, strategies as st
import numpy as np
import pytest

from pemt_jax.data.mixture import shares
from pemt_jax.data.task_sampler import TaskSampler
from pemt_jax.data.torch_random import TorchRandom


@pytest.mark.parametrize('seed', [0, 42, 2**31])
def test_a_stream_of_different_draws_equals_torch(seed):
  torch = pytest.importorskip('torch')
  generator, ours = torch.Generator().manual_seed(seed), TorchRandom(seed)
  weights = np.asarray([0.2, 0.5, 0.3])
  for _ in range(2):
    np.testing.assert_array_equal(ours.permutation(50), torch.randperm(50, generator=generator))
    drawn = torch.multinomial(torch.as_tensor(weights), 40, replacement=True, generator=generator)
    np.testing.assert_array_equal(ours.choices(weights, 40), drawn)
    drawn = torch.randint(0, 37, (3, 5), generator=generator)
    np.testing.assert_array_equal(ours.below(37, (3, 5)), drawn)


@given(st.lists(st.integers(2, 30), min_size=1, max_size=4), st.integers(1, 7), st.integers(1, 2))
def test_ranks_draw_the_same_tasks_and_different_rows(sizes, batch_size, ranks):
  weights = shares(sizes, 'temperature', 3.0)
  samplers = [TaskSampler(tuple(sizes), weights, batch_size, 1, ranks, rank)
              for rank in range(ranks)]
  drawn = [sampler.epoch(0) for sampler in samplers]
  for sampler, (tasks, rows) in zip(samplers, drawn, strict=True):
    np.testing.assert_array_equal(tasks, drawn[0][0])
    assert rows.shape == (sampler.batches_per_epoch, batch_size)
    assert np.all(rows < np.asarray(sizes)[tasks][:, None]) and np.all(rows >= 0)
  seen = [{(task, row) for task, own in zip(*one) for row in own.tolist()} for one in drawn]
  assert ranks == 1 or not seen[0] & seen[1]
