"""Runs of `benchmarks/kills_config.py` that can be killed, and what they leave."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import random
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.killed import Moment, Request

REPO = pathlib.Path(__file__).resolve().parents[1]
MESHES = {'1': {}, '8': {'data': 2, 'fsdp': 2, 'tensor': 2}}  # devices -> config.mesh
KILLED = -9
# Fields that hold times, speeds and sizes of memory, and the folder of the run.
_UNLIKE = re.compile(r'second|time|share|memory|bytes|goodput|flops')
_SKIPPED = ('times.json', 'usage.json', 'resources.json', 'environment.json', '.lock', 'cache',
            'checkpoints')


class Starters:
  """Processes that start runs, each one of the processes of a run; use it in a `with` statement."""

  def __init__(self, devices: str = '1', processes: int = 1):
    """Starts them.

    Args:
      devices: key of `MESHES`: simulated devices of each process.
      processes: that make up a run.
    """
    self.devices = devices
    flag = f'--xla_force_host_platform_device_count={devices}'
    environment = dict(os.environ, PYTHONPATH=str(REPO), HF_HUB_OFFLINE='1', JAX_PLATFORMS='cpu',
                       XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip())
    self._members = [subprocess.Popen(
        [sys.executable, str(REPO / 'benchmarks' / 'killed.py')], cwd=REPO, env=environment,
        text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(processes)]

  def __len__(self) -> int:
    return len(self._members)

  def ask(self, requests: Sequence[Request]) -> list[int]:
    """Runs one request in each process, all at the same time; returns their exit codes."""
    for member, request in zip(self._members, requests, strict=True):
      member.stdin.write(json.dumps(dataclasses.asdict(request)) + '\n')
      member.stdin.flush()
    return [int(member.stdout.readline()) for member in self._members]

  def __enter__(self) -> Starters:
    return self

  def __exit__(self, *unused: Any) -> None:
    for member in self._members:
      member.stdin.close()
      member.wait()
      member.stdout.close()


class KillableRun:
  """One workdir and the command that trains in it.

  Attributes:
    folder: holds the workdir `run`, and `order<process>.jsonl` with all batches that were drawn.
    workdir: of the run.
    seconds: {phase: seconds of each call} of the last start that came to its end.
  """

  def __init__(self, folder: pathlib.Path):
    """Makes the folder, which must not exist."""
    self.folder, self.workdir = folder, folder / 'run'
    self.seconds: dict[str, list[float]] = {}
    folder.mkdir(parents=True)

  def start(self, starters: Starters, moment: Moment = Moment()) -> bool:
    """Gives the command once more; returns whether it came to its end.

    Args:
      starters: that run it.
      moment: when one of its processes is killed.

    Raises:
      RuntimeError: it failed without being killed.
    """
    with socket.socket() as free:
      free.bind(('localhost', 0))
      port = free.getsockname()[1]
    command = ['launch/train.py', f'--config={REPO}/benchmarks/kills_config.py',
               f'--workdir={self.workdir}']
    command += [f'--config.mesh.{axis}={size}' for axis, size in MESHES[starters.devices].items()]
    if len(starters) > 1:
      command += [f'--coordinator_address=localhost:{port}', f'--process_count={len(starters)}']
    codes = starters.ask([Request(
        (*command, f'--process_index={index}') if len(starters) > 1 else command,
        moment if index == moment.member else Moment(),
        *(str(self._file(name, index)) for name in ('order', 'seconds', 'output', 'errors')))
                          for index in range(len(starters))])
    if not any(codes):
      self.seconds = json.loads(self._file('seconds', 0).read_text())
    elif codes[moment.member] != KILLED:
      texts = [self._file('errors', index).read_text()[-2000:] for index in range(len(codes))]
      raise RuntimeError(f'codes {codes}: {texts}')
    return not any(codes)

  def _file(self, name: str, index: int) -> pathlib.Path:
    return self.folder / f'{name}{index}.jsonl'

  def to_the_end(self, starters: Starters, seconds: Mapping[str, list[float]],
                 rng: random.Random, most: int) -> Iterator[dict[str, Any]]:
    """Starts the run until it ends; yields the moments at which it was killed.

    Args:
      starters: that run it.
      seconds: of the calls of each phase in an undisturbed run.
      rng: draws the moments.
      most: kills before it may come to its end.
    """
    while most:
      moment = dataclasses.replace(draw(seconds, rng), member=rng.randrange(len(starters)))
      if self.start(starters, moment):
        return
      most -= 1
      yield dataclasses.asdict(moment)
    self.start(starters)


def draw(seconds: Mapping[str, list[float]], rng: random.Random) -> Moment:
  """Draws a phase, one of its calls that took any time, and a moment within that call."""
  phase = rng.choice(sorted(seconds))
  entries = [i for i, own in enumerate(seconds[phase]) if own > 1e-4]
  entry = rng.choice(entries or range(len(seconds[phase])))
  return Moment(phase, entry + 1, rng.uniform(0, seconds[phase][entry]))


def differences(first: KillableRun, second: KillableRun, rtol: float = 0.0) -> list[str]:
  """Compares all that two runs leave but times: arrays, metrics, texts, order of the data.

  Args:
    first: an undisturbed run.
    second: a run that was killed and started again.
    rtol: allowed relative difference of numbers; 0 compares bits.

  Returns:
    A sentence for each difference.
  """
  found = []
  ours, theirs = _contents(first.workdir), _contents(second.workdir)
  for name in sorted(set(ours) | set(theirs)):
    if name not in ours or name not in theirs:
      found.append(f'only one of the runs has {name}')
    elif not _same(ours[name], theirs[name], rtol):
      found.append(f'{name} differs')
  order = _order(first.folder)
  for place, ids in _order(second.folder).items():
    if ids != order.get(place):
      found.append(f'other rows in the batch of file, step, replica {place}')
  return found


def _order(folder: pathlib.Path) -> dict[tuple[str, int, str], list[Any]]:
  """{(file, step, replica): the different batches that were drawn for it}."""
  order: dict[tuple[str, int, str], list[Any]] = {}
  for path in sorted(folder.glob('order*')):
    for line in path.read_text().splitlines():
      step, name, ids = json.loads(line)
      drawn = order.setdefault((path.name, step, name), [])
      if ids not in drawn:
        drawn.append(ids)
  return order


def _contents(workdir: pathlib.Path) -> dict[str, Any]:
  """{place: value} of all numbers and texts below a workdir."""
  found: dict[str, Any] = {}
  for path in sorted(workdir.rglob('*')):
    name = path.relative_to(workdir).as_posix()
    if not path.is_file() or name.split('/')[0] in _SKIPPED or '/checkpoint/' in name:
      continue
    if path.suffix == '.npz':
      with np.load(path) as arrays:
        found |= {f'{name}: {key}': arrays[key] for key in arrays.files}
    elif path.suffix in ('.json', '.jsonl'):
      text = path.read_text().replace(str(workdir), '')
      values = [json.loads(text)] if path.suffix == '.json' else map(json.loads, text.splitlines())
      found |= {f'{name}: {number}: {key}': value for number, line in enumerate(values)
                for key, value in _leaves(line) if not _UNLIKE.search(key)}
    else:
      found[name] = path.read_bytes()
  states = sorted((workdir / 'checkpoints' / 'run').glob('[0-9]*/state'))
  trees = [*states, *workdir.glob('experts/*/checkpoint/arrays'),
           *workdir.glob('checkpoints/best/*/*/arrays')]
  for place in trees:
    found |= {f'{place.relative_to(workdir)}: {key}': value for key, value in _arrays(place)}
  return found


def _leaves(value: Any, path: str = '') -> Iterator[tuple[str, Any]]:
  """(path, value) of everything in JSON values that is no dict and no list."""
  if not isinstance(value, (dict, list)):
    yield path, value
    return
  for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
    yield from _leaves(inner, f'{path}/{key}')


def _arrays(place: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
  """(name, array) of an Orbax tree, on whatever devices it was written."""
  import jax
  import orbax.checkpoint as ocp
  from pemt_jax.experts.tree_files import named_leaves
  with ocp.PyTreeCheckpointer() as checkpointer:
    shapes = checkpointer.metadata(place).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
    tree = checkpointer.restore(place, restore_args=as_numpy)
  yield from named_leaves(tree).items()


def _same(ours: Any, theirs: Any, rtol: float) -> bool:
  if rtol and np.issubdtype(np.asarray(ours).dtype, np.floating):
    return bool(np.allclose(ours, theirs, rtol=rtol, atol=rtol, equal_nan=True))
  if isinstance(ours, np.ndarray):
    return ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()
  return ours == theirs or ours != ours and theirs != theirs
