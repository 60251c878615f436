"""Scores of label words: classification without free decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.data.pipeline import Batch
from pemt_jax.data.tokenizer import Tokenizer
from pemt_jax.methods.base import Method
from pemt_jax.models.generation import label_scores_from_logits
from pemt_jax.models.t5 import T5
from pemt_jax.sharding.placement import fetch
from pemt_jax.trees import Tree

_READ = ('inputs', 'inputs_mask', 'task_ids')


def make_label_scorer(model: T5, method: Method, tokenizer: Tokenizer,
                      words: Sequence[str]) -> Callable[..., jax.Array]:
  """Returns the compiled (tuned, frozen, constants, batch) -> [batch, label] log-probabilities.

  A label's score is the sum of the log-probabilities of its tokens, end mark included, in nats.
  Trees have no replica axis.
  """
  ids = tokenizer.encode_batch(list(words))
  size = max(map(len, ids))
  labels = jnp.array([row + [0] * (size - len(row)) for row in ids], jnp.int32)
  mask = jnp.array([[1.0] * len(row) + [0.0] * (size - len(row)) for row in ids])

  @jax.jit
  def score(tuned: Tree, frozen: Tree, constants: Tree, batch: dict[str, Any]) -> jax.Array:
    variables = method.variables(tuned, frozen, constants)
    ids = batch['task_ids']
    encoded = model.apply(variables, batch['inputs'], batch['inputs_mask'], ids, method='encode')
    logits_fn = lambda decoder_inputs: model.apply(
        variables, decoder_inputs, jnp.ones(decoder_inputs.shape), encoded, ids,
        method='decode')[0]
    return label_scores_from_logits(logits_fn, batch['inputs'].shape[0], labels, mask,
                                    model.config.start_id)

  return score


def score_rows(score: Callable[..., jax.Array], trees: tuple[Tree, Tree, Tree],
               batches: Sequence[Batch]) -> np.ndarray:
  """Scores all rows of evaluation batches; returns [example, label] in the order of examples."""
  found = {}
  for batch in batches:
    values = fetch(score(*trees, {k: batch[k] for k in _READ}))
    found |= {int(example): values[row]
              for row, example in enumerate(batch['example_ids']) if example >= 0}
  return np.stack([found[index] for index in range(len(found))])
