"""What several runs have in common and where they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pemt_jax.reports import plots, tables, views
from pemt_jax.reports.files import Stage
from pemt_jax.reports.views import View

_MANY_RUNS = 8  # runs are rows of a table from here on
UNSET = '(absent)'


def flat(entry: Mapping[str, Any], prefix: str = '', joint: str = '.') -> dict[str, Any]:
  """Values of a nested object by the joined names; empty objects are left out."""
  found = {}
  for key, value in entry.items():
    nested = isinstance(value, Mapping)
    found |= flat(value, f'{prefix}{key}{joint}', joint) if nested else {f'{prefix}{key}': value}
  return found


def is_run(stage: Stage) -> bool:
  """Whether a stage trained something, in contrast to a folder that only holds results."""
  return any(part is not None for part in (stage.metrics, stage.config, stage.times))


def replicas_of(stage: Stage) -> dict[str, Mapping[str, Any]]:
  """Replica -> its entry in result.json; empty while the run goes on."""
  found = stage.result.get('replicas') if isinstance(stage.result, Mapping) else None
  entries = found.items() if isinstance(found, Mapping) else ()
  return {name: entry for name, entry in entries if isinstance(entry, Mapping)}


def differing(objects: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Fields whose values are not the same in all objects.

  Args:
    objects: run -> object such as a config; runs without an object are left out.

  Returns:
    Field -> run -> value; a run that lacks the field has no value.
  """
  known = {run: flat(entry) for run, entry in objects.items() if isinstance(entry, Mapping)}
  fields = dict.fromkeys(field for entry in known.values() for field in entry)
  rows = {field: {run: entry[field] for run, entry in known.items() if field in entry}
          for field in sorted(fields)}
  return {field: row for field, row in rows.items()
          if len(row) < len(known) or any(v != next(iter(row.values())) for v in row.values())}


def differences_view(objects: Mapping[str, Any]) -> View | None:
  """Table of the fields that differ between runs; None where none does.

  Many runs are rows, few runs are columns.
  """
  rows = differing(objects)
  if not rows:
    return None
  runs = [run for run, entry in objects.items() if isinstance(entry, Mapping)]
  values = [[row.get(run, UNSET) for run in runs] for row in rows.values()]
  equal = len(equal_fields(objects))
  caption = (f'{len(rows)} field{"s differ" if len(rows) > 1 else " differs"}, '
             f'{equal} {"are" if equal != 1 else "is"} equal.')
  if len(runs) > _MANY_RUNS:
    lines = [[run, *column] for run, column in zip(runs, zip(*values))]
    return views.plain_view(['run', *rows], lines, caption, words=True)
  lines = [[field, *line] for field, line in zip(rows, values)]
  return views.plain_view(['field', *runs], lines, caption, words=True)


def equal_fields(objects: Mapping[str, Any]) -> dict[str, Any]:
  """Fields with one value in all objects that are there."""
  known = [flat(entry) for entry in objects.values() if isinstance(entry, Mapping)]
  other = differing(objects)
  return {field: value for field, value in known[0].items() if field not in other} if known else {}


def score_records(runs: Mapping[str, Stage]) -> list[tables.Record]:
  """Final metrics of all replicas as records of task x run, the selecting metric first.

  Args:
    runs: name -> stage.
  """
  found = [(run, name, entry.get('final_metrics') or entry.get('best_metrics') or {},
            str(entry.get('metric') or '')) for run, stage in runs.items()
           for name, entry in replicas_of(stage).items()]
  wanted = [metric for *_, metric in found]
  records = [tables.Record(tables.group_of(name), run, float(value), metric, name)
             for run, name, metrics, _ in found for metric, value in flat(metrics).items()
             if isinstance(value, (int, float))]
  return sorted(records, key=lambda record: (record.metric not in wanted, record.metric))


def sharing_tasks(runs: Mapping[str, Stage]) -> list[list[str]]:
  """Groups of runs that are joined by common tasks, in the order of the runs."""
  groups: list[tuple[set[str], list[str]]] = []
  for run, stage in runs.items():
    tasks = {tables.group_of(str(row.get('replica', ''))) for row in stage.metrics or ()}
    joined = [group for group in groups if group[0] & tasks]
    groups = [group for group in groups if not group[0] & tasks]
    names = [name for _, listed in joined for name in listed]
    groups.append((tasks.union(*(found for found, _ in joined)), [*names, run]))
  order = list(runs)
  return sorted((sorted(listed, key=order.index) for _, listed in groups),
                key=lambda listed: order.index(listed[0]))


def facts(stage: Stage) -> dict[str, Any]:
  """What a run is and how far it is, name -> text; only what is known."""
  config = stage.config if isinstance(stage.config, Mapping) else {}
  replicas = replicas_of(stage)
  rows = stage.metrics or []
  names = list(replicas) or list(dict.fromkeys(str(row.get('replica', '')) for row in rows))
  steps = max((row['step'] for row in rows), default=None)
  if not is_run(stage):
    return {}
  found = {'stage': config.get('stage'), 'tasks': len(set(map(tables.group_of, names))) or None,
           'replicas': len(names) or None, 'steps': steps,
           'state': 'finished' if replicas else 'not finished',
           'time': duration(numbers(stage.resources).get('seconds')),
           'peak memory': size(numbers(stage.resources).get('peak_host_bytes')),
           'device memory': size(numbers(stage.resources).get('peak_device_bytes')),
           **_used(numbers(stage.resources)),
           'tuned per replica': thousands(
               numbers(stage.parameters).get('tuned_parameters_per_replica')),
           'frozen': thousands(numbers(stage.parameters).get('frozen_parameters'))}
  return {name: str(value) for name, value in found.items() if value is not None}


def _used(resources: Mapping[str, float]) -> dict[str, str | None]:
  """What `training/usage.py` tells of all starts of a run."""
  lost, starts = resources.get('lost_steps'), resources.get('starts')
  return {'goodput': percent(resources.get('goodput')),
          'starts': thousands(starts) if starts and starts > 1 else None,
          'lost steps': thousands(lost) if lost else None,
          'operations of a step': scientific(resources.get('flops_per_step')),
          'operations per second': scientific(resources.get('flops_per_second')),
          'utilisation': percent(resources.get('utilisation'))}


def facts_view(runs: Mapping[str, Stage]) -> View:
  """One row of facts per run."""
  listed = {run: facts(stage) for run, stage in runs.items()}
  head = list(dict.fromkeys(name for entry in listed.values() for name in entry))
  return views.plain_view(['run', *head], [[run, *(entry.get(name) for name in head)]
                                           for run, entry in listed.items()])


def numbers(entry: Any) -> dict[str, float]:
  """Numbers of an object; empty for what is no object."""
  entries = entry.items() if isinstance(entry, Mapping) else ()
  return {name: value for name, value in entries
          if isinstance(value, (int, float)) and not isinstance(value, bool)}


def duration(seconds: float | None) -> str | None:
  """Seconds in words such as `2 min 5 s`."""
  if seconds is None:
    return None
  if seconds < 60:
    return f'{seconds:.1f} s'
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours} h {minutes} min' if hours else f'{minutes} min {rest} s'


def size(count: float | None) -> str | None:
  """Bytes in MiB or GiB."""
  if count is None:
    return None
  return f'{count / 2 ** 30:.1f} GiB' if count >= 2 ** 30 else f'{count / 2 ** 20:.0f} MiB'


def percent(share: float | None) -> str | None:
  """A share in percent."""
  return None if share is None else f'{100 * share:.1f} %'


def scientific(number: float | None) -> str | None:
  """A large number with three digits."""
  return None if number is None else f'{number:.2e}'


def thousands(count: float | None) -> str | None:
  """A whole number with commas."""
  return None if count is None else f'{count:,.0f}'


def seconds_of(runs: Mapping[str, Stage]) -> dict[str, dict[str, float]]:
  """Seconds by phase of the runs that recorded them."""
  return {run: plots.seconds_of_phases(numbers(stage.times),
                                       numbers(stage.resources).get('seconds'))
          for run, stage in runs.items() if numbers(stage.times)}


def seconds_view(runs: Mapping[str, Mapping[str, float]], stages: Mapping[str, Stage]) -> View:
  """Seconds by phase, their sum, and milliseconds of a step, one row per run."""
  phases = list(dict.fromkeys(phase for seconds in runs.values() for phase in seconds))
  rows = []
  for run, seconds in runs.items():
    steps = max((row['step'] for row in stages[run].metrics or ()), default=0)
    each = f"{1000 * seconds.get('step', 0.0) / steps:.1f}" if steps else None
    rows.append([run, *(f'{seconds[p]:.1f}' if p in seconds else None for p in phases),
                 f'{sum(seconds.values()):.1f}', each])
  return views.plain_view(['run', *phases, 'all', 'ms per step'], rows)


def tables_of_replicas(entries: Mapping[str, Mapping[str, Any]]) -> list[tables.Table]:
  """One table for the plain numbers and one for each object among the entries of replicas.

  Replicas that differ by their seed share a row.
  """
  groups: dict[str, dict[tuple[str, str], list[float]]] = {}
  for replica, entry in entries.items():
    for path, value in numbers(flat(entry, joint='/')).items():
      group, _, name = path.rpartition('/')
      values = groups.setdefault(group or 'replicas', {})
      values.setdefault((tables.group_of(replica), name), []).append(value)
  return [table_of_lists(group, values) for group, values in groups.items()]


def table_of_lists(title: str, values: Mapping[tuple[str, str], Sequence[float]]) -> tables.Table:
  """A table of (row, column) -> repetitions, columns of several units."""
  return tables.Table(title, tuple(dict.fromkeys(row for row, _ in values)),
                      tuple(dict.fromkeys(column for _, column in values)),
                      {key: tables.cell_of(listed) for key, listed in values.items()},
                      corner='replica', one_unit=False)
