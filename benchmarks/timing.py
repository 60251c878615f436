"""Times the calls of one program."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def timed(call: Callable[[], Any], count: int) -> dict[str, list[Any]]:
  """Calls `count` times.

  Returns:
    For each call its wall seconds, the CPU seconds of all threads of this process, and its value.
    CPU seconds tell how far other programs disturbed a call; threads that wait busily add to them.
  """
  found: dict[str, list[Any]] = {'seconds': [], 'cpu_seconds': [], 'values': []}
  for _ in range(count):
    start, used = time.perf_counter(), time.process_time()
    value = call()
    found['seconds'].append(time.perf_counter() - start)
    found['cpu_seconds'].append(time.process_time() - used)
    found['values'].append(value)
  return found


def memory_gib(compiled: Any) -> dict[str, float]:
  """Arguments, temporaries and all memory of a program compiled by JAX, in GiB."""
  sizes = compiled.memory_analysis()
  found = {'arguments': sizes.argument_size_in_bytes, 'temporaries': sizes.temp_size_in_bytes}
  found['all'] = sum(found.values()) + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
  return {name: size / 2**30 for name, size in found.items()}


def timed_turn(call: Callable[[], Any], wait: Callable[[Any], Any], count: int) -> float:
  """Seconds of one of `count` calls that run behind each other; the last value is waited for."""
  start = time.perf_counter()
  for _ in range(count):
    value = call()
  wait(value)
  return (time.perf_counter() - start) / count
