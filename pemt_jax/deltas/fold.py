"""Folding: a backbone whose kernels do what kernels and linear deltas do together."""

from __future__ import annotations

import fnmatch

import jax
import jax.numpy as jnp

from pemt_jax.errors import UserError
from pemt_jax.models.sites import Plan, Site
from pemt_jax.trees import Tree, flatten, unflatten

_WHOLE = '/whole'  # behind the path of a feed-forward: what stands around it

def fold(params: Tree, plan: Plan) -> Tree:
  """Folds every delta of a plan into the kernel at its site.

  Args:
    params: parameters of a model with the plan, whole or cut into segments.
    plan: its rules; an inner rule is folded first.

  Returns:
    Parameters of the plain backbone, float32 where something was folded.

  Raises:
    UserError: a delta that no kernel can replace, or one at a site without a kernel.
  """
  flat = dict(flatten(params))
  for rule in plan.rules:
    if rule.delta.replaces:
      _put_back(flat, rule)
  sites = _sites_of(flat)
  for rule in plan.rules:
    if rule.delta.key_positions or rule.delta.prepares:
      raise UserError(f"the {type(rule.delta).__name__} of rule '{rule.name}' cannot be folded into"
                      ' the backbone, since it acts on no kernel; keep it as an expert.')
  for place, path in sites.items():
    for rule in plan.at(path):
      values = _take(flat, f'{place}/{rule.name}/')
      if values:
        flat[f'{place}/kernel'] = _folded(rule.delta, values, flat, (place, path))
  left = [path for path in flat if any(f'/{rule.name}/' in path for rule in plan.rules)]
  if left:
    raise UserError(f"'{left[0]}' belongs to no kernel, so its delta cannot be folded into the"
                    ' backbone; keep it as an expert.')
  return unflatten(flat)


def _put_back(flat, rule):
  """Puts leaves of the plain backbone in the place of what a delta has instead of them."""
  inside = f'/{rule.name}/'
  for place in sorted({path.partition(inside)[0] for path in flat if inside in path}):
    plain = place.removesuffix(_WHOLE)
    path = _site_of(plain)
    if fnmatch.fnmatchcase(path, rule.site):
      found = rule.delta.dense(_take(flat, place + inside), path)
      flat.update({f'{plain}/{name}': value for name, value in found.items()})


def _site_of(place):
  return '/'.join(part for part in place.split('/') if not part.startswith('layers'))


def _sites_of(flat):
  """Place in the tree -> site path, of all projections."""
  places = [path.removesuffix('/kernel') for path in flat if path.endswith('/kernel')]
  return {place: _site_of(place) for place in places}


def _take(flat, start):
  return {path.removeprefix(start): flat.pop(path) for path in list(flat) if path.startswith(start)}


def _folded(delta, values, flat, names):
  place, path = names
  kernel = jnp.asarray(flat[f'{place}/kernel'], jnp.float32)
  site = Site(path, *kernel.shape[-2:], 'in', 'out', jnp.float32)
  one = lambda values, kernel: delta.fold(values, kernel, site)
  return jax.vmap(one)(values, kernel) if kernel.ndim == 3 else one(values, kernel)
