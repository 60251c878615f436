"""Similarity metrics against direct sums, and the laws of what they share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from pemt_jax.errors import UserError
from pemt_jax.experts import similarity

ROWS, LENGTH, VOCAB, SOURCES = 3, 4, 7, 3
RNG = np.random.default_rng(0)
TARGETS = RNG.integers(0, VOCAB, (ROWS, LENGTH))
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], np.float32)
LOGITS, REFERENCE = RNG.normal(size=(2, ROWS, LENGTH, VOCAB)).astype(np.float32) * 3
BATCH = {'targets': jnp.asarray(TARGETS), 'targets_mask': jnp.asarray(MASK)}


def test_token_sums_against_direct_sums():
  expected = dict.fromkeys(('loss', 'el2n', 'logit_cosine', 'kl', 'tokens'), 0.0)
  for b, t in zip(*np.nonzero(MASK), strict=True):
    p, q, y = softmax(LOGITS[b, t]), softmax(REFERENCE[b, t]), TARGETS[b, t]
    expected['loss'] -= np.log(p[y])
    expected['el2n'] += np.linalg.norm(p - np.eye(VOCAB)[y])
    expected['logit_cosine'] += p[y] / np.linalg.norm(p)
    expected['kl'] += np.sum(q * np.log(q / p))
    expected['tokens'] += 1
  found = similarity.token_sums(LOGITS, TARGETS, MASK, REFERENCE)
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_a_sure_and_right_prediction_has_no_error():
  logits = 200.0 * jax.nn.one_hot(TARGETS, VOCAB)
  found = similarity.token_sums(logits, TARGETS, MASK, logits)
  np.testing.assert_allclose([found[name] for name in ('loss', 'el2n', 'kl')], 0.0, atol=1e-6)
  np.testing.assert_allclose(found['logit_cosine'], MASK.sum())


@pytest.mark.parametrize('chunk', [1, 2, 3])
def test_all_sources_in_one_program_are_each_alone(chunk):
  sources = jnp.array([0.5, 1.0, 2.0])
  run = similarity.make_logit_scores(lambda scale, logits, batch: scale * logits, chunk)
  found = run(sources, LOGITS, BATCH, REFERENCE)
  for i, scale in enumerate(sources):
    alone = similarity.token_sums(scale * LOGITS, TARGETS, MASK, REFERENCE)
    for name, value in alone.items():
      np.testing.assert_allclose(found[name][i], value, rtol=1e-5)
  run(sources + 1, LOGITS, BATCH, REFERENCE)
  assert run._cache_size() == 1


def deltas(seed, lead=()):
  """Leaves inside and outside of layers: two encoder layers, one decoder layer."""
  rng = np.random.default_rng(seed)
  shapes = {'encoder': {'layers': {'self_attention': {'q': {'down': (2, 3, 2)}},
                                   'mlp': {'wo': {'down': (2, 4)}}}, 'prompt': (5, 2)},
            'decoder': {'layers': {'cross_attention': {'v': {'up': (1, 2)}},
                                   'mlp': {'wo': {'up': (1, 3)}}}}}
  return jax.tree.map(lambda shape: rng.normal(size=(*lead, *shape)).astype(np.float32), shapes,
                      is_leaf=lambda value: isinstance(value, tuple))


def quadratic(source, goal, batch, key):
  """Gradient: (tuned - goal) * scale."""
  tuned, scale = source
  gaps = jax.tree.map(lambda leaf, own: jnp.sum((leaf - own)**2), tuned, goal)
  return 0.5 * scale * sum(jax.tree.leaves(gaps))


def test_scores_of_all_blocks_and_layers_come_from_one_gradient():
  stacked, goal = deltas(1, (SOURCES,)), deltas(2)
  scales = jnp.array([1.0, 2.0, 3.0])
  squares = similarity.make_gradient_squares(quadratic, 2)((stacked, scales), goal, {}, None)
  gaps = jax.tree.map(lambda leaf, own: (leaf - own).reshape(SOURCES, -1), stacked, goal)
  direct = scales * np.sqrt(sum((leaf**2).sum(axis=1) for leaf in jax.tree.leaves(gaps)))
  np.testing.assert_allclose(similarity.norm(squares), direct, rtol=1e-5)
  blocks, layers = similarity.norms_by_block(squares), similarity.norms_by_sublayer(squares)
  assert list(blocks) == [('encoder', 0), ('encoder', 1), ('decoder', 0)]
  assert list(layers) == [('encoder', 0, 0), ('encoder', 0, 1), ('encoder', 1, 0),
                          ('encoder', 1, 1), ('decoder', 0, 1), ('decoder', 0, 2)]
  for block, value in blocks.items():
    own = [layers[key]**2 for key in layers if key[:2] == block]
    np.testing.assert_allclose(value, np.sqrt(sum(own)), rtol=1e-6)
  leaf = stacked['encoder']['layers']['mlp']['wo']['down'][:, 1] - goal['encoder']['layers'][
      'mlp']['wo']['down'][1]
  np.testing.assert_allclose(layers['encoder', 1, 1], scales * np.linalg.norm(leaf, axis=1),
                             rtol=1e-5)


def test_a_pattern_chooses_what_counts_and_segments_are_joined():
  tree = deltas(3)
  layers = tree['encoder'].pop('layers')
  for i in range(2):
    tree['encoder'][f'layers_{i}_{i + 1}'] = jax.tree.map(lambda leaf: leaf[i:i + 1], layers)
  found = similarity.squares_by_tensor(tree, 'encoder/layers*')
  assert list(found) == ['encoder'] and list(found['encoder']) == ['layers']
  expected = (layers['mlp']['wo']['down']**2).sum(axis=1)
  np.testing.assert_allclose(found['encoder']['layers']['mlp']['wo']['down'], expected, rtol=1e-6)


def test_weight_metrics_against_loops_over_tensors():
  target, stacked, moved = deltas(4), deltas(5, (SOURCES,)), deltas(6, (SOURCES,))
  cosines, distances = np.zeros((2, SOURCES, 8))

  def each(tree):
    encoder, decoder = tree['encoder'], tree['decoder']['layers']
    return [encoder['layers']['self_attention']['q']['down'][0],
            encoder['layers']['self_attention']['q']['down'][1],
            encoder['layers']['mlp']['wo']['down'][0], encoder['layers']['mlp']['wo']['down'][1],
            encoder['prompt'], decoder['cross_attention']['v']['up'][0],
            decoder['mlp']['wo']['up'][0]]

  for i in range(SOURCES):
    one, other = (jax.tree.map(lambda leaf, i=i: leaf[i], tree) for tree in (stacked, moved))
    for k, (a, b, c) in enumerate(zip(each(target), each(one), each(other), strict=True)):
      cosines[i, k] = np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
      distances[i, k] = np.linalg.norm(b - c)
  assert similarity.tensor_count(target) == 7
  np.testing.assert_allclose(similarity.weight_cosine(target, stacked), cosines.sum(1) / 7, 1e-5)
  np.testing.assert_allclose(similarity.weight_distance(stacked, moved), distances.sum(1), 1e-5)


def test_a_zero_delta_has_the_cosine_zero():
  zeros = jax.tree.map(np.zeros_like, deltas(1))
  np.testing.assert_array_equal(similarity.weight_cosine(zeros, deltas(2, (2,))), [0.0, 0.0])


def test_block_cosine_reads_real_positions_until_the_first_gap():
  first, second = RNG.normal(size=(2, 2, ROWS, LENGTH, 5)).astype(np.float32)
  mask = np.array([[1, 1, 1, 1], [1, 1, 0, 1], [0, 0, 0, 0]], np.float32)
  expected = np.zeros(2)
  for block in range(2):
    for row, size in enumerate((4, 2)):
      a, b = first[block, row, :size].ravel(), second[block, row, :size].ravel()
      expected[block] += a @ b / np.linalg.norm(a) / np.linalg.norm(b)
  np.testing.assert_allclose(similarity.block_cosine(first, second, mask), expected, rtol=1e-5)


def test_caps_of_batches():
  cap = similarity.batch_cap
  assert [cap('x', n) for n in (0, 2, 3, 4, 5, 6)] == [10, 6, 9, 12, 10, 18]
  assert [cap(name, 2, parts=True) for name in ('boolq', 'a/mc_taco', 'codah')] == [3, 3, 5]


def test_signs_and_temperatures_of_both_versions():
  performance, cosine = (similarity.METRICS[name] for name in ('performance', 'logit_cosine'))
  assert performance.softmax('current') == (1, 0.001)
  assert performance.softmax('historical') == (-1, 0.001)
  assert cosine.softmax('current') == (1, 10.0)
  with pytest.raises(UserError, match="'older'; choose one of current, historical"):
    cosine.softmax('older')
  assert len({metric.folder for metric in similarity.METRICS.values()}) == len(similarity.METRICS)


def test_normalise_divides_by_the_number_of_terms():
  values = np.array([2.0, 4.0])
  np.testing.assert_array_equal(similarity.normalise(values, 4, 'sum'), values)
  np.testing.assert_array_equal(similarity.normalise(values, 4, 'mean'), [0.5, 1.0])
  np.testing.assert_array_equal(similarity.gain([0.5], [0.25]), [0.25])


def test_chunks_follow_the_size_of_the_logits():
  batch = {'targets': np.zeros((50, 64))}
  found = [similarity.chunk_size(batch, vocab, 32, 'gpu') for vocab in (32128, 1000, 10)]
  assert found == [1, 20, 32]
  assert similarity.chunk_size(batch, 10, 32, 'cpu') == 1
