"""A small T5 on plain English text and the inputs of tasks by span corruption, T5's own vocabulary.

python launch/train.py --config=configs/real_data/pretrain.py --workdir=runs/real_data/pretrain \\
  --config.model.tokenizer=FOLDER_OF_T5_TOKENIZER --config.data.text="('FOLDER_OF_TEXT',)" \\
  --config.data.root=DATA

Figures: results/real_data.md.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.pretraining import small_t5
from configs.real_data.common import PRETRAINING_TASKS, set_data


def get_config() -> mlc.ConfigDict:
  """5.95 M parameters, 4.11 M of them the embedding; see `model` for how they start."""
  config = small_t5(vocab_size=32128, embed=128, kv=32, heads=4, mlp=512, encoder_layers=4,
                    decoder_layers=4)
  config.model.embedding = 'cooccurrence'
  config.model.attention_start = 'matching'
  set_data(config)
  config.data.text_tasks = PRETRAINING_TASKS
  with config.data.per_task.unlocked():  # Its rows repeat their long paragraphs.
    config.data.per_task['superglue-multirc'] = mlc.ConfigDict({'max_train_rows': 800})
  config.data.batch_size = 16
  config.data.eval_batch_size = 64
  config.train.learning_rate = 7e-4  # Above it gradients grow, and the encoder is never read.
  with config.train.group_multipliers.unlocked():
    config.train.group_multipliers['embedding'] = 3.0
  config.train.beta2 = 0.99
  config.train.steps = 4000
  config.train.warmup_steps = 200
  config.train.eval_every = 500
  return config
