"""How a stage computes: words that are refused, and what 'auto' stands for."""

from __future__ import annotations

import pytest

from pemt_jax.errors import UserError
from pemt_jax.stages.backbone import shaped_backbone, storage_dtype
from pemt_jax.stages.config import base_config


@pytest.mark.parametrize('field, value, sentence', [
    ('remat', 'all', "model.remat is 'all'; choose one of none, dots, projections, full."),
    ('attention', 'flash', "model.attention is 'flash'; choose one of auto, plain, fused."),
    ('frozen_dtype', 'half',
     "model.frozen_dtype is 'half'; choose one of auto, float32, bfloat16."),
    ('attention_dropout', 1.0,
     'model.attention_dropout is 1.0; give a number of at least 0 and below 1.')])
def test_unknown_ways_to_compute_are_refused(field, value, sentence):
  config = base_config('pemt/stage1')
  config.model[field] = value
  with pytest.raises(UserError) as error:
    shaped_backbone(config)
  assert str(error.value) == sentence


def test_frozen_parameters_are_small_on_accelerators():
  assert storage_dtype('auto') == storage_dtype('auto', 'cpu') == 'float32'
  assert storage_dtype('auto', 'gpu') == storage_dtype('auto', 'tpu') == 'bfloat16'
  assert storage_dtype('float32', 'tpu') == 'float32'
