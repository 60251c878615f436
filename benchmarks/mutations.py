"""Damage for files: bytes flipped, cut or put in, values of JSON and sizes of arrays changed.

Every change is a function of a random generator, so that a seed tells the whole case.
"""

from __future__ import annotations

import io
import json
import os
import pathlib
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from typing import Any

# What a value of JSON becomes.
VALUES = (
    None, True, -1, 0, 3, 10**9, 10**12, 10**30, 1e308, float('nan'), float('inf'), 0.5, '', 'x',
    'x' * 5000, '../../../etc/passwd', '/etc/passwd', '\ud800', 'a\x00b', '\u202edcba', '\ufeff',
    '<script>alert(1)</script>', '$x_{$', '%s{0}{a}', '(a*)*$', [], {}, [[]], [None], ['x', 1],
    {'a': {'b': 1}}, json.loads('[' * 90 + ']' * 90))
_BYTES = (b'\x00', b'\xff\xfe', b'\xef\xbb\xbf', b'\r\n', b'\xe2\x80\xa8', b'\x1b[2J', b'"', b'{',
          b'[' * 2000, b'\t', b',', b'NaN', b'1' * 5000, b'../')
_NUMBERS = (0, 1, 127, 2**31 - 1, 2**32 - 1, 2**63 - 1, 10**12)
_ZIP = b'PK\x03\x04'
Rng = random.Random


def flip(data: bytes, rng: Rng) -> bytes:
  """A few bits turned over."""
  found = bytearray(data)
  for _ in range(rng.choice((1, 1, 2, 8))):
    if found:
      found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
  return bytes(found)


def cut(data: bytes, rng: Rng) -> bytes:
  """The end, or a piece of the middle, lost."""
  start = rng.randrange(len(data) + 1)
  return data[:start] + (data[start + rng.randrange(1, 40):] if rng.random() < 0.5 else b'')


def put_in(data: bytes, rng: Rng) -> bytes:
  """Bytes that readers stumble over, or a piece a second time."""
  place, start = (rng.randrange(len(data) + 1) for _ in range(2))
  piece = rng.choice(_BYTES) if rng.random() < 0.7 else data[start:start + rng.randrange(1, 200)]
  return data[:place] + piece + data[place:]


def overwrite(data: bytes, rng: Rng) -> bytes:
  """A number of 4 or 8 bytes in place of what is there."""
  form = rng.choice(('<I', '<Q', '>I'))
  size, number = struct.calcsize(form), rng.choice(_NUMBERS)
  place = rng.randrange(max(len(data) - size, 0) + 1)
  return data[:place] + struct.pack(form, number % 2 ** (8 * size)) + data[place + size:]


def change_json(text: bytes, rng: Rng) -> bytes:
  """One value changed, removed, renamed or doubled; what is no JSON is returned as it is."""
  try:
    value = json.loads(text)
  except ValueError:
    return text
  holder = [value]
  nodes = list(_places(holder))
  owner, key = rng.choice(nodes)
  action = rng.randrange(6)
  if action == 0 and isinstance(owner, dict):
    del owner[key]
  elif action == 1 and isinstance(owner, dict):
    owner[rng.choice(('', 'x', 'a/b', '__class__', '../x'))] = owner.pop(key)
  elif action == 2:
    owner[key] = rng.choice(([owner[key]], {'a': owner[key]}, str(owner[key])))
  elif action == 3 and isinstance(owner, list):
    owner.append(owner[key])
  else:
    owner[key] = rng.choice(VALUES)
  return json.dumps(holder[0]).encode()


def _places(value: Any) -> Any:
  items = value.items() if isinstance(value, dict) else enumerate(value)
  for key, child in list(items):
    yield value, key
    if isinstance(child, dict | list):
      yield from _places(child)


def change_line(data: bytes, rng: Rng) -> bytes:
  """One line changed as JSON."""
  lines = data.split(b'\n')
  number = rng.randrange(len(lines))
  lines[number] = change_json(lines[number], rng)
  return b'\n'.join(lines)


def change_header(data: bytes, rng: Rng) -> bytes:
  """The header of a safetensors file changed, with the right length."""
  size = int.from_bytes(data[:8], 'little')
  header = change_json(data[8:8 + size], rng)
  return struct.pack('<Q', len(header)) + header + data[8 + size:]


def change_shape(data: bytes, rng: Rng) -> bytes:
  """Another number in the header of an .npy file."""
  digits = [place for place in range(8, min(len(data), 128)) if data[place:place + 1].isdigit()]
  if not digits:
    return data
  place = rng.choice(digits)
  return data[:place] + str(rng.choice(_NUMBERS)).encode() + data[place + 1:]


def change_entry(data: bytes, rng: Rng) -> bytes:
  """One entry of an archive changed, packed, lost, doubled or renamed."""
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      entries = {name: archive.read(name) for name in archive.namelist()}
  except (zipfile.BadZipFile, ValueError):  # damaged once already
    return data
  chosen, action, kind = rng.choice(list(entries)), rng.randrange(6), zipfile.ZIP_STORED
  content, name = entries.pop(chosen), chosen
  if action == 1:
    kind = zipfile.ZIP_DEFLATED
  elif action == 2:
    name = rng.choice(('../../x', '/x', 'x.pkl', 'x'))
  elif action > 2:
    content = rng.choice((flip, cut, overwrite, put_in, change_shape))(content, rng)
  found = io.BytesIO()
  with zipfile.ZipFile(found, 'w') as target:
    for own in entries:
      target.writestr(own, entries[own])
    if action:
      target.writestr(name, content, kind)
  return found.getvalue()


def changes_of(path: pathlib.Path, data: bytes) -> list[Callable[[bytes, Rng], bytes]]:
  """The changes that make sense for a file, those that know its form more often."""
  general = [flip, cut, put_in, overwrite]
  if data.startswith(_ZIP):
    return [*general, *[change_entry] * 8]
  known = {'.json': change_json, '.jsonl': change_line, '.safetensors': change_header,
           '.npy': change_shape}
  return general + [known[path.suffix]] * 8 if path.suffix in known else general


def damage(folder: pathlib.Path, rng: Rng) -> str:
  """Changes one or two files below a folder; returns what was done, for a report."""
  done = []
  for _ in range(rng.choice((1, 1, 2))):
    files = sorted(path for path in folder.rglob('*') if path.is_file() and not path.is_symlink())
    if not files:
      break
    path = rng.choice(files)
    done.append(f'{_damage_file(path, rng)} {path.relative_to(folder)}')
  return ', '.join(done)


def _damage_file(path: pathlib.Path, rng: Rng) -> str:
  action = rng.randrange(40)
  if action == 0:
    path.unlink()
    return 'removed'
  if action == 1:
    path.unlink()
    path.mkdir()
    return 'made a folder of'
  if action == 2:
    path.unlink()
    path.symlink_to('/dev/zero')
    return 'linked'
  if action == 3:
    path.unlink()
    os.mkfifo(path)
    return 'made a pipe of'
  if action == 4:
    others = sorted(other for other in path.parent.iterdir() if other.is_file())
    content = rng.choice(others).read_bytes()
    path.write_bytes(content)
    return 'overwrote with a neighbour'
  data = path.read_bytes()
  change = rng.choice(changes_of(path, data))
  path.write_bytes(change(data, rng))
  return change.__name__


def fresh(template: pathlib.Path, folder: pathlib.Path) -> None:
  """Puts a copy of a folder of whole files in place of a folder."""
  shutil.rmtree(folder, ignore_errors=True)
  shutil.copytree(template, folder, symlinks=True)
