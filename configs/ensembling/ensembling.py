"""All steps as one run: sources, similarities, merges, zero-shot and few-shot targets.

python launch/train.py --config=configs/ensembling/ensembling.py:delta=adapter --workdir=DIR
  --config.root=ROOT
"""

from __future__ import annotations

import ml_collections as mlc

from configs.ensembling import few_shot, source
from pemt_jax.stages.config import parse_argument
from pemt_jax.stages.ensembling_config import ensembling_config


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """The published steps for one kind of delta."""
  delta = parse_argument(argument, delta='adapter')['delta']
  config = ensembling_config(source.get_config(f'delta={delta}'),
                             few_shot.get_config(f'delta={delta}'))
  config.merges = ('average', 'loss', 'kl', 'el2n', 'logit_cosine', 'grand', 'cosine',
                   'euclidean', 'performance')
  return config.lock()
