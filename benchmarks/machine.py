"""Where a benchmark ran: hardware, load, versions."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'torch', 'transformers', 'peft',
             'accelerate')


def _field(path: str, name: str) -> str:
  """Value of the first line `name : value` of a file of /proc; empty if there is none."""
  try:
    lines = pathlib.Path(path).read_text(encoding='utf-8').splitlines()
  except OSError:
    return ''
  values = (line.split(':', 1)[1].strip() for line in lines if line.startswith(name))
  return next(values, '')


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _commit() -> str | None:
  try:
    done = subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True, text=True, check=False,
                          cwd=pathlib.Path(__file__).parent)
  except OSError:
    return None
  return done.stdout.strip() or None


def cores() -> int:
  """Cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def load() -> list[float]:
  """Mean number of runnable processes over 1, 5 and 15 minutes."""
  return [round(value, 2) for value in os.getloadavg()]


def describe() -> dict[str, Any]:
  """Hardware and versions as JSON values."""
  memory = _field('/proc/meminfo', 'MemTotal').split()
  return {
      'cpu': _field('/proc/cpuinfo', 'model name') or platform.processor(),
      'cores': cores(), 'memory_gib': round(int(memory[0]) / 2**20, 1) if memory else None,
      'system': platform.platform(), 'python': platform.python_version(), 'commit': _commit(),
      'versions': {package: _version(package) for package in _PACKAGES}}
