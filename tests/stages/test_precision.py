"""`model.matmul_precision` reaches the programs of a stage and of recorded cases."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from pemt_jax.errors import UserError
from pemt_jax.models.layers import Compute
from pemt_jax.parity import cases
from pemt_jax.stages.backbone import placement_of, shaped_backbone
from pemt_jax.stages.config import base_config

SQUARE = jnp.ones((2, 2))


def traced(*args):
  """Text of a traced product."""
  return str(jax.make_jaxpr(jnp.matmul)(SQUARE, SQUARE))


@pytest.mark.parametrize('word, full', [('default', False), ('highest', True)])
def test_products_of_a_stage_have_the_precision_of_its_config(word, full):
  config = base_config('lora')
  config.model.matmul_precision = word
  program = placement_of(config, {}).bound(traced)
  assert ('HIGHEST' in program()) == full
  assert 'HIGHEST' not in traced()


@pytest.mark.parametrize('fields', [
    {}, {'scan_layers': True, 'remat': 'full', 'dtype': 'bfloat16', 'attention': 'plain',
         'attention_dropout': 0.0}])
def test_a_backbone_computes_as_the_config_says(fields):
  config = base_config('lora')
  config.model.update(fields)
  assert shaped_backbone(config).compute == Compute(**{'scan_layers': None, **fields})


def test_an_unknown_word_is_refused():
  config = base_config('lora')
  config.model.matmul_precision = 'low'
  with pytest.raises(UserError, match="model.matmul_precision is 'low'; choose one of default, hi"):
    shaped_backbone(config)


@pytest.mark.parametrize('dtype, full', [('float32', True), ('bfloat16', False)])
def test_recorded_cases_are_computed_in_full_precision(dtype, full, tmp_path, monkeypatch):
  class Module:
    compute = staticmethod(lambda folder, run: {'text': traced()})

  monkeypatch.setattr(cases.importlib, 'import_module', lambda name: Module)
  _, found = cases.compute(tmp_path, {'system': 'pemt', 'case': 'any'}, Compute(dtype=dtype))
  assert ('HIGHEST' in found['text']) == full
