"""Tells the processes of one program at once when one of them is gone, and which one.

Every process keeps a connection to the first one. The system closes it when the process ends, in
whatever way, and probes it when the machine at the other end is silent. Who is done says so before.
JAX misses heartbeats only after a minute, does not say whose, and aborts.
"""

from __future__ import annotations

import contextlib
import ctypes
import hmac
import json
import logging
import secrets
import selectors
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator

from jax._src import distributed  # The coordinator keeps what processes tell each other.

_KEY = 'pemt_jax/watch'
_WORD = struct.Struct('!i')  # index of a process that is gone, or _DONE
_DONE = -1
_TOKEN_BYTES = 16
_HELLO_SECONDS = 20
# Seconds of silence until the system probes a connection, between probes, and how many may fail.
_PROBES = {'TCP_KEEPIDLE': 15, 'TCP_KEEPINTVL': 10, 'TCP_KEEPCNT': 3}


class Watch:
  """What one process knows of the others; a thread listens to them.

  Attributes:
    index: of this process.
    leads: whether there are others that JAX aborts when this one ends.
  """

  def __init__(self, on_loss: Callable[[int], None]):
    """Connects the processes; all of them call it after `jax.distributed.initialize`.

    Args:
      on_loss: called once, from the thread, with the index of a process that is gone.
    """
    others = distributed.global_state.num_processes - 1
    self.index = distributed.global_state.process_id
    self.leads = self.index == 0 and others > 0
    self._on_loss = on_loss
    self._lost: int | None = None
    self._heard = threading.Event()
    self._done = False
    self._others: dict[int, socket.socket] = {}
    try:
      self._meet(others)
    except (OSError, RuntimeError) as error:
      logging.warning('Process %d has no connection for news of lost processes (%s); they are '
                      'noticed by missing heartbeats alone.', self.index, error)
    threading.Thread(target=self._listen, daemon=True).start()

  def lost(self, seconds: float) -> int | None:
    """The process that is gone; waits so long to hear of one, None without."""
    self._heard.wait(seconds)
    return self._lost

  def done(self) -> None:
    """Tells the others that this process ends as it should."""
    self._done = True
    self._say(_DONE)

  def close(self) -> None:
    """Lets the others know that this process is gone, before it is."""
    self._done = True
    for connection in self._others.values():
      with contextlib.suppress(OSError):  # The other one is gone, too.
        connection.shutdown(socket.SHUT_RDWR)

  def _meet(self, others: int) -> None:
    """Connects the first process with each other one."""
    if self.index:
      self._others[0] = _connect(self.index)
      return
    for index, connection in _accepted(others):
      self._others[index] = connection

  def _listen(self) -> None:
    """Every connection says one word at most: an index, that it is done, or nothing by its end."""
    with selectors.DefaultSelector() as selector:
      for index, connection in self._others.items():
        selector.register(connection, selectors.EVENT_READ, index)
      while selector.get_map():
        for key, _ in selector.select():
          selector.unregister(key.fileobj)
          self._hear(key.data, _word(key.fileobj))

  def _hear(self, index: int, word: int | None) -> None:
    """Takes the word of a process; None says that it is gone itself."""
    if word == _DONE or self._done or self._lost is not None:
      return
    self._lost = index if word is None else word
    self._heard.set()
    self._say(self._lost)
    self._on_loss(self._lost)

  def _say(self, word: int) -> None:
    for connection in self._others.values():
      with contextlib.suppress(OSError):  # Its own end says enough.
        connection.sendall(_WORD.pack(word))


def _connect(index: int) -> socket.socket:
  """The connection of a process to the first one."""
  place = json.loads(distributed.global_state.client.blocking_key_value_get(
      _KEY, 1000 * _HELLO_SECONDS))
  host = distributed.global_state.coordinator_address.rsplit(':', 1)[0].strip('[]')
  connection = socket.create_connection((host, place['port']), timeout=_HELLO_SECONDS)
  connection.sendall(bytes.fromhex(place['token']) + _WORD.pack(index))
  if _word(connection) != index:
    raise OSError('it does not answer')
  return _probed(connection)


def _accepted(others: int) -> Iterator[tuple[int, socket.socket]]:
  """(index, connection) of all others to the first process."""
  token = secrets.token_bytes(_TOKEN_BYTES)
  six = socket.has_dualstack_ipv6()
  with socket.create_server(('', 0), family=socket.AF_INET6 if six else socket.AF_INET,
                            backlog=others, dualstack_ipv6=six) as server:
    place = {'port': server.getsockname()[1], 'token': token.hex()}
    distributed.global_state.client.key_value_set(_KEY, json.dumps(place))
    server.settimeout(_HELLO_SECONDS)
    while others:
      connection, _ = server.accept()
      connection.settimeout(_HELLO_SECONDS)
      hello = connection.recv(_TOKEN_BYTES + _WORD.size, socket.MSG_WAITALL)
      if not hmac.compare_digest(hello[:_TOKEN_BYTES], token):
        connection.close()
        continue
      connection.sendall(hello[_TOKEN_BYTES:])
      yield _WORD.unpack(hello[_TOKEN_BYTES:])[0], _probed(connection)
      others -= 1


def _probed(connection: socket.socket) -> socket.socket:
  """A connection that ends when the machine at its other end is silent; reading it may wait."""
  connection.settimeout(None)
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in _PROBES.items():
    if hasattr(socket, name):
      connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
  return connection


def _word(connection: socket.socket) -> int | None:
  """What a connection says; None at its end."""
  try:
    text = connection.recv(_WORD.size, socket.MSG_WAITALL)
  except OSError:
    return None
  return _WORD.unpack(text)[0] if len(text) == _WORD.size else None


def delay_aborts() -> None:
  """Lets a thread that aborts this process sleep before, so that others can end it in another way.

  JAX aborts from a thread that no Python code can stop. A handler gets the number of its signal:
  `sleep(SIGABRT)` takes six seconds. Then, or at a second signal, the process aborts as usual.
  """
  libc = ctypes.CDLL(None)
  if hasattr(libc, 'sysv_signal'):  # of glibc, for one signal
    libc.sysv_signal(int(signal.SIGABRT), libc.sleep)
