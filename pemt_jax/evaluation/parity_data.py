"""Computes the golden cases that hold no model: permutations, shuffles, metrics, text forms."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

from pemt_jax.data import splits, templates
from pemt_jax.errors import UserError
from pemt_jax.evaluation import metrics

_SHUFFLES = {'randperm': splits.randperm, 'pyshuffle': splits.python_shuffle}
_TEXT_FORMS = {'pad_punctuation': templates.pad_punctuation,
               'round_stsb_target': templates.round_to_tenth}


def compute(case_dir: str | pathlib.Path) -> tuple[str, Any]:
  """Computes a case from its case.json and inputs; outputs are never read.

  Args:
    case_dir: folder with case.json; with inputs.json for metric cases.

  Returns:
    ('npz', name -> array) for the shuffles that case.json names under `arrays`, or ('json', object)
    in the layout of outputs.json.

  Raises:
    UserError: the case names something that is not known here.
  """
  case_dir = pathlib.Path(case_dir)
  inputs = case_dir / 'inputs.json'
  if inputs.is_file():
    return 'json', _metrics(json.loads(inputs.read_text(encoding='utf-8')), inputs)
  case = json.loads((case_dir / 'case.json').read_text(encoding='utf-8'))
  return 'npz', {name: _shuffle(name, spec, case_dir) for name, spec in case['arrays'].items()}


def _shuffle(name: str, spec: dict[str, Any], case_dir: pathlib.Path) -> np.ndarray:
  """Computes `<kind><seed>/<count>`: the first rows of a seeded permutation of `count` rows."""
  head, _, count = name.partition('/')
  kind = head.rstrip('0123456789')
  seed = head[len(kind):]
  if kind not in _SHUFFLES or not seed or not count.isdigit():
    raise UserError(f"case {case_dir} names array '{name}', which is not randperm<seed>/<rows> or "
                    'pyshuffle<seed>/<rows>; correct case.json.')
  order = _SHUFFLES[kind](int(count), int(seed))
  return order[:spec['shape'][0]].astype(spec['dtype'])


def _metrics(inputs: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
  outputs = {}
  for name, values in inputs.items():
    if name == 'rows':
      outputs[name] = [metrics.get_metric(row['metric'])(row['predictions'], row['targets'])
                       for row in values]
    elif name in _TEXT_FORMS:
      outputs[name] = [_TEXT_FORMS[name](value) for value in values]
    else:
      raise UserError(f"{path} has the key '{name}', which is not among rows, "
                      f"{', '.join(_TEXT_FORMS)}; correct the file.")
  return outputs
