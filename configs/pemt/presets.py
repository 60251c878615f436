"""Settings that the authors used for single tasks (arXiv 2402.15082, their run scripts)."""

from __future__ import annotations

from typing import Any

SOURCES = ('mnli', 'qnli', 'qqp', 'sst2', 'squad', 'superglue-record')
TARGETS = ('cola', 'rte', 'superglue-cb', 'superglue-wsc-fixed', 'mrpc', 'stsb', 'superglue-wic',
           'superglue-boolq', 'superglue-multirc')
# Pool of the source-count study, in its order.
POOL = ('mnli', 'qnli', 'qqp', 'sst2', 'squad', 'superglue-record', 'superglue-multirc',
        'superglue-boolq', 'superglue-wic', 'superglue-cb', 'superglue-wsc-fixed', 'nq', 'newsqa',
        'hotpotqa', 'searchqa', 'paws', 'scitail', 'winogrande', 'yelp_polarity')
POOL_COUNTS = (18, 16, 14)
LEARNING_RATE_GRID = (6e-4, 1e-3, 3e-4)
QA = ('nq', 'newsqa', 'searchqa', 'hotpotqa')


def fields(batch_size: int, epochs: float, length: int = 256) -> dict[str, Any]:
  """What the authors set for one task, as a part of a config."""
  return {'data': {'batch_size': batch_size, 'max_source_length': length},
          'train': {'epochs': float(epochs)}}


STAGE2_DEFAULT = fields(100, 20)
STAGE2 = {
    'superglue-multirc': fields(64, 10, 348), 'superglue-cb': fields(32, 20),
    'superglue-wsc-fixed': fields(32, 20), 'superglue-boolq': fields(64, 20),
    'rte': fields(64, 20), **{task: fields(32, 5, 512) for task in QA}}

# Stage 1 of the six main sources uses the published script; these are for further sources.
STAGE1_EXTRA_DEFAULT = fields(128, 20)
STAGE1_EXTRA = {
    'superglue-multirc': fields(64, 10, 348), 'superglue-cb': fields(32, 20),
    'superglue-wsc-fixed': fields(32, 20), 'yelp_polarity': fields(100, 5),
    **{task: fields(64, 5, 512) for task in QA}}


def pool_without(target: str, count: int) -> tuple[str, ...]:
  """First `count` sources of the pool without the target."""
  return tuple(task for task in POOL if task != target)[:count]
