"""Stages on a BART: trained, decoded with the options of its checkpoint, predicted."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pemt_jax.models.bart_config import BartConfig
from pemt_jax.models.decoding import GenerationConfig
from pemt_jax.models.t5_config import T5Config
from pemt_jax.stages.config import NO_TOKEN, base_config, generation_config
from pemt_jax.stages.predict import predict_file
from pemt_jax.stages.run import run_stage
from tests.stages import small

CONFIG = BartConfig(50, 16, 2, 24, 1, 1, positions=40)


def test_decoding_options_come_from_the_backbone_unless_the_config_says_otherwise():
  config = base_config('lora')
  assert generation_config(config, T5Config(32, 8, 4, 2, 16, 1, 1)) == GenerationConfig()
  published = GenerationConfig(
      num_beams=4, early_stopping=True, no_repeat_ngram_size=3, forced_bos_token_id=0,
      forced_eos_token_id=2, start_id=2, eos_id=2, pad_id=1)
  assert generation_config(config, CONFIG) == published
  config.generation.update({
      'max_length': 64, 'early_stopping': False, 'start_id': 0, 'length_penalty': 2.0,
      'forced_bos_token_id': NO_TOKEN, 'num_beams': 2, 'no_repeat_ngram_size': 0})
  assert generation_config(config, CONFIG) == GenerationConfig(
      max_length=64, num_beams=2, length_penalty=2.0, forced_eos_token_id=2, start_id=0, eos_id=2,
      pad_id=1)


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['lora', 'pemt/stage1'])
def test_a_stage_trains_scores_and_predicts(stage, workdir):
  config = small.config_of(stage, small.write_bart(workdir / 'backbone'), tasks=small.SOURCES[:1])
  result = run_stage(config, workdir / 'run')
  (name, expert), = result.experts.items()
  assert name == small.SOURCES[0].replace('/', '-') and result.trained.results[name]
  (workdir / 'rows.jsonl').write_text(json.dumps({'source': 'is it lucky today ?'}) + '\n')
  assert predict_file(expert, workdir / 'rows.jsonl', workdir / 'out.jsonl', {}) == 1
  row = json.loads((workdir / 'out.jsonl').read_text())
  assert set(row) == {'source', 'prediction', 'label_scores'}
  assert all(np.isfinite(value) for value in row['label_scores'].values())
