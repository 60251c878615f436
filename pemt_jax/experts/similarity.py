"""Similarity of source experts to target tasks (Lv et al. 2023, ACL short 24), all at once.

Metrics of predictions and gradients take the sources as one tree with a leading [source] axis and
run them through one program, some at a time, so that the logits of a few sources exist together and
never those of all. Metrics of weights compare the trees themselves.

A source is a pair (tuned, rest): what gradients are taken of, and what else belongs to it.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.errors import one_of
from pemt_jax.models.generation import log_probability
from pemt_jax.models.segments import join
from pemt_jax.trees import Tree, flatten, unflatten

PREDICTION_EPSILON = 1e-6  # of the published cosines of predictions and of states
WEIGHT_EPSILON = 1e-8  # of the published cosine of weights
_CHUNK_ELEMENTS = 1 << 26  # most numbers of logits that exist together, if the caller has no wish
SUBLAYERS = {'encoder': ('self_attention', 'mlp'),
             'decoder': ('self_attention', 'cross_attention', 'mlp')}


@dataclasses.dataclass(frozen=True)
class Metric:
  """A similarity metric.

  Attributes:
    folder: its name in the folders of the original program.
    sign: 1 where a larger value means more similar, -1 where a smaller one does.
    temperature: of the softmax over sources: that of the latest published script, and where that
      names none, that of its history.
    historical_sign: of the earlier scripts.
    historical_temperature: of the earlier scripts.
    rows: 'first' batch, 'all' batches, 'capped' number of batches, or '' for no rows at all.
    reference: what else it reads: '' nothing; 'tuned' an expert that was tuned on the target from
      random values; 'moved' every source after some steps on the target; 'scores' dev scores.
  """

  folder: str
  sign: int
  temperature: float
  historical_sign: int
  historical_temperature: float
  rows: str
  reference: str = ''

  def softmax(self, version: str) -> tuple[int, float]:
    """(sign, temperature) of a version: 'current' or 'historical'.

    Raises:
      UserError: another version.
    """
    one_of('the version of signs and temperatures', version, ('current', 'historical'))
    if version == 'current':
      return self.sign, self.temperature
    return self.historical_sign, self.historical_temperature


METRICS = {
    'loss': Metric('Loss', -1, 0.1, -1, 0.1, 'first'),
    'kl': Metric('KL_divergence', -1, 10.0, -1, 10.0, 'first', 'tuned'),
    'el2n': Metric('EL2N', -1, 10.0, -1, 10.0, 'first'),
    'logit_cosine': Metric('Cosine_of_Logits_and_Labels', 1, 10.0, 1, 10.0, 'all'),
    'grand': Metric('GraNd', -1, 10.0, -1, 10.0, 'capped'),
    'block_cosine': Metric('Block_cosine', 1, 0.1, 1, 0.1, 'first', 'tuned'),
    'cosine': Metric('Cosine', 1, 0.001, 1, 0.001, '', 'tuned'),
    'euclidean': Metric('Euclidean', -1, 0.1, -1, 0.1, '', 'moved'),
    'performance': Metric('Performance', 1, 0.001, -1, 0.001, '', 'scores'),
}
LOGIT_METRICS = ('loss', 'kl', 'el2n', 'logit_cosine')

# Batches of GraNd: by the number of labels of the target; by block or layer, of yes/no tasks.
LABEL_CAPS = {2: 6, 3: 9, 4: 12, 6: 18}
YES_NO = ('boolq', 'mc_taco')  # whatever the task's own table says of their labels
OTHER_CAP = 10
YES_NO_PART_CAP, OTHER_PART_CAP = 3, 5


def batch_cap(task: str, labels: int, parts: bool = False) -> int:
  """Most dev batches that GraNd reads of a target.

  Args:
    task: name of the target; its last part counts.
    labels: number of its label words, 0 where it has none.
    parts: scores by block or by layer.
  """
  yes_no = task.rpartition('/')[2] in YES_NO
  if parts:
    return YES_NO_PART_CAP if yes_no else OTHER_PART_CAP
  return LABEL_CAPS.get(2 if yes_no else labels, OTHER_CAP)


def chunk_size(batch: Mapping[str, Any], vocab: int, sources: int,
               platform: str | None = None) -> int:
  """Number of sources that run together, at least 1 and at most all.

  An accelerator takes as many as their logits allow. A CPU takes one after the other: measured on
  the playground's model, gradients of eight sources at a time take 2.6 times as long as those of
  one, since their activations leave the caches; predictions take the same time.

  Args:
    batch: any batch; only its shape counts.
    vocab: size of the vocabulary.
    sources: number of sources.
    platform: in place of that of the default device.
  """
  if (platform or jax.default_backend()) == 'cpu':
    return 1
  own = int(np.prod(batch['targets'].shape)) * vocab
  return int(np.clip(_CHUNK_ELEMENTS // max(own, 1), 1, sources))


def token_sums(logits: jax.Array, targets: jax.Array, mask: jax.Array,
               reference: jax.Array | None = None) -> dict[str, jax.Array]:
  """Sums over the real target tokens, with P = softmax of the logits and y the label.

  Args:
    logits: [batch, length, vocab].
    targets: [batch, length] token ids.
    mask: [batch, length] 1 for real tokens.
    reference: [batch, length, vocab] logits of the target's own expert, or None.

  Returns:
    `loss` -log P_y in nats; `el2n` |P - onehot(y)|; `logit_cosine` P_y / |P|; with a reference `kl`
    KL(P_reference || P) in nats; `tokens` their number. All [].
  """
  logits = logits.astype(jnp.float32)
  mask = mask.astype(jnp.float32)
  share = jax.nn.softmax(logits)
  square = jnp.sum(share**2, axis=-1)
  own = jnp.take_along_axis(share, targets[..., None], axis=-1)[..., 0]
  # Entry by entry: |P|^2 - 2 P_y + 1 would cancel where the prediction is sure.
  errors = share - jax.nn.one_hot(targets, logits.shape[-1])
  found = {'loss': -log_probability(logits, targets),
           'el2n': jnp.sqrt(jnp.sum(errors**2, axis=-1)),
           'logit_cosine': own / jnp.maximum(jnp.sqrt(square), PREDICTION_EPSILON)}
  if reference is not None:
    known = jax.nn.log_softmax(reference.astype(jnp.float32))
    gap = known - jax.nn.log_softmax(logits)
    found['kl'] = jnp.sum(jnp.exp(known) * gap, axis=-1)
  return {name: jnp.sum(value * mask) for name, value in found.items()} | {'tokens': mask.sum()}


def make_logit_scores(logits_fn: Callable[..., jax.Array], chunk: int = 1) -> Callable[..., Any]:
  """Returns the compiled (sources, shared, batch, reference) -> `token_sums` of each source.

  Args:
    logits_fn: (source, shared, batch) -> [batch, length, vocab].
    chunk: sources at a time.
  """
  @jax.jit
  def scores(sources, shared, batch, reference=None):
    def one(source):
      logits = logits_fn(source, shared, batch)
      return token_sums(logits, batch['targets'], batch['targets_mask'], reference)

    return jax.lax.map(one, sources, batch_size=chunk)

  return scores


def has_layers(path: str) -> bool:
  """Whether a leaf has a leading [layer] axis."""
  return any(part == 'layers' or part.startswith('layers_') for part in path.split('/'))


def squares_by_tensor(tree: Tree, pattern: str = '*') -> Tree:
  """Sum of squares of each tensor: [layer] for leaves of layers, [] for the others; canonical.

  Args:
    tree: canonical or segmented tree.
    pattern: of the paths that count.
  """
  squares = {}
  for path, leaf in flatten(tree).items():
    if fnmatch.fnmatch(path, pattern):
      axes = tuple(range(1 if has_layers(path) else 0, leaf.ndim))
      squares[path] = jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=axes)
  return join(unflatten(squares))


def make_gradient_squares(loss_fn: Callable[..., jax.Array], chunk: int = 1,
                          pattern: str = '*') -> Callable[..., Any]:
  """Returns the compiled (sources, shared, batch, key) -> squared gradient norms by tensor.

  One gradient of each source serves the scores of the whole delta, of blocks and of layers.

  Args:
    loss_fn: (source, shared, batch, key) -> [] mean loss over the tokens of the batch.
    chunk: sources at a time.
    pattern: of the paths of tuned leaves that count.
  """
  @jax.jit
  def squares(sources, shared, batch, key=None):
    def one(source):
      tuned, rest = source
      loss = lambda t: loss_fn((t, rest), shared, batch, key)
      return squares_by_tensor(jax.grad(loss)(tuned), pattern)

    return jax.lax.map(one, sources, batch_size=chunk)

  return squares


def norm(squares: Tree) -> np.ndarray:
  """[source] norm of the whole gradient; `squares` has leaves [source] or [source, layer]."""
  flat = [np.asarray(leaf, np.float64) for leaf in flatten(squares).values()]
  return np.sqrt(sum(leaf.reshape(leaf.shape[0], -1).sum(axis=1) for leaf in flat))


def norms_by_block(squares: Tree) -> dict[tuple[str, int], np.ndarray]:
  """(stack, block) -> [source] norm of the gradient of the leaves in a block, encoder first."""
  return {(stack, block): values for stack in SUBLAYERS
          for block, values in enumerate(_by_layer(squares, f'{stack}/layers/'))}


def norms_by_sublayer(squares: Tree) -> dict[tuple[str, int, int], np.ndarray]:
  """(stack, block, sub-layer) -> [source] norm; sub-layers in the order of `SUBLAYERS`."""
  found = {}
  for stack, kinds in SUBLAYERS.items():
    rows = [list(_by_layer(squares, f'{stack}/layers/{kind}')) for kind in kinds]
    for block in range(max(map(len, rows))):
      found |= {(stack, block, place): row[block] for place, row in enumerate(rows) if row}
  return found


def _by_layer(squares: Tree, prefix: str) -> np.ndarray:
  """[layer, source] norms over the leaves whose path starts with `prefix`; [0] without any."""
  chosen = [np.asarray(leaf, np.float64) for path, leaf in flatten(squares).items()
            if path.startswith(prefix)]
  return np.sqrt(sum(chosen)).T if chosen else np.zeros(0)


def block_cosine(first: jax.Array, second: jax.Array, mask: jax.Array) -> jax.Array:
  """Sum over rows of the cosine of two states, each flattened over its real positions.

  Args:
    first: [block, batch, length, embed] outputs of blocks under one expert.
    second: the same under another.
    mask: [batch, length] 1 for real positions; a row ends at its first 0.

  Returns:
    [block].
  """
  valid = jnp.cumprod(mask.astype(jnp.float32), axis=1)
  first, second = (state.astype(jnp.float32) for state in (first, second))
  inner = lambda a, b: jnp.einsum('nble,nble,bl->nb', a, b, valid,
                                  precision=jax.lax.Precision.HIGHEST)
  size = lambda a: jnp.maximum(jnp.sqrt(inner(a, a)), PREDICTION_EPSILON)
  return jnp.sum(inner(first, second) / (size(first) * size(second)), axis=1)


def _tensors(tree: Tree, lead: int) -> dict[str, np.ndarray]:
  """path -> [..., tensor, entry] float64 of leaves with `lead` leading axes."""
  found = {}
  for path, leaf in flatten(tree).items():
    leaf = np.asarray(leaf, np.float64)
    layers = leaf.shape[lead] if has_layers(path) else 1
    found[path] = leaf.reshape(*leaf.shape[:lead], layers, -1)
  return found


def weight_cosine(target: Tree, stacked: Tree) -> np.ndarray:
  """[source] mean over tensors of the cosine of a target's own delta with each source's.

  Args:
    target: canonical tree; a layer of a stacked leaf is a tensor.
    stacked: the same tree with leaves [source, ...].
  """
  own, others = _tensors(target, 0), _tensors(stacked, 1)
  found = []
  for path, leaf in own.items():
    inner = np.einsum('te,ste->st', leaf, others[path])
    size = np.linalg.norm(leaf, axis=-1) * np.linalg.norm(others[path], axis=-1)
    found.append(inner / np.maximum(size, WEIGHT_EPSILON))
  return np.concatenate(found, axis=1).mean(axis=1)


def weight_distance(stacked: Tree, moved: Tree) -> np.ndarray:
  """[source] sum over tensors of the Frobenius norm of the change of each source.

  Args:
    stacked: canonical tree with leaves [source, ...].
    moved: the same sources after some steps on the target.
  """
  before, after = _tensors(stacked, 1), _tensors(moved, 1)
  gaps = [np.linalg.norm(leaf - after[path], axis=-1) for path, leaf in before.items()]
  return np.concatenate(gaps, axis=1).sum(axis=1)


def tensor_count(tree: Tree) -> int:
  """Number of tensors of a canonical tree without a source axis."""
  return sum(leaf.shape[0] for leaf in _tensors(tree, 0).values())


def gain(tuned_scores: np.ndarray, zero_shot_scores: np.ndarray) -> np.ndarray:
  """Performance: what a source's score gains by some steps on the target; [...] as given."""
  return np.asarray(tuned_scores, np.float64) - np.asarray(zero_shot_scores, np.float64)


def normalise(values: np.ndarray, count: float, how: str) -> np.ndarray:
  """Sums as they are ('sum', published), or divided by the number of their terms ('mean').

  Raises:
    UserError: another word.
  """
  one_of('the normalisation of a similarity', how, ('sum', 'mean'))
  return values if how == 'sum' else values / max(count, 1.0)
