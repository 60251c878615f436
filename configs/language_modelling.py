"""A small GPT-2 on plain text: every token from those before it, and perplexity on held-out text.

python launch/train.py --config=configs/language_modelling.py --workdir=runs/language \\
  --config.model.tokenizer=FOLDER_OF_BYTE_LEVEL_TOKENIZER \\
  --config.data.text="('FOLDER_OF_TEXT',)" --config.data.text_validation="('FILE_OF_OTHER_TEXT',)"

The result, `<workdir>/backbone`, is a Hugging Face GPT-2 with its tokenizer. With an argument the
stage trains an expert on a frozen GPT-2 instead, by any name of the zoo:

python launch/train.py --config=configs/language_modelling.py:tuned=lora \\
  --workdir=runs/language_lora --config.model.name=runs/language/backbone \\
  --config.data.text="('FOLDER_OF_TEXT',)"

`--config.generation.samples=N` adds BLEU and Self-BLEU of N continued texts to every evaluation.
"""

from __future__ import annotations

import ml_collections as mlc

from pemt_jax.methods.language_modelling import NAME
from pemt_jax.stages.config import base_config, parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """7.3 M parameters, 6.4 M of them the embedding of a vocabulary of 50265; no dropout.

  Args:
    argument: 'tuned=NAME' trains NAME of the zoo on the backbone of `model.name`.
  """
  tuned = parse_argument(argument, tuned='')['tuned']
  config = base_config(f'{NAME}/{tuned}' if tuned else NAME)
  config.model.name = 'gpt2'
  if not tuned:
    config.model.weights = 'random'
    with config.model.shape.unlocked():
      config.model.shape.update(
          vocab_size=50265, embed=128, heads=4, mlp=512, decoder_layers=4, positions=256,
          dropout=0.0, embed_dropout=0.0, attention_dropout=0.0)
  config.data.max_source_length = 128
  config.data.batch_size = 16
  config.data.eval_batch_size = 16
  config.train.learning_rate = 1e-3
  config.train.schedule = 'cosine'
  config.train.steps = 2000
  config.train.warmup_steps = 100
  config.train.eval_every = 500
  config.train.metric = 'loss'
  config.train.greater_is_better = False
  config.train.final_split = 'validation'
  return config
