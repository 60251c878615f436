"""Methods of the zoo on an encoder with a head."""

from __future__ import annotations

import pytest
from flax import linen as nn

from pemt_jax.errors import UserError
from pemt_jax.methods import zoo
from pemt_jax.methods.base import boxed_shapes
from pemt_jax.methods.classification import HEAD, with_head
from pemt_jax.models.roberta import Roberta
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.training.rules import FROZEN, assign_groups
from pemt_jax.trees import flatten

CONFIG = RobertaConfig(vocab_size=32, embed=16, heads=4, mlp=24, encoder_layers=8, positions=40)
NEEDS_A_DECODER = ('houlsby_ensembling', 'prefix_kv')
CHANGES = {'compacter': {'reduction': 4}, 'mixda': {'encoder_layers': (0, 7), 'decoder_layers': ()}}


@pytest.mark.parametrize('name', [name for name in zoo.ZOO if name not in NEEDS_A_DECODER])
def test_a_method_finds_its_places_and_the_head_is_trained(name):
  entry = zoo.ZOO[name]
  options = entry.options(**dict(entry.defaults) | CHANGES.get(name, {}))
  method = with_head(entry.make(options, CONFIG, 3))
  shapes = nn.meta.unbox(boxed_shapes(Roberta(CONFIG, method.plan)))['params']
  groups = assign_groups(shapes, method.tuned)
  assert groups['head/out/kernel'] == 'head' and method.tuned.count(HEAD) == 1
  assert groups['shared/embedding'] == {'task_moe': 'model', **dict.fromkeys(
      ('full', 'maml', 'mpo', 'switch', 'top2'), 'backbone')}.get(name, FROZEN)
  tuned = [path for path, group in groups.items() if group not in (FROZEN, 'head')]
  assert tuned and (name != 'bitfit' or all(path.endswith('/bias') for path in tuned))
  if name == 'bitfit':
    assert len(tuned) == 8 and flatten(shapes)['encoder/layers/mlp/wi/bias'].shape == (8, 24)


@pytest.mark.parametrize('name', NEEDS_A_DECODER)
def test_a_method_with_places_in_a_decoder_is_refused(name):
  entry = zoo.ZOO[name]
  method = entry.make(entry.default_options(), CONFIG, 3)
  with pytest.raises(UserError, match='matches no site'):
    boxed_shapes(Roberta(CONFIG, method.plan))
