"""What a method is: a plan for the backbone, what is tuned, what is added to the loss."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from pemt_jax.models.bart import Bart
from pemt_jax.models.bart_config import BartConfig
from pemt_jax.models.blocks import Config
from pemt_jax.models.generation import log_probability, shift_right
from pemt_jax.models.gpt2 import GPT2
from pemt_jax.models.gpt2_config import GPT2Config
from pemt_jax.models.layers import Compute, fold_name
from pemt_jax.models.packing import packing_of
from pemt_jax.models.roberta import Roberta
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.models.sites import Aux, Plan
from pemt_jax.models.t5 import T5
from pemt_jax.models.t5_config import T5Config
from pemt_jax.trees import Tree, flatten, merge, unflatten

Backbone = T5 | Bart | Roberta | GPT2
_MODELS = {T5Config: T5, BartConfig: Bart, GPT2Config: GPT2,
           RobertaConfig: functools.partial(Roberta, labels=0)}
Metrics = dict[str, jax.Array]
Observe = Callable[[Aux, jax.Array], Metrics]
Auxiliary = Callable[[Aux, jax.Array], tuple[jax.Array, Metrics]]
Expand = Callable[[Tree, Tree, Tree], Tree]
FirstValues = Callable[[Tree, Tree, jax.Array], Tree]
# (tuned, frozen, constants, batch, key) -> (loss [], metrics) of one replica
LossFunction = Callable[..., tuple[jax.Array, Metrics]]

FROZEN = ('.*', 'frozen')  # last trainable rule of a method that leaves the backbone as it is


def no_auxiliary(aux: Aux, rows: jax.Array) -> tuple[jax.Array, Metrics]:
  """No extra loss, no extra metrics."""
  return jnp.zeros((), jnp.float32), {}


def no_observation(aux: Aux, rows: jax.Array) -> Metrics:
  """Nothing to observe."""
  return {}


def joined(tuned: Tree, frozen: Tree, constants: Tree) -> Tree:
  """The parameters of the model are the two trees."""
  del constants
  return merge(frozen, tuned)


def as_initialised(backbone: Tree, params: Tree, key: jax.Array) -> Tree:
  """The model starts from what its modules and the backbone's file give."""
  del backbone, key
  return params


@dataclasses.dataclass(frozen=True)
class Method:
  """A recipe in the language of sites.

  Attributes:
    name: name of method and stage, such as `pemt/stage2`.
    plan: which deltas act where.
    tuned: ordered (path pattern, learning-rate group or 'frozen'); the first match decides.
    auxiliary: (auxiliaries, rows [batch]) -> (extra loss [], scalar metrics).
    observe: (auxiliaries, rows) -> arrays whose means over evaluation batches are of interest.
    consistency: weight of `disagreement` between two passes with noise of their own, in training.
    expand: (tuned, frozen, constants) -> parameters of the model, where they are more than the two
      trees together.
    first_values: (backbone, params, key) -> params: what starts from a function of the backbone,
      such as copies or factors of its weights. `backbone` is the whole tree of the loaded backbone,
      `params` that of the model as initialised, with the backbone's values; both canonical.
    next_constants: (constants, step) -> constants after `step` updates, such as a temperature that
      falls; None keeps them.
    transform_gradients: (gradients, key, step) -> gradients before clipping, or None.
    transform_clipped: the same behind clipping.
    prediction: plan of evaluation and prediction, whose batches have one task each; it has the
      parameters of `plan`, which stands for it where it is None.
    transform_loss: (loss function, whether it sums over tokens) -> loss function of a training
      batch, such as the loss behind a step on half of its rows; or None.
    adapt_start: (tuned of an expert, shapes of the run's) -> tuned, where training may start from
      an expert of other sizes; or None. Canonical trees.
    first_constants: constants of the model, or of an expert that training starts from -> those of
      the first step; or None.
  """

  name: str
  plan: Plan
  tuned: tuple[tuple[str, str], ...]
  auxiliary: Auxiliary = no_auxiliary
  observe: Observe = no_observation
  consistency: float = 0.0
  expand: Expand = joined
  first_values: FirstValues = as_initialised
  next_constants: Callable[[Tree, jax.Array], Tree] | None = None
  transform_gradients: Callable[[Tree, jax.Array, jax.Array], Tree] | None = None
  transform_clipped: Callable[[Tree, jax.Array, jax.Array], Tree] | None = None
  prediction: Plan | None = None
  transform_loss: Callable[[LossFunction, bool], LossFunction] | None = None
  adapt_start: Callable[[Tree, Tree], Tree] | None = None
  first_constants: Callable[[Tree], Tree] | None = None

  def variables(self, tuned: Tree, frozen: Tree, constants: Tree) -> Tree:
    """What the model is applied to."""
    return {'params': self.expand(tuned, frozen, constants), 'constants': constants}


def disagreement(first: jax.Array, second: jax.Array, mask: jax.Array) -> jax.Array:
  """(KL(p, q) + KL(q, p)) / 2 of two predictions, mean over real tokens (Wang et al. 2022).

  Args:
    first: [batch, length, vocab] logits of p.
    second: logits of q.
    mask: [batch, length] 1 for real tokens.

  Returns:
    [] nats.
  """
  p, q = jax.nn.log_softmax(first), jax.nn.log_softmax(second)
  each = 0.5 * jnp.sum((jnp.exp(p) - jnp.exp(q)) * (p - q), axis=-1)
  return jnp.sum(each * mask) / jnp.maximum(jnp.sum(mask), 1.0)


def token_cross_entropy(logits: jax.Array, targets: jax.Array,
                        mask: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Sum of -log p over the real tokens, and their number.

  Args:
    logits: [batch, length, vocab] float32.
    targets: [batch, length] token ids.
    mask: [batch, length] 1 for real tokens.

  Returns:
    ([] nats, [] tokens).
  """
  return -jnp.sum(log_probability(logits, targets) * mask), jnp.sum(mask)


REDUCTIONS = ('mean', 'sum')


@dataclasses.dataclass(frozen=True)
class LossForm:
  """How the losses of target tokens make the loss of a batch.

  Attributes:
    smoothing: share of the target's probability that is spread evenly over the vocabulary, [0, 1).
    reduction: 'mean' over the real tokens of a batch, or their 'sum'. Microbatches are weighted by
      their tokens under 'mean' and equally under 'sum'.
  """

  smoothing: float = 0.0
  reduction: str = 'mean'


def smoothing_loss(logits: jax.Array, mask: jax.Array) -> jax.Array:
  """Sum over the real tokens of the mean of -log p over the vocabulary; [] nats.

  Args:
    logits: [batch, length, vocab] float32.
    mask: [batch, length] 1 for real tokens.
  """
  each = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
  return jnp.sum(each * mask)


def make_loss(model: T5, method: Method,
              form: LossForm = LossForm()) -> Callable[..., tuple[jax.Array, Metrics]]:
  """Returns loss_fn(tuned, frozen, constants, batch, key) -> (loss [], metrics) of one replica.

  The loss is the mean over all real target tokens of the batch, or what `form` says, plus the
  method's extra loss. Rows may hold several examples, see `models.packing`. `metrics['weight']` is
  what the batch counts among microbatches.
  """
  def loss_fn(tuned: Tree, frozen: Tree, constants: Tree, batch: dict[str, Any],
              key: jax.Array | None) -> tuple[jax.Array, Metrics]:
    variables = method.variables(tuned, frozen, constants)
    decoder_inputs = shift_right(batch['targets'], model.config.start_id)
    mask, packing = batch['targets_mask'], packing_of(batch)
    rows, more = jnp.max(batch['inputs_mask'], axis=1).astype(jnp.float32), ()
    if packing is not None:
      first = packing[1].places == 0
      decoder_inputs = jnp.where(first, model.config.start_id, decoder_inputs)
      rows, more = packing[0].rows.reshape(-1), (packing,)
    apply = lambda key: model.apply(variables, batch['inputs'], batch['inputs_mask'],
                                    decoder_inputs, mask, batch.get('task_ids'), key, *more)
    return formed_loss(method, form, apply, (batch['targets'], mask, rows), key)

  return loss_fn


def formed_loss(method: Method, form: LossForm, apply: Callable[..., tuple[jax.Array, Aux]],
                wanted: tuple[jax.Array, jax.Array, jax.Array],
                key: jax.Array | None) -> tuple[jax.Array, Metrics]:
  """The loss of predicted tokens and what the method adds to it.

  Args:
    method: recipe.
    form: how the losses of tokens make that of a batch.
    apply: key -> (logits [batch, length, vocab], auxiliaries).
    wanted: targets [batch, length], their mask, and rows [batch] that are 1 for real examples.
    key: dropout key; None means deterministic.

  Returns:
    (loss [], metrics).
  """
  targets, mask, rows = wanted
  logits, aux = apply(key)
  total, weight = token_cross_entropy(logits, targets, mask)
  cross_entropy = total / jnp.maximum(weight, 1.0)
  extra, metrics = method.auxiliary(aux, rows)
  own = cross_entropy
  if form.smoothing:
    own = ((1.0 - form.smoothing) * total + form.smoothing * smoothing_loss(logits, mask)
           ) / jnp.maximum(weight, 1.0)
  if form.reduction == 'sum':
    own, weight = own * weight, jnp.ones_like(weight)
  metrics |= {'cross_entropy_nats': cross_entropy, 'weight': weight}
  if method.consistency and key is not None:
    again, _ = apply(fold_name(key, 'again'))
    metrics['disagreement_nats'] = disagreement(logits, again, mask)
    extra += method.consistency * metrics['disagreement_nats']
  return own + extra, metrics


def backbone_of(config: Config, plan: Plan = Plan(), compute: Compute = Compute()) -> Backbone:
  """The backbone of a config; an encoder comes without head."""
  return _MODELS[type(config)](config, plan, compute)


def embed_site(config: Config) -> str:
  """The site where the texts of a backbone are embedded, in front of which a prompt may stand."""
  return 'encoder/embed' if config.encoder_layers else 'decoder/embed'


def boxed_shapes(model: Backbone) -> Tree:
  """Shapes and logical axes of all variables, without taking memory."""
  return jax.eval_shape(model.init, jax.random.key(0), *model.example_batch())


def initialiser(model: Backbone,
                omit: Tree | None = None) -> Callable[[jax.Array], tuple[Tree, Tree]]:
  """Returns a compiled function key -> (params, constants), nested dicts of arrays.

  Args:
    model: backbone with its plan.
    omit: tree whose leaves need no initial value (a loaded backbone); they take no memory.
  """
  known = set(flatten(omit or {}))

  @jax.jit
  def init(key):
    variables = nn.meta.unbox(model.init(key, *model.example_batch()))
    params = {path: leaf for path, leaf in flatten(variables['params']).items()
              if path not in known}
    return unflatten(params), variables.get('constants', {})

  return init
