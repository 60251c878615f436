"""Adapters of several tasks as a stage: one mixture, groups of their own, rules in front."""

from __future__ import annotations

import numpy as np
import pytest

from pemt_jax.stages.run import run_stage
from tests.stages import small

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def trained(base, backbone):
  """Two tasks, each batch of one of them; the decoder's networks stay as they start."""
  config = small.config_of(
      'hyperformer_pp', backbone, mixture__sampling='temperature', mixture__batches='drawn',
      trainable=(('decoder/hyper/.*', 'frozen'),), method__reduction=4, method__size=4,
      method__hidden=6, method__projected=5, train__reduction='sum', train__label_smoothing=0.1,
      train__group_multipliers={'task_embedding': 2.0}, train__eval_every=1)
  return run_stage(config, base / 'hyperformer')


def test_tasks_of_the_mixture_have_embeddings_and_scores(trained):
  leaves = small.leaves_of(trained.experts['mixture'])
  assert leaves['deltas/hyper/tasks'].shape == (len(small.SOURCES), 4)
  delta = trained.stage.method.plan.rules[0].delta
  assert delta.one_task and delta.tasks == len(small.SOURCES)
  metrics = trained.trained.results['mixture']['final_metrics']
  assert all(np.isfinite(metrics[f'{task}/loss']) for task in small.SOURCES)


def test_rules_of_the_config_come_before_those_of_the_method(trained):
  leaves = small.leaves_of(trained.experts['mixture'])
  stacks = {path.partition('/')[0] for path in leaves if '/hyper/' in path}
  assert stacks == {'deltas', 'encoder'}
