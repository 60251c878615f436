"""A small T5 on plain English text by span corruption, T5's own vocabulary.

python launch/train.py --config=configs/real_data/pretrain.py --workdir=runs/real_data/pretrain \\
  --config.model.tokenizer=FOLDER_OF_T5_TOKENIZER --config.data.text="('FOLDER_OF_TEXT',)"

Figures: results/real_data.md.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.pretraining import small_t5


def get_config() -> mlc.ConfigDict:
  """5.95 M parameters, 4.11 M of them the embedding."""
  config = small_t5(vocab_size=32128, embed=128, kv=32, heads=4, mlp=512, encoder_layers=4,
                    decoder_layers=4)
  config.data.max_source_length = 128
  config.data.batch_size = 32
  config.data.eval_batch_size = 64
  config.train.steps = 1200
  config.train.warmup_steps = 120
  config.train.eval_every = 300
  return config
