"""Host memory that is used again in place of being given back and mapped anew."""

from __future__ import annotations

import ctypes
import glob
import os

# Options of mallopt(3): one arena, no mapping for a single large buffer, keep what is free.
_OPTIONS = ((-8, 1), (-4, 0), (-1, -1))
_ACCELERATORS = ('/dev/nvidia[0-9]*', '/dev/accel[0-9]*', '/dev/vfio/[0-9]*')


def keep_memory() -> bool:
  """Makes glibc keep the buffers that a program on the CPU frees.

  Every step of a program takes and frees the same large buffers. By default each time is a new
  mapping, whose pages the kernel clears one by one. Threads that run already keep their arenas, so
  that this comes before JAX starts. Nothing happens on hosts with accelerators, with another C
  library, and where the environment has options of malloc of its own.

  Returns:
    Whether the options are set.
  """
  own = any(name.startswith('MALLOC_') for name in os.environ) or 'GLIBC_TUNABLES' in os.environ
  platforms = os.environ.get('JAX_PLATFORMS')
  on_cpu = platforms == 'cpu' if platforms else not any(map(glob.glob, _ACCELERATORS))
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if os.name == 'posix' else None
  if own or not on_cpu or mallopt is None:
    return False
  return all([mallopt(option, value) for option, value in _OPTIONS])
