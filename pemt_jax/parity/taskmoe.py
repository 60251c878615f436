"""Task-level mixture of experts: which function recomputes a recorded case."""

from __future__ import annotations

import pathlib
from typing import Any

from pemt_jax.models.layers import Compute
from pemt_jax.parity import common

# Start of a case's name -> module below `parity` and function; the first match decides.
_FUNCTIONS = {
    'full_': ('taskmoe_model', 'full'),
    'v1_': ('taskmoe_model', 'full'),
    'init_copy': ('taskmoe_model', 'copies'),
    'squeeze': ('taskmoe_model', 'squeeze'),
    'train_steps': ('taskmoe_model', 'steps'),
    'cached_decoding': ('taskmoe_model', 'decoding'),
    'beam_search': ('taskmoe_model', 'search'),
    'metrics': ('taskmoe_data', 'metrics'),
    'kshot_sampling': ('taskmoe_data', 'draws'),
    'collect_arg': ('taskmoe_data', 'summaries'),
    'data_pipeline': ('taskmoe_data', 'batches'),
    'label_smoothing': ('taskmoe_data', 'loss'),
    'router_': ('taskmoe_routers', 'router'),
    'expert_regularization': ('taskmoe_routers', 'distance'),
    'get_routes': ('taskmoe_routers', 'read_out'),
    'tau_schedule': ('taskmoe_routers', 'temperatures'),
    'text_emb': ('taskmoe_vectors', 'text'),
    'finetuned_text_emb': ('taskmoe_vectors', 'fine_tuned_text'),
    'fisher_adapter': ('taskmoe_vectors', 'fisher'),
}


def compute(case_dir: pathlib.Path, run: Compute = Compute()) -> Any:
  """Computes every array that a case names, or its result of texts; see `common.by_name`."""
  return common.by_name(case_dir, run, 'taskmoe', _FUNCTIONS)
