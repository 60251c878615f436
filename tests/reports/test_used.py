"""The table of what a run has used."""

from __future__ import annotations

from pemt_jax.reports import compare, used
from pemt_jax.reports.files import Stage

RESOURCES = {'seconds': 10.0, 'peak_host_bytes': 2 ** 29, 'peak_device_bytes': None,
             'starts': 2, 'lost_steps': 3, 'goodput': 0.4, 'flops_per_step': 1.5e9,
             'flops_per_second': 3e9, 'utilisation': 0.25}


def stage_of(**changes):
  return Stage('', metrics=[{'step': 3, 'replica': 'a'}], times={'step': 6.0, 'input': 2.0},
               resources=RESOURCES | changes)


def test_phases_have_shares_and_what_is_unknown_is_left_out():
  assert used.table(stage_of()).splitlines() == [
      '| what | used |', '| --- | --- |', '| input | 2.0 s (20.0 %) |', '| step | 6.0 s (60.0 %) |',
      '| time outside of the loop | 2.0 s (20.0 %) |', '| time | 10.0 s |',
      '| peak memory | 512 MiB |', '| goodput | 40.0 % |', '| starts | 2 |', '| lost steps | 3 |',
      '| operations of a step | 1.50e+09 |', '| operations per second | 3.00e+09 |',
      '| utilisation | 25.0 % |']
  assert used.table(Stage('')).splitlines() == ['| what | used |', '| --- | --- |']


def test_a_run_that_never_stopped_says_nothing_of_stops():
  facts = compare.facts(stage_of(starts=1, lost_steps=0, utilisation=None))
  assert facts['goodput'] == '40.0 %'
  assert not {'starts', 'lost steps', 'utilisation'} & set(facts)
