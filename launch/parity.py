"""Recomputes recorded cases and prints the largest errors where outputs are present.

python launch/parity.py --cases=DIR --output=DIR
"""

from __future__ import annotations

import json
import math
import pathlib
import sys

from absl import flags
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pemt_jax import cli
from pemt_jax.errors import UserError
from pemt_jax.models.layers import Compute
from pemt_jax.parity import cases

CASES = flags.DEFINE_string('cases', None, 'Folder searched for case.json files.', required=True)
OUTPUT = flags.DEFINE_string('output', None, 'Folder for <case>.npz or <case>.json.', required=True)
SCAN = flags.DEFINE_bool('scan_layers', True, 'Loop over layers by scan; False unrolls.')
DTYPE = flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Compute dtype.')

_STACKS = ('enc', 'dec')


def kind_of(key: str) -> str:
  """First part of an array's name, such as 'grad'; the last one where the first is a place."""
  first, _, rest = key.partition('/')
  return rest.rsplit('/', 1)[-1] if rest and (first in _STACKS or '.' in first) else first


def report(name: str, arrays: dict[str, np.ndarray], reference: pathlib.Path) -> None:
  """Prints the largest error of each kind of array against recorded outputs."""
  worst: dict[str, float] = {}
  with np.load(reference) as expected:
    for key, value in arrays.items():
      if key in expected and value.size:
        kind = kind_of(key)
        error = np.max(np.abs(value.astype(np.float64) - expected[key]))
        worst[kind] = max(worst.get(kind, 0.0), float(error))
  print(name, ' '.join(f'{kind}={error:.1e}' for kind, error in worst.items()))


def close(found: object, expected: object) -> bool:
  """Says whether two JSON values are equal, numbers within 1e-9."""
  if isinstance(found, float) or isinstance(expected, float):
    return isinstance(found, (int, float)) and math.isclose(found, expected, abs_tol=1e-9)
  if isinstance(found, list) and isinstance(expected, list):
    return len(found) == len(expected) and all(map(close, found, expected))
  if isinstance(found, dict) and isinstance(expected, dict):
    return found.keys() == expected.keys() and all(close(found[k], expected[k]) for k in found)
  return found == expected


def check(result: object, reference: pathlib.Path) -> str:
  """Says whether a result of texts is the recorded one, or which of its parts differ."""
  expected = json.loads(reference.read_text())
  found = json.loads(json.dumps(result))
  if close(found, expected):
    return 'equal'
  keys = sorted(set(found) | set(expected)) if isinstance(expected, dict) else []
  wrong = [key for key in keys if not close(found.get(key), expected.get(key))]
  return f'differs: {", ".join(wrong[:5]) or "all"}'


def main(_: list[str]) -> None:
  """Computes all cases below --cases."""
  root, output = pathlib.Path(CASES.value), pathlib.Path(OUTPUT.value)
  found = sorted(root.rglob('case.json'))
  if not found:
    raise UserError(f'no case.json below {root}; give a folder with recorded cases as --cases.')
  output.mkdir(parents=True, exist_ok=True)
  run = Compute(dtype=DTYPE.value, scan_layers=SCAN.value)
  skipped = []
  for path in found:
    case = json.loads(path.read_text())
    try:
      kind, result = cases.compute(path.parent, case, run)
    except UserError as error:
      skipped.append(f'{path.parent.name}: {error}')
      continue
    target = output / f'{path.parent.name}.{kind}'
    if kind == 'json':
      target.write_text(json.dumps(result))
      reference = path.parent / 'outputs.json'
      print(path.parent.name, check(result, reference) if reference.exists() else 'written')
      continue
    np.savez(target, **result)
    if (path.parent / 'outputs.npz').exists():
      report(path.parent.name, result, path.parent / 'outputs.npz')
  if skipped:
    raise UserError(f'{len(skipped)} of {len(found)} cases were not computed: '
                    + '; '.join(skipped))


if __name__ == '__main__':
  cli.run(main)
