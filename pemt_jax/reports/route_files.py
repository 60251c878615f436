"""Routes of tasks over experts as a run writes them; the form is that of `reports.files`."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable

import numpy as np

from pemt_jax.reports.arrays import check_shape, names_of, read_arrays

ROUTES = 'routes.npz'
ROUTE_STEPS = 'routes'


@dataclasses.dataclass(frozen=True)
class Routes:
  """Routes of tasks at one step of a replica, in the layers that have experts.

  Attributes:
    tasks: [task] names.
    categories: [task] first level of the ontology.
    groups: [task] second level.
    layers: [layer] names.
    now: [task, layer, expert] at the run's temperature.
    at_one: the same at temperature 1.
    temperature: of the run.
  """

  tasks: tuple[str, ...]
  categories: tuple[str, ...]
  groups: tuple[str, ...]
  layers: tuple[str, ...]
  now: np.ndarray
  at_one: np.ndarray
  temperature: float


def read_routes(path: pathlib.Path) -> dict[str, Routes]:
  """Reads `routes.npz` (see `reports.files`): replica -> routes.

  Raises:
    UserError: an array is missing or misshaped.
  """
  names = ('tasks', 'categories', 'groups')
  arrays = read_arrays(path, ('replicas', *names, 'layers', 'routed', 'routes', 'routes_t1',
                              'temperatures'))
  rows, layers = len(arrays['replicas']), len(arrays['layers'])
  for name in ('routes', 'routes_t1'):
    check_shape(path, name, arrays[name], (rows, layers, None))
  kept, found = arrays['routed'] > 0, {}
  for replica in dict.fromkeys(names_of(arrays['replicas'])):
    own = arrays['replicas'] == replica
    found[replica] = Routes(
        *(names_of(arrays[name][own]) for name in names), names_of(arrays['layers'][kept]),
        *(arrays[name][own][:, kept] for name in ('routes', 'routes_t1')),
        float(arrays['temperatures'][own][0]))
  return found


def read_route_steps(folders: Iterable[pathlib.Path]) -> dict[str, dict[int, Routes]]:
  """Reads `routes/<step>.npz` of a run: replica -> step -> routes, steps in their order.

  Args:
    folders: of the run, and of its replicas where they were trained one by one.
  """
  found: dict[str, dict[int, Routes]] = {}
  for place in folders:
    paths = [path for path in place.glob(f'{ROUTE_STEPS}/*.npz') if path.stem.isdigit()]
    for path in sorted(paths, key=lambda path: int(path.stem)):
      for replica, routes in read_routes(path).items():
        found.setdefault(replica, {})[int(path.stem)] = routes
  return found
