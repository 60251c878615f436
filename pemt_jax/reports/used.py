"""What a run has used, as one table."""

from __future__ import annotations

from pemt_jax.reports import compare
from pemt_jax.reports.files import Stage

_SHOWN = ('time', 'peak memory', 'device memory', 'goodput', 'starts', 'lost steps',
          'operations of a step', 'operations per second', 'utilisation')


def table(stage: Stage) -> str:
  """Seconds by phase with their shares, then goodput, memory and operations, in Markdown."""
  seconds = next(iter(compare.seconds_of({'': stage}).values()), {})
  total = sum(seconds.values())
  rows = [(phase, f'{value:.1f} s ({compare.percent(value / total)})')
          for phase, value in seconds.items() if total]
  facts = compare.facts(stage)
  rows += [(name, facts[name]) for name in _SHOWN if name in facts]
  return '\n'.join(['| what | used |', '| --- | --- |', *(f'| {a} | {b} |' for a, b in rows)])
