"""Tables of the original weight-ensembling program, byte for byte; readers are strict.

| file | content |
|---|---|
| `result.tsv` of a metric | per target a line `target`, then a line `source,value` per source |
| `<target>/result.tsv` of a tuned run | a line `target`, then `source,best_dev,test` per source |
| `zero_result_dev.tsv` | one number per line, targets x sources, without names |
| `final_weight.txt` | per target its name, then a Python list of the weights of the other sources |

Every writer replaces the whole file; the original appends, so that a repeated run leaves old lines.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from pemt_jax import guards
from pemt_jax.errors import UserError
from pemt_jax.interop.files import write_text

FINAL_WEIGHTS = 'final_weight.txt'
RESULT = 'result.tsv'
ZERO_SHOT = 'zero_result_dev.tsv'


@dataclasses.dataclass(frozen=True)
class Matrix:
  """Numbers of targets and sources.

  Attributes:
    targets: names of rows.
    sources: names of columns.
    values: [target, source] float64.
  """

  targets: tuple[str, ...]
  sources: tuple[str, ...]
  values: np.ndarray

  def chosen(self, targets: Sequence[str], sources: Sequence[str], place: str) -> np.ndarray:
    """Values of some rows and columns, in the order asked for.

    Args:
      targets: names of rows.
      sources: names of columns.
      place: file for messages.

    Raises:
      UserError: a name is not in the table.
    """
    for kind, wanted, known in (('target', targets, self.targets),
                                ('source', sources, self.sources)):
      for name in wanted:
        if name not in known:
          raise UserError(f"{place} has no {kind} '{name}' (it has {', '.join(known)}); make the"
                          ' table for the same names.')
    rows, columns = ([known.index(name) for name in wanted] for wanted, known in (
        (targets, self.targets), (sources, self.sources)))
    return self.values[np.ix_(rows, columns)]


def part_file(stack: str, block: int, layer: int | None = None) -> str:
  """Name of the table of one block, or of one layer (sub-layer) of a block."""
  middle = '' if layer is None else f'_layer_{layer}'
  return f'{stack}_block_{block}{middle}_{RESULT}'


def _lines(path: str | pathlib.Path) -> list[str]:
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f"there is no file '{path}'; correct the path.")
  lines = guards.read_text(path).splitlines()
  if not lines:
    raise UserError(f"'{path}' is empty; make it again.")
  return lines


def _number(text: str, place: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise UserError(f"{place} holds '{text}' where a finite number is needed; make the file"
                    ' again.')
  return value


def _blocks(path: str | pathlib.Path, columns: int) -> dict[str, dict[str, tuple[float, ...]]]:
  """target -> source -> numbers of a table with header lines.

  Raises:
    UserError: the file is absent, a line has another form, or a name stands twice.
  """
  blocks: dict[str, dict[str, tuple[float, ...]]] = {}
  rows: dict[str, tuple[float, ...]] | None = None
  for line_number, line in enumerate(_lines(path), 1):
    place = f'{path} line {line_number}'
    name, *numbers = line.split(',')
    if not name or len(numbers) not in (0, columns) or rows is None and numbers:
      raise UserError(f"{place} is '{line}', which is neither a target nor a source with"
                      f' {columns} numbers; make the file again.')
    if not numbers:
      if name in blocks:
        raise UserError(f"{place} begins target '{name}' a second time; keep one of its blocks.")
      rows = blocks[name] = {}
      continue
    if name in rows:
      raise UserError(f"{place} names source '{name}' a second time; keep one of its lines.")
    rows[name] = tuple(_number(text, place) for text in numbers)
  return blocks


def read_similarity(path: str | pathlib.Path) -> Matrix:
  """Reads `result.tsv` of a similarity metric.

  Raises:
    UserError: the file is absent, a line has another form, a name stands twice, or the sources of
      two targets differ.
  """
  blocks = _blocks(path, 1)
  first = next(iter(blocks))
  sources = tuple(blocks[first])
  for target, rows in blocks.items():
    if tuple(rows) != sources or not rows:
      raise UserError(f"{path} has other sources for target '{target}' ({', '.join(rows)}) than"
                      f" for '{first}' ({', '.join(sources)}); make the file again.")
  values = np.array([[value for value, in rows.values()] for rows in blocks.values()], np.float64)
  return Matrix(tuple(blocks), sources, values)


def write_similarity(path: str | pathlib.Path, matrix: Matrix) -> None:
  """Writes `result.tsv` of a similarity metric."""
  lines = []
  for target, row in zip(matrix.targets, matrix.values, strict=True):
    lines.append(target)
    lines += [f'{source},{float(value)!r}'
              for source, value in zip(matrix.sources, row, strict=True)]
  write_text(path, '\n'.join(lines) + '\n')


def read_tuned_scores(folder: str | pathlib.Path, targets: Sequence[str]) -> Matrix:
  """Best dev scores of all sources after some steps on each target, `<target>/result.tsv`.

  Raises:
    UserError: see `read_similarity`; a file of another target.
  """
  rows, sources = [], None
  for target in targets:
    path = pathlib.Path(folder) / target / RESULT
    blocks = _blocks(path, 2)
    if list(blocks) != [target]:
      raise UserError(f"{path} is a table of {', '.join(blocks)}; give that of '{target}' alone.")
    own = tuple(blocks[target])
    if own != (sources or own):
      raise UserError(f"{path} has other sources ({', '.join(own)}) than that of '{targets[0]}'"
                      f" ({', '.join(sources or ())}); make the files again.")
    sources = own
    rows.append([best for best, _ in blocks[target].values()])
  return Matrix(tuple(targets), sources or (), np.array(rows, np.float64))


def write_tuned_scores(folder: str | pathlib.Path, target: str, sources: Sequence[str],
                       scores: np.ndarray) -> None:
  """Writes `<target>/result.tsv` of a tuned run; `scores` is [source, 2], best dev and test."""
  lines = [f'{source},{float(best)!r},{float(test)!r}'
           for source, (best, test) in zip(sources, scores, strict=True)]
  write_text(pathlib.Path(folder) / target / RESULT, '\n'.join([target, *lines]) + '\n')


def read_zero_shot(path: str | pathlib.Path, targets: Sequence[str],
                   sources: Sequence[str]) -> Matrix:
  """Reads `zero_result_dev.tsv`, which has no names, for known targets and sources.

  Raises:
    UserError: the file is absent, holds something else than numbers, or another number of them.
  """
  lines = _lines(path)
  if len(lines) != len(targets) * len(sources):
    raise UserError(f'{path} has {len(lines)} lines, but {len(targets)} targets with'
                    f' {len(sources)} sources make {len(targets) * len(sources)}; give the names'
                    ' that the file was made with.')
  values = [_number(line, f'{path} line {i}') for i, line in enumerate(lines, 1)]
  return Matrix(tuple(targets), tuple(sources),
                np.array(values, np.float64).reshape(len(targets), len(sources)))


def write_zero_shot(path: str | pathlib.Path, values: np.ndarray) -> None:
  """Writes `zero_result_dev.tsv`; `values` is [target, source]."""
  write_text(path, ''.join(f'{float(value)!r}\n' for value in np.ravel(values)))


def others_of(target: str, sources: Sequence[str]) -> list[str]:
  """The sources without the target's own."""
  return [source for source in sources if source != target]


def targets_of_weights(path: str | pathlib.Path) -> list[str]:
  """Names of the targets in a `final_weight.txt`.

  Raises:
    UserError: there is no such file.
  """
  return _lines(path)[::2]


def read_weights(path: str | pathlib.Path, sources: Sequence[str]) -> Matrix:
  """Reads `final_weight.txt`; the target's own source gets the weight 0.

  Args:
    path: the file.
    sources: names of the sources in their order; the file has none.

  Raises:
    UserError: the file is absent, a list has another form or length, or a target stands twice.
  """
  lines = _lines(path)
  if len(lines) % 2:
    raise UserError(f'{path} has {len(lines)} lines; two belong to each target, make it again.')
  found: dict[str, np.ndarray] = {}
  for i, (target, text) in enumerate(zip(lines[::2], lines[1::2], strict=True)):
    place = f'{path} line {2 * i + 2}'
    others = others_of(target, sources)
    if target in found:
      raise UserError(f"{path} names target '{target}' a second time; keep one of its entries.")
    weights = _number_list(text, place)
    if len(weights) != len(others):
      raise UserError(f"{place} has {len(weights)} weights for target '{target}', but"
                      f' {len(others)} other sources are known; give the sources that the file was'
                      ' made with.')
    found[target] = np.zeros(len(sources))
    found[target][[source != target for source in sources]] = weights
  return Matrix(tuple(found), tuple(sources), np.stack(list(found.values())))


def _number_list(text: str, place: str) -> list[float]:
  try:
    values = guards.parse_json(text)
  except ValueError:
    values = None
  if not isinstance(values, list) or not all(map(_is_finite, values)):
    raise UserError(f"{place} is '{text[:60]}', which is no list of finite numbers; make the file"
                    ' again.')
  return values


def _is_finite(value: object) -> bool:
  try:
    return type(value) in (int, float) and math.isfinite(value)
  except OverflowError:  # a whole number beyond all floats
    return False


def write_weights(path: str | pathlib.Path, matrix: Matrix) -> None:
  """Writes `final_weight.txt`; the weight of the target's own source is left out."""
  lines = []
  for target, row in zip(matrix.targets, matrix.values, strict=True):
    kept = [float(value) for source, value in zip(matrix.sources, row, strict=True)
            if source != target]
    lines += [target, repr(kept)]
  write_text(path, '\n'.join(lines) + '\n')
