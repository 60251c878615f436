"""Which code recomputes a recorded case."""

from __future__ import annotations

import importlib
import inspect
import pathlib
from typing import Any

import jax

from pemt_jax.errors import UserError
from pemt_jax.models.layers import Compute

# system -> (start of a case's name, module); the first match decides.
_MODULES = {
    'ensembling': (
        ('data_', 'parity.ensembling_data'), ('eval_', 'parity.ensembling_data'),
        ('loop_', 'parity.ensembling_data'), ('merge_', 'parity.ensembling_merge'),
        ('similarity_', 'parity.ensembling_similarity'),
        ('importance_', 'parity.ensembling_similarity'),
        ('modules_', 'parity.ensembling_modules'),
        ('fastfood', 'parity.ensembling_modules'), ('', 'parity.ensembling')),
    'propetl': (('data_', 'parity.propetl_data'), ('roberta_', 'parity.propetl_roberta'),
                ('', 'parity.propetl')),
    'pemt': (('spot', 'parity.pemt_baselines'), ('', 'parity.pemt')),
    'taskmoe': (('', 'parity.taskmoe'),),
    'mpoe': (('', 'parity.mpoe'),),
}
_WITHOUT_MODEL = 'evaluation.parity_data'  # PEMT's cases without a state


def compute(case_dir: pathlib.Path, case: dict[str, Any], run: Compute) -> tuple[str, Any]:
  """Recomputes a case from its inputs; recorded outputs are never read.

  Args:
    case_dir: folder of the case.
    case: its parsed case.json.
    run: how to compute.

  Returns:
    ('npz', name -> array), or ('json', object) in the layout of outputs.json.

  Raises:
    UserError: no code for this case, or files that do not fit it.
  """
  system = case.get('system')
  if system not in _MODULES:
    raise UserError(f"{case_dir}: cases of system '{system}' cannot be computed; choose a folder"
                    f" with cases of {', '.join(_MODULES)}.")
  name = next(module for start, module in _MODULES[system] if case['case'].startswith(start))
  if name == 'parity.pemt' and not (case_dir / 'state.safetensors').exists():
    name = _WITHOUT_MODEL
  function = importlib.import_module(f'pemt_jax.{name}').compute
  arguments = [run] if 'run' in inspect.signature(function).parameters else []
  with jax.default_matmul_precision('highest' if run.dtype == 'float32' else None):
    result = function(case_dir, *arguments)
  if isinstance(result, tuple):
    return result
  return ('json' if (case_dir / 'inputs.json').exists() else 'npz'), result
