"""What the real-data stages share: where rows come from and how long they are."""

from __future__ import annotations

import ml_collections as mlc

# Splits that the local folder can serve; see docs/data.md.
PER_TASK = {
    'mnli': {'split_rule': 'first_n_of_train'},
    'superglue-record': {'split_rule': 'first_n_of_train', 'validation_rows': 32},
    'sst2': {'validation_rows': 1000},
}


def set_data(config: mlc.ConfigDict, root: str = 'data') -> mlc.ConfigDict:
  """Local rows with the layout <root>/<benchmark>/<task>/<split>.jsonl.gz, 128 tokens."""
  config.data.root = root
  config.data.source = 'local'
  config.data.max_source_length = 128
  config.data.max_target_length = 16
  config.data.buckets = (64, 128)
  config.data.target_buckets = (8, 16)
  config.data.eval_batch_size = 128
  config.data.max_validation_rows = 500
  with config.data.per_task.unlocked():
    config.data.per_task.update(mlc.ConfigDict(PER_TASK))
  return config
