"""Freed memory stays with the process where `keep_memory` says so."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SIZE = 256  # MiB
PROGRAM = f"""
import os, sys
import numpy as np
from pemt_jax.allocator import keep_memory

def resident():
  pages = int(open('/proc/self/statm').read().split()[1])
  return pages * os.sysconf('SC_PAGE_SIZE') >> 20

kept = keep_memory()
before = resident()
buffer = np.ones({SIZE} << 20, np.uint8)
del buffer
print(kept, resident() - before)
"""


def outcome(repo_root, **environment):
  """(what `keep_memory` says, MiB that stay when a buffer is freed)."""
  done = subprocess.run([sys.executable, '-c', PROGRAM], env={'PYTHONPATH': str(repo_root),
                                                             **environment},
                        capture_output=True, text=True, check=True)
  kept, left = done.stdout.split()
  return kept == 'True', int(left)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='mallopt is of glibc')
def test_buffers_stay_on_a_cpu_unless_the_environment_has_options_of_its_own(repo_root):
  kept, left = outcome(repo_root, JAX_PLATFORMS='cpu')
  assert kept and left > SIZE // 2
  for environment in ({'JAX_PLATFORMS': 'tpu'}, {'JAX_PLATFORMS': 'cpu', 'MALLOC_ARENA_MAX': '4'},
                      {'JAX_PLATFORMS': 'cpu', 'GLIBC_TUNABLES': 'glibc.malloc.check=0'}):
    kept, left = outcome(repo_root, **environment)
    assert not kept and left < SIZE // 2
