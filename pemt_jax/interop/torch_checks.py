"""Torch files that may be hostile: what is checked before torch opens one, and behind it."""

from __future__ import annotations

import os
import pickletools
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

from pemt_jax import guards

_REPEATED_TUPLES = 48
_ALIASES = 64  # how often a file may show one storage, on average


def check_file(path: str | os.PathLike) -> None:
  """Checks a torch file before torch opens it: nothing packed, no sizes beyond the file's.

  Raises:
    ValueError: a file that torch does not write; the text is a reason.
    UserError: no plain file.
  """
  guards.require_file(path)
  size = os.path.getsize(path)
  with open(path, 'rb') as file:
    if file.read(len(guards.ZIP)) != guards.ZIP:
      file.seek(0)
      for _ in range(5):  # magic number, protocol, system, content, keys
        _check_pickle(file, size)
      return
  try:
    _check_archive(path, size)
  except guards.WRONG as error:
    raise ValueError(guards.reason_of(error)) from error


def _check_archive(path: str | os.PathLike, size: int) -> None:
  with zipfile.ZipFile(path) as archive:
    entries = archive.infolist()
    names = {entry.filename for entry in entries}
    if len(names) < len(entries) or sum(entry.file_size for entry in entries) > size or any(
        entry.compress_type != zipfile.ZIP_STORED for entry in entries):
      raise ValueError('an archive with packed or repeated entries')
    for entry in entries:
      if entry.filename.endswith('.pkl'):
        _check_pickle(archive.open(entry), size)


def _check_pickle(file: BinaryIO, size: int) -> None:
  """Walks over the instructions of a pickle, none of which is followed.

  Tuples that hold a tuple many times, level by level, would take for ever to hash; a storage or an
  array of bytes could claim any size.
  """
  tuples: set[int] = set()
  made_tuple, repeated, number = False, 0, 0
  for code, argument, _ in pickletools.genops(file):
    if code.name in ('GLOBAL', 'INST') and argument.endswith(' bytearray'):
      raise ValueError('an array of bytes, which is no tensor')
    if code.name == 'BINPERSID' and number > size:
      raise ValueError(f'a storage of {number} numbers in {size} bytes')
    if code.name in ('BINPUT', 'LONG_BINPUT'):
      if made_tuple:
        tuples.add(argument)
      continue
    own = code.name in ('BINGET', 'LONG_BINGET') and argument in tuples
    repeated += own
    if repeated > _REPEATED_TUPLES:
      raise ValueError('tuples that repeat tuples')
    made_tuple = own or code.name.startswith('TUPLE')
    if type(argument) is int and code.name not in ('BINGET', 'LONG_BINGET'):
      number = argument


def check_tensors(tensors: Mapping[str, Any], size: int, torch: Any) -> None:
  """Checks tensors of a file: plain ones on the CPU, each within its storage.

  Args:
    tensors: name -> tensor.
    size: bytes of the file.
    torch: the module.

  Raises:
    ValueError: a tensor of another kind; the text is a reason.
  """
  total = 0
  for name, tensor in tensors.items():
    plain = tensor.layout == torch.strided and tensor.device.type == 'cpu'
    if not plain or tensor.is_quantized or tensor.is_nested:
      raise ValueError(f'{name!r} is no plain tensor')
    count = tensor.numel() * tensor.element_size()
    if count > tensor.untyped_storage().nbytes():
      raise ValueError(f'{name!r} has {count} bytes, its storage fewer')
    total += count
  if total > guards.FREE_BYTES + _ALIASES * size:
    raise ValueError(f'tensors of {total} bytes in a file of {size}')
