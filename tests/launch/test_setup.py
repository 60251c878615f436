"""launch/setup.sh: installs once, mends what was interrupted, names what is wrong."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest


def _wheel(folder: pathlib.Path, name: str) -> str:
  """Writes a wheel of one module and returns the requirement line that installs it."""
  path = folder / f'{name}-1.0-py3-none-any.whl'
  info = f'{name}-1.0.dist-info'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr(f'{name}.py', 'value = 1\n')
    archive.writestr(f'{info}/METADATA', f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n')
    archive.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nGenerator: test\n'
                     'Root-Is-Purelib: true\nTag: py3-none-any\n')
    archive.writestr(f'{info}/RECORD', f'{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n'
                     f'{info}/RECORD,,\n')
  return f'./{path.name}\n'


@pytest.fixture
def checkout(tmp_path, repo_root):
  """A folder with the set-up script and two requirement files that need no network."""
  (tmp_path / 'launch').mkdir()
  shutil.copy(repo_root / 'launch' / 'setup.sh', tmp_path / 'launch')
  (tmp_path / 'requirements.txt').write_text(_wheel(tmp_path, 'first'))
  (tmp_path / 'requirements-dev.txt').write_text(_wheel(tmp_path, 'second'))
  return tmp_path


def _setup(folder, *extras, python=sys.executable):
  return subprocess.run(
      ['bash', 'launch/setup.sh', *extras], cwd=folder, text=True, capture_output=True, check=False,
      env={'PATH': '/usr/bin:/bin', 'PEMT_PYTHON': python})


def _imports(folder, module):
  command = [folder / '.venv' / 'bin' / 'python', '-c', f'import {module}']
  return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
def test_second_call_installs_nothing_and_an_interrupted_one_is_mended(checkout):
  first = _setup(checkout)
  assert first.returncode == 0, first.stderr
  assert _imports(checkout, 'first') and not _imports(checkout, 'second')

  packages = next((checkout / '.venv' / 'lib').glob('python3*')) / 'site-packages'
  shutil.rmtree(packages / 'pip')  # whoever calls pip now, fails
  second = _setup(checkout)
  assert (second.returncode, second.stdout, second.stderr) == (0, '', '')
  assert _setup(checkout, 'dev').returncode != 0

  shutil.rmtree(next(packages.glob('pip-*.dist-info')))
  (packages / 'first.py').unlink()
  third = _setup(checkout, 'dev')
  assert third.returncode == 0, third.stderr
  assert _imports(checkout, 'first') and _imports(checkout, 'second')

  (packages / 'second.py').unlink()
  (packages / 'second-1.0.dist-info' / 'RECORD').unlink()
  (checkout / '.venv' / '.installing').touch()
  fourth = _setup(checkout, 'dev')
  assert fourth.returncode == 0, fourth.stderr
  assert _imports(checkout, 'second')


def test_unknown_extra_is_named(checkout):
  (checkout / '.venv' / 'bin').mkdir(parents=True)
  (checkout / '.venv' / 'bin' / 'python').symlink_to(sys.executable)
  info = checkout / '.venv' / 'lib' / 'python3' / 'site-packages' / 'pip-1.dist-info'
  info.mkdir(parents=True)
  (info / 'RECORD').touch()
  done = _setup(checkout, 'cuda')
  assert done.returncode == 1
  assert done.stderr == "Unknown extra 'cuda'; choose from dev, torch, bench, gpu, tpu, plan.\n"


def test_shell_scripts_are_sound(repo_root):
  scripts = [*sorted(repo_root.glob('launch/*.sh')), repo_root / '.ci' / 'run']
  checkers = [['bash', '-n']] + ([['shellcheck']] if shutil.which('shellcheck') else [])
  for command in ([*checker, script] for checker in checkers for script in scripts):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
