"""A small backbone from random weights on plain text; also what such configs share.

  python launch/train.py --config=configs/pretraining.py:family=bart,embed=128,layers=2 \
      --config.data.text="('corpus',)" --config.model.tokenizer=bart-base --workdir=runs/bart

The argument gives the family ('t5', by span corruption, or 'bart', by text infilling) and sizes:
embed, heads, mlp, layers of each stack, vocab_size (of the tokenizer).
"""

from __future__ import annotations

import ml_collections as mlc

from pemt_jax.errors import one_of
from pemt_jax.stages.config import base_config, parse_argument

_FAMILIES = {'t5': ('t5-small', 32128), 'bart': ('bart-base', 50265)}


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """A small backbone of the family and sizes that the argument names."""
  given = parse_argument(argument, family='bart', embed=128, heads=4, mlp=512, layers=2,
                         vocab_size=0)
  one_of('family', given['family'], _FAMILIES)
  layers, heads, embed = given['layers'], given['heads'], given['embed']
  shape = {'embed': embed, 'heads': heads, 'mlp': given['mlp'], 'encoder_layers': layers,
           'decoder_layers': layers,
           'vocab_size': given['vocab_size'] or _FAMILIES[given['family']][1]}
  if given['family'] == 't5':
    return small_t5(**shape, kv=embed // heads)
  return small_bart(**shape)


def small_t5(**shape: int) -> mlc.ConfigDict:
  """A small T5 (v1.0 form, no dropout) from random weights; the step of least loss is kept.

  Args:
    **shape: fields of T5Config.
  """
  return _small('t5-small', {**shape, 'dropout': 0.0})


def small_bart(**shape: int) -> mlc.ConfigDict:
  """A small BART (no dropout) from random weights, by text infilling.

  Args:
    **shape: fields of BartConfig.
  """
  config = _small('bart-base', {**shape, 'dropout': 0.0, 'attention_dropout': 0.0,
                                'activation_dropout': 0.0})
  config.data.objective = 'text_infilling'
  config.train.learning_rate = 1e-3
  return config


def _small(name: str, shape: dict[str, float]) -> mlc.ConfigDict:
  config = base_config('span_corruption')
  config.model.name = name
  config.model.weights = 'random'
  with config.model.shape.unlocked():
    config.model.shape.update(shape)
  config.data.validation_chunks = 256
  config.train.learning_rate = 3e-3
  config.train.schedule = 'cosine'
  config.train.metric = 'loss'
  config.train.greater_is_better = False
  config.train.final_split = ''
  return config
