"""The sections of a report: what compares runs, and what one stage shows."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from pemt_jax.errors import UserError
from pemt_jax.reports import compare, curves, masks, pictures, plots, routes, tables, views
from pemt_jax.reports.files import Stage
from pemt_jax.reports.views import Block, Section

_WHY = {
    'result.json': 'no final result: the run has not ended',
    'metrics.jsonl': 'no metrics over time: no learning curves',
    'config.json': 'no resolved config',
    'environment.json': 'no description of the environment',
    'gates.npz': 'no gate weights: no gate heat maps',
    'load.npz': 'no tokens sent to experts: no load',
    'correlation.npz': 'no task correlation: no matrix',
    'masks.npz': 'no masks: no overlaps of tasks and layers',
    'routes.npz': 'no routes of tasks: no experts of whole layers',
    'times.json': 'no seconds by phase',
    'resources.json': 'no seconds and memory of the whole run',
    'parameters.json': 'no numbers of parameters',
}
_BAND = ('Line: mean over the replicas that have a value at the step. Band: one sample standard '
         'deviation, where there are several. Each panel has a scale of its own.')
_PHASES = ('input: drawing and stacking batches. compilation: first call of the step for each '
           'shape of a batch; programs of the evaluation are compiled within evaluation. step: '
           'the other calls, and waiting for the device. Earlier calls of a resumed run are in '
           'these seconds; time outside of the loop (loading, tokens, writing experts) is known '
           'for the last call only.')


def run_colours(runs: Mapping[str, Any]) -> dict[str, str]:
  """A colour for each run; they repeat after the last one."""
  return {run: pictures.COLOURS[i % len(pictures.COLOURS)] for i, run in enumerate(runs)}


def _as_object(value: Any) -> Mapping[str, Any]:
  return value if isinstance(value, Mapping) else {}


def records_of(stage: Stage) -> list[tables.Record]:
  """The `records` of a result.

  Raises:
    UserError: one of them does not have the documented form.
  """
  names = {field.name for field in dataclasses.fields(tables.Record)}
  try:
    return [tables.Record(**{name: row[name] for name in names & set(row)})
            for row in _as_object(stage.result).get('records', [])]
  except (TypeError, AttributeError, KeyError) as error:
    raise _bad_result(stage, error) from None


def result_tables(stage: Stage) -> list[tables.Table]:
  """Tables of a result: one per metric of `records`, then those of `replicas`.

  Raises:
    UserError: an entry does not have the documented form.
  """
  result = _as_object(stage.result)
  records = records_of(stage)
  try:
    return tables.tables_of(records) + compare.tables_of_replicas(
        {name: dict(entry.items()) for name, entry in result.get('replicas', {}).items()})
  except (TypeError, AttributeError, KeyError) as error:
    raise _bad_result(stage, error) from None


def _bad_result(stage: Stage, error: Exception) -> UserError:
  return UserError(f"File result.json of stage '{stage.name}' does not have the form that "
                   f'pemt_jax/reports/files.py describes ({error}).')


def table_blocks(table: tables.Table) -> list[Block]:
  """A result table, and its paired differences behind a fold."""
  title = heading(table.title)
  side = not table.one_unit and table.title != 'final_metrics'
  blocks = [Block(title, 'table', views.of_table(table, intervals=not side), folded=side)]
  pairs = views.differences(table)
  return blocks + ([Block(f'{title}: paired differences', 'table', pairs, folded=True)]
                   if pairs else [])


def _without_gates(table: tables.Table) -> tables.Table:
  """A table without the mean gates, which have a table of their own."""
  columns = tuple(name for name in table.columns if not name.startswith('moe_weight_'))
  cells = {key: cell for key, cell in table.cells.items() if key[1] in columns}
  return dataclasses.replace(table, columns=columns, cells=cells)


def heading(name: str) -> str:
  """A name of a file's entry as words: `final_metrics` becomes `Final metrics`."""
  words = name.replace('_', ' ') or 'result'
  return words[0].upper() + words[1:]


def stage_section(name: str, stage: Stage, colour: str | None = None) -> Section:
  """What one stage shows.

  Args:
    name: its name on the page.
    stage: what its folder holds.
    colour: of its learning curves; None where they are drawn elsewhere.

  Raises:
    UserError: an entry of result.json does not have the documented form.
  """
  result = _as_object(stage.result)
  blocks = [Block('', 'facts', compare.facts(stage))] if compare.is_run(stage) else []
  side = []
  for table in result_tables(stage):
    found = table_blocks(_without_gates(table) if stage.gates else table)
    (side if found[0].folded else blocks).extend(found)
  blocks += [Block(title, 'table', view)
             for title, view in views.study_tables(result, stage.name)]
  blocks += [Block(title, 'png', base64.b64encode(content).decode('ascii'))
             for title, content in stage.figures]
  blocks += _gate_blocks(stage) + _load_blocks(stage)
  if stage.correlation is not None:
    blocks.append(Block('Task correlation', 'svg', plots.correlation(stage.correlation),
                        'Similarity of mean prompt rows; mean over seeds.'))
  blocks += masks.blocks(stage.masks) if stage.masks else []
  blocks += routes.blocks(stage.routes, stage.route_steps)
  blocks += [*_curve_blocks(stage, colour), *side, *_other_numbers(result)]
  if stage.config is not None:
    text = json.dumps(stage.config, indent=2, ensure_ascii=False)
    blocks.append(Block('Config', 'text', text, folded=True))
  notes = [f'{part}: {_WHY.get(part, "named by result.json and no PNG below its folder")}.'
           for part in stage.missing if compare.is_run(stage) or part not in _WHY]
  if stage.metrics is not None and not curves.curves_of(stage.metrics):
    notes.append('metrics.jsonl: holds no number yet: no learning curves.')
  return Section(name, blocks + ([Block('Not in this report', 'list', notes, folded=True)]
                           if notes else []))


def _other_numbers(result: Mapping[str, Any]) -> list[Block]:
  """Numbers and words of a result outside of its tables."""
  known = ('records', 'replicas', 'tables', 'figures')
  rest = compare.flat({key: value for key, value in result.items() if key not in known})
  rows = [[name, value] for name, value in rest.items()
          if isinstance(value, (int, float, str, bool))]
  return [Block('Other values of the result', 'table', views.plain_view(['name', 'value'], rows),
                folded=True)] if rows else []


def _gate_blocks(stage: Stage) -> list[Block]:
  if stage.gates is None:
    return []
  view = views.of_table(plots.gate_table(stage.gates), tested=False, intervals=False)
  caption = view.caption.replace('Bold: best mean of the row', 'Bold: largest gate of the target')
  caption = f'Mean over all layers of both stacks. {caption}'
  return [Block('Mean gate weight of each source', 'table', dataclasses.replace(
              view, caption=caption)),
          Block('Gate weights by layer', 'svg', plots.gates_by_layer(stage.gates),
                'Rows: sources. Columns: layers, from the input to the output. Mean over seeds.')]


def _load_blocks(stage: Stage) -> list[Block]:
  if stage.load is None:
    return []
  picture = plots.gates_by_layer(stage.load, 'Share of tokens of each expert')
  return [Block('Load of experts by layer', 'svg', picture,
                'Share of the real tokens whose first choice is the expert, in the last evaluation.'
                ' Rows: experts. Columns: layers with experts, from the input to the output. Mean'
                ' over seeds.')]


def _curve_blocks(stage: Stage, colour: str | None) -> list[Block]:
  """Loss and score of a run, unless they are drawn elsewhere, and all else behind a fold."""
  found = curves.curves_of(stage.metrics or [])
  main = curves.main_metrics(list(found), _selecting(stage))
  blocks = []
  if colour:
    blocks = [_task_curves(metric, {'': found[metric]}, {'': colour}, 'Learning curves: ')
              for metric in main]
  rest = {metric: found[metric] for metric in sorted(found) if metric not in main}
  if rest:
    left = list(rest)[curves.PANELS:]
    caption = _BAND + (f' Not drawn: {", ".join(left)}.' if left else '')
    blocks.append(Block('Other metrics over all replicas', 'svg',
                        curves.draw_metrics(rest, colour or pictures.COLOURS[0]), caption,
                        folded=True))
  return blocks


def _task_curves(metric: str, runs: Mapping[str, curves.Lines],
                 colours: Mapping[str, str], words: str = '') -> Block:
  tasks = {task for lines in runs.values() for task in curves.by_task(lines)}
  left = len(tasks) - curves.PANELS
  caption = _BAND + (f' {left} more tasks are not drawn.' if left > 0 else '')
  return Block(f'{words}{metric}', 'svg', curves.draw_tasks(runs, colours, metric), caption)


def _selecting(stage: Stage) -> str:
  train = _as_object(_as_object(stage.config).get('train'))
  return str(train.get('metric') or '')


def comparison(runs: Mapping[str, Stage], colours: Mapping[str, str],
               has_results: bool) -> tuple[list[Section], set[str]]:
  """What compares several runs.

  Args:
    runs: name -> stage, at least two.
    colours: run -> colour.
    has_results: whether the report has tables of a comparison already; then final metrics of the
      runs are not compared again.

  Returns:
    The sections, and the names of the runs whose curves they show.
  """
  found, drawn = [], set()
  shared = [group for group in compare.sharing_tasks(runs) if len(group) > 1]
  if not has_results:
    blocks = []
    for index, table in enumerate(tables.tables_of(compare.score_records(runs))):
      blocks += [dataclasses.replace(block, folded=index > 0 or block.folded)
                 for block in table_blocks(table)]
    found.append(Section('Final metrics', blocks))
  blocks = []
  for group in shared:
    blocks += _shared_curves({run: runs[run] for run in group}, colours)
    drawn.update(group)
  found += [Section('Learning curves', blocks),
            Section('Runs', [Block('Overview', 'table', compare.facts_view(runs)),
                             *_time_blocks(runs)]),
            *_config_section(runs), *_environment_section(runs)]
  return found, drawn


def _shared_curves(group: Mapping[str, Stage], colours: Mapping[str, str]) -> list[Block]:
  """Loss and score of runs that share tasks, by metric."""
  by_metric: dict[str, dict[str, curves.Lines]] = {}
  for run, stage in group.items():
    found = curves.curves_of(stage.metrics or [])
    for metric in curves.main_metrics(list(found), _selecting(stage)):
      by_metric.setdefault(metric, {})[run] = found[metric]
  return [_task_curves(metric, lines, colours) for metric, lines in by_metric.items()]


def _time_blocks(runs: Mapping[str, Stage]) -> list[Block]:
  seconds = compare.seconds_of(runs)
  if not seconds:
    return []
  return [Block('Where the time goes', 'svg', plots.time_bars(seconds), _PHASES),
          Block('Seconds by phase', 'table', compare.seconds_view(seconds, runs), folded=True)]


def _config_section(runs: Mapping[str, Stage]) -> list[Section]:
  view = compare.differences_view({run: stage.config for run, stage in runs.items()})
  return [Section('Config differences', [Block('', 'table', view)])] if view else []


def _environment_section(runs: Mapping[str, Stage]) -> list[Section]:
  """What is the same everywhere, and what is not."""
  environments = {run: stage.environment for run, stage in runs.items()}
  equal, view = compare.equal_fields(environments), compare.differences_view(environments)
  blocks = [Block('Differs between runs', 'table', view)] if view else []
  if equal:
    texts = {field.removeprefix('packages.'): views.plain_text(value)
             for field, value in equal.items()}
    blocks.append(Block('The same for all runs' if len(runs) > 1 else '', 'facts', texts))
  return [Section('Environment', blocks)] if blocks else []


def single(runs: Mapping[str, Stage]) -> list[Section]:
  """Time and environment of the only run of a report."""
  return [Section('Time', _time_blocks(runs)), *_environment_section(runs)]
