"""Methods of the zoo on a decoder alone."""

from __future__ import annotations

import dataclasses

import pytest
from flax import linen as nn

from pemt_jax.errors import UserError
from pemt_jax.methods import subspace, zoo
from pemt_jax.methods.base import boxed_shapes
from pemt_jax.models.gpt2 import GPT2
from pemt_jax.models.gpt2_config import GPT2Config
from pemt_jax.training.rules import FROZEN, assign_groups

CONFIG = GPT2Config(vocab_size=32, embed=16, heads=4, mlp=24, decoder_layers=8, positions=40)
NAMES = ('adapter', 'lora', 'prompt', 'bitfit', 'ia3', 'prefix', 'prefix_kv', 'compacter', 'adamix',
         'pfeiffer', 'lora_mlp', 'intrinsic_prefix', subspace.NAME, 'full')
CHANGES = {'compacter': {'reduction': 4}, 'prefix_kv': {'places': ('decoder',)},
           'adapter': {'prompt': True}}


@pytest.mark.parametrize('name', NAMES)
def test_a_method_finds_its_places(name):
  entry = zoo.ZOO[name]
  options = dataclasses.replace(entry.default_options(), **CHANGES.get(name, {}))
  method = entry.make(options, CONFIG, 3)
  shapes = nn.meta.unbox(boxed_shapes(GPT2(CONFIG, method.plan)))['params']
  groups = assign_groups(shapes, method.tuned)
  assert groups['shared/embedding'] == (FROZEN if name != 'full' else 'backbone')
  tuned = [path for path, group in groups.items() if group != FROZEN]
  assert tuned
  if name == 'bitfit':
    assert len(tuned) == 8 and all(path.endswith('/bias') for path in tuned)


def test_places_in_an_encoder_are_refused():
  method = zoo.ZOO['prefix_kv'].make(zoo.ZOO['prefix_kv'].default_options(), CONFIG, 3)
  with pytest.raises(UserError, match='matches no site'):
    boxed_shapes(GPT2(CONFIG, method.plan))


def test_names_stand_behind_language_modelling():
  assert zoo.names_of('language_modelling/lora+prompt') == ('lora', 'prompt')
  assert not zoo.names_of('language_modelling') and not zoo.names_of('language_modelling/none')
