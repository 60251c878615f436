"""Few-shot tuning of unseen gym tasks: five draws, three rates and three batch sizes for each task.

python launch/train.py --config=configs/task_moe/few_shot.py --workdir=DIR --config.root=ROOT

ROOT holds a folder for each task. `--config.model=FOLDER` starts from a backbone that another run
has left, such as the one of configs/task_moe/multi_task.py. Arguments: `model`, `partition`, `part`
and `stage` (any tuning of `pemt_jax/methods/zoo.py` in place of the published `full`).
`--config.routed.expert=EXPERT --config.routed.vectors=VECTORS` start from routed layers, with the
route that `config.routed` describes.
"""

from __future__ import annotations

import ml_collections as mlc

from pemt_jax.stages.config import parse_argument
from pemt_jax.stages.few_shot_config import few_shot_config, few_shot_stage


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """The published grid on the test tasks of the random split."""
  values = parse_argument(argument, model='facebook/bart-base', partition='random', part='test',
                          stage='full')
  config = few_shot_config(few_shot_stage(values['stage']))
  config.tuned.model.name = values['model']
  config.partition, config.part = values['partition'], values['part']
  return config.lock()
