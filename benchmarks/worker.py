"""A child process that holds one program of one side and obeys JSON lines on its standard input.

Each side has a process of its own: idle threads of one do not disturb the other, and peak memory
and the time to the first step are those of one program.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import sys
import time
from typing import Any

from benchmarks.options import Options
from pemt_jax.allocator import keep_memory

_MEBIBYTE = 1024 * 1024
PROGRAMS = {
    'ours': ('benchmarks.ours', 'TrainStep'),
    'peer': ('benchmarks.peer', 'TrainStep'),
    'our_lengths': ('benchmarks.ours_lengths', 'Steps'),
    'peer_lengths': ('benchmarks.peer_lengths', 'Steps'),
    'our_decoding': ('benchmarks.ours', 'Decoding'),
    'peer_decoding': ('benchmarks.peer', 'Decoding'),
    'similarity_together': ('benchmarks.similarity', 'Together'),
    'similarity_pairs': ('benchmarks.similarity', 'Pairs'),
    'similarity_reloaded': ('benchmarks.similarity', 'Reloaded'),
    'feed_forward': ('benchmarks.moe', 'Layer'),
}


def memory() -> dict[str, float]:
  """Peak and present resident memory of this process in MiB (Linux)."""
  text = pathlib.Path('/proc/self/status').read_text(encoding='utf-8')
  fields = dict(line.split(':', 1) for line in text.splitlines())
  size = lambda name: int(fields[name].split()[0]) * 1024 / _MEBIBYTE
  return {'peak_mib': size('VmHWM'), 'present_mib': size('VmRSS')}


def make_weights(folder: str, name: str) -> None:
  """Writes random weights of a published size as a Hugging Face folder."""
  import jax
  import numpy as np
  from pemt_jax.interop.huggingface import save_t5
  from pemt_jax.methods.base import initialiser
  from pemt_jax.models.t5 import T5
  from pemt_jax.models.t5_config import t5_config
  config = t5_config(name)
  params, _ = initialiser(T5(config))(jax.random.key(0))
  save_t5(folder, config, jax.tree.map(np.asarray, params))


def serve(name: str, options: Options) -> None:
  """Makes the program, reports it, then answers requests until the input ends."""
  # Whatever libraries print goes to stderr; the answers have the real standard output.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)

  def answer(value: Any) -> None:
    print(json.dumps(value), file=answers, flush=True)

  if 'peer' not in name:
    keep_memory()  # As launch scripts do.
  start = time.perf_counter()
  module, kind = PROGRAMS[name]
  make = getattr(importlib.import_module(module), kind)
  imported = time.perf_counter() - start
  program = make(options)
  answer({'phases': {'import': imported, **program.phases}, 'first_loss': program.first_loss,
          'memory': memory()})
  for line in sys.stdin:
    request = json.loads(line)
    do = request.pop('do')
    answer(memory() if do == 'memory' else getattr(program, do)(**request))


if __name__ == '__main__':
  if sys.argv[1] == 'weights':
    make_weights(*sys.argv[2:])
  else:
    serve(sys.argv[1], Options(**json.loads(sys.argv[2])))
