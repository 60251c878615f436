"""A series of runs whose ranks fall: which ranks, and what each starts from."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.experts.mpo import rebuild, shrink
from pemt_jax.models.t5_config import T5Config
from pemt_jax.stages import squeezing
from tests.stages import small

CORES = 3
T5 = T5Config(vocab_size=64, **small.SHAPE)


def config_of(backbone='', **changes):
  run = small.config_of('mpo', backbone, small.SOURCES[:1], steps=1, train__eval_every=1)
  run.method.update({'components': ('mlp', 'attention'), 'cores': CORES, 'mlp_rank': 4,
                     'attention_rank': 2})
  config = squeezing.squeezing_config(run)
  config.update({'rounds': 4, **changes})
  return config


def test_a_round_takes_a_rank_from_one_component():
  found = squeezing.planned_ranks(config_of(rounds=9), T5)
  assert found[0] == {'mlp': 4, 'attention': 2}
  lost = [sum(before.values()) - sum(after.values())
          for before, after in zip(found, found[1:], strict=False)]
  assert lost == [1, 1, 1, 1] and found[-1] == {'mlp': 1, 'attention': 1}
  assert found == squeezing.planned_ranks(config_of(rounds=9), T5)
  alone = squeezing.planned_ranks(config_of(shares={'mlp': 0.0, 'attention': 1.0}), T5)
  assert alone[1:] == [{'mlp': 4, 'attention': 1}]
  fast = squeezing.planned_ranks(config_of(step=2, least=2, rounds=3), T5)
  assert fast[1:] == [{'mlp': 2, 'attention': 2}]


def test_a_series_squeezes_one_model_with_ranks():
  config = config_of()
  config.run.seeds = (1, 2)
  with pytest.raises(UserError, match='several replicas or starts'):
    squeezing.check_squeezing(config)
  with pytest.raises(UserError, match='config.step is 0'):
    squeezing.check_squeezing(config_of(step=0))
  config = config_of()
  config.run.train.eval_every = 'never'
  with pytest.raises(UserError, match='config.run.train.eval_every is'):
    squeezing.check_squeezing(config)
  config.run = small.config_of('full', '')
  with pytest.raises(UserError, match="config.run is of stage 'full', but only 'mpo' has ranks"):
    squeezing.check_squeezing(config)


@pytest.mark.slow
def test_a_round_starts_from_the_matrices_of_the_one_before(base, backbone):
  """At a rate of 0 a round's matrices are the best ones of its rank near those before."""
  config = config_of(backbone, rounds=1, shares={'mlp': 1.0})
  config.run.train.learning_rate = 0.0
  found = squeezing.run_squeezing(config, base / 'squeezing')
  assert [one.ranks['mlp'] for one in found.rounds] == [4, 3]
  assert found.rounds[1].stored < found.rounds[0].stored
  first, second = (small.leaves_of(base / 'squeezing' / one.expert) for one in found.rounds)
  names = [f'encoder/layers/mlp/wi/mpo/core_{k}' for k in range(CORES)]
  cut = shrink([first[name] for name in names], (1, 3, 3, 1))
  np.testing.assert_allclose(rebuild([second[name] for name in names]), rebuild(cut), atol=1e-5)
  written = json.loads((base / 'squeezing' / 'result.json').read_text())
  assert [one['ranks']['mlp'] for one in written['rounds']] == [4, 3]
