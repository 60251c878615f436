"""Small files of a workdir: config.json, environment.json, metrics.jsonl, TensorBoard events."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections as mlc
import numpy as np

from pemt_jax.errors import UserError
from pemt_jax.experts import tree_files
from pemt_jax.sharding import processes

CONFIG = 'config.json'
ENVIRONMENT = 'environment.json'
METRICS = 'metrics.jsonl'
RESULT = 'result.json'
TIMES = 'times.json'

# Fields that a resumed run may change: they do not alter its numbers.
_FREE = tuple(f'train.{name}' for name in (
    'log_every', 'checkpoint_every', 'keep', 'progress', 'tensorboard', 'profile',
    'profile_steps', 'peak_flops')) + tuple(
        f'mesh.{axis}' for axis in ('data', 'fsdp', 'tensor', 'expert', 'replica'))

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'ml-collections',
             'grain', 'datasets', 'transformers', 'tokenizers', 'torch')


def resolved(config: mlc.ConfigDict) -> dict[str, Any]:
  """Returns the config as plain JSON values."""
  return json.loads(json.dumps(config.to_dict(), default=str, sort_keys=True))


def _flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  flat = {}
  for name, value in tree.items():
    flat |= _flat(value, f'{prefix}{name}.') if isinstance(value, dict) else {prefix + name: value}
  return flat


def check_workdir(workdir: str | os.PathLike) -> pathlib.Path:
  """Returns the workdir without making it.

  Raises:
    UserError: its name is taken by a file.
  """
  folder = pathlib.Path(workdir)
  if folder.exists() and not folder.is_dir():
    raise UserError(f'The workdir {folder} is a file; give a folder.')
  return folder


def open_workdir(workdir: str | os.PathLike) -> pathlib.Path:
  """Makes the workdir.

  Raises:
    UserError: see `check_workdir`; the folder cannot be made.
  """
  folder = check_workdir(workdir)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f'The workdir {folder} cannot be made ({error.strerror}); give a folder that '
                    'can be written.') from error
  return folder


def write_config(folder: pathlib.Path, config: mlc.ConfigDict, resumes: bool,
                 notes: Mapping[str, str] | None = None) -> None:
  """Writes config.json and environment.json.

  Args:
    folder: the workdir.
    config: config of this call.
    resumes: whether the workdir has a checkpoint, whose config must then be this one.
    notes: more fields of environment.json.

  Raises:
    UserError: the workdir holds a run of another config, or is not shared by all processes.
  """
  new = resolved(config)
  if resumes and (folder / CONFIG).exists():
    before, after = _flat(tree_files.read_json(folder / CONFIG)), _flat(new)
    for name in sorted(set(before) | set(after)):
      if name not in _FREE and before.get(name) != after.get(name):
        raise UserError(f'{folder} holds a run with config.{name} = {before.get(name)!r}, this '
                        f'call has {after.get(name)!r}; use the old value to resume it or choose '
                        'another workdir.')
  if processes.is_first():
    tree_files.write_json(folder / CONFIG, new)
    tree_files.write_json(folder / ENVIRONMENT, environment() | dict(notes or {}))
  processes.wait('config')
  if not (folder / CONFIG).exists():
    raise UserError(f'Process {jax.process_index()} does not see {folder / CONFIG}, which the first'
                    ' process has written; give a workdir on storage that all processes share.')


def environment() -> dict[str, Any]:
  """Returns versions, devices and the commit of this library's folder, where there is one."""
  versions = {}
  for name in _PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  devices = jax.devices()
  return {
      'python': platform.python_version(), 'platform': platform.platform(), 'packages': versions,
      'cpu_count': os.cpu_count(), 'devices': len(devices), 'device_kind': devices[0].device_kind,
      'device_platform': devices[0].platform, 'processes': jax.process_count(),
      'git_commit': git_commit(),
  }


def git_commit() -> str | None:
  """Returns the commit of this library's folder, '+' appended where files differ, or None."""
  folder = pathlib.Path(__file__).resolve().parent
  def ask(*command):
    return subprocess.run(['git', *command], cwd=folder, capture_output=True, text=True,
                          check=True, timeout=10).stdout.strip()
  try:
    changed = ask('status', '--porcelain', '--untracked-files=no')
    return ask('rev-parse', 'HEAD') + ('+' if changed else '')
  except (OSError, subprocess.SubprocessError):
    return None


def cut_metrics(path: pathlib.Path, step: int) -> None:
  """Removes the lines of steps after `step`, and a last line that is cut short."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text(encoding='utf-8').splitlines():
    try:
      if json.loads(line)['step'] <= step:
        kept.append(line + '\n')
    except (ValueError, KeyError):
      break
  with tree_files.replacing(path) as temporary:
    pathlib.Path(temporary).write_text(''.join(kept), encoding='utf-8')


def plain_metrics(values: Mapping[str, Any]) -> dict[str, float]:
  """Returns floats; an array [n] under `name` becomes `name_0` ... `name_<n-1>`."""
  flat = {}
  for name, value in values.items():
    array = np.asarray(value)
    if array.ndim == 0:
      flat[name] = float(array)
    else:
      flat |= {f'{name}_{i}': float(item) for i, item in enumerate(array.ravel())}
  return flat


class MetricWriter:
  """Writes one JSON object per step and replica, and the same values for TensorBoard."""

  def __init__(self, workdir: pathlib.Path, step: int, tensorboard: bool):
    """Opens the files behind `step`; values of later steps are removed.

    Args:
      workdir: place of metrics.jsonl and tensorboard/<replica>/.
      step: last step whose values stay.
      tensorboard: whether to write TensorBoard files.
    """
    self._writes = processes.is_first()
    self._folder = workdir / 'tensorboard' if tensorboard and self._writes else None
    self._step = step
    self._boards: dict[str, Any] = {}
    self._file = None
    if self._writes:
      cut_metrics(workdir / METRICS, step)
      self._file = open(workdir / METRICS, 'a', encoding='utf-8')

  def write(self, step: int, replica: str, values: Mapping[str, Any]) -> None:
    """Writes the values of one replica; names carry their unit, arrays are spread over names."""
    if not self._writes:
      return
    flat = plain_metrics(values)
    self._file.write(json.dumps({'step': step, 'replica': replica, **flat}) + '\n')
    self._file.flush()
    if self._folder is not None:
      for name, value in flat.items():
        self._board(replica).add_scalar(name, value, step)

  def _board(self, replica: str) -> Any:
    if replica not in self._boards:
      import tensorboardX  # pylint: disable=g-import-not-at-top
      self._boards[replica] = tensorboardX.SummaryWriter(
          str(self._folder / replica), purge_step=self._step + 1)
    return self._boards[replica]

  def close(self) -> None:
    """Flushes and closes all files."""
    for board in self._boards.values():
      board.close()
    if self._file is not None:
      self._file.close()
