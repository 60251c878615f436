"""Groups of local processes, and the runs that tests of stages share."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest

from tests.stages.fixtures import backbone, base, stage1  # pylint: disable=unused-import

REPO = pathlib.Path(__file__).resolve().parents[2]


class Group:
  """Processes of one program on this machine; their output goes to files."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder

  def __call__(self, count: int, *arguments: str, devices: int = 2,
               timeout: float = 200) -> list[tuple[int, str, str]]:
    """Runs `python ARGUMENTS` as `count` processes with `devices` devices each.

    Returns:
      (exit code, stdout, stderr) of each; what still runs after `timeout` seconds is killed.
    """
    with socket.socket() as free:
      free.bind(('localhost', 0))
      address = f'localhost:{free.getsockname()[1]}'
    flags = f'--xla_force_host_platform_device_count={devices}'
    environment = dict(os.environ, PYTHONPATH=str(REPO), XLA_FLAGS=' '.join(
        filter(None, [os.environ.get('XLA_FLAGS'), flags])))
    started, places = [], []
    for index in range(count):
      place = [self.folder / f'{name}.{index}' for name in ('stdout', 'stderr')]
      member = ([f'--coordinator_address={address}', f'--process_count={count}',
                 f'--process_index={index}'] if count > 1 else [])
      with open(place[0], 'w') as stdout, open(place[1], 'w') as stderr:
        started.append(subprocess.Popen([sys.executable, *map(str, arguments), *member],
                                        cwd=REPO, env=environment, stdout=stdout, stderr=stderr))
      places.append(place)
    end = time.monotonic() + timeout
    for process in started:
      try:
        process.wait(max(end - time.monotonic(), 0.1))
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return [(process.returncode, *map(_without_gloo, place))
            for process, place in zip(started, places, strict=True)]


def _without_gloo(path: pathlib.Path) -> str:
  """What was printed, but for the lines that Gloo prints about its connections."""
  lines = path.read_text().splitlines(keepends=True)
  return ''.join(line for line in lines if 'peer ranks' not in line)


@pytest.fixture(scope='module')
def group(tmp_path_factory):
  """`group(2, 'script.py', '--option=value')` -> [(exit code, stdout, stderr)]."""
  return Group(tmp_path_factory.mktemp('group'))
