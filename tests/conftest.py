"""Fixtures and settings of all tests: CPU, compile cache, the `slow` marker, shared folders."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import hypothesis
import pytest

REPO = pathlib.Path(__file__).resolve().parents[1]
MOST_MAPPINGS = 20_000

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(REPO / '.cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')
# Tests compile much and compute little: programs that are compiled in less time, less optimised and
# without XLA's newer code for fused operations, take less time in all.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0 '
                      '--xla_cpu_use_fusion_emitters=false')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

hypothesis.settings.register_profile('fast', max_examples=10, deadline=None, derandomize=True)
hypothesis.settings.register_profile('all', max_examples=60, deadline=None, derandomize=True)


def pytest_addoption(parser: pytest.Parser) -> None:
  """Adds `--all`."""
  parser.addoption('--all', action='store_true',
                   help='run the slow tests too, with more random examples and the torch extra')


def pytest_configure(config: pytest.Config) -> None:
  """Chooses the number of random examples; refuses `--all` without the torch extra.

  Raises:
    pytest.UsageError: `--all` where torch is absent, since every torch test would skip.
  """
  everything = config.getoption('--all')
  hypothesis.settings.load_profile('all' if everything else 'fast')
  if everything and importlib.util.find_spec('torch') is None:
    raise pytest.UsageError('--all needs the torch extra; run bash launch/test.sh --all.')


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
  """Leaves the slow tests out unless `--all` or a marker expression asks for them."""
  if config.getoption('--all') or config.getoption('markexpr'):
    return
  slow = [item for item in items if item.get_closest_marker('slow')]
  if slow:
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker('slow')]


@pytest.fixture(autouse=True, scope='module')
def bounded_programs() -> Iterator[None]:
  """Forgets compiled programs between modules once the process holds very many.

  Each live program maps memory, Linux bounds the mappings of a process (65530 by default), and
  XLA ends the process where one more is refused.
  """
  yield
  maps, jax = pathlib.Path('/proc/self/maps'), sys.modules.get('jax')
  if jax and maps.is_file() and len(maps.read_text().splitlines()) > MOST_MAPPINGS:
    jax.clear_caches()


@pytest.fixture(scope='session')
def repo_root() -> pathlib.Path:
  """The folder that holds pemt_jax/, launch/ and configs/."""
  return REPO


@pytest.fixture(scope='session')
def shared_root() -> pathlib.Path:
  """The folder with data and golden cases beside the repository; skips where there is none."""
  root = pathlib.Path(os.environ.get('PEMT_SHARED', REPO.parent / 'shared'))
  if not root.is_dir():
    pytest.skip(f'no shared folder at {root}; set PEMT_SHARED to one')
  return root


@pytest.fixture(scope='session')
def golden_root(request: pytest.FixtureRequest) -> pathlib.Path:
  """The folder of golden cases, one folder per published system: tests/golden or the shared one."""
  shipped = REPO / 'tests' / 'golden'
  if shipped.is_dir():
    return shipped
  return request.getfixturevalue('shared_root') / 'golden'


@pytest.fixture
def workdir(tmp_path: pathlib.Path) -> pathlib.Path:
  """An empty folder for one run."""
  folder = tmp_path / 'workdir'
  folder.mkdir()
  return folder


@pytest.fixture(scope='session')
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
  """Runs Python in a process of its own.

  `run_python(*arguments, devices=1, code=None, timeout=300, env={})` runs `python arguments` (a
  script and its options) or `python -c code`, from the repository root, on `devices` simulated CPU
  devices, and returns the finished process with `returncode`, `stdout` and `stderr`.
  """

  def run(*arguments: str, code: str | None = None, devices: int = 1, timeout: float = 300,
          env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, PYTHONPATH=str(REPO), **(env or {}))
    if devices > 1:
      flag = f'--xla_force_host_platform_device_count={devices}'
      environment['XLA_FLAGS'] = f'{environment.get("XLA_FLAGS", "")} {flag}'.strip()
    command = [sys.executable, *(['-c', code] if code else []), *map(str, arguments)]
    return subprocess.run(command, cwd=REPO, env=environment, timeout=timeout, text=True,
                          capture_output=True, check=False)

  return run


@pytest.fixture(scope='session')
def on_eight_devices(run_python: Callable[..., subprocess.CompletedProcess[str]]
                     ) -> Callable[[str], str]:
  """Runs Python source on 8 simulated CPU devices; returns what it printed, fails if it fails."""

  def run(code: str) -> str:
    done = run_python(code=code, devices=8)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout

  return run
