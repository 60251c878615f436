"""Step 0: one delta for each of the 32 question-answering tasks, on all of its rows.

python launch/train.py --config=configs/ensembling/source.py:delta=adapter --workdir=DIR

`delta` is 'adapter', 'lora' or 'prefix'. All sources train in one program; on one device set
--config.together=task.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.ensembling.common import recipe
from pemt_jax.data.tasks_gym import published_names, QA_TASKS
from pemt_jax.stages.config import parse_argument


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """32 source tasks, batch 16."""
  config = recipe(parse_argument(argument, delta='adapter')['delta'], published_names(QA_TASKS))
  config.data.batch_size = 16
  return config
