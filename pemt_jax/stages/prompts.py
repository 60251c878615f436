"""First values of task prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np

from pemt_jax.data.tasks import get_task
from pemt_jax.data.tokenizer import Tokenizer
from pemt_jax.errors import number, one_of


def description_ids(config: mlc.ConfigDict, task: str, tokenizer: Tokenizer) -> list[int]:
  """Ids of the task's description including the end mark; `prompt.length` repeats or cuts them."""
  text = config.prompt.descriptions.get(task) or get_task(task).description
  ids = tokenizer.encode_batch([text])[0]
  length = config.prompt.length
  return [ids[i % len(ids)] for i in range(length)] if length else ids


PLACES = ('encoder/embed/prompt', 'decoder/embed/prompt')


def prompt_place(flat: Mapping[str, Any]) -> str:
  """Path of the prompt among leaves by path; the encoder's where there is none."""
  return next((place for place in PLACES if f'{place}/table' in flat), PLACES[0])


INITS = ('vocab', 'sample', 'normal', 'uniform', 'scaled_uniform')
SAMPLED = 5000  # ids from which 'sample' draws
STARTS = (*INITS, 'sources')  # what a config may name; see `prompt_sources` for the last


def check_prompt(config: mlc.ConfigDict) -> None:
  """Checks `config.prompt`.

  Raises:
    UserError: an unknown way to start, or a negative length.
  """
  one_of('prompt.init', config.prompt.init, STARTS)
  number('prompt.length', config.prompt.length, config.prompt.length >= 0, 'of at least 0')


def initial_prompt(mode: str, ids: Sequence[int], embedding: np.ndarray,
                   key: jax.Array) -> jax.Array:
  """First value of a prompt.

  Args:
    mode: 'vocab': embedding rows of the description; 'sample': embedding rows of different random
      ids below `SAMPLED` (Lester et al. 2021); 'normal': N(0, 1) rows, equal for equal ids
      (what the published code does); 'uniform': U(-0.5, 0.5); 'scaled_uniform':
      U(+-1/sqrt(embed)) (Lv et al. 2023).
    ids: ids of the description, one per prompt row.
    embedding: [vocab, embed].
    key: random key.

  Returns:
    [prompt, embed] float32.

  Raises:
    UserError: unknown mode.
  """
  one_of('prompt.init', mode, INITS)
  ids = jnp.asarray(list(ids), jnp.int32)
  if mode == 'vocab':
    return jnp.asarray(embedding, jnp.float32)[ids]
  width = embedding.shape[1]
  if mode == 'sample':
    drawn = jax.random.permutation(key, min(SAMPLED, len(embedding)))
    return jnp.asarray(embedding, jnp.float32)[jnp.resize(drawn, len(ids))]
  if mode == 'normal':
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (width,)))(ids)
  bound = 0.5 if mode == 'uniform' else width**-0.5
  return jax.random.uniform(key, (len(ids), width), jnp.float32, -bound, bound)


def left_pad(table: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
  """Pads [prompt, embed] with zero rows in front; returns ([length, embed], mask [length])."""
  missing = length - table.shape[0]
  mask = (jnp.arange(length) >= missing).astype(jnp.float32)
  return jnp.pad(table, ((missing, 0), (0, 0))), mask


def trim(table: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Removes the padding rows of a prompt."""
  return np.asarray(table)[np.asarray(mask) > 0]
