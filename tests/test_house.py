"""Laws of the house: what imports what, how large a piece may be, what the texts may say.

A law is a function of one source file that returns its violations; every law is also shown a sample
that breaks it.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import pytest

REPO = pathlib.Path(__file__).resolve().parents[1]

MODULE_LINES, FUNCTION_LINES, LINE_COLUMNS, ARGUMENTS, NESTING = 400, 60, 100, 8, 3

# Upper rooms import lower ones; modules outside of the rooms (errors, cli, trees) import no room.
ROOMS = ('parity', 'stages', 'training', 'interop', 'methods', 'experts', 'deltas', 'models',
         'evaluation', 'data', 'sharding', 'reports')
CORE = ('methods', 'experts', 'deltas', 'models', 'sharding')
CORE_OUTSIDERS = {'jax', 'jaxlib', 'flax', 'optax', 'numpy'}
HEAVY = {'torch', 'transformers', 'datasets', 'tensorflow', 'tensorflow_datasets', 'matplotlib',
         'grain', 'orbax', 'sklearn', 'tokenizers', 'sentencepiece', 'pandas', 'pyarrow', 'scipy'}
# Distributions whose import name is another one.
IMPORT_NAMES = {'absl-py': 'absl', 'orbax-checkpoint': 'orbax', 'scikit-learn': 'sklearn',
                'pillow': 'PIL', 'pytest-timeout': None}
FORBIDDEN = {
    'a path of one machine': r'(?<![\w.])/(?:home/\w+|Users/\w+|root)/',
    'a ticket': r'\bissue #?\d',
    'a word about how the project was made': r'(?i)\bchatbot\b',
}


def tracked(*suffixes: str) -> list[pathlib.Path]:
  """Files of the repository with one of these suffixes, those that git ignores left out."""
  done = subprocess.run(['git', 'ls-files', '-z'], cwd=REPO, capture_output=True, text=True,
                        check=False)
  if done.returncode == 0:
    names = [REPO / name for name in done.stdout.split('\0') if name]
  else:
    names = [path for path in REPO.rglob('*') if not {'.venv', '.cache'} & set(path.parts)]
  return sorted(path for path in names if path.suffix in suffixes and path.is_file())


def room_of(module: str) -> str | None:
  """The room of a dotted module name, or None outside of the rooms."""
  parts = module.split('.')
  return parts[1] if len(parts) > 1 and parts[0] == 'pemt_jax' and parts[1] in ROOMS else None


def imported_modules(tree: ast.AST, name: str) -> list[tuple[int, str]]:
  """Line and absolute dotted name of every import of a module called `name`, nested ones too."""
  found = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found += [(node.lineno, alias.name) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      base = name.split('.')[:-node.level] if node.level else []
      base = '.'.join(base + ([node.module] if node.module else []))
      found += [(node.lineno, f'{base}.{alias.name}') for alias in node.names]
  return found


def _module_name(path: pathlib.Path) -> str:
  return '.'.join(path.with_suffix('').parts)


def imports_go_downwards(path: pathlib.Path, source: str) -> list[str]:
  """No import of a higher room, of launch/, configs/ or tests/ from the package."""
  name = _module_name(path)
  if not name.startswith('pemt_jax'):
    return []
  here, broken = room_of(name), []
  for line, target in imported_modules(ast.parse(source), name):
    there = room_of(target)
    upwards = here and there and ROOMS.index(there) < ROOMS.index(here)
    outside = target.split('.')[0] in ('launch', 'configs', 'tests')
    rootwards = here is None and there and name != 'pemt_jax.__init__'
    if upwards or outside or rootwards or (name == 'pemt_jax.__init__' and there):
      broken.append(f'{path}:{line} imports {target}')
  return broken


def core_needs_only_jax(path: pathlib.Path, source: str) -> list[str]:
  """Modules of the compute core import nothing but jax, flax, optax, numpy at their top level."""
  name = _module_name(path)
  if room_of(name) not in CORE and name != 'pemt_jax.training.step':
    return []
  top = ast.Module([node for node in ast.parse(source).body], [])
  top.body = [node for node in top.body if isinstance(node, (ast.Import, ast.ImportFrom))]
  allowed = CORE_OUTSIDERS | {'pemt_jax', '__future__'} | set(sys.stdlib_module_names)
  return [f'{path}:{line} imports {target}' for line, target in imported_modules(top, name)
          if target.split('.')[0] not in allowed]


def columns(path: pathlib.Path, source: str) -> list[str]:
  """Lines stay within the width of a page."""
  return [f'{path}:{i} has {len(line)} columns' for i, line in enumerate(source.splitlines(), 1)
          if len(line) > LINE_COLUMNS]


def sizes(path: pathlib.Path, source: str) -> list[str]:
  """Lines per module and function, arguments and nesting stay within the limits."""
  lines = source.splitlines()
  broken = [f'{path} has {len(lines)} lines'] if len(lines) > MODULE_LINES else []
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      continue
    place = f'{path}:{node.lineno} {node.name}'
    length = node.end_lineno - node.lineno + 1
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    count = sum(argument.arg not in ('self', 'cls') for argument in arguments)
    depth = nesting(node.body)
    if length > FUNCTION_LINES:
      broken.append(f'{place} has {length} lines')
    if count > ARGUMENTS:
      broken.append(f'{place} has {count} arguments')
    if depth > NESTING:
      broken.append(f'{place} nests {depth} deep')
  return broken


def nesting(body: list[ast.stmt]) -> int:
  """Deepest nesting of control blocks; an elif counts as its if, an inner function on its own."""
  deepest = 0
  for node in body:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
      continue
    blocks = [getattr(node, field, []) for field in ('body', 'orelse', 'finalbody')]
    blocks += [handler.body for handler in getattr(node, 'handlers', [])]
    blocks += [case.body for case in getattr(node, 'cases', [])]
    for block in blocks:
      is_elif = (isinstance(node, ast.If) and block is node.orelse and len(block) == 1
                 and isinstance(block[0], ast.If))
      deepest = max(deepest, nesting(block) + (not is_elif) if block else 0)
  return deepest


def documented_and_typed(path: pathlib.Path, source: str) -> list[str]:
  """Modules, public classes and functions have docstrings; public functions have types."""
  tree = ast.parse(source)
  if path.parts[0] == 'tests':
    return []
  broken = [f'{path} has no docstring'] if tree.body and not ast.get_docstring(tree) else []
  for node, owner in _public(tree):
    place = f'{path}:{node.lineno} {owner}{node.name}'
    if not ast.get_docstring(node):
      broken.append(f'{place} has no docstring')
    if isinstance(node, ast.FunctionDef) and not _is_typed(node):
      broken.append(f'{place} lacks types')
  return broken


def _public(tree: ast.Module):
  """Public functions and classes of a module and public methods of its classes, with the owner."""
  for node in tree.body:
    if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith('_'):
      continue
    yield node, ''
    methods = [inner for inner in node.body if isinstance(inner, ast.FunctionDef)]
    for inner in methods if isinstance(node, ast.ClassDef) else []:
      # flax calls `setup`; its class says what the module does.
      if not inner.name.startswith('_') and inner.name != 'setup':
        yield inner, f'{node.name}.'


def _is_typed(node: ast.FunctionDef) -> bool:
  arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
  named = [argument for argument in arguments if argument.arg not in ('self', 'cls')]
  return node.returns is not None and all(argument.annotation for argument in named)


def form(path: pathlib.Path, source: str) -> list[str]:
  """Two-space indentation, no tabs, `from __future__ import annotations` first."""
  tree, lines = ast.parse(source), source.splitlines()
  broken = [f'{path}:{i} holds a tab' for i, line in enumerate(lines, 1) if line.startswith('\t')]
  for node in ast.walk(tree):
    if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.With)):
      first = node.body[0]
      starts_line = not lines[first.lineno - 1][:first.col_offset].strip()
      if starts_line and first.col_offset != node.col_offset + 2:
        broken.append(f'{path}:{first.lineno} is not indented by two columns')
  defines = any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in tree.body)
  if defines and 'from __future__ import annotations' not in source:
    broken.append(f'{path} lacks from __future__ import annotations')
  return broken


def words(path: pathlib.Path, source: str) -> list[str]:
  """No machine paths, tickets or words about how the project was made."""
  broken = []
  for i, line in enumerate(source.splitlines(), 1):
    broken += [f'{path}:{i} holds {what}: {line.strip()[:60]}'
               for what, pattern in FORBIDDEN.items() if re.search(pattern, line)]
  return broken


def impersonal(path: pathlib.Path, source: str) -> list[str]:
  """Documents and docstrings speak of the project, not of a "we"."""
  texts = [source]
  if path.suffix == '.py':
    nodes = [node for node in ast.walk(ast.parse(source))
             if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    texts = [ast.get_docstring(node) or '' for node in nodes]
  pattern = r'\b(?:[Ww]e|[Oo]ur|[Oo]urs)\b(?!")'
  return [f'{path} says "{match.group()}": {text[max(0, match.start() - 20):match.end() + 20]!r}'
          for text in texts for match in re.finditer(pattern, text)]


PYTHON_LAWS = [imports_go_downwards, core_needs_only_jax, columns, sizes, documented_and_typed,
               form]
TEXT_SUFFIXES = ('.py', '.sh', '.md', '.toml', '.txt', '.html', '.yaml', '.yml', '.json', '.jsonl',
                 '.tsv', '.csv', '')


@pytest.mark.parametrize('law', PYTHON_LAWS, ids=lambda law: law.__name__)
def test_python_files_obey(law):
  broken = [line for path in tracked('.py')
            for line in law(path.relative_to(REPO), path.read_text())]
  assert not broken, '\n'.join(broken)


def test_shell_scripts_stay_within_the_columns():
  broken = [line for path in tracked('.sh')
            for line in columns(path.relative_to(REPO), path.read_text())]
  assert not broken, '\n'.join(broken)


def test_texts_hold_no_forbidden_words():
  files = [path for path in tracked(*TEXT_SUFFIXES) if path != pathlib.Path(__file__).resolve()]
  broken = [line for path in files
            for line in words(path.relative_to(REPO), path.read_text(errors='replace'))]
  assert not broken, '\n'.join(broken)


def test_documents_and_docstrings_are_impersonal():
  files = [path for path in tracked('.md', '.py') if path != pathlib.Path(__file__).resolve()]
  broken = [line for path in files for line in impersonal(path.relative_to(REPO), path.read_text())]
  assert not broken, '\n'.join(broken)


SIGNED = '"""Doc."""\nfrom __future__ import annotations\n'
BROKEN = [
    (imports_go_downwards, 'pemt_jax/models/a.py', 'from pemt_jax.methods import pemt'),
    (imports_go_downwards, 'pemt_jax/models/a.py', 'from pemt_jax import training'),
    (imports_go_downwards, 'pemt_jax/models/a.py', 'def f():\n  from ..deltas import lora'),
    (imports_go_downwards, 'pemt_jax/models/a.py', 'import launch.train'),
    (imports_go_downwards, 'pemt_jax/errors.py', 'import pemt_jax.models.t5'),
    (imports_go_downwards, 'pemt_jax/__init__.py', 'from pemt_jax.models import t5'),
    (core_needs_only_jax, 'pemt_jax/methods/a.py', 'import transformers'),
    (core_needs_only_jax, 'pemt_jax/training/step.py', 'from ml_collections import config_dict'),
    (sizes, 'pemt_jax/a.py', 'x = 1\n' * 401),
    (columns, 'pemt_jax/a.py', 'x = "' + 'x' * 100 + '"'),
    (sizes, 'pemt_jax/a.py', 'def f():\n' + '  x = 1\n' * 60),
    (sizes, 'pemt_jax/a.py', 'def f(a, b, c, d, e, f, g, *, h, i):\n  pass'),
    (sizes, 'pemt_jax/a.py',
     'def f():\n  if 1:\n    for x in y:\n      with z:\n        if 2:\n          pass'),
    (documented_and_typed, 'pemt_jax/a.py', 'x = 1'),
    (documented_and_typed, 'pemt_jax/a.py', '"""D."""\ndef f() -> int:\n  return 1'),
    (documented_and_typed, 'pemt_jax/a.py', '"""D."""\ndef f(x) -> int:\n  """D."""'),
    (documented_and_typed, 'pemt_jax/a.py',
     '"""D."""\nclass A:\n  """D."""\n  def f(self) -> int:\n    return 1'),
    (form, 'pemt_jax/a.py', SIGNED + 'def f():\n    return 1'),
    (form, 'pemt_jax/a.py', '"""Doc."""\nclass A:\n  x = 1'),
    (words, 'docs/a.md', 'cd ' + '/ho' + 'me/me/main'),
    (words, 'docs/a.md', 'see iss' + 'ue #2'),
    (impersonal, 'docs/a.md', 'Here we train.'),
    (impersonal, 'pemt_jax/a.py', '"""Returns our loss."""'),
]


@pytest.mark.parametrize('law, path, source', BROKEN, ids=lambda value: getattr(
    value, '__name__', None))
def test_a_broken_sample_is_found(law, path, source):
  assert law(pathlib.Path(path), source)


def test_an_elif_chain_is_not_nesting():
  chain = 'if a:\n  pass\n' + ''.join(f'elif a{i}:\n  pass\n' for i in range(6))
  assert nesting(ast.parse(chain).body) == 1


def test_every_package_has_its_place_among_the_rooms():
  parts = [path.relative_to(REPO).parts for path in tracked('.py')]
  found = {part[1] for part in parts if part[0] == 'pemt_jax' and len(part) > 2}
  assert found <= set(ROOMS), f'no place in the order of imports: {found - set(ROOMS)}'


def _names_in_core() -> list[str]:
  names = [_module_name(path.relative_to(REPO)) for path in tracked('.py')]
  names = [name.removesuffix('.__init__') for name in names]
  return [name for name in names if room_of(name) in CORE or name == 'pemt_jax.training.step']


def test_import_of_the_package_is_cheap(run_python):
  done = run_python(code='import sys; before = set(sys.modules); import pemt_jax; '
                    'print(*sorted({m.split(".")[0] for m in set(sys.modules) - before}))')
  assert set(done.stdout.split()) <= {'pemt_jax', '__future__'}, done.stdout + done.stderr


def test_compute_core_loads_no_heavy_library(run_python):
  code = (f'import importlib, sys\nfor name in {_names_in_core()!r}:\n'
          f'  importlib.import_module(name)\n'
          f'  heavy = {HEAVY!r} & sys.modules.keys()\n'
          f'  assert not heavy, (name, heavy)')
  done = run_python(code=code)
  assert done.returncode == 0, done.stderr[-2000:]


def _requirements(path: pathlib.Path) -> list[str]:
  lines = [line.split('#')[0].strip() for line in path.read_text().splitlines()]
  names = [re.split(r'[\[<>=!~; ]', line)[0] for line in lines if line]
  return [name for name in (IMPORT_NAMES.get(n, n.replace('-', '_')) for n in names) if name]


def test_every_imported_library_is_required():
  declared = {name for path in REPO.glob('requirements*.txt') for name in _requirements(path)}
  known = declared | set(sys.stdlib_module_names) | {'pemt_jax', 'benchmarks', 'configs', 'launch',
                                                    'tests', 'jaxlib'}
  missing = []
  for path in tracked('.py'):
    name = _module_name(path.relative_to(REPO))
    missing += [f'{name}:{line} {target}'
                for line, target in imported_modules(ast.parse(path.read_text()), name)
                if target.split('.')[0] not in known]
  assert not missing, '\n'.join(missing)


def _configs() -> list[pathlib.Path]:
  return [path for path in tracked('.py') if path.relative_to(REPO).parts[0] == 'configs'
          and 'def get_config' in path.read_text()]


def test_every_config_loads_and_is_locked():
  broken = []
  for path in _configs():
    spec = importlib.util.spec_from_file_location('config_under_test', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    json.loads(config.to_json())
    if not config.is_locked:
      broken.append(str(path))
  assert not broken, f'not locked: {broken}'


def shell_lines(text: str) -> list[str]:
  """Command lines of the shell blocks of a Markdown text, continued lines joined."""
  blocks = re.findall(r'^```(?:bash|sh|shell|console)\n(.*?)^```', text, re.M | re.S)
  lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
  return [line.removeprefix('$ ') for line in lines if line.strip() and not line.startswith('#')]


def missing_in_line(line: str) -> list[str]:
  """Files of the repository that a command line names and that are absent, and unknown options."""
  if quoted := re.findall(r'"(python [^"]*)"', line):  # a command that another one passes on
    return [name for part in (*quoted, re.sub('"[^"]*"', '', line))
            for name in missing_in_line(part)]
  folders = 'launch|configs|benchmarks|docs|tests|\\.ci'
  names = re.findall(rf'(?<![\w./-])((?:{folders})/[\w./-]*\w)', line)
  missing = [name for name in names if not (REPO / name).exists()]
  script = re.search(r'\blaunch/\w+\.py\b', line)
  if not missing and script:
    source = (REPO / script.group()).read_text() + (REPO / 'pemt_jax' / 'cli.py').read_text()
    missing += [option for option in re.findall(r'(?<!\S)--(\w+)', line)
                if not re.search(rf"""['"]{option}['"]""", source)]
  return missing


def test_documents_name_what_exists():
  broken = []
  for path in tracked('.md'):
    text = path.read_text()
    broken += [f'{path.name}: {name} in: {line}' for line in shell_lines(text)
               for name in missing_in_line(line)]
    for link in re.findall(r'\]\(([^)#\s]+)', text):
      if '://' not in link and not (path.parent / link).exists():
        broken.append(f'{path.name}: link {link}')
  assert not broken, '\n'.join(broken)


def test_a_missing_file_in_a_document_is_found():
  text = ('Text\n```bash\n# comment\npython launch/none.py --a=1 \\\n'
          '  --config=configs/none.py:x\n```\n')
  assert [missing_in_line(line) for line in shell_lines(text)] == [
      ['launch/none.py', 'configs/none.py']]
