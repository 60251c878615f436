"""Task-level mixture of experts: which function recomputes a recorded case."""

from __future__ import annotations

import importlib
import inspect
import json
import pathlib
from typing import Any

from pemt_jax.errors import UserError
from pemt_jax.models.layers import Compute

# Start of a case's name -> module below `parity` and function; the first match decides.
_FUNCTIONS = {
    'router_': ('taskmoe_routers', 'router'),
    'expert_regularization': ('taskmoe_routers', 'distance'),
    'get_routes': ('taskmoe_routers', 'read_out'),
    'tau_schedule': ('taskmoe_routers', 'temperatures'),
}


def compute(case_dir: pathlib.Path, run: Compute = Compute()) -> Any:
  """Computes every array that a case names, or its result of texts.

  Args:
    case_dir: folder of the case.
    run: how to compute; what has no model does not read it.

  Raises:
    UserError: no code for this case, or files that do not fit it.
  """
  name = json.loads((case_dir / 'case.json').read_text())['case']
  for start, (module, function) in _FUNCTIONS.items():
    if name.startswith(start):
      found = getattr(importlib.import_module(f'pemt_jax.parity.{module}'), function)
      return found(case_dir, *([run] if 'run' in inspect.signature(found).parameters else []))
  raise UserError(f"{case_dir}: no code for the case '{name}' of taskmoe; choose cases that begin"
                  f" with {', '.join(_FUNCTIONS)}.")
