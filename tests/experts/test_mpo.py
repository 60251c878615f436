"""Matrix product operators: exactness, error of cuts, gauge, costs, shapes."""

from __future__ import annotations

import math

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.experts import mpo
from pemt_jax.experts.mpo_shapes import PUBLISHED, Factors, factorise, factors_of, known_factors

few = hypothesis.settings(max_examples=20, deadline=None)


@st.composite
def matrices(draw, least_cores=2):
  """(factors, matrix, generator); sometimes of low rank, sometimes smaller than the factors."""
  count = draw(st.integers(least_cores, 5))
  side = st.lists(st.integers(1, 3), min_size=count, max_size=count).map(tuple)
  factors = Factors(draw(side), draw(side))
  generator = np.random.default_rng(draw(st.integers(0, 2**31)))
  rows, cols = (max(size - draw(st.integers(0, 2)), 1) for size in factors.shape)
  rank = draw(st.integers(1, min(rows, cols)))
  matrix = generator.normal(size=(rows, rank)) @ generator.normal(size=(rank, cols))
  if draw(st.booleans()):
    matrix = generator.normal(size=(rows, cols))
  return factors, matrix, generator


def numpy_rebuild(cores, shape):
  whole = np.eye(1)
  for core in cores:
    whole = np.tensordot(whole, core, 1)
  whole = whole.reshape(whole.shape[1:-1])
  count = len(cores)
  whole = whole.transpose([*range(0, 2 * count, 2), *range(1, 2 * count, 2)])
  rows = math.prod(core.shape[1] for core in cores)
  return whole.reshape(rows, -1)[:shape[0], :shape[1]]


@few
@hypothesis.given(matrices())
def test_all_ranks_give_the_matrix_back_and_bonds_have_its_singular_values(drawn):
  factors, matrix, _ = drawn
  found = mpo.decompose(matrix, factors)
  shapes = factors.core_shapes(factors.full_ranks())
  assert tuple(core.shape for core in found.cores) == shapes
  scale = np.abs(matrix).max()
  np.testing.assert_allclose(numpy_rebuild(found.cores, matrix.shape), matrix, atol=1e-6 * scale)
  padded = np.zeros(factors.shape)
  padded[:matrix.shape[0], :matrix.shape[1]] = matrix
  count = len(factors.rows)
  order = [axis for k in range(count) for axis in (k, count + k)]
  tensor = padded.reshape(*factors.rows, *factors.cols).transpose(order)
  for bond, values in enumerate(found.spectra, start=1):
    size = math.prod(factors.rows[:bond]) * math.prod(factors.cols[:bond])
    direct = np.linalg.svd(tensor.reshape(size, -1), compute_uv=False)
    np.testing.assert_allclose(values, direct, atol=1e-9 * direct[0])


@few
@hypothesis.given(matrices(), st.integers(1, 6))
def test_a_cut_errs_within_what_its_discarded_singular_values_allow(drawn, limit):
  factors, matrix, _ = drawn
  found = mpo.decompose(matrix, factors, limit)
  ranks = factors.ranks(limit)
  lost = [np.sum(np.square(values[rank:]))
          for values, rank in zip(found.spectra, ranks[1:-1], strict=True)]
  padded = np.zeros(factors.shape)
  padded[:matrix.shape[0], :matrix.shape[1]] = matrix
  error = np.sum(np.square(numpy_rebuild(found.cores, factors.shape) - padded))
  slack = 1e-9 * np.sum(np.square(matrix))
  assert max(lost) - slack <= error <= sum(lost) + slack


@few
@hypothesis.given(matrices(), st.floats(0.0, 0.9))
def test_ranks_for_an_error_keep_it(drawn, budget):
  factors, matrix, _ = drawn
  ranks = mpo.ranks_for_error(mpo.decompose(matrix, factors).spectra, budget)
  cores = mpo.decompose(matrix, factors, ranks).cores
  error = np.linalg.norm(numpy_rebuild(cores, matrix.shape) - matrix)
  assert error <= (budget + 1e-6) * np.linalg.norm(matrix)


@few
@hypothesis.given(matrices())
def test_canonical_cores_do_not_depend_on_the_gauge(drawn):
  factors, matrix, generator = drawn
  first = mpo.decompose(matrix, factors)
  mixed = [core.copy() for core in first.cores]
  for bond in range(1, len(mixed)):
    rank = mixed[bond].shape[0]
    basis = np.linalg.qr(generator.normal(size=(rank, rank)))[0] * generator.uniform(0.5, 2, rank)
    mixed[bond - 1] = np.tensordot(mixed[bond - 1], basis, 1)
    mixed[bond] = np.tensordot(np.linalg.inv(basis), mixed[bond], 1)
  again = mpo.canonicalise(mixed)
  scale = np.abs(matrix).max()
  np.testing.assert_allclose(numpy_rebuild(again.cores, matrix.shape), matrix, atol=1e-6 * scale)
  for one, two in zip(first.spectra, again.spectra, strict=True):
    np.testing.assert_allclose(one[:len(two)], two, atol=1e-7 * one[0])
  # Gaps between singular values fix the cores.
  if all(np.all(-np.diff(values) > 1e-3 * values[0]) for values in first.spectra):
    for one, two in zip(first.cores, again.cores, strict=True):
      np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4 * np.sqrt(scale))


@few
@hypothesis.given(matrices(), st.integers(1, 4))
def test_squeezed_cores_keep_their_shapes_and_equal_a_cut(drawn, limit):
  factors, matrix, _ = drawn
  cores = mpo.decompose(matrix, factors).cores
  squeezed = mpo.squeeze(cores, factors.ranks(limit))
  assert [core.shape for core in squeezed] == [core.shape for core in cores]
  wanted = numpy_rebuild(mpo.cut(cores, factors.ranks(limit)), matrix.shape)
  np.testing.assert_allclose(numpy_rebuild(squeezed, matrix.shape), wanted,
                             atol=1e-8 * np.abs(matrix).max())
  both = mpo.shrink([np.stack([core, 2 * core]) for core in cores], factors.ranks(limit))
  assert tuple(core.shape[1:] for core in both) == factors.core_shapes(factors.ranks(limit))
  np.testing.assert_allclose(numpy_rebuild([core[0] for core in both], matrix.shape), wanted,
                             atol=1e-8 * np.abs(matrix).max())


@pytest.mark.parametrize('factors', [Factors((2, 3, 2, 2, 2), (2, 2, 4, 2, 1)),
                                     Factors((3, 4), (2, 3)), Factors((6,), (5,))])
def test_rebuilding_and_contracting_are_the_product_with_the_matrix(factors):
  generator = np.random.default_rng(0)
  shape = tuple(max(size - 1, 1) for size in factors.shape)
  matrix = generator.normal(size=(2, *shape)).astype(np.float32)
  cores = [jnp.asarray(core) for core in mpo.decompose(matrix, factors).cores]
  found = mpo.rebuild(cores, shape)
  np.testing.assert_allclose(found, matrix, atol=2e-6)
  one = [core[1] for core in cores]
  x = generator.normal(size=(3, 4, shape[0])).astype(np.float32)
  np.testing.assert_allclose(mpo.contract(x, one, shape[1]), x @ matrix[1], atol=1e-4)
  # One central core for several chains, as experts share it.
  shared = [core if k != factors.centre else core[:1] for k, core in enumerate(cores)]
  mixed = [core[1] if k != factors.centre else core[0] for k, core in enumerate(cores)]
  np.testing.assert_allclose(mpo.rebuild(shared)[1], mpo.rebuild(mixed), atol=1e-5)


def test_counted_multiplications_are_those_of_the_compiled_programs():
  factors = factors_of(48, 64)
  shapes = factors.core_shapes(factors.ranks(5))
  cores = [jnp.ones(shape) for shape in shapes]
  flops = lambda fn, *args: jax.jit(fn).lower(*args).cost_analysis()['flops']
  assert flops(mpo.rebuild, cores) == pytest.approx(2 * mpo.rebuild_cost(shapes), rel=0.05)
  x = jnp.ones((7, 48))
  assert flops(mpo.contract, x, cores) == pytest.approx(14 * mpo.contract_cost(shapes), rel=0.05)
  assert mpo.contracts(shapes, 1) and not mpo.contracts(factors.core_shapes(factors.ranks()), 4096)


def test_the_central_core_is_solved_for():
  factors, generator = Factors((2, 3, 2, 2, 2), (2, 2, 4, 2, 1)), np.random.default_rng(1)
  first, second = generator.normal(size=(2, 48, 32))
  cores = mpo.decompose(first, factors).cores
  cores[2] = mpo.solve_central(cores, second, factors)
  np.testing.assert_allclose(numpy_rebuild(cores, second.shape), second, atol=1e-8)
  fewer = mpo.decompose(first, factors, 6).cores
  best = mpo.solve_central(fewer, second, factors)
  error = lambda core: np.linalg.norm(
      numpy_rebuild([*fewer[:2], core, *fewer[3:]], second.shape) - second)
  step = generator.normal(size=best.shape) * 1e-3
  assert error(best) < min(error(best + step), error(best - step))


# Table of the specification: full ranks, entries of the central core and of the four others.
SIZES = [
    (('t5', 768, 3072), 'wi', (1, 12, 192, 384, 16, 1), 2359296, 184720),
    (('t5', 768, 3072), 'wo', (1, 12, 192, 384, 16, 1), 2359296, 184720),
    (('t5', 768, 3072), 'q', (1, 12, 192, 192, 12, 1), 589824, 74016),
    (('t5', 768, 3072), 'o', (1, 12, 192, 192, 12, 1), 589824, 74016),
    (('t5', 768, 3072), 'word_embed', (1, 24, 768, 1024, 32, 1), 25165824, 1640000),
    (('t5', 1024, 4096), 'wi', (1, 16, 256, 512, 16, 1), 4194304, 328192),
    (('t5', 1024, 4096), 'k', (1, 16, 256, 256, 16, 1), 1048576, 131584),
    (('t5', 1024, 4096), 'word_embed', (1, 32, 1024, 1024, 32, 1), 33554432, 2099200),
    (('bert', 768, 3072), 'wi', (1, 24, 384, 384, 24, 1), 2359296, 296064),
    (('bert', 768, 3072), 'wo', (1, 12, 192, 384, 16, 1), 2359296, 184720),
    (('bert', 768, 3072), 'pooler', (1, 12, 192, 192, 12, 1), 589824, 74016),
    (('bert', 768, 3072), 'word_embed', (1, 24, 768, 768, 24, 1), 23592960, 1180800),
]


@pytest.mark.parametrize('model, component, ranks, central, auxiliary', SIZES)
def test_published_shapes_have_the_published_sizes(model, component, ranks, central, auxiliary):
  factors = PUBLISHED[model][component]
  assert factors.full_ranks() == ranks
  assert factors.auxiliary_count(ranks) == auxiliary
  assert factors.count(ranks) == central + auxiliary


def test_factors_are_found_for_any_size():
  assert factorise(768) == (3, 4, 4, 4, 4) and factorise(3072) == (4, 4, 8, 6, 4)
  assert factorise(4096) == (4, 4, 8, 8, 4) and factorise(1024, 1) == (1024,)
  for size in (1, 2, 7, 97, 768, 1000, 2039, 30522, 32128, 50257):
    product = math.prod(factorise(size))
    assert size <= product <= 1.15 * size + 3
  assert known_factors(('t5', 768, 3072), 'word_embed', (32128, 768)).shape == (32768, 768)
  assert known_factors(('t5', 768, 3072), 'word_embed', (50265, 768)).shape[0] >= 50265
  assert known_factors(('t5', 512, 2048), 'wi', (512, 2048)) == factors_of(512, 2048)


def test_factors_that_do_not_fit_are_refused():
  with pytest.raises(UserError, match='smaller than 50 x 32'):
    mpo.decompose(np.ones((50, 32)), Factors((7, 7), (6, 6)))
  with pytest.raises(UserError, match='make no cores'):
    Factors((2, 2), (2,))
  with pytest.raises(UserError, match="cores of 'wi' have ranks"):
    mpo.require_chain([np.ones((1, 2, 2, 3)), np.ones((4, 2, 2, 1))], 'wi')
