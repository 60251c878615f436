"""The transfer report: do the similarities of a folder of tables predict measured gains?"""

from __future__ import annotations

import dataclasses
import pathlib

from pemt_jax.errors import UserError
from pemt_jax.experts import tree_files
from pemt_jax.experts.merging.weights import leave_one_out
from pemt_jax.experts.similarity import METRICS
from pemt_jax.interop import ensembling_files as tables
from pemt_jax.interop.files import write_text
from pemt_jax.reports import transfer

REPORT = 'transfer'


def write_report(folder: str | pathlib.Path, gains: str | pathlib.Path) -> str:
  """Compares every `<metric>/result.tsv` below a folder with measured gains.

  Writes `transfer.json`, `transfer.md` and `transfer.svg` into the folder. A target's own source
  does not count.

  Args:
    folder: where the similarity tables are.
    gains: a table in the form of `result.tsv` with gains.

  Returns:
    The table as Markdown.

  Raises:
    UserError: no table, or a table without the names of the gains.
  """
  folder = pathlib.Path(folder)
  gain = tables.read_similarity(gains)
  allowed = leave_one_out(gain.targets, gain.sources)
  found, values = {}, {}
  for name, metric in METRICS.items():
    path = folder / metric.folder / tables.RESULT
    if path.is_file():
      values[name] = tables.read_similarity(path).chosen(gain.targets, gain.sources, str(path))
      found[name] = transfer.agreement(values[name], gain.values, metric.sign, allowed)
  if not found:
    raise UserError(f'{folder} holds no similarity table such as'
                    f' {METRICS["loss"].folder}/{tables.RESULT}; measure similarities there first.')
  table = transfer.to_markdown(found)
  tree_files.write_json(folder / f'{REPORT}.json', {
      'gains': str(gains), 'targets': gain.targets, 'sources': gain.sources,
      'metrics': {name: dataclasses.asdict(value) for name, value in found.items()}})
  write_text(folder / f'{REPORT}.svg', transfer.scatter(values, gain.values, allowed) + '\n')
  write_text(folder / f'{REPORT}.md', table)
  return table
