"""Tables and files of plans, see `stages.plan.plan`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pemt_jax.errors import UserError
from pemt_jax.reports.tables import MISSING, aligned

GIB = 2**30
HEAD = ('mesh', 'peak GiB', 'fits', 'TFLOP', 'GB moved', 'GB exchanged', 'GB exposed', 'compute ms',
        'memory ms', 'links ms', 'utilisation', 'chip-hours per million rows')


def write(plans: Sequence[Mapping[str, Any]], path: str | pathlib.Path) -> None:
  """Writes plans as JSON, in one move."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'.{path.name}.partial')
  partial.write_text(json.dumps(list(plans), indent=1) + '\n', encoding='utf-8')
  partial.replace(path)


def best(plans: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
  """The plan that fits and has the shortest step; None where no step is predicted."""
  able = [plan for plan in plans if plan['fits'] and 'step_seconds' in plan]
  return min(able, key=lambda plan: plan['step_seconds'], default=None)


def chip_hours(plan: Mapping[str, Any]) -> float:
  """Hours of chips for a million rows."""
  return plan['step_seconds'] * plan['chips'] / plan['rows'] * 1e6 / 3600


def mesh_name(plan: Mapping[str, Any]) -> str:
  """Such as `fsdp=4,tensor=4`."""
  return ','.join(f'{axis}={size}' for axis, size in plan['mesh'].items()) or 'one device'


def row(plan: Mapping[str, Any], marked: bool = False) -> list[str]:
  """A line of the table under `HEAD`; figures are of one device.

  Args:
    plan: see `stages.plan.plan`.
    marked: whether it is the best one.
  """
  name = mesh_name(plan)
  peak = f'{plan["memory"]["peak"] / GIB:.2f}' if 'peak' in plan['memory'] else MISSING
  line = [f'**{name}**' if marked else name, peak, 'yes' if plan['fits'] else 'no']
  if 'flops' not in plan:
    return line + [MISSING] * (len(HEAD) - len(line))
  exchanged = sum(kind['bytes'] for kind in plan['collectives'].values())
  line += [f'{plan["flops"] / 1e12:.3g}', f'{plan["bytes"] / 1e9:.3g}', f'{exchanged / 1e9:.3g}',
           f'{plan["exposed_bytes"] / 1e9:.3g}']
  if 'seconds' not in plan:
    return line + [MISSING] * (len(HEAD) - len(line))
  for part in ('compute', 'memory', 'links'):
    text = f'{1e3 * plan["seconds"][part]:.3g}'
    line.append(f'**{text}**' if plan['bound'] == part else text)
  return line + [f'{plan["utilisation"]:.0%}', f'{chip_hours(plan):.3g}']


def shown(plans: Sequence[Mapping[str, Any]]) -> str:
  """What the command prints: the table, memory and exchanges by kind, findings."""
  first, chosen = plans[0], best(plans)
  lines = [f'{first["stage"]} on {first["model"]}, {first["program"]}, {first["rows"]} rows,'
           f' {first["topology"]}', '',
           aligned([HEAD, *(row(plan, plan is chosen and len(plans) > 1) for plan in plans)])]
  for plan in plans:
    lines += _details(plan)
  return '\n'.join(lines)


def read(folder: str | pathlib.Path) -> list[dict[str, Any]]:
  """All plans of a folder by stage, model, program and number of chips.

  Args:
    folder: of files that `write` made.

  Raises:
    UserError: a folder without plans.
  """
  found = [plan for path in sorted(pathlib.Path(folder).glob('*.json'))
           for plan in json.loads(path.read_text(encoding='utf-8'))]
  if not found:
    raise UserError(f"folder '{folder}' holds no plans; write some with launch/plan.py --output.")
  return sorted(found, key=lambda plan: (plan['stage'], plan['model'], plan['program'],
                                         plan['chips']))


def table(found: Sequence[Mapping[str, Any]]) -> str:
  """Plans as Markdown, one in each line."""
  names = lambda plan: [_subject(plan), plan['program'],
                        f'{plan["rows"]} x {"+".join(map(str, plan["tokens"]))}', plan['remat'],
                        plan['topology']]
  return aligned([('stage', 'program', 'rows x tokens', 'remat', 'slice', *HEAD),
                  *(names(plan) + row(plan) for plan in found)])


def costs(found: Sequence[Mapping[str, Any]]) -> str:
  """Chip-hours per million rows of the best train step on each slice, as Markdown."""
  steps = [plan for plan in found if plan['program'] == 'train' and 'step_seconds' in plan]
  size = {plan['topology']: plan['chips'] for plan in steps}
  slices = sorted(size, key=lambda name: (size[name], name))
  lines = [('stage', *(f'{name}, {size[name]} chips' for name in slices))]
  for subject in dict.fromkeys(map(_subject, steps)):
    own = [[plan for plan in steps if (_subject(plan), plan['topology']) == (subject, name)]
           for name in slices]
    lines.append((subject, *(f'{chip_hours(one):.3g}' if (one := best(plans)) else MISSING
                             for plans in own)))
  return aligned(lines)


def _subject(plan: Mapping[str, Any]) -> str:
  return f'{plan["stage"]}, {plan["model"].rpartition("/")[2]}'


def _details(plan: Mapping[str, Any]) -> list[str]:
  memory = ', '.join(f'{name} {size / GIB:.3f}' for name, size in plan['memory'].items())
  lines = [f'{mesh_name(plan)}: GiB of a device: {memory or "not told"}']
  lines += [f'  {plan[name]}' for name in ('refused', 'unread') if name in plan]
  for kind, each in plan.get('collectives', {}).items():
    lines.append(f'  {kind}: {each["runs"]} runs, {each["bytes"] / 1e9:.3g} GB brought in')
  found = plan.get('findings', {})
  lines += [f'  {len(found[name])} {text}' for name, text in (
      ('frozen_gradients', 'sums of gradients of frozen parameters'),
      ('whole_gathers', 'gathers of a frozen matrix of all layers')) if found.get(name)]
  if found.get('moved_bytes'):
    lines.append(f'  {found["moved_bytes"] / 1e9:.3g} GB of frozen parameters copied or transposed')
  return lines
