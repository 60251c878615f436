"""Entry point of every launch script: user mistakes end with one sentence and exit code 2."""

from __future__ import annotations

import difflib
import errno
import functools
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_dict
from ml_collections.config_flags import config_flags

from pemt_jax.allocator import keep_memory
from pemt_jax.errors import UserError

USER_ERROR_CODE = 2
INTERRUPTED_CODE = 130
_LISTED_KEYS = 12
# What a file system says that is full, read-only, broken or closed to this user.
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
            errno.EIO)
_LONGEST_NAME = 200
_LONGEST, _END = 2000, 400  # characters of a sentence, and of its end
_CONFIG_FAILED = 'Error whilst parsing config file'
_CACHE_BYTES = 4 * 2**30
_CACHE = flags.DEFINE_string(
    'compilation_cache', None, 'Folder for compiled programs; an empty one keeps none. The default'
    ' is JAX_COMPILATION_CACHE_DIR in the environment, else the cache folder of the user.')
# Option, variable of the environment, meaning.
_PROCESSES = (
    ('coordinator_address', 'PEMT_COORDINATOR_ADDRESS',
     "host:port of the first of several processes, or 'auto' on a TPU pod or under Slurm"),
    ('process_count', 'PEMT_PROCESS_COUNT', 'Number of processes'),
    ('process_index', 'PEMT_PROCESS_INDEX', 'Index of this process, from 0'),
)


def run(main: Callable[[list[str]], int | None],
        as_member: Callable[..., int | None] | None = None) -> NoReturn:
  """Parses the flags of `sys.argv`, calls `main(argv)` and ends the process.

  A `UserError` raised by `main`, by a config file or by flag parsing, and a full or read-only
  file system, is printed to stderr as one line and ends with exit code 2; `--verbosity=0` shows its
  causes too. Any other exception keeps its traceback, since it is a defect.
  Libraries log warnings and errors only, unless `--verbosity` says otherwise.

  Args:
    main: function of the remaining arguments (the program name only); returns None or an exit code.
    as_member: `sharding.processes.as_member`, for a command that several processes may run
      together; `define_process_flags` gives it the options that say which of them this one is.

  Raises:
    SystemExit: always; the code is what `main` returned, 2 after a user mistake, 130 after Ctrl-C.
  """
  keep_memory()
  command = main if as_member is None else functools.partial(_alone_or_member, main, as_member)
  app.run(lambda argv: _guarded(command, argv), flags_parser=_parse_or_exit)


def define_process_flags() -> None:
  """Defines the options of a command that several processes may run together, see `run`."""
  for name, variable, about in _PROCESSES:
    flags.DEFINE_string(name, None, f'{about}; the default is {variable} in the environment.')
  flags.DEFINE_integer('process_timeout', 300, 'Seconds to wait until all processes have started.',
                       lower_bound=1)


def _alone_or_member(main, as_member, argv: list[str]) -> int | None:
  """Calls `main(argv)` alone, or as one of several processes where an address is given."""
  found = {}
  for name, variable, _ in _PROCESSES:
    found[name] = flags.FLAGS[name].value or os.environ.get(variable)
  address, *numbers = found.values()
  if address is None and any(numbers):
    raise UserError('There is a number of processes or an index without --coordinator_address; '
                    'give host:port of the first process, or leave both out.')
  if address is None:
    return main(argv)
  for name, text in list(found.items())[1:]:
    if text is not None and not text.isdecimal():
      raise UserError(f"--{name} is '{text}', which is no number from 0; correct it.")
  numbers = [None if text is None else int(text) for text in numbers]
  return as_member(lambda: _guarded(main, argv), address, *numbers,
                   flags.FLAGS['process_timeout'].value)


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses command line flags strictly.

  Args:
    argv: program name and arguments.

  Returns:
    What is left after the flags: the program name.

  Raises:
    UserError: unknown or malformed flag, missing config file, unknown config key, stray argument.
  """
  argv = list(argv)
  _check_lengths(argv)
  _check_config_files(argv)
  try:
    rest = flags.FLAGS(argv)
  except flags.Error as error:
    known = _from_cause(error)
    if known is None and _CONFIG_FAILED in str(error):
      raise
    raise known or UserError(_flag_sentence(error)) from None
  except (KeyError, AttributeError, TypeError) as error:
    known = _unknown_key(argv)
    if known is None:
      raise
    raise known from error
  for name in _config_names():
    _check_loaded(flags.FLAGS[name].value)
  if len(rest) > 1:
    raise UserError(
        f'Unexpected argument {rest[1]!r} on the command line; write every option as --name=value.')
  return rest


def cache_settings(folder: str | None, environment: Mapping[str, str]) -> dict[str, Any]:
  """Settings of JAX under which compiled programs outlive a command.

  Args:
    folder: for the programs; '' keeps none, None goes by the environment.
    environment: variables. A folder of JAX's own variable stands as it is, without a bound.

  Returns:
    name -> value; {} changes nothing. The folder of the user is bounded: programs that were not
    used for the longest time go first.
  """
  if folder == '':
    return {'jax_enable_compilation_cache': False}
  if folder is None and environment.get('JAX_COMPILATION_CACHE_DIR'):
    return {}
  home = environment.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
  folder = folder or os.path.join(home, 'pemt_jax', 'programs')
  try:
    os.makedirs(folder, exist_ok=True)
  except OSError:  # A user without a home, or a read-only one.
    return {}
  found = {'jax_compilation_cache_dir': folder, 'jax_persistent_cache_min_compile_time_secs': 0.1}
  if importlib.util.find_spec('filelock'):  # JAX needs it for the bound.
    found['jax_compilation_cache_max_size'] = _CACHE_BYTES
  return found


def _keep_programs(settings: Mapping[str, Any]) -> None:
  """Makes settings of JAX, which is not imported for them; what the environment says stands."""
  jax = sys.modules.get('jax')
  for name, value in settings.items():
    variable = name.upper()
    if variable in os.environ and name != 'jax_compilation_cache_dir':
      continue
    os.environ[variable] = str(value).lower() if isinstance(value, bool) else str(value)
    if jax is not None:
      jax.config.update(name, value)


def unknown_key_sentence(config: config_dict.ConfigDict, key: str, name: str, file: str) -> str:
  """The sentence for an override of a key that a config does not have.

  Args:
    config: the config as its file gives it.
    key: dotted path below the config, without the flag's name.
    name: name of the config flag, usually `config`.
    file: path of the config file as typed.

  Returns:
    One sentence with the key, the file and the closest existing keys.
  """
  keys = sorted(flat_keys(config))
  same_leaf = [path for path in keys if path.rsplit('.', 1)[-1] == key.rsplit('.', 1)[-1]]
  close = difflib.get_close_matches(key, keys, n=3, cutoff=0.6)
  nearest = list(dict.fromkeys(same_leaf[:3] + close)) or keys[:_LISTED_KEYS]
  listed = ', '.join(f'{name}.{path}' for path in nearest)
  return f'Unknown config key {name}.{key} for {file}; the closest existing keys are {listed}.'


def flat_keys(config: config_dict.ConfigDict, prefix: str = '') -> list[str]:
  """Dotted paths of all leaves of a config."""
  keys = []
  for key, value in config.items(preserve_field_references=True):
    path = f'{prefix}{key}'
    nested = isinstance(value, config_dict.ConfigDict)
    keys.extend(flat_keys(value, f'{path}.') if nested else [path])
  return keys


def _parse_or_exit(argv: Sequence[str]) -> list[str]:
  try:
    return parse_flags(argv)
  except UserError as error:
    _print(error)
    sys.exit(USER_ERROR_CODE)


def _guarded(main: Callable[[list[str]], int | None], argv: list[str]) -> int | None:
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)
  _quiet_threads()
  _keep_programs(cache_settings(_CACHE.value, os.environ))
  try:
    return main(argv)
  except UserError as error:
    logging.info('What led to the error:', exc_info=error)
    _print(error)
    return USER_ERROR_CODE
  except OSError as error:
    if error.errno not in _STORAGE:
      raise
    logging.info('What led to the error:', exc_info=error)
    _print(UserError(f"{error.filename or 'A file'} cannot be written or read ({error.strerror}); "
                     'make room or correct the rights, then give the same command again.'))
    return USER_ERROR_CODE
  except KeyboardInterrupt:
    print('Interrupted.', file=sys.stderr)
    return INTERRUPTED_CODE


def _quiet_threads() -> None:
  """Leaves out what threads of Orbax print about a failed write; the main thread raises it too."""
  logging.get_absl_handler().addFilter(
      lambda record: not (record.exc_info and 'orbax' in record.pathname))
  usual = sys.unraisablehook
  sys.unraisablehook = lambda raised: (
      None if str(raised.exc_value) == 'Event loop is closed' else usual(raised))


def _print(error: UserError) -> None:
  print(one_line(str(error)), file=sys.stderr)


def one_line(text: str) -> str:
  """A text as one line for a terminal.

  Names and values out of files may hold anything: what is not printable is written as an escape,
  and the middle of a very long text is left out.
  """
  text = ' '.join(text.split())
  if len(text) > _LONGEST:
    text = f'{text[:_LONGEST - _END]} ... {text[-_END:]}'
  return ''.join(mark if mark.isprintable() else mark.encode('unicode_escape').decode()
                 for mark in text)


def _from_cause(error: BaseException | None) -> UserError | None:
  """The innermost UserError that the flag libraries have wrapped, if there is one."""
  found = None
  while error is not None:
    found = error if isinstance(error, UserError) else found
    error = error.__cause__ or error.__context__
  return found


def _flag_sentence(error: flags.Error) -> str:
  """One sentence out of an absl or ml_collections message, which may span lines."""
  text = ' '.join(str(error).split()).rstrip('.')
  if isinstance(error, flags.UnrecognizedFlagError):
    parent = error.flagname.split('.', 1)[0]
    if parent in _config_names():
      return f'Option --{parent} is missing; add --{parent}=FILE before --{error.flagname}.'
    close = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=3, cutoff=0.5)
    hint = ('the closest options are ' + ', '.join(f'--{name}' for name in close) if close else
            'run with --help for the options of this command')
    return f'Unknown option --{error.flagname}; {hint}.'
  missing = re.match(r'flag --(\S+)=None: ', text)
  if missing:
    return f'Option --{missing.group(1)} is missing; add --{missing.group(1)}=VALUE to the command.'
  illegal = re.match(r'flag --(.*?)=(.*?): (.*)', text)
  if illegal:
    name, value, reason = illegal.groups()
    return f'Value {value!r} of option --{name} is not allowed: {reason}; correct it.'
  return f'The command line cannot be read: {text}; run with --help for the options.'


def _config_names() -> list[str]:
  return [name for name in flags.FLAGS if config_flags.is_config_flag(flags.FLAGS[name])]


def _given(argv: Sequence[str], name: str) -> str | None:
  """The last value given to `--name`, as `--name=value` or `--name value`."""
  value = None
  for index, argument in enumerate(argv):
    match = re.match(rf'--?{re.escape(name)}(=(.*))?$', argument)
    if match and match.group(1):
      value = match.group(2)
    elif match and index + 1 < len(argv):
      value = argv[index + 1]
  return value


def _check_lengths(argv: Sequence[str]) -> None:
  """Refuses names of options for which the search for close ones would take for ever."""
  for name in (argument.partition('=')[0] for argument in argv[1:] if argument.startswith('-')):
    if len(name) > _LONGEST_NAME:
      raise UserError(f'Option {name[:40]}... has a name of {len(name)} characters; run with --help'
                      ' for the options of this command.')


def _check_config_files(argv: Sequence[str]) -> None:
  for name in _config_names():
    value = _given(argv, name)
    if value is None:
      continue
    path = value.split(':', 1)[0]
    if not (os.path.isfile(path) and path.endswith('.py')):
      state = 'is not a Python file' if os.path.exists(path) else 'does not exist'
      raise UserError(f'Config file {path!r} given by --{name} {state}; '
                      'give the path of a file such as configs/pemt/stage1.py.')


def _check_loaded(config: Any) -> None:
  """Raises now what ml_collections would raise at the first access of a config."""
  if config is None or isinstance(config, config_dict.ConfigDict):
    return
  try:
    config.keys
  except OSError as error:
    raise (_from_cause(error) or error.__cause__ or error) from None


def _unknown_key(argv: Sequence[str]) -> UserError | None:
  """The first config override that names a key absent from its config file, as an error."""
  for name in _config_names():
    value = _given(argv, name)
    if value is None:
      continue
    config = flags.FLAGS[name].parser.parse(value)
    for argument in argv:
      match = re.match(rf'--?(?:no)?{re.escape(name)}\.([^=]+)', argument)
      if match and not _has(config, match.group(1)):
        return UserError(unknown_key_sentence(config, match.group(1), name, value))
  return None


def _has(config: Any, key: str) -> bool:
  for part in key.split('.'):
    if not isinstance(config, config_dict.ConfigDict) or part not in config:
      return False
    config = config[part]
  return True
