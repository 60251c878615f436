"""pemt_jax.cli: a mistake ends with one sentence and exit code 2, a defect keeps its traceback."""

from __future__ import annotations

import pytest

from pemt_jax import cli

SCRIPT = """
from absl import flags
from ml_collections import config_flags
from pemt_jax import cli
from pemt_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file('config', None, 'file', lock_config=True)
WORKDIR = flags.DEFINE_string('workdir', None, 'folder', required=True)
SPLIT = flags.DEFINE_enum('split', 'test', ['test', 'validation'], 'split')

def main(argv):
  if WORKDIR.value == 'wrong':
    raise UserError('Folder wrong\\nholds no run; give another --workdir.')
  if WORKDIR.value == 'full':
    raise OSError(28, 'No space left on device', 'full/config.json')
  if WORKDIR.value == 'defect':
    raise ValueError('a defect')
  print('lr', CONFIG.value.optimizer.learning_rate)
  return 3 if WORKDIR.value == 'three' else None

if __name__ == '__main__':
  cli.run(main)
"""

CONFIG = """
from ml_collections import config_dict
from pemt_jax.errors import UserError

def get_config(task='rte'):
  if task == 'defect':
    raise ValueError('a defect')
  if task != 'rte':
    raise UserError(f'Unknown task {task!r} in the config argument; choose rte.')
  return config_dict.create(seed=1, optimizer=config_dict.create(learning_rate=0.5, name='adamw'))
"""


@pytest.fixture(scope='module')
def call(tmp_path_factory, run_python):
  folder = tmp_path_factory.mktemp('cli')
  (folder / 'script.py').write_text(SCRIPT)
  (folder / 'config.py').write_text(CONFIG)

  def run(*arguments):
    config = str(folder / 'config.py')
    done = run_python(folder / 'script.py', *(a.replace('CONFIG', config) for a in arguments))
    return done.returncode, done.stdout, done.stderr.replace(config, 'CONFIG')

  return run


def test_result_of_main_is_the_exit_code(call):
  assert call('--config=CONFIG', '--workdir=w', '--config.optimizer.learning_rate=2') == (
      0, 'lr 2.0\n', '')
  assert call('--config', 'CONFIG:rte', '--workdir=three') == (3, 'lr 0.5\n', '')


@pytest.mark.parametrize('arguments, sentence', [
    (['--config=CONFIG', '--workdir=wrong'], 'Folder wrong holds no run; give another --workdir.'),
    (['--config=CONFIG', '--workdir=full'],
     'full/config.json cannot be written or read (No space left on device); make room or '
     'correct the rights, then give the same command again.'),
    (['--config=CONFIG'], 'Option --workdir is missing; add --workdir=VALUE to the command.'),
    (['--config=CONFIG', '--workdir=w', '--config.optimizer.learning_rte=1'],
     'Unknown config key config.optimizer.learning_rte for CONFIG; the closest existing keys are '
     'config.optimizer.learning_rate, config.optimizer.name.'),
    (['--config=CONFIG', '--workdir=w', '--config.learning_rate=1'],
     'Unknown config key config.learning_rate for CONFIG; the closest existing keys are '
     'config.optimizer.learning_rate.'),
    (['--config=CONFIG', '--workdir=w', '--config.zzz=1'],
     'Unknown config key config.zzz for CONFIG; the closest existing keys are '
     'config.optimizer.learning_rate, config.optimizer.name, config.seed.'),
    (['--config=CONFIG', '--workdir=w', '--config.seed=one'],
     "Value 'one' of option --config.seed is not allowed: invalid literal for int() with base 10: "
     "'one'; correct it."),
    (['--config=missing.py', '--workdir=w'],
     "Config file 'missing.py' given by --config does not exist; give the path of a file such as "
     'configs/pemt/stage1.py.'),
    (['--config=launch', '--workdir=w'],
     "Config file 'launch' given by --config is not a Python file; give the path of a file such as "
     'configs/pemt/stage1.py.'),
    (['--config=CONFIG:mnl', '--workdir=w'],
     "Unknown task 'mnl' in the config argument; choose rte."),
    (['--workdir=w', '--config.seed=2'],
     'Option --config is missing; add --config=FILE before --config.seed.'),
    (['--workdri=w'], 'Unknown option --workdri; the closest options are --workdir.'),
    (['--config=CONFIG', '--workdir=w', '--split=tset'],
     "Value 'tset' of option --split is not allowed: value should be one of <test|validation>; "
     'correct it.'),
    (['--config=CONFIG', '--workdir=w', 'stray'],
     "Unexpected argument 'stray' on the command line; write every option as --name=value."),
], ids=lambda value: value[-1] if isinstance(value, list) else '')
def test_user_mistake_is_one_sentence_and_code_2(call, arguments, sentence):
  assert call(*arguments) == (2, '', sentence + '\n')


@pytest.mark.parametrize('arguments', [['--config=CONFIG', '--workdir=defect'],
                                       ['--config=CONFIG:defect', '--workdir=w']])
def test_a_defect_keeps_its_traceback(call, arguments):
  code, _, stderr = call(*arguments)
  assert code == 1
  assert 'Traceback' in stderr and 'a defect' in stderr


def test_compiled_programs_are_kept_in_a_bounded_folder_unless_told_otherwise(tmp_path):
  kept = cli.cache_settings(None, {'XDG_CACHE_HOME': str(tmp_path)})
  assert kept['jax_compilation_cache_dir'] == str(tmp_path / 'pemt_jax' / 'programs')
  assert kept['jax_compilation_cache_max_size'] == 4 * 2**30
  assert cli.cache_settings(None, {'JAX_COMPILATION_CACHE_DIR': 'mine'}) == {}
  assert cli.cache_settings('', {}) == {'jax_enable_compilation_cache': False}
  mine = cli.cache_settings(str(tmp_path / 'own'), {'JAX_COMPILATION_CACHE_DIR': 'mine'})
  assert mine['jax_compilation_cache_dir'] == str(tmp_path / 'own')
  (tmp_path / 'file').touch()
  assert cli.cache_settings(None, {'XDG_CACHE_HOME': str(tmp_path / 'file')}) == {}
