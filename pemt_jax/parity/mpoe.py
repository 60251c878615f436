"""Experts of matrix product operators: which function recomputes a recorded case."""

from __future__ import annotations

import pathlib
from typing import Any

from pemt_jax.models.layers import Compute
from pemt_jax.parity import common

# Start of a case's name -> module below `parity` and function; the first match decides.
_FUNCTIONS = {
    'decompose_': ('mpoe_matrices', 'decomposition'),
    'linear_mpo_': ('mpoe_matrices', 'linear'),
    'embedding_mpo_': ('mpoe_matrices', 'embedding'),
    'bert_mpo_': ('mpoe_matrices', 'bert'),
    'convert_dense_': ('mpoe_convert', 'convert'),
    'gradient_mask_': ('mpoe_convert', 'gradient_mask'),
    't5_mpo_': ('mpoe_matrices', 't5'),
    'switch_': ('mpoe_moe', 'layer'),
    'moe_top2_': ('mpoe_moe', 'layer'),
    't5_': ('mpoe_moe', 't5'),
    'adapter_': ('mpoe_hyperformer', 'compute'),
    'hyperformer': ('mpoe_hyperformer', 'compute'),
    'multitask_sampler': ('mpoe_hyperformer', 'compute'),
}


def compute(case_dir: pathlib.Path, run: Compute = Compute()) -> Any:
  """Computes every array that a case names; see `common.by_name`."""
  return common.by_name(case_dir, run, 'mpoe', _FUNCTIONS)
