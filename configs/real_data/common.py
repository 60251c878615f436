"""What the real-data stages share: tasks, where their rows come from, how long and how many."""

from __future__ import annotations

import ml_collections as mlc

from configs.pemt.presets import SOURCES

TARGETS = ('superglue-cb', 'rte', 'superglue-wic', 'superglue-wsc-fixed', 'superglue-boolq',
           'superglue-multirc', 'mrpc', 'cola', 'stsb', 'winogrande', 'paws', 'yelp_polarity')
PRETRAINING_TASKS = (*SOURCES, *TARGETS)  # whose train inputs are text for the backbone

# Fields of `data` for single tasks, so that the local folder serves all three splits with no row in
# two of them; tasks that are not named follow the published rule.
ROWS = {
    'mnli': {'split_rule': 'first_n_of_train'},  # It has no mismatched rows.
    'superglue-record': {'split_rule': 'first_n_of_train', 'validation_rows': 32},
    'winogrande': {'split_names': {'train': 'train_l'}},
    'paws': {'split_rule': 'halved_validation'},  # It has no test rows.
    'yelp_polarity': {'validation_rows': 200},
}
# Tokens of the input, where 128 would cut off most of a text.
LENGTHS = {'superglue-multirc': 256}


def set_data(config: mlc.ConfigDict, root: str = 'data') -> mlc.ConfigDict:
  """Local rows with the layout <root>/<benchmark>/<task>/<split>.jsonl.gz, 128 tokens.

  At most 256 validation and 512 test rows count. Which ones does not depend on seeds of replicas.
  """
  config.data.root = root
  config.data.source = 'local'
  config.data.max_source_length = 128
  config.data.max_target_length = 16
  config.data.buckets = (32, 64, 128, 256)
  config.data.target_buckets = (8, 16)
  config.data.eval_batch_size = 128
  config.data.max_validation_rows = 256
  config.data.max_test_rows = 512
  with config.unlocked():
    config.data.per_task.update(mlc.ConfigDict(ROWS))
    config.per_task.update(mlc.ConfigDict(
        {task: {'data': {'max_source_length': length}} for task, length in LENGTHS.items()}))
  return config
