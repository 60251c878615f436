"""README.md and docs/ against the code: commands, options, paths, links and tables."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import importlib.util
import pathlib
import re
import shlex
import sys

import pytest
from absl import flags
from ml_collections import config_dict
from ml_collections.config_flags import config_flags

from pemt_jax.data import playground, playground_world, tasks, tasks_propetl
from pemt_jax.stages import config as stage_config
from pemt_jax.stages.rows import replica_specs

REPO = pathlib.Path(__file__).resolve().parents[1]
DOCUMENTS = [REPO / 'README.md', *sorted((REPO / 'docs').glob('*.md'))]
NAMES = [str(path.relative_to(REPO)) for path in DOCUMENTS]
OTHER_COMMANDS = {'cp', 'source'}
FILES = r'\.(?:py|json|jsonl|npz|md)$'
PARTS = ('data', 'generation', 'method', 'model', 'prompt', 'train', 'config')
# Tasks whose template changes its fields or has a list of them.
NO_PLAIN_PATTERN = ('stsb', 'superglue-wsc', 'superglue-record', 'squad', 'drop', 'social',
                    'commonsense')
# DIR, TASK=VALUE, DIR/experts, VALUES.tsv: words of a document that a reader replaces.
PLACEHOLDER = re.compile(r'[A-Z]{2,}')


def shell_lines(text: str) -> list[str]:
  """Lines of the fenced shell blocks, continued lines joined, comments left out."""
  lines = []
  for block in re.findall(r'^```(?:bash|sh|console)\n(.*?)^```', text, re.S | re.M):
    joined = block.replace('\\\n', ' ')
    lines += [line for line in map(str.strip, joined.splitlines()) if line and line[0] != '#']
  return lines


def code_spans(text: str) -> list[str]:
  """Inline code outside of fenced blocks."""
  return re.findall(r'`([^`\n]+)`', re.sub(r'^```.*?^```', '', text, flags=re.S | re.M))


def tables(text: str) -> list[list[list[str]]]:
  """Tables as rows of cells, without code marks; the head first."""
  found, rows = [], []
  for line in [*text.splitlines(), '']:
    if line.startswith('|'):
      cells = re.split(r'(?<!\\)\|', line.strip().strip('|'))
      rows.append([cell.strip().replace('`', '') for cell in cells])
    elif rows:
      found.append([rows[0], *rows[2:]])
      rows = []
  return found


@functools.cache
def script_flags(script: str) -> dict[str, flags.Flag]:
  """The flags that a launch script defines, without leaving them in the flags of this process."""
  spec = importlib.util.spec_from_file_location(f'_docs_{pathlib.Path(script).stem}', REPO / script)
  module, path = importlib.util.module_from_spec(spec), list(sys.path)
  sys.modules[spec.name] = module
  known = set(flags.FLAGS)
  try:
    spec.loader.exec_module(module)
    return {name: flags.FLAGS[name] for name in set(flags.FLAGS) - known}
  finally:
    sys.path[:] = path
    del sys.modules[spec.name]
    for name in set(flags.FLAGS) - known:
      delattr(flags.FLAGS, name)


def load_config(arguments: list[str]) -> config_dict.ConfigDict:
  """What `--config=FILE --config.x=y ...` gives, values parsed as the command line does."""
  values = flags.FlagValues()
  argv = ['command', *arguments]
  with contextlib.chdir(REPO):
    config_flags.DEFINE_config_file('config', None, '', values, sys_argv=argv, lock_config=True)
    values(argv)
    config = values['config'].value
    config.to_dict()
  return config


@functools.cache
def stage_keys(stage: str) -> dict[str, object]:
  """Dotted keys of a stage's config, with their values; `.*` where a config file adds keys."""
  def flat(node, prefix=''):
    found = {}
    for key, value in node.items():
      if isinstance(value, config_dict.ConfigDict):
        found |= {f'{prefix}{key}': None} | flat(value, f'{prefix}{key}.')
        found |= {} if value or key == 'method' else {f'{prefix}{key}.*': None}
      else:
        found[f'{prefix}{key}'] = value
    return found
  return flat(stage_config.base_config(stage))


def wrong_key(key: str) -> str | None:
  """A sentence if no stage has the dotted key."""
  known = {name for stage in stage_config.stage_names() for name in stage_keys(stage)}
  if PLACEHOLDER.fullmatch(key) or any(fnmatch.fnmatchcase(key, name) for name in known):
    return None
  return f'no stage has the config key {key}'


def wrong_python(words: list[str]) -> str | None:
  """A sentence if `python SCRIPT --flag ...` names something that does not exist."""
  script, *arguments = words
  if not (REPO / script).is_file():
    return f'there is no {script}'
  defined = script_flags(script)
  own = [word for word in arguments if re.match(r'--config[.=]', word) and 'config' in defined]
  for word in arguments:
    match = re.fullmatch(r'--(no)?([\w.]+?)(?:=(.*))?', word, re.S)
    if word in own:
      continue
    if not match or not word.startswith('--'):
      return f'{word} is no option of {script}'
    name = match[2] if match[2] in defined else f'{match[1] or ""}{match[2]}'
    if name not in defined:
      return f'{script} has no option --{name}'
    if match[3] and not PLACEHOLDER.search(match[3]):
      try:
        defined[name].parser.parse(match[3])
      except ValueError as error:
        return f'{word}: {error}'
  return wrong_config(own) if own else None


def wrong_config(arguments: list[str]) -> str | None:
  """A sentence if a config file, its argument, a key or a value does not exist."""
  file = next((word for word in arguments if word.startswith('--config=')), None)
  if file is None or PLACEHOLDER.search(file):
    keys = [word[len('--config.'):].split('=')[0] for word in arguments if word != file]
    return next(filter(None, map(wrong_key, keys)), None)
  try:
    config = load_config(arguments)
    if config.get('tasks'):  # A study has none of its own.
      replica_specs(config)
  except (Exception, SystemExit) as error:  # A wrong key, a type, a file, a task: many types.
    return f'{" ".join(arguments)}: {type(error).__name__} {error}'
  return None


def wrong_bash(words: list[str]) -> str | None:
  """A sentence if `bash SCRIPT ...` names something that does not exist."""
  script, *arguments = words
  if not (REPO / script).is_file():
    return f'there is no {script}'
  if script == 'launch/setup.sh':
    missing = [word for word in arguments if not (REPO / f'requirements-{word}.txt').is_file()]
    return f'there is no extra {missing[0]}' if missing else None
  if script == 'launch/quickstart.sh':
    return wrong_python(['launch/quickstart.py', *arguments])
  return None


def wrong_command(line: str) -> str | None:
  """A sentence if a shell line names a script, option, config or value that does not exist."""
  words = shlex.split(line, comments=True)
  program, *rest = words
  if program in OTHER_COMMANDS:
    return None
  if program == 'bash':
    return wrong_bash(rest)
  if program == 'python':
    return wrong_python(rest)
  return f'{program} is no known command'


def wrong_span(span: str) -> str | None:
  """A sentence if inline code is a command, option, key or path that does not exist."""
  if re.match(r'(python|bash) launch/', span):
    return wrong_command(span)
  if re.match(r'launch/\w+\.py', span):
    return wrong_python(shlex.split(span))
  if span.startswith('--config'):
    return wrong_config(shlex.split(span))
  if re.fullmatch(rf'(?:{"|".join(PARTS)})(?:\.\w+)+(?:=.*)?', span) and not re.search(FILES, span):
    return wrong_key(re.split('=', span.removeprefix('config.'))[0])
  if re.match(r'(pemt_jax|configs|launch|tests|docs)/', span):
    path = span.split(':')[0]
    return None if (REPO / path).exists() else f'there is no {path}'
  return None


def anchors(text: str) -> set[str]:
  """Anchors that a page of this text has."""
  heads = re.findall(r'^#+ (.*)$', text, re.M)
  return {re.sub(r'[^\w\- ]', '', head.lower()).replace(' ', '-') for head in heads}


def wrong_links(path: pathlib.Path, text: str) -> list[str]:
  """Relative links without a file or without the heading that they name."""
  broken = []
  for target in re.findall(r'\]\(([^)\s]+)\)', text):
    if re.match(r'[a-z]+:', target):
      continue
    name, _, anchor = target.partition('#')
    file = path.parent / name
    page = text if not name else file.read_text() if file.is_file() else ''
    if name and not file.exists() or anchor and anchor not in anchors(page):
      broken.append(target)
  return broken


@pytest.fixture(params=DOCUMENTS, ids=NAMES)
def document(request) -> pathlib.Path:
  return request.param


def test_shell_lines_name_what_exists(document):
  wrong = [f'{line}: {found}' for line in shell_lines(document.read_text())
           if (found := wrong_command(line))]
  assert not wrong, '\n'.join(wrong)


def test_inline_code_names_what_exists(document):
  wrong = [f'{span}: {found}' for span in code_spans(document.read_text())
           if (found := wrong_span(span))]
  assert not wrong, '\n'.join(wrong)


def test_relative_links_resolve(document):
  assert not wrong_links(document, document.read_text())


def table_headed(name: str, *head: str) -> list[list[str]]:
  """Rows of the only table of a document whose head begins with these cells."""
  found = [table[1:] for table in tables((REPO / 'docs' / name).read_text())
           if table[0][:len(head)] == list(head)]
  assert len(found) == 1, f'{name} has {len(found)} tables headed {head}'
  return found[0]


def test_stated_defaults_are_those_of_the_configs(document):
  wrong = []
  for head, *rows in tables(document.read_text()):
    match = re.fullmatch(r'key(?: of (\S+))?', head[0])
    if not match or 'default' not in head:
      continue
    keys = stage_keys(match[1] or 'pemt/stage1')
    for row in rows:
      actual = keys.get(row[0], 'no such key')
      stated = row[head.index('default')].strip("'")
      wrong += [] if stated == str(actual) else [f'{row[0]}: {stated}, it is {actual}']
  assert not wrong, '\n'.join(wrong)


def test_every_option_of_the_method_is_in_its_table():
  for stage in ('pemt/stage1', 'pemt/stage2'):
    stated = {row[0] for row in table_headed('pemt.md', f'key of {stage}')}
    options = {key for key in stage_keys(stage) if key.startswith('method.')}
    assert options <= stated, options - stated


def test_the_table_of_tasks_is_that_of_the_code():
  stated = [row for row in table_headed('data.md', 'task', 'local folders')]
  expected = [[task.name, ', '.join(task.folders), task.size, ', '.join(task.metrics),
               ', '.join(task.label_words) or '-'] for task in tasks.TASKS.values()]
  assert stated == expected


def test_the_tables_of_propetl_tasks_are_those_of_the_code():
  found = tasks_propetl.PROPETL_TASKS
  stated = [row[:4] for row in table_headed('data.md', 'ProPETL task')]
  families = [(name.split('_')[0], languages.split())
              for name, languages, *_ in table_headed('data.md', 'ProPETL tasks')]
  names = [f'{family}_{language}' for family, languages in families for language in languages]
  assert stated == [[name, ', '.join(task.folders), task.size, ', '.join(task.metrics)]
                    for name, task in found.items() if name not in names]
  assert len(stated) + len(names) == len(found) and set(names) <= set(found)


def test_every_task_has_its_template_in_the_table():
  stated = [name for row in table_headed('data.md', 'tasks', 'source text')
            for name in row[0].split(', ')]
  assert sorted(stated) == sorted(tasks.TASKS)


def test_the_templates_in_the_table_are_those_of_the_code():
  given = {'label': 0, 'gold_label': 'entailment', 'answer': '1', 'idx': {'question': 0}}
  checked = 0
  for names, pattern, _ in table_headed('data.md', 'tasks', 'source text'):
    pattern = pattern.removesuffix(' without markup')
    if names.startswith(NO_PLAIN_PATTERN):
      continue
    fields = {name: f'{{{name}}}' for name in re.findall(r'{(\w+)}', pattern)}
    for name in names.split(', '):
      source = tasks.get_task(name).template({**given, **fields})[0].source
      assert source == pattern, name
      checked += 1
  assert checked > 20


def test_the_playground_s_tasks_are_those_of_the_code():
  stated = [row for row in table_headed('playground.md', 'task', 'role')]
  expected = [[spec.name, 'source' if spec.name in playground_world.SOURCES else 'target',
               ', '.join(spec.skills), ' / '.join(f'{part.share:g}' for part in spec.parts),
               spec.description] for spec in playground_world.SPECS.values()]
  assert stated == expected


def test_the_playground_s_options_are_those_of_the_code():
  stated = {row[0]: row[1] for row in table_headed('playground.md', 'option', 'default')}
  assert stated == {name: str(value) for name, value in vars(playground.Options()).items()}


WRONG_LINES = [
    'python launch/missing.py --workdir=DIR',
    'python launch/train.py --config=configs/pemt/missing.py --workdir=DIR',
    'python launch/train.py --config=configs/pemt/stage1.py --workdri=DIR',
    'python launch/train.py --config=configs/pemt/stage1.py --config.method.rnak=8',
    'python launch/train.py --config=configs/pemt/stage1.py --config.method.rank=many',
    'python launch/train.py --config=configs/pemt/stage2.py:tsk=rte --workdir=DIR',
    'python launch/train.py --config=configs/pemt/stage2.py:task=rtee --workdir=DIR',
    'python launch/evaluate.py --workdir=DIR --split=dev',
    'python launch/convert.py --from=nothing --to=expert --input=DIR --output=DIR',
    'python launch/predict.py DIR',
    'bash launch/setup.sh quantum',
    'bash launch/quickstart.sh --wrong=1',
    'bash launch/missing.sh',
    'pip install pemt',
]


@pytest.mark.parametrize('line', WRONG_LINES)
def test_a_wrong_line_is_found(line):
  assert wrong_command(line)


@pytest.mark.parametrize('span', [
    'method.rnak', 'config.method.rnak', '--config.method.rnak=8', 'pemt_jax/missing.py',
    'configs/missing.py:task=rte', 'launch/train.py --workdri=DIR', 'bash launch/missing.sh',
    "prompt.innit='vocab'"])
def test_a_wrong_span_is_found(span):
  assert wrong_span(span)


def test_a_wrong_link_is_found():
  text = '# Head\n[a](missing.md) [b](#nothing) [c](pemt.md#nothing) [d](#head) [e](pemt.md)'
  assert wrong_links(REPO / 'docs' / 'x.md', text) == ['missing.md', '#nothing', 'pemt.md#nothing']
