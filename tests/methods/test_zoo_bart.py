"""Methods of the zoo on BART."""

from __future__ import annotations

import numpy as np
import pytest
from flax import linen as nn

from pemt_jax.methods import pemt, zoo
from pemt_jax.methods.base import boxed_shapes
from pemt_jax.models.bart import Bart
from pemt_jax.models.bart_config import BartConfig
from pemt_jax.training.rules import FROZEN, assign_groups
from pemt_jax.trees import flatten
from tests import tiny

CONFIG = BartConfig(vocab_size=32, embed=16, heads=4, mlp=24, encoder_layers=8, decoder_layers=8,
                    positions=40)
SMALL = tiny.replace(CONFIG, encoder_layers=2, decoder_layers=2)
CHANGES = {'compacter': {'reduction': 4}, 'mixda': {'encoder_layers': (0, 7), 'decoder_layers': ()}}


def method_of(name, config=CONFIG):
  entry = zoo.ZOO[name]
  return entry.make(entry.options(**dict(entry.defaults) | CHANGES.get(name, {})), config, 3)


@pytest.mark.parametrize('name', zoo.ZOO)
def test_a_method_finds_its_places(name):
  method = method_of(name)
  shapes = nn.meta.unbox(boxed_shapes(Bart(CONFIG, method.plan)))['params']
  groups = assign_groups(shapes, method.tuned)
  tuned = [path for path, group in groups.items() if group != FROZEN]
  assert tuned
  if name in ('full', 'bitfit'):
    assert 'logits_bias' not in tuned  # a buffer of the published checkpoints
  if name == 'bitfit':
    assert all('/layers/' in path and path.endswith('/bias') for path in tuned)
    assert len(tuned) == 8 + 13  # six projections and two norms; ten and three
    assert flatten(shapes)['decoder/layers/cross_attention/k/bias'].shape == (8, 16)


@pytest.mark.parametrize('name', ['lora', *(
    pytest.param(name, marks=pytest.mark.slow)
    for name in ('adapter', 'houlsby', 'prefix', 'prompt', 'ia3', 'bitfit', 'pemt'))])
def test_every_tuned_parameter_gets_a_gradient(name):
  method = (pemt.stage1(pemt.Stage1Options(rank=2), SMALL, 3) if name == 'pemt'
            else method_of(name, SMALL))
  model = Bart(SMALL, method.plan)
  variables, batch = tiny.variables_of(model), tiny.make_batch(vocab=SMALL.vocab_size)
  loss, _, grads = tiny.loss_and_gradients(model, method, variables, batch)
  assert np.isfinite(loss) and flatten(grads)
  for path, leaf in flatten(grads).items():
    assert np.isfinite(leaf).all() and (np.abs(leaf).max() > 0 or path.endswith('/k/bias')), path
