"""Matrices of the backbone as matrix product operators (MPOE, Gao et al. 2022, arXiv 2203.01104).

The cores start as a decomposition of the backbone's matrices. The central core holds nearly all
entries; the others are small and may train alone.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.errors import UserError, at_least, number, one_of
from pemt_jax.experts.mpo import decompose
from pemt_jax.experts.mpo_linear import FORMS, MPO, NAME, expanded
from pemt_jax.experts.mpo_shapes import CORES, Factors, factors_of, known_factors
from pemt_jax.methods.base import FROZEN, Expand, FirstValues, Method, joined
from pemt_jax.methods.classification import HEAD
from pemt_jax.methods.mpo_squeeze import shrunk
from pemt_jax.models.gpt2_config import GPT2Config
from pemt_jax.models.layers import fold_name
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.models.t5_config import T5Config
from pemt_jax.trees import Tree, flatten, unflatten

PER = ('tensor', 'model')
PARTS = ('word_embed', 'wi', 'wo', 'attention', 'pooler')
COMPONENTS = {part: (part,) for part in PARTS} | {'mlp': ('wi', 'wo')}
# Paths of the cores of a part.
_PATHS = {'word_embed': '(shared|lm_head)/mpo', 'wi': '.*/mlp/wi[^/]*/mpo', 'wo': '.*/mlp/wo/mpo',
          'attention': '.*_attention/[qkvo]/mpo', 'pooler': 'head/dense/mpo'}
# Each layer of a stacked core is a tensor of its own, for optimisers that skip tensors.
ROW_AXES = ((r'.*/layers[^/]*/.*/core_\d+', 1),)


@dataclasses.dataclass(frozen=True)
class MPOOptions:
  """Which matrices are factorised, how far they are cut, and which cores train.

  Attributes:
    components: names out of `COMPONENTS`.
    cores: number of cores of a matrix.
    embed_rank: largest rank in 'word_embed'; None for full ranks, as all limits.
    mlp_rank: in 'wi' and 'wo'.
    attention_rank: in 'attention'.
    pooler_rank: in 'pooler', the inner projection of a head for whole texts.
    factors: (part, factors of the input, factors of the output) in place of the published or
      automatic ones; a part is one of `PARTS` or a projection such as 'q'; for 'word_embed' the
      factors of vocabulary and width.
    published_factors: take those of the published tables where sizes fit.
    tied: a head that repeats the embedding shares its cores; False gives it cores of its own (as
      published).
    freeze: indices of cores that do not train; (2,) is the published "lightweight" tuning.
    freeze_in: components whose cores `freeze` names; () for all. Published: without 'attention'.
    update: components whose cores train; () for all.
    train: 'all' parameters of the model or the cores alone, 'mpo'.
    mask_probability: p_b, with which the update of a central core is discarded at a step.
    mask_per: one draw for each 'tensor', a layer's each, or one for the 'model'.
    form: how to compute, see `MPO`.
  """

  components: tuple[str, ...] = ('mlp',)
  cores: int = CORES
  embed_rank: int | None = None
  mlp_rank: int | None = None
  attention_rank: int | None = None
  pooler_rank: int | None = None
  factors: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
  published_factors: bool = True
  tied: bool = True
  freeze: tuple[int, ...] = ()
  freeze_in: tuple[str, ...] = ()
  update: tuple[str, ...] = ()
  train: str = 'all'
  mask_probability: float = 0.0
  mask_per: str = 'tensor'
  form: str = 'auto'

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word or a number out of its range.
    """
    for field in ('components', 'freeze_in', 'update'):
      for name in getattr(self, field):
        one_of(f'method.{field}', name, COMPONENTS)
    at_least(self, 1, 'cores')
    for field in ('embed_rank', 'mlp_rank', 'attention_rank', 'pooler_rank'):
      rank = getattr(self, field)
      if rank is not None:
        number(f'method.{field}', rank, rank >= 1, 'of at least 1')
    for index in self.freeze:
      number('method.freeze', index, 0 <= index < self.cores, f'from 0 to {self.cores - 1}')
    one_of('method.train', self.train, ('all', NAME))
    number('method.mask_probability', self.mask_probability, 0 <= self.mask_probability <= 1,
           'from 0 to 1')
    one_of('method.mask_per', self.mask_per, PER)
    one_of('method.form', self.form, FORMS)
    if not self.components:
      raise UserError(f'method.components is empty; give names out of {", ".join(COMPONENTS)}.')

  @property
  def parts(self) -> tuple[str, ...]:
    """The chosen components as members of `PARTS`."""
    return parts_of(self.components)

  def rank_of(self, part: str) -> int | None:
    """Limit of the ranks of a part."""
    return {'word_embed': self.embed_rank, 'wi': self.mlp_rank, 'wo': self.mlp_rank,
            'attention': self.attention_rank, 'pooler': self.pooler_rank}[part]


def parts_of(components: tuple[str, ...]) -> tuple[str, ...]:
  """Components as members of `PARTS`, in their order."""
  chosen = {part for name in components for part in COMPONENTS[name]}
  return tuple(part for part in PARTS if part in chosen)


def model_of(config: Any) -> tuple[str, int, int]:
  """(family, embed, mlp), under which `mpo_shapes.PUBLISHED` has a backbone."""
  families = {T5Config: 't5', RobertaConfig: 'bert', GPT2Config: 'gpt2'}
  return families.get(type(config), ''), config.embed, config.mlp


@dataclasses.dataclass(frozen=True)
class Matrix:
  """A matrix of a backbone.

  Attributes:
    part: one of `PARTS`.
    name: the projection, such as 'q', or the part.
    site: pattern of its sites.
    shape: (in, out), or (vocab, embed).
    bias: whether the projection has one.
  """

  part: str
  name: str
  site: str
  shape: tuple[int, int]
  bias: bool = False


def matrices(config: Any, parts: tuple[str, ...], tied: bool = True) -> Iterator[Matrix]:
  """The matrices of a backbone that belong to the parts.

  Args:
    config: of the backbone.
    parts: members of `PARTS`.
    tied: whether a head that repeats the embedding has no matrix of its own.

  Raises:
    UserError: a part that the backbone lacks.
  """
  bias = not isinstance(config, T5Config)
  embed, inner = config.embed, config.joined_kv
  if 'word_embed' in parts:
    yield Matrix('word_embed', 'word_embed', 'shared', (config.vocab_size, embed))
    has_head = not isinstance(config, RobertaConfig)
    if has_head and not (tied and getattr(config, 'tied_head', True)):
      yield Matrix('word_embed', 'lm_head', 'lm_head', (embed, config.vocab_size))
  if 'wi' in parts:
    for name in ('wi_0', 'wi_1') if getattr(config, 'gated', False) else ('wi',):
      yield Matrix('wi', name, f'*/mlp/{name}', (embed, config.mlp), bias)
  if 'wo' in parts:
    yield Matrix('wo', 'wo', '*/mlp/wo', (config.mlp, embed), bias)
  if 'attention' in parts:
    for name in 'qkv':
      yield Matrix('attention', name, f'*_attention/{name}', (embed, inner), bias)
    yield Matrix('attention', 'o', '*_attention/o', (inner, embed), bias)
  if 'pooler' in parts:
    if not isinstance(config, RobertaConfig):
      raise UserError("method.components holds 'pooler', which only an encoder with a head has;"
                      ' remove it.')
    yield Matrix('pooler', 'pooler', 'head/dense', (embed, embed), True)


def factors_for(options: MPOOptions, config: Any, matrix: Matrix) -> Factors:
  """Factors of a matrix: the given, the published or automatic ones."""
  table = (config.vocab_size, config.embed)
  shape = table if matrix.part == 'word_embed' else matrix.shape
  for name in (matrix.name, matrix.part):
    given = [Factors(tuple(rows), tuple(cols)) for part, rows, cols in options.factors
             if part == name]
    if given:
      found = given[0]
      break
  else:
    name = matrix.part if matrix.part in ('wi', 'word_embed') else matrix.name
    known = known_factors(model_of(config), name, shape, options.cores)
    found = known if options.published_factors else factors_of(*shape, options.cores)
  return found.swapped if matrix.name == 'lm_head' else found


def delta_for(options: MPOOptions, config: Any, matrix: Matrix) -> MPO:
  """The delta that takes the place of a matrix."""
  factors = factors_for(options, config, matrix)
  ranks = factors.ranks(options.rank_of(matrix.part))
  return MPO(matrix.shape, factors, ranks, matrix.bias, options.form)


def mpo(options: MPOOptions, config: Any, prompt_length: int) -> Method:
  """The chosen matrices as chains of cores that start from the backbone's."""
  del prompt_length
  rules = tuple(Rule(NAME, matrix.site, delta_for(options, config, matrix))
                for matrix in matrices(config, options.parts, options.tied))
  plan = Plan(rules)
  mask = None
  if options.mask_probability:
    central = '.*/mpo/core_' + str(options.cores // 2)
    mask = gradient_mask(central, options.mask_probability, options.mask_per)
  return Method(NAME, plan, tuned_rules(options), expand=expander(options.form),
                first_values=decomposed(plan), transform_gradients=mask, adapt_start=shrunk)


def tuned_rules(options: MPOOptions) -> tuple[tuple[str, str], ...]:
  """What trains in which learning-rate group: cores in 'mpo', the rest in 'backbone'."""
  rules, parts = [], options.parts
  updated = parts_of(options.update) or parts
  kept = [part for part in parts if part not in updated]
  cores = '[' + ''.join(map(str, options.freeze)) + ']'
  for part in parts:
    if part in kept:
      rules.append((f'{_PATHS[part]}/core_.*', 'frozen'))
    elif options.freeze and part in (parts_of(options.freeze_in) or parts):
      rules.append((f'{_PATHS[part]}/core_{cores}', 'frozen'))
  if any(part in updated for part in parts):
    rules.append((r'.*/mpo/.*', NAME))
  if 'pooler' in parts:
    rules.append(HEAD)
  return (*rules, ('.*', 'backbone') if options.train == 'all' else FROZEN)


def expander(form: str) -> Expand:
  """(tuned, frozen, constants) -> parameters with matrices rebuilt, see `expanded`."""
  if form in ('layer', 'contract'):
    return joined
  return lambda tuned, frozen, constants: expanded(joined(tuned, frozen, constants), form)


def decomposed(plan: Plan) -> FirstValues:
  """First values: cores of the backbone's matrices; the last backbone is remembered."""
  known: dict[str, Any] = {}

  def first_values(backbone: Tree, params: Tree, key: jax.Array) -> Tree:
    del key
    if known.get('backbone') is not backbone:
      known.update(backbone=backbone, values=cores_of(flatten(backbone), plan, flatten(params)))
    return unflatten(flatten(params) | known['values'])

  return first_values


def cores_of(backbone: Mapping[str, Any], plan: Plan,
             wanted: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Cores and biases of the matrices at all places of a plan, by path.

  Args:
    backbone: flat canonical parameters of the plain backbone.
    plan: its `MPO` rules decide; other rules are left out.
    wanted: flat canonical parameters of the model with the plan; their paths name the places.

  Returns:
    What the backbone has a matrix for; a head that it lacks is left out.
  """
  found = {}
  for path in wanted:
    place, _, last = path.partition(f'/{NAME}/')
    if last != 'core_0':
      continue
    site = re.sub(r'/layers(_\d+_\d+)?', '', place)
    rule = next(rule for rule in plan.at(site) if isinstance(rule.delta, MPO))
    dense = {'shared': 'shared/embedding'}.get(place, f'{place}/kernel')
    if place == 'lm_head' and dense not in backbone:
      matrix = np.asarray(backbone['shared/embedding']).T
    elif dense in backbone:
      matrix = np.asarray(backbone[dense])
    else:
      continue
    cores = decompose(matrix, rule.delta.factors, rule.delta.ranks).cores
    found |= {f'{place}/{NAME}/core_{k}': core for k, core in enumerate(cores)}
    if rule.delta.bias:
      found[f'{place}/{NAME}/bias'] = np.asarray(backbone[f'{place}/bias'])
  return found


def gradient_mask(pattern: str, probability: float,
                  per: str = 'tensor') -> Callable[[Tree, jax.Array, jax.Array], Tree]:
  """(gradients, key, step) -> gradients, those of some tensors 0 with a probability.

  The paper's gradient mask: central cores, which all experts move, are moved less often. A tensor
  that the optimiser steps at every update keeps its falling moments at a masked step; under
  `train.counters='nonzero_gradient'` and `ROW_AXES` as `train.row_axes` neither it nor its moments
  move. Masked tensors do not count in the norm for clipping.

  Args:
    pattern: of whole paths of the masked tensors; those below layers are one for each layer.
    probability: of masking, in [0, 1].
    per: 'tensor' or 'model', what shares one draw.
  """
  def transform(grads: Tree, key: jax.Array, step: jax.Array) -> Tree:
    del step
    own = fold_name(key, 'gradient_mask')

    def draw(path, shape):
      return jax.random.uniform(*((own, ()) if per == 'model' else (fold_name(own, path), shape)))

    return masked_gradients(grads, pattern, lambda path, shape: draw(path, shape) < probability)

  return transform


def masked_gradients(grads: Tree, pattern: str,
                     discarded: Callable[[str, tuple[int, ...]], Any]) -> Tree:
  """Gradients with zeros in the place of those that are discarded.

  Args:
    grads: tree.
    pattern: of whole paths of tensors that may be discarded.
    discarded: (path, () or (layers,)) -> whether, [] or that shape.
  """
  flat = dict(flatten(grads))
  for path, leaf in flat.items():
    if re.fullmatch(pattern, path):
      layered = re.search(r'/layers(_\d+_\d+)?/', path)
      choice = jnp.asarray(discarded(path, leaf.shape[:1] if layered else ()))
      choice = choice.reshape(choice.shape + (1,) * (leaf.ndim - choice.ndim))
      flat[path] = jnp.where(choice, jnp.zeros_like(leaf), leaf)
  return unflatten(flat)
