"""The recipes of the baselines hold the published numbers."""

from __future__ import annotations

import importlib

import pytest

from pemt_jax.stages.config import options_of

# (rate, batch, epochs, warm-up, length, weight decay)
NUMBERS = {
    'adapter': (1e-3, 128, 20.0, 0, 256, 0.0),
    'lora': (6e-4, 128, 20.0, 0, 256, 0.0),
    'bitfit': (3e-4, 32, 20.0, 500, 256, 0.0),
    'prompt_tuning': (0.3, 128, 20.0, 500, 256, 1e-5),
    'spot': (0.3, 32, 20.0, 0, 128, 0.0),
    'attempt': (0.3, 128, 20.0, 500, 256, 0.0),
    'attempt_multi': (0.3, 32, 20.0, 0, 256, 0.0),
    'adamix': (1e-3, 128, 20.0, 0, 256, 0.0),
    'mixda': (1e-3, 128, 20.0, 0, 256, 0.0),
    'full': (3e-4, 16, 5.0, 0, 512, 0.0),
}


def load(name, argument=None):
  return importlib.import_module(f'configs.baselines.{name}').get_config(argument)


@pytest.mark.parametrize('name', NUMBERS)
def test_a_recipe_holds_the_published_numbers(name):
  config = load(name)
  train = config.train
  assert (train.learning_rate, config.data.batch_size, train.epochs, train.warmup_steps,
          config.data.max_source_length, train.weight_decay) == NUMBERS[name]
  assert (config.model.name, train.optimizer, train.schedule) == ('t5-base', 'adamw', 'linear')
  if name != 'attempt_multi':
    assert load(name, 'task=rte').tasks == ('rte',)


def test_options_of_the_recipes():
  assert options_of(load('adapter')).reduction == 16
  lora = options_of(load('lora'))
  assert (lora.rank, lora.alpha, lora.projections) == (8, 8.0, ('q', 'k', 'v', 'o'))
  assert options_of(load('bitfit')).head == 'bias'
  adamix = options_of(load('adamix', 'consistency=1'))
  assert (adamix.experts, adamix.size, adamix.share_down, adamix.share_up, adamix.inference,
          adamix.consistency) == (6, 64, False, True, 'average', 1.0)
  mixda = options_of(load('mixda', 'published=1'))
  assert (mixda.encoder_layers, mixda.decoder_layers, mixda.gate_reads) == ((7, 11), (7, 11),
                                                                            'last')
  attempt = options_of(load('attempt', 'published=1'))
  assert (attempt.attention, attempt.sources, attempt.hidden, attempt.temperature,
          attempt.mask_padding) == ('sub', 6, 100, 2087.0, False)
  assert load('prompt_tuning').prompt.length == 100
  multi = load('attempt_multi')
  assert multi.mixture.sampling == 'proportional' and multi.data.max_train_rows == 100_000
  assert multi.train.learning_rate * multi.train.group_multipliers.attention == pytest.approx(0.1)
