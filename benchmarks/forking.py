"""Runs scripts in forked children of one process that has loaded the libraries already.

A request is one line of JSON on stdin: {script, arguments, stdout, stderr}, the last two being
files for what the script prints. The answer is a line with the exit code, negative for a signal.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

LIBRARIES = ('grain', 'orbax.checkpoint', 'tokenizers', 'sklearn.metrics',
             'pemt_jax.stages.predict', 'pemt_jax.stages.run', 'pemt_jax.stages.columns')


def run_script(script: str, arguments: Sequence[str]) -> int:
  """Runs a script as the shell would; returns its exit code."""
  sys.argv = [script, *arguments]
  sys.path[0] = os.path.dirname(script)
  try:
    runpy.run_path(script, run_name='__main__')
  except SystemExit as end:
    if end.code is None or isinstance(end.code, int):
      return end.code or 0
    print(end.code, file=sys.stderr)
    return 1
  except BaseException:  # A defect, which the caller shows.
    traceback.print_exc()
    return 1
  return 0


def _child(run: Callable[[Mapping[str, Any]], int], request: Mapping[str, Any]) -> None:
  """Runs one request and ends the process."""
  for name, number in (('stdout', 1), ('stderr', 2)):
    os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
  code = run(request)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def serve(run: Callable[[Mapping[str, Any]], int],
          libraries: Sequence[str] = LIBRARIES) -> None:
  """Answers requests until stdin ends.

  Args:
    run: request -> exit code, called in a child; reads what a request has besides its two files.
    libraries: modules that all children find loaded.
  """
  for name in libraries:
    importlib.import_module(name)
  for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
      _child(run, json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == '__main__':
  serve(lambda request: run_script(request['script'], request['arguments']))
