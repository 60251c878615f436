"""Merges source experts in weight space; writes one expert per target that leaves it out.

python launch/merge.py --sources=DIR[,DIR] --method=average --output=DIR [--targets=TASKS]
"""

from __future__ import annotations

import pathlib
import sys

from absl import flags
from ml_collections import config_flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pemt_jax import cli
from pemt_jax.sharding import processes

SOURCES = flags.DEFINE_list('sources', [], 'Folders of experts, runs or libraries of experts.')
TARGETS = flags.DEFINE_list('targets', [], "Target tasks; the default is the sources' tasks.")
METHOD = flags.DEFINE_string('method', 'average', 'How to merge, see docs/merging.md.')
OUTPUT = flags.DEFINE_string('output', None, 'Folder for the merged experts.', required=True)
CONFIG = config_flags.DEFINE_config_file(
    'config', None, "Stage config in place of the sources' own.", lock_config=True)
SIMILARITY = flags.DEFINE_string('similarity', '', 'Similarity table, or a folder of metrics.')
METRIC = flags.DEFINE_string('metric', 'loss', 'Similarity metric of the table.')
VERSION = flags.DEFINE_enum(
    'version', 'current', ['current', 'historical'], 'Whose signs and temperatures.')
SIGN = flags.DEFINE_integer('sign', 0, "1 or -1 in place of the metric's sign.")
TEMPERATURE = flags.DEFINE_float('temperature', 0.0, "In place of the metric's temperature.")
WEIGHTS = flags.DEFINE_string('weights', '', 'A final_weight.txt.')
FAMILIES = flags.DEFINE_string('families', '', 'JSON: family -> tasks; the default knows the gym.')
BASE = flags.DEFINE_string('base', '', 'Expert whose values task vectors start from.')
MOVED = flags.DEFINE_string('moved', '', 'Merge the sources after some steps on each target.')
SCALE = flags.DEFINE_float('scale', 1.0, 'Factor of a merged task vector.')
KEEP = flags.DEFINE_float('keep', 0.2, 'Share of entries that TIES keeps.')
RATE = flags.DEFINE_float('rate', 0.5, 'Share of entries that DARE drops.')
DARE_TIES = flags.DEFINE_bool('dare_ties', False, 'Merge by TIES what DARE leaves.')
ROWS = flags.DEFINE_integer('rows', 50, 'Rows per source (fisher) or per batch (search).')
LABELS = flags.DEFINE_enum('labels', 'model', ['model', 'data'], 'Labels of the Fisher.')
CANDIDATES = flags.DEFINE_integer('candidates', 64, 'Candidates of a round of the search.')
ROUNDS = flags.DEFINE_integer('rounds', 3, 'Rounds of the search.')
SIMPLEX = flags.DEFINE_bool('simplex', True, 'Search among weights at least 0 with sum 1.')
SEED = flags.DEFINE_integer('seed', 0, 'Of DARE, of drawn labels and of the search.')

cli.define_process_flags()


def main(_: list[str]) -> None:
  """Writes the merged experts and prints their folders."""
  from pemt_jax.stages import merging
  options = merging.MergeOptions(
      method=METHOD.value, similarity=SIMILARITY.value, metric=METRIC.value, version=VERSION.value,
      sign=SIGN.value, temperature=TEMPERATURE.value, weights=WEIGHTS.value,
      families=FAMILIES.value, base=BASE.value, moved=MOVED.value, scale=SCALE.value,
      keep=KEEP.value, rate=RATE.value, dare_ties=DARE_TIES.value, rows=ROWS.value,
      labels=LABELS.value, candidates=CANDIDATES.value, rounds=ROUNDS.value,
      simplex=SIMPLEX.value, seed=SEED.value)
  folders = merging.merge_experts(SOURCES.value, TARGETS.value, options,
                                  pathlib.Path(OUTPUT.value), CONFIG.value)
  for task, folder in folders.items():
    print(f'{task}: {folder}')


if __name__ == '__main__':
  cli.run(main, processes.as_member)
