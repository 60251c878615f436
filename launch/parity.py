"""Recomputes recorded cases and prints the largest errors where outputs are present.

python launch/parity.py --cases=DIR --output=DIR
"""

from __future__ import annotations

import json
import pathlib
import sys

from absl import flags
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pemt_jax import cli
from pemt_jax.errors import UserError
from pemt_jax.models.layers import Compute

CASES = flags.DEFINE_string('cases', None, 'Folder searched for case.json files.', required=True)
OUTPUT = flags.DEFINE_string('output', None, 'Folder for <case>.npz or <case>.json.', required=True)
SCAN = flags.DEFINE_bool('scan_layers', True, 'Loop over layers by scan; False unrolls.')
DTYPE = flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Compute dtype.')


def compute(case_dir: pathlib.Path, case: dict, run: Compute) -> tuple[str, object]:
  """Returns ('npz', arrays) or ('json', object) for one case.

  Raises:
    UserError: no code for this case.
  """
  from pemt_jax.evaluation import parity_data
  from pemt_jax.parity import pemt
  if case['system'] != 'pemt':
    raise UserError(f"{case_dir}: cases of system '{case['system']}' cannot be computed; choose a"
                    " folder with cases of 'pemt'.")
  if not (case_dir / 'state.safetensors').exists():
    return parity_data.compute(case_dir)
  return 'npz', pemt.compute(case_dir, run)


def report(name: str, arrays: dict[str, np.ndarray], reference: pathlib.Path) -> None:
  """Prints the largest error of each kind of array against recorded outputs."""
  worst: dict[str, float] = {}
  with np.load(reference) as expected:
    for key, value in arrays.items():
      if key in expected and value.size:
        kind = 'grad' if key.startswith('grad/') else key.rsplit('/', 1)[-1]
        error = np.max(np.abs(value.astype(np.float64) - expected[key]))
        worst[kind] = max(worst.get(kind, 0.0), float(error))
  print(name, ' '.join(f'{kind}={error:.1e}' for kind, error in worst.items()))


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
      kind, result = compute(path.parent, case, run)
    except UserError as error:
      skipped.append(f'{path.parent.name}: {error}')
      continue
    target = output / f'{path.parent.name}.{kind}'
    if kind == 'json':
      target.write_text(json.dumps(result))
      print(path.parent.name, 'written')
      continue
    np.savez(target, **result)
    if (path.parent / 'outputs.npz').exists():
      report(path.parent.name, result, path.parent / 'outputs.npz')
  if skipped:
    raise UserError(f'{len(skipped)} of {len(found)} cases were not computed: '
                    + '; '.join(skipped))


if __name__ == '__main__':
  cli.run(main)
