"""Matrix product operators: decomposition on the host, rebuilding and contraction on the device.

A matrix is a chain of cores [r_k, i_k, j_k, r_(k+1)], see `experts/mpo_shapes.py`. Decompositions
are canonical: the singular values of each bond (between the cores in front and those behind) are
split evenly between its two sides, so that cutting the trailing indices of a bond removes its
smallest singular values (Gao et al. 2022, section 3.1). Cores are unique up to the signs of the
bonds' vectors, which are fixed here by a rule, and rotations among equal singular values.

Kernels are [in, out], so their cores are [rank, in, out, rank].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.errors import UserError
from pemt_jax.experts.mpo_shapes import Factors

Cores = list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Decomposition:
  """Canonical cores and what they were cut from.

  Attributes:
    cores: [..., r_k, i_k, j_k, r_(k+1)], in the type of the matrix.
    spectra: [..., r_b] singular values of the bonds b = 1 .. n-1 before any cut, descending,
      float64.
  """

  cores: Cores
  spectra: list[np.ndarray]


def decompose(matrix: np.ndarray, factors: Factors,
              ranks: Sequence[int] | int | None = None) -> Decomposition:
  """Canonical cores of a matrix, computed in float64.

  Args:
    matrix: [..., rows, cols]; leading axes are kept. Smaller ones are padded with zeros.
    factors: of both dimensions.
    ranks: (r_0, ..., r_n), or a limit of all ranks; None keeps all.

  Raises:
    UserError: factors that are too small for the matrix.
  """
  matrix = np.asarray(matrix)
  factors.require(matrix.shape[-2:])
  if matrix.ndim > 2:
    parts = [decompose(one, factors, ranks) for one in matrix.reshape(-1, *matrix.shape[-2:])]
    stack = lambda arrays: np.stack(arrays).reshape(*matrix.shape[:-2], *arrays[0].shape)
    return Decomposition(*([stack(group) for group in zip(*column, strict=True)]
                           for column in ([p.cores for p in parts], [p.spectra for p in parts])))
  found = _split_evenly(left_chain(matrix, factors))
  cores = cut(found.cores, factors.ranks(ranks) if isinstance(ranks, int) else ranks)
  kind = matrix.dtype if np.issubdtype(matrix.dtype, np.floating) else np.float64
  return Decomposition([core.astype(kind) for core in cores], found.spectra)


def _paired(matrix: np.ndarray, factors: Factors) -> np.ndarray:
  """[i_0, j_0, i_1, j_1, ...] float64 of a matrix, with zeros as padding."""
  room = np.zeros(factors.shape)
  room[:matrix.shape[0], :matrix.shape[1]] = matrix
  count = len(factors.rows)
  order = [axis for k in range(count) for axis in (k, count + k)]
  return room.reshape(*factors.rows, *factors.cols).transpose(order)


def left_chain(matrix: np.ndarray, factors: Factors) -> Cores:
  """Cores with full ranks whose columns, [r i j, r'], are orthonormal but for the last core.

  Args:
    matrix: [rows, cols], not larger than the factors.
    factors: of both dimensions.
  """
  rest, left, rank = _paired(matrix, factors), [], 1
  for i, j in list(zip(factors.rows, factors.cols, strict=True))[:-1]:
    rest = rest.reshape(rank * i * j, -1)
    if rest.shape[0] <= rest.shape[1]:  # Any basis of the rows serves.
      basis = np.eye(rest.shape[0])
    else:
      basis, rest = np.linalg.qr(rest)
    left.append(basis.reshape(rank, i, j, -1))
    rank = basis.shape[1]
  return [*left, rest.reshape(rank, factors.rows[-1], factors.cols[-1], 1)]


def canonicalise(cores: Sequence[np.ndarray]) -> Decomposition:
  """Canonical cores of the same matrix; a rank that no matrix needs becomes smaller.

  Args:
    cores: any chain [r_k, i_k, j_k, r_(k+1)].
  """
  left, carried = [], np.eye(1)
  for core in cores[:-1]:
    core = np.tensordot(carried, np.asarray(core, np.float64), 1)
    basis, carried = np.linalg.qr(core.reshape(-1, core.shape[-1]))
    left.append(basis.reshape(*core.shape[:-1], -1))
  left.append(np.tensordot(carried, np.asarray(cores[-1], np.float64), 1))
  found = _split_evenly(left)
  kind = np.asarray(cores[0]).dtype
  return Decomposition([core.astype(kind) for core in found.cores], found.spectra)


def _split_evenly(left: Cores) -> Decomposition:
  """Canonical cores of a chain whose cores, but for the last one, have orthonormal columns.

  The part behind bond b is R_b with orthonormal rows behind it, so the singular values of R_b are
  those of the bond: R_b = U S V'. U sqrt(S) stands behind the core in front of the bond, and its
  inverse 1/sqrt(S) U' before the core behind it, 0 where S is 0 to rounding.
  """
  count = len(left)
  behind, spectra = np.eye(1), [np.ones(1)] * (count + 1)
  into, out = [np.eye(1)] * (count + 1), [np.eye(1)] * (count + 1)
  for bond in range(count - 1, 0, -1):
    core = np.tensordot(left[bond], behind, 1)
    behind = np.linalg.qr(core.reshape(core.shape[0], -1).T, mode='r').T
    vectors, values, _ = np.linalg.svd(behind, full_matrices=False)
    floor = np.finfo(np.float64).eps * max(core.shape[0], core[0].size) * values[0]
    roots = np.sqrt(values)
    inverse = np.where(values > floor, 1 / np.where(values > floor, roots, 1.0), 0.0)
    spectra[bond], out[bond] = values, vectors * roots
    into[bond] = inverse[:, None] * vectors.T
  cores = [np.tensordot(np.tensordot(into[k], left[k], 1), out[k + 1], 1) for k in range(count)]
  return Decomposition(_signed(cores), spectra[1:-1])


def _signed(cores: Cores) -> Cores:
  """The entry of largest size in each column of a core, [r i j, r'], is positive.

  So that cores which stay frozen are the same wherever they are decomposed again.
  """
  cores = list(cores)
  for bond in range(len(cores) - 1):
    columns = cores[bond].reshape(-1, cores[bond].shape[-1])
    largest = columns[np.argmax(np.abs(columns), axis=0), np.arange(columns.shape[1])]
    signs = np.where(largest < 0, -1.0, 1.0)
    cores[bond] = cores[bond] * signs
    cores[bond + 1] = cores[bond + 1] * signs[:, None, None, None]
  return cores


def cut(cores: Sequence[np.ndarray], ranks: Sequence[int] | None) -> Cores:
  """Cores [..., r_k, i_k, j_k, r_(k+1)] with at most the given ranks; None keeps all."""
  if ranks is None:
    return list(cores)
  return [core[..., :before, :, :, :behind]
          for core, before, behind in zip(cores, ranks[:-1], ranks[1:], strict=True)]


def shrink(cores: Sequence[np.ndarray], ranks: Sequence[int]) -> Cores:
  """Canonical cores with exactly these ranks, each at most that of `cores`.

  Args:
    cores: [..., r_k, i_k, j_k, r_(k+1)], the same axes in front of all.
    ranks: (r_0, ..., r_n); where the matrix needs less, the rest is 0.
  """
  cores = [np.asarray(core) for core in cores]
  lead = cores[0].shape[:-4]
  shapes = [(*lead, before, *core.shape[-3:-1], behind)
            for core, before, behind in zip(cores, ranks[:-1], ranks[1:], strict=True)]
  result = [np.zeros(shape, core.dtype) for shape, core in zip(shapes, cores, strict=True)]
  for index in np.ndindex(lead):
    found = cut(canonicalise([core[index] for core in cores]).cores, ranks)
    for room, core in zip(result, found, strict=True):
      room[index][:core.shape[0], :, :, :core.shape[-1]] = core
  return result


def squeeze(cores: Sequence[np.ndarray], ranks: Sequence[int]) -> Cores:
  """Canonical cores with zeros beyond the given ranks, in the shapes of `cores`.

  Training goes on with cores of the same shape, as the original squeezes dimensions.
  """
  found = shrink(cores, ranks)
  result = [np.zeros_like(core) for core in cores]
  for room, core in zip(result, found, strict=True):
    room[..., :core.shape[-4], :, :, :core.shape[-1]] = core
  return result


def ranks_for_error(spectra: Sequence[np.ndarray], budget: float) -> tuple[int, ...]:
  """Smallest ranks (r_0, ..., r_n) that keep the relative Frobenius error within a budget.

  A cut errs by at most the root of the sum of squares of all singular values that it removes, and
  by at least that of the bond that loses most.

  Args:
    spectra: [r_b] of the bonds 1 .. n-1.
    budget: relative error, in [0, 1).
  """
  squares = np.concatenate([np.square(values) for values in spectra])
  allowed = budget**2 * np.sum(np.square(spectra[0]))
  order = np.argsort(squares)
  removed = np.zeros(len(squares), bool)
  removed[order[np.cumsum(squares[order]) <= allowed]] = True
  ends = np.cumsum([len(values) for values in spectra])
  kept = [max(int(np.sum(~part)), 1) for part in np.split(removed, ends[:-1])]
  return (1, *kept, 1)


def solve_central(cores: Sequence[np.ndarray], matrix: np.ndarray, factors: Factors) -> np.ndarray:
  """The central core that comes closest to a matrix while all other cores stay.

  Args:
    cores: chain; the values of its central core are not read.
    matrix: [rows, cols], not larger than the factors.
    factors: of both dimensions.

  Returns:
    [r, i, j, r'] of the central core, least squares; exact where the other cores span everything.
  """
  centre = factors.centre
  factors.require(matrix.shape)
  rest = _paired(matrix, factors)
  before, behind = np.eye(1), np.eye(1)
  for core in cores[:centre]:
    before = np.tensordot(before, np.asarray(core, np.float64), 1).reshape(-1, core.shape[-1])
  for core in reversed(cores[centre + 1:]):
    behind = np.tensordot(np.asarray(core, np.float64), behind, 1).reshape(core.shape[0], -1)
  middle = np.tensordot(np.linalg.pinv(before), rest.reshape(before.shape[0], -1), 1)
  middle = middle.reshape(-1, behind.shape[1]) @ np.linalg.pinv(behind)
  shape = (before.shape[1], factors.rows[centre], factors.cols[centre], behind.shape[0])
  return middle.reshape(shape).astype(np.asarray(cores[0]).dtype)


def rebuild(cores: Sequence[jax.Array], shape: tuple[int, int] | None = None) -> jax.Array:
  """The matrix of a chain of cores.

  Args:
    cores: [..., r_k, i_k, j_k, r_(k+1)]; leading axes broadcast against each other.
    shape: (rows, cols) without padding; None keeps all.

  Returns:
    [..., rows, cols] in the type of the cores.
  """
  centre = len(cores) // 2
  product = lambda text, a, b: jnp.einsum(text, a, b, precision=jax.lax.Precision.HIGHEST)
  left = jnp.squeeze(cores[0], -4)  # [..., rows, cols, r]
  for core in cores[1:centre + 1]:
    left = _joined(product('...abr,...rijs->...aibjs', left, core))
  if len(cores) - centre == 1:
    matrix = jnp.squeeze(left, -1)
  else:
    right = jnp.squeeze(cores[-1], -1)  # [..., r, rows, cols]
    for core in reversed(cores[centre + 1:-1]):
      right = product('...rijs,...sab->...riajb', core, right)
      *lead, i, a, j, b = right.shape
      right = right.reshape(*lead, i * a, j * b)
    matrix = product('...abr,...rij->...aibj', left, right)
    *lead, a, i, b, j = matrix.shape
    matrix = matrix.reshape(*lead, a * i, b * j)
  return matrix if shape is None else matrix[..., :shape[0], :shape[1]]


def _joined(x):
  *lead, a, i, b, j, s = x.shape
  return x.reshape(*lead, a * i, b * j, s)


def contract(x: jax.Array, cores: Sequence[jax.Array], features: int | None = None) -> jax.Array:
  """x @ rebuild(cores), core by core; the matrix itself is never made.

  Args:
    x: [..., rows]; shorter than the product of row factors where that includes padding.
    cores: [r_k, i_k, j_k, r_(k+1)] without leading axes.
    features: columns without padding; None keeps all.

  Returns:
    [..., features].
  """
  lead, rows = x.shape[:-1], math.prod(core.shape[1] for core in cores)
  x = x.reshape(-1, x.shape[-1])
  state = jnp.pad(x, ((0, 0), (0, rows - x.shape[-1]))).reshape(x.shape[0], 1, rows, 1)
  for core in cores:
    rank, i, j, behind = core.shape
    count, _, rest, done = state.shape
    state = state.reshape(count, rank, i, rest // i, done)
    state = jnp.einsum('nrixo,rijs->nsxoj', state, core)
    state = state.reshape(count, behind, rest // i, done * j)
  y = state.reshape(*lead, -1)
  return y if features is None else y[..., :features]


def contract_cost(shapes: Sequence[tuple[int, int, int, int]]) -> int:
  """Multiplications of `contract` for one row, from the shapes of the cores."""
  rest, done, total = math.prod(shape[1] for shape in shapes), 1, 0
  for shape in shapes:
    rest //= shape[1]
    total += math.prod(shape) * rest * done
    done *= shape[2]
  return total


def rebuild_cost(shapes: Sequence[tuple[int, int, int, int]]) -> int:
  """Multiplications of `rebuild`, from the shapes of the cores."""
  centre, total = len(shapes) // 2, 0
  size = math.prod(shapes[0][1:3])
  for shape in shapes[1:centre + 1]:
    total += size * math.prod(shape)
    size *= shape[1] * shape[2]
  if len(shapes) - centre == 1:
    return total
  behind = math.prod(shapes[-1][1:3])
  for shape in reversed(shapes[centre + 1:-1]):
    total += math.prod(shape) * behind
    behind *= shape[1] * shape[2]
  return total + size * shapes[centre][3] * behind


def contracts(shapes: Sequence[tuple[int, int, int, int]], rows: int) -> bool:
  """Whether contracting `rows` rows costs less than rebuilding and multiplying."""
  dense = math.prod(s[1] for s in shapes) * math.prod(s[2] for s in shapes)
  return rows * contract_cost(shapes) < rebuild_cost(shapes) + rows * dense


def require_chain(cores: Sequence[np.ndarray], name: str) -> None:
  """Checks that arrays are cores of one chain.

  Raises:
    UserError: ranks that do not meet.
  """
  ends = [(core.shape[-4], core.shape[-1]) for core in cores]
  meeting = [1, *(behind for _, behind in ends)], [*(before for before, _ in ends), 1]
  if meeting[0] != meeting[1]:
    raise UserError(f"the cores of '{name}' have ranks {ends}, which do not meet; check that they"
                    ' belong to one matrix.')
