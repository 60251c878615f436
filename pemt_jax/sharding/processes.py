"""Several processes of one program: their start, who writes files, where they wait, how they agree.

All processes run the same program on one mesh. The first of them (index 0) writes every file that
is not sharded, the others wait until they may read it; so all must see the same folders. What one
process decides alone (a signal, a file that cannot be read) is agreed on before it has an effect.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pemt_jax.errors import UserError
from pemt_jax.sharding import watch

AUTO = 'auto'
LOST_CODE = 3  # exit code of a process that another one has left alone
HEARTBEAT_SECONDS = 60  # until JAX counts a silent process as lost and ends the others
# Of a process that hears of a loss, to end by its own mistake; of the first one, for the others.
GRACE_SECONDS, LAST_WORDS_SECONDS = 3, 5
NEWS_SECONDS = 2  # from a failed exchange of data until it is known who is gone

# How the collectives of the platforms and JAX's coordinator tell that a process is gone.
_LOSS = re.compile(r'Gloo|NCCL|coordination service|heartbeat|[Bb]arrier|Connection (reset|closed)|'
                   r'Socket closed|UNAVAILABLE')
_watch: watch.Watch | None = None  # of the processes that `start` has joined
_leaving = threading.Lock()  # held by the thread that ends this process


def start(address: str, process_count: int | None, index: int | None, timeout: int) -> None:
  """Joins the processes of one program; to be called before any computation.

  Args:
    address: host:port of the coordinator, which the first process opens; 'auto' takes address,
      number and index from the platform (TPU pods, Slurm, Open MPI, Kubernetes), as JAX finds them.
    process_count: number of processes.
    index: of this process, from 0.
    timeout: seconds to wait for all processes.

  Raises:
    UserError: values that are missing or do not fit, or 'auto' where there is no such platform.
    SystemExit: not all came in time; it ends the process from another thread, with `LOST_CODE`.
  """
  if address != AUTO:
    _check(address, process_count, index)
  # A signal ends commands as usual; the training loop agrees on the step where it stops.
  jax.config.update('jax_enable_preemption_service', False)
  place = 'the platform names' if address == AUTO else address
  alarm = threading.Timer(timeout, _give_up, [
      f'Not all processes came to the coordinator {place} within {timeout} s; check the address '
      'and that every process runs, or raise --process_timeout.'])
  alarm.daemon = True
  alarm.start()
  known = {} if address == AUTO else {
      'coordinator_address': address, 'num_processes': process_count, 'process_id': index}
  try:
    jax.distributed.initialize(
        **known, initialization_timeout=2 * timeout + 60,
        heartbeat_timeout_seconds=min(timeout, HEARTBEAT_SECONDS))
  except (ValueError, RuntimeError) as error:
    raise UserError(f"The processes cannot be started with the coordinator '{address}' "
                    f'({" ".join(str(error).split())}); correct --coordinator_address.') from error
  finally:
    alarm.cancel()
  global _watch
  _watch = watch.Watch(_lost)
  watch.delay_aborts()


def _check(address: str, process_count: int | None, index: int | None) -> None:
  """Refuses what `start` cannot use."""
  if not re.fullmatch(r'(\[[^\]]+\]|[^:\s]+):\d{1,5}', address):
    raise UserError(f"--coordinator_address is '{address}'; give host:port of the first process, or"
                    f" '{AUTO}' on a TPU pod or under Slurm.")
  if process_count is None or process_count < 1:
    raise UserError(f'--process_count is {process_count}; give the number of processes, at least'
                    ' 1.')
  if index is None or not 0 <= index < process_count:
    raise UserError(f'--process_index is {index}, which is outside 0..{process_count - 1}; give '
                    'every process a number of its own.')


def as_member(call: Callable[[], int | None], address: str, process_count: int | None,
              index: int | None, timeout: int) -> int | None:
  """Runs a command as one of several processes; arguments behind the first are those of `start`.

  Only the first process prints to stdout. One that fails ends at once, so that the others notice;
  one that notices ends with one sentence and `LOST_CODE`.

  Returns:
    What the command returned: None, or 0.

  Raises:
    UserError: see `start`.
  """
  start(address, process_count, index, timeout)
  try:
    with open(os.devnull, 'w', encoding='utf-8') as nowhere:
      with contextlib.redirect_stdout(sys.stdout if is_first() else nowhere):
        code = call()
  except SystemExit:
    _watch.done()
    raise
  except Exception as error:  # pylint: disable=broad-except
    sentence = loss_of(error)
    leave(LOST_CODE if sentence else 1, sentence or traceback.format_exc())
  if code:
    leave(code)
  _watch.done()
  return code


def _give_up(sentence: str) -> None:
  leave(LOST_CODE, sentence)


def _lost(index: int) -> None:
  """Ends this process because another one is gone, unless it ends by itself within the grace."""
  time.sleep(GRACE_SECONDS)
  leave(LOST_CODE, _loss(index))


def leave(code: int, sentence: str = '') -> NoReturn:
  """Ends this process at once; a usual exit would wait for the other processes.

  The first one, whose end JAX answers by aborting the others, lets them tell their mistake before.

  Args:
    code: exit code.
    sentence: to be printed to stderr before.
  """
  _leaving.acquire()  # Another thread that would leave, too, waits for the end.
  if sentence:
    print(sentence, file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  if _watch is not None:
    _watch.close()
    if _watch.leads:
      time.sleep(LAST_WORDS_SECONDS)
  os._exit(code)


def loss_of(error: BaseException) -> str | None:
  """The sentence for an error that another process has caused by its end, or None."""
  if count() == 1 or not isinstance(error, (RuntimeError, ValueError)):
    return None
  if isinstance(error, UserError) or not _LOSS.search(str(error)):
    return None
  return _loss(_watch and _watch.lost(NEWS_SECONDS), f' ({" ".join(str(error).split())[:200]})')


def _loss(lost: int | None, reason: str = '') -> str:
  other = 'another process' if lost is None else f'process {lost}'
  return (f'This process has lost {other}{reason}; see the output of that one, then start the same '
          'command again to resume.')


def count() -> int:
  """Number of processes; 1 without starting a device where none was joined."""
  return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
  """Whether this process writes what only one may write."""
  return count() == 1 or jax.process_index() == 0


def wait(name: str) -> None:
  """Waits until all processes are here; `name` must be the same on all."""
  if count() > 1:
    multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def first_before_others(name: str) -> Iterator[None]:
  """Runs a block on the first process, then on the others, which find what it has made."""
  if not is_first():
    wait(name)
  try:
    yield
  finally:
    if is_first():
      wait(name)


def begin_maximum(value: int) -> jax.Array:
  """Begins to find the greatest value of all processes; reading the result waits for it."""
  per_device, maximum = _maximum()
  return maximum(jax.make_array_from_callback(
      (jax.device_count(),), per_device, lambda _: np.array([value], np.int32)))


@functools.cache
def _maximum():
  """Sharding of one number per device, and the compiled maximum of such numbers."""
  mesh = Mesh(np.array(jax.devices()), ('device',))
  return (NamedSharding(mesh, PartitionSpec('device')),
          jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec())))


def any_of(flag: bool) -> bool:
  """Whether the flag is set on any process."""
  return flag if count() == 1 else bool(begin_maximum(int(flag)))


def joined(numbers: Sequence[int]) -> list[int]:
  """The numbers, at least 0, of all processes in ascending order, each once."""
  if count() == 1:
    return list(numbers)
  own = np.full(int(begin_maximum(len(numbers))), -1, np.int32)
  own[:len(numbers)] = numbers
  return [int(n) for n in np.unique(multihost_utils.process_allgather(own)) if n >= 0]


def mean(values: Mapping[str, float]) -> dict[str, float]:
  """Means over processes; names and their order must be the same on all."""
  if count() == 1:
    return dict(values)
  found = multihost_utils.process_allgather(np.array(list(values.values()), np.float32))
  return dict(zip(values, found.mean(axis=0).tolist(), strict=True))
