"""Dimension squeezing: training goes on with smaller ranks (Gao et al. 2021, arXiv 2106.02205).

A run whose ranks are smaller than those of the expert it starts from (`config.starts`) takes its
cores in canonical form, cut to them: what is lost belongs to the smallest singular values.
"""

from __future__ import annotations

from pemt_jax.experts.mpo import shrink
from pemt_jax.experts.mpo_linear import chains
from pemt_jax.trees import Tree, flatten, unflatten


def shrunk(tuned: Tree, shapes: Tree) -> Tree:
  """An expert's values with cores of the ranks of a run.

  Args:
    tuned: of the expert, canonical.
    shapes: of the run's, canonical.

  Returns:
    The tree; chains that are not whole, or that would have to grow, stay as they are.
  """
  flat, wanted = dict(flatten(tuned)), flatten(shapes)
  for place, cores in chains(flat).items():
    names = [f'{place}/core_{number}' for number in range(len(cores))]
    if not all(name in wanted and name in flat for name in names):
      continue
    targets = [wanted[name].shape for name in names]
    smaller = all(target[-4] <= core.shape[-4] and target[-1] <= core.shape[-1]
                  and target[-3:-1] == core.shape[-3:-1] and target[:-4] == core.shape[:-4]
                  for target, core in zip(targets, cores, strict=True))
    if smaller and any(target != core.shape for target, core in zip(targets, cores)):
      ranks = (*(target[-4] for target in targets), targets[-1][-1])
      flat |= dict(zip(names, shrink(cores, ranks), strict=True))
  return unflatten(flat)
