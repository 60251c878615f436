"""The report of a workdir: one HTML file that needs nothing beside it."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from pemt_jax import __version__, guards
from pemt_jax.reports import compare, files, latex, sections, tables, views
from pemt_jax.reports.views import Section

_TEMPLATE = 'report.html'


def write_report(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Writes `<workdir>/report/`: index.html, tables.md, tables.tex and tables.json.

  Args:
    workdir: folder of a run, of several stages or of several runs; see `reports.files` for what is
      read.

  Returns:
    The path of index.html.

  Raises:
    UserError: the folder does not exist, holds no run, or holds a file that cannot be read.
  """
  root = pathlib.Path(workdir)
  with guards.reading(root, 'remove the files that no stage has written'):
    stages = files.read_workdir(root)
    texts, data = _tables(stages)
    page = render(root.resolve().name, stages)
    latex_text = latex.document([table for stage in stages
                                 for table in sections.result_tables(stage)])
  folder = root / 'report'
  folder.mkdir(exist_ok=True)
  _write(folder / 'tables.md', '\n'.join(texts))
  _write(folder / 'tables.tex', latex_text)
  _write(folder / 'tables.json', json.dumps(data, indent=1, ensure_ascii=False) + '\n')
  _write(folder / 'index.html', page)
  return folder / 'index.html'


def _tables(stages: list[files.Stage]) -> tuple[list[str], list[dict[str, Any]]]:
  """All result tables as Markdown and as JSON-able dicts."""
  texts, data = [], []
  for stage in stages:
    for table in sections.result_tables(stage):
      title = ': '.join(filter(None, (stage.name, table.title))) or 'result'
      texts.append(f'## {title}\n\n{tables.to_markdown(table, marked=True)}')
      data.append({'stage': stage.name, **tables.to_json(table)})
    result = stage.result if isinstance(stage.result, Mapping) else {}
    for entry, (title, view) in zip(result.get('tables', []),
                                    views.study_tables(result, stage.name)):
      name = ': '.join(filter(None, (stage.name, title)))
      texts.append(f'## {name}\n\n{views.to_markdown(view)}')
      data.append({'stage': stage.name, **entry})
  return texts, data


def render(title: str, stages: list[files.Stage]) -> str:
  """Fills the template.

  Args:
    title: name of the workdir.
    stages: at least one.

  Returns:
    The whole HTML text.
  """
  import jinja2

  environment = jinja2.Environment(
      loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent), autoescape=True,
      trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
  environment.globals.update(version=__version__, best=tables.BEST, like=tables.LIKE_BEST,
                             sign=tables.LIKE_SIGN, absent=compare.UNSET)
  environment.filters['number_like'] = lambda text: bool(re.match(r'[-+]?\d|-$|nan', text))
  return environment.get_template(_TEMPLATE).render(
      title=title, sections=page_sections(title, stages),
      facts=_page_facts(stages))


def _page_facts(stages: list[files.Stage]) -> dict[str, str]:
  """What stands below the title: how much there is, and on what it ran."""
  runs = [stage for stage in stages if compare.is_run(stage)]
  if len(stages) == 1:
    return {}
  seconds = [compare.numbers(stage.resources).get('seconds') for stage in runs]
  replicas = sum(len(compare.replicas_of(stage)) for stage in runs)
  found = {'runs': str(len(runs)) if runs else None, 'replicas': str(replicas) if runs else None,
           'time of all runs': compare.duration(sum(s for s in seconds if s) or None)}
  environments = [stage.environment for stage in runs if isinstance(stage.environment, Mapping)]
  found['devices'] = ', '.join(dict.fromkeys(
      f"{entry.get('devices', '?')} x {entry.get('device_kind', '?')}"
      + (f" ({entry['cpu_count']} cores)" if entry.get('device_platform') == 'cpu'
         and 'cpu_count' in entry else '') for entry in environments)) or None
  return {name: text for name, text in found.items() if text}


def page_sections(title: str, stages: list[files.Stage]) -> list[Section]:
  """All sections of the page: what compares the runs, then one for each stage.

  Args:
    title: name of the workdir, which is the name of a stage in the workdir itself.
    stages: at least one.
  """
  taken = {stage.name for stage in stages}
  own_name = f'{title}/.' if title in taken else title
  named = {stage.name or own_name: stage for stage in stages}
  runs = {name: stage for name, stage in named.items() if compare.is_run(stage)}
  colours = sections.run_colours(runs)
  alone = {name: stage for name, stage in named.items() if name not in runs}
  found = [sections.stage_section('Results' if not stage.name else name, stage)
           for name, stage in alone.items()]
  drawn: set[str] = set()
  if len(runs) > 1:
    compared, drawn = sections.comparison(runs, colours, bool(alone))
    found += compared
  own = {name: colours[name] for name in runs if name not in drawn}
  found += [sections.stage_section(name if len(stages) > 1 else 'Run', stage, own.get(name))
            for name, stage in runs.items()]
  if len(runs) == 1:
    found += sections.single(runs)
  return [section for section in found if section.blocks]


def _write(path: pathlib.Path, text: str) -> None:
  """Writes a file whole or not at all."""
  partial = path.with_suffix(path.suffix + '.partial')
  partial.write_text(text, encoding='utf-8')
  os.replace(partial, path)
