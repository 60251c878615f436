"""Checkpoints of the original weight-ensembling program: `checkpoint-best.pt` and merged deltas.

A file is a dict of the tuned delta under a key of its own, the program's flags (`args`) and
`current_state`; checkpoints of training have an optimiser and a config object beside these, which
are not read. The flag `tune_method` says what the delta is.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from pemt_jax import guards
from pemt_jax.errors import UserError
from pemt_jax.interop import ensembling_original, files, names, torch_checks
from pemt_jax.interop.ensembling_original import EnsemblingLayout
from pemt_jax.models.t5_config import T5Config
from pemt_jax.trees import Tree

# tune_method -> (key of the delta in a file, parts of a state that it holds)
KINDS = {
    'adapter': ('adapter', ('adapter',)), 'lora': ('lora', ('lora',)), 'bias': ('lora', ('lora',)),
    'prefix': ('prefix', ('prefix',)), 'prompt': ('prompt', ('prompt',)),
    'hyper_PET': ('hyper_PET', ensembling_original.DELTAS),
    'lora_stage2': ('lora_R', ('lora',)), 'bias_stage2': ('lora_R', ('lora',)),
    'model': ('model', ('backbone',))}


@dataclasses.dataclass
class Checkpoint:
  """What is read of a file.

  Attributes:
    delta: original name -> array.
    flags: of the program; `tune_method` is one of `KINDS`.
    epoch: of training.
    updates: made so far.
  """

  delta: dict[str, np.ndarray]
  flags: dict[str, Any]
  epoch: int = 0
  updates: int = 0

  def layout(self, config: T5Config) -> EnsemblingLayout:
    """The layout of the model that the delta belongs to; `config` is its backbone's."""
    prompt = self.delta.get('prompt')
    return ensembling_original.layout_from_flags(self.flags, config,
                                                 0 if prompt is None else len(prompt))

  def table(self, config: T5Config) -> names.Table:
    """The delta's tensors and their places in a tree."""
    key, parts = KINDS[self.flags['tune_method']]
    table = ensembling_original.table_of(self.layout(config), parts)
    if key != 'lora_R':
      return table
    return names.Table(tuple(w for w in table.weights if w.name.endswith('.lora_R')))

  def tree(self, config: T5Config, place: str = 'the checkpoint') -> dict[str, Tree]:
    """Translates the delta.

    Args:
      config: of the backbone.
      place: file for messages.

    Returns:
      {'params': tree, 'constants': mask of a prompt}.

    Raises:
      UserError: names or shapes that do not belong to the flags and the backbone.
    """
    return {'params': names.load(self.delta, self.table(config), place),
            'constants': ensembling_original.constants_of(self.layout(config))}


def from_tree(params: Mapping[str, Any], flags: Mapping[str, Any], config: T5Config,
              prompt_length: int = 0) -> Checkpoint:
  """The reverse of `Checkpoint.tree`, with the second names that the program writes.

  Args:
    params: tuned tree.
    flags: of the program.
    config: of the backbone.
    prompt_length: rows of a prompt.

  Raises:
    UserError: an unknown `tune_method`, or leaves that do not belong to it.
  """
  _check_method(flags, 'the flags')
  rows = {'prompt': np.zeros((prompt_length, 0), np.float32)} if prompt_length else {}
  empty = Checkpoint(rows, dict(flags))
  return dataclasses.replace(empty, delta=names.dump(params, empty.table(config), aliases=True))


class _Inert:
  """Stands for every class of a file that is not read; does nothing whatever it is given."""

  def __new__(cls, *arguments, **options):
    del arguments, options
    return super().__new__(cls)

  def __init__(self, *arguments, **options):
    del arguments, options

  def __setstate__(self, state):
    del state


def read(path: str | pathlib.Path) -> Checkpoint:
  """Reads a checkpoint; objects in it are never made, and no code in it runs.

  Raises:
    UserError: no such file, torch missing, or a file that is none of the program's.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f"there is no file '{path}'; correct the path.")
  torch = files.import_torch()
  serialization = torch.serialization
  try:
    torch_checks.check_file(path)
    unknown = serialization.get_unsafe_globals_in_checkpoint(str(path))
    with serialization.safe_globals([(_Inert, name) for name in unknown]):
      loaded = torch.load(path, map_location='cpu', weights_only=True)
  except guards.WRONG as error:
    raise UserError(f"'{path}' is no checkpoint of the ensembling program"
                    f' ({guards.reason_of(error)}); nothing in it was executed; give another file.'
                    ) from error
  with guards.reading(path, 'give another file'):
    if not isinstance(loaded, Mapping) or not isinstance(loaded.get('args'), Mapping):
      raise UserError(f"'{path}' is no checkpoint of the ensembling program, since it has no dict"
                      " 'args' of flags; give another file.")
    return _checkpoint(loaded, path, torch)


def _check_method(flags: Mapping[str, Any], place: Any) -> None:
  if flags.get('tune_method') not in KINDS:
    raise UserError(f"'{place}' has tune_method '{flags.get('tune_method')}'; those that can be"
                    f" read are {', '.join(KINDS)}.")


def _checkpoint(loaded, path, torch):
  flags = dict(loaded['args'])
  _check_method(flags, path)
  key = KINDS[flags['tune_method']][0]
  delta = loaded.get(key)
  if isinstance(delta, torch.Tensor):
    delta = {key: delta}
  if not isinstance(delta, Mapping) or not all(
      isinstance(value, torch.Tensor) for value in delta.values()):
    raise UserError(f"'{path}' has no tensors under '{key}', where tune_method"
                    f" '{flags['tune_method']}' keeps them; give another file.")
  torch_checks.check_tensors(delta, path.stat().st_size, torch)
  state = loaded.get('current_state') or {}
  tensors = {name: files.to_numpy(value, torch) for name, value in delta.items()}
  return Checkpoint(tensors, flags, int(state.get('epoch', 0)), int(state.get('num_updates', 0)))


def write(path: str | pathlib.Path, checkpoint: Checkpoint) -> None:
  """Writes a checkpoint as the program's merges do: delta, flags and state, no optimiser.

  Raises:
    UserError: torch missing, or an unknown `tune_method`.
  """
  path, torch = pathlib.Path(path), files.import_torch()
  _check_method(checkpoint.flags, path)
  key = KINDS[checkpoint.flags['tune_method']][0]
  delta: Any = {name: files.to_torch(value, torch) for name, value in checkpoint.delta.items()}
  with files.replacing(path) as temporary:
    torch.save({key: delta[key] if key == 'prompt' else delta, 'args': dict(checkpoint.flags),
                'current_state': {'epoch': checkpoint.epoch, 'num_updates': checkpoint.updates}},
               temporary)
