"""Measures everything on one accelerator within a time budget; writes each part at once.

python benchmarks/gpu.py --output=results/benchmarks/gpu.json [--budget=520]

Needs jax, flax, optax and NumPy; the peer needs torch, transformers and peft, and is left out where
they are absent. `--sizes=tiny` runs every part on the CPU within a minute, to try the script.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time

from absl import app, flags

REPO = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

OUTPUT = flags.DEFINE_string('output', str(REPO / 'results' / 'benchmarks' / 'gpu.json'),
                             'JSON file.')
BUDGET = flags.DEFINE_float(
    'budget', 520.0, 'Seconds; parts that would not end in time are skipped.', lower_bound=0.0)
SIZES = flags.DEFINE_enum('sizes', 'full', ['full', 'tiny'], 'What is measured.')
PARTS = flags.DEFINE_list('parts', [], 'Beginnings of the names of parts; the default is all.')


def _sizes(name: str):
  from benchmarks.gpu_parts import Sizes
  from pemt_jax.models.families import place
  playground = place('playground')
  if name == 'tiny':
    return Sizes({playground: 2}, (16, 8), (2, 8, 4), (playground, 2), (8, 4), 6, (2,),
                 ((1, 2, 16, 8),), 128, 'bfloat16', 1, compiled=False)
  return Sizes({'t5-base': 64, 't5-large': 32, 't5-3b': 16}, (512, 128), (32, 128, 32),
               ('t5-base', 8), (128, 8), 20, (1, 2, 4, 8, 16, 32),
               tuple((8, 16, length, 64) for length in (128, 256, 512, 1024)), 8192, 'bfloat16', 5,
               ('t5-large',))


def main(_: list[str]) -> None:
  """Runs the parts."""
  start = time.monotonic()
  # Both sides hold memory of one device; neither takes all of it in advance.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  import jax
  from benchmarks import gpu_parts, machine
  sizes = _sizes(SIZES.value)
  bench = gpu_parts.Bench(sizes, lambda: BUDGET.value - (time.monotonic() - start))
  output = pathlib.Path(OUTPUT.value)
  output.parent.mkdir(parents=True, exist_ok=True)
  found = {'suite': 'gpu', 'command': ' '.join(['python', 'benchmarks/gpu.py', *sys.argv[1:]]),
           'machine': machine.describe() | {'device': jax.devices()[0].device_kind},
           'budget': BUDGET.value, 'results': []}
  parts = gpu_parts.all_parts(sizes)
  wanted = ('rates', *PARTS.value) if PARTS.value else ('',)
  for name, (function, needed) in parts.items():
    if not name.startswith(wanted):
      continue
    result = gpu_parts.run_part(name, function, needed, bench)
    found['results'].append(result)
    found['seconds'] = round(time.monotonic() - start, 1)
    output.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
    took = f'{result.get("part_seconds", 0.0):.0f} s'
    print(f'{name}: {result.get("failed", result.get("skipped", took))}', flush=True)
  print(output)


if __name__ == '__main__':
  app.run(main)
