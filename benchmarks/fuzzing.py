"""One damaged input after another, each under limits; what must not happen is told."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator

from benchmarks import mutations
from benchmarks.readers import CASES, OUTPUT, WHOLE
from pemt_jax.errors import UserError

MEMORY = 1 << 30  # bytes that one input may take
SECONDS = 10.0  # that it may take
_HEADROOM = 4 << 30  # of address space over that of the loaded libraries
_FORBIDDEN = ('os.system', 'os.exec', 'os.posix_spawn', 'os.spawn', 'subprocess.Popen',
              'os.startfile', 'socket.connect', 'shutil.rmtree', 'os.remove')
_DAMAGED = 'damaged'


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of one damaged input.

  Attributes:
    kind: 'read', 'refused' or 'broken'.
    damage: what was done to the input.
    reason: the sentence of a refusal, or what must not happen.
  """

  kind: str
  damage: str = ''
  reason: str = ''


def prepare(root: pathlib.Path, name: str) -> None:
  """Makes the whole input of a case below `root` and reads it once."""
  folder = root / name / WHOLE
  if not folder.is_dir():
    folder.mkdir(parents=True)
    CASES[name].make(folder)
    mutations.fresh(folder, root / name / _DAMAGED)
    CASES[name].read(root / name / _DAMAGED)


def attempt(root: pathlib.Path, name: str, seed: int, watch: Watch | None = None) -> Outcome:
  """Damages the input of a case as a seed says, and reads it.

  Args:
    root: see `prepare`.
    name: of the case.
    seed: of the damage.
    watch: sees what the reader does to the machine; None bounds neither time nor memory.
  """
  folder = root / name / _DAMAGED
  mutations.fresh(root / name / WHOLE, folder)
  damage = mutations.damage(folder, random.Random(f'{name} {seed}'))
  before, start = _peak_bytes(), time.monotonic()
  with warnings.catch_warnings(), watch.on(root) if watch else contextlib.nullcontext():
    warnings.simplefilter('ignore')
    outcome = _read(name, folder, damage)
  taken = _peak_bytes() - before
  wrong = list(watch.seen) if watch else []
  if watch and taken > MEMORY:
    wrong.append(f'took {taken >> 20} MiB')
  if watch and time.monotonic() - start > SECONDS:
    wrong.append(f'took {time.monotonic() - start:.1f} s')
  mutations.fresh(root / name / WHOLE, root / name / OUTPUT)  # what was written is not kept
  return Outcome('broken', damage, '; '.join(wrong)) if wrong else outcome


def _read(name: str, folder: pathlib.Path, damage: str) -> Outcome:
  try:
    CASES[name].read(folder)
  except UserError as error:
    broken = _out_of_memory(error) or '\n' in str(error)
    return Outcome('broken' if broken else 'refused', damage, str(error))
  except (KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:  # What is looked for: any of them would be a traceback.
    place = traceback.extract_tb(error.__traceback__)[-1]
    return Outcome('broken', damage, f'{type(error).__name__}: {str(error)[:200]} in {place.name}, '
                   f'{pathlib.Path(place.filename).name}:{place.lineno}')
  return Outcome('read', damage)


def _out_of_memory(error: BaseException | None) -> bool:
  while error is not None:
    if isinstance(error, MemoryError):
      return True
    error = error.__cause__
  return False


def _peak_bytes() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Watch:
  """Records programs started, connections made and files written outside of a folder.

  Attributes:
    seen: what was seen since the last `on`.
  """

  def __init__(self):
    self.seen: list[str] = []
    self._root: str | None = None
    sys.addaudithook(self._hook)

  @contextlib.contextmanager
  def on(self, root: pathlib.Path) -> Iterator[None]:
    """Watches what happens inside of the context."""
    self.seen, self._root = [], str(root.resolve())
    try:
      yield
    finally:
      self._root = None

  def _hook(self, event, arguments):
    if self._root is None:
      return
    if event in _FORBIDDEN and not _below(self._root, arguments):
      self.seen.append(f'{event} {str(arguments)[:200]}')
    elif event == 'open' and arguments[2] & (os.O_WRONLY | os.O_RDWR) and not _below(
        self._root, arguments):
      self.seen.append(f'wrote {arguments[0]}')


def _below(root, arguments):
  path, folder = arguments[0], arguments[-1]
  if not isinstance(path, (str, bytes, os.PathLike)):
    return False
  path = os.fsdecode(path)
  if not os.path.isabs(path) and isinstance(folder, int) and folder > 2:
    path = os.path.join(os.readlink(f'/proc/self/fd/{folder}'), path)
  return os.path.realpath(path).startswith((root, '/dev/null'))


def limit_memory() -> None:
  """Bounds the address space of this process, the loaded libraries left out."""
  tempfile.gettempdir()  # writes a file when it is first called
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
  most = pages * resource.getpagesize() + _HEADROOM
  resource.setrlimit(resource.RLIMIT_AS, (most, most))
