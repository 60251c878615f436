"""A small BART on plain English text by text infilling, BART's own vocabulary.

python launch/train.py --config=configs/real_data/pretrain_bart.py \\
  --workdir=runs/real_data/bart --config.model.tokenizer=FOLDER_OF_BART_TOKENIZER \\
  --config.data.text="('FOLDER_OF_TEXT',)"

Figures: results/task_moe.md.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.pretraining import small_bart


def get_config() -> mlc.ConfigDict:
  """7.6 M parameters, 6.4 M of them the embedding, which starts from counts of neighbours."""
  config = small_bart(vocab_size=50265, embed=128, heads=4, mlp=512, encoder_layers=2,
                      decoder_layers=2)
  config.model.embedding = 'cooccurrence'
  config.data.max_source_length = config.data.max_target_length = 64
  config.data.batch_size, config.data.eval_batch_size = 8, 64
  config.train.beta2 = 0.99
  config.train.steps, config.train.warmup_steps, config.train.eval_every = 160, 10, 160
  return config
