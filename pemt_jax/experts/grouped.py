"""Tokens grouped by expert, and products of each group with the matrix of its expert.

A token has a few choices of experts; a choice may be of none (the number of experts, one past the
last), and then it gives zeros. Shapes are static, all forms give the same values and gradients, and
cost follows tokens but where `batched` pads:

| form | rows | products |
|---|---|---|
| `sorted` | sorted by expert | CPU: each group in one piece or few; elsewhere `ragged_dot` |
| `ragged` | sorted by expert | `jax.lax.ragged_dot` |
| `gathered` | as the choices stand | every row reads a matrix of its own: for few tokens |
| `batched` | [group, expert, capacity] | one batched product, sharded along `expert` |
| `local` | those of a device, sorted there | one of the above for each device, with all weights |

`local` and `batched` are for meshes. In the first tokens stay where they are and weights come to
them, so that no room is needed for the fullest expert; in the second tokens go to the devices of
their experts.
"""

from __future__ import annotations

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from pemt_jax.errors import UserError
from pemt_jax.experts import group_pieces
from pemt_jax.experts.group_pieces import Maps
from pemt_jax.models.layers import add_vector
from pemt_jax.sharding.mesh import is_split
from pemt_jax.sharding.rules import BATCH_AXES

FORMS = ('auto', 'sorted', 'ragged', 'gathered', 'batched', 'local')
# Logical axes of [group, choice, features], and of [group, expert, capacity, features] before and
# behind the exchange of tokens.
_KEPT = ('act_batch', None, 'act_embed')
_SENT = ('act_batch', None, None, 'act_embed')
_RECEIVED = ('act_group', 'act_expert', None, 'act_embed')


@jax.custom_vjp
def take_rows(x: jax.Array, index: jax.Array, inverse: jax.Array) -> jax.Array:
  """x[index], zeros where the index is out of range; the gradient gathers too.

  Args:
    x: [rows, features].
    index: [...] rows of x, each at most once.
    inverse: [rows] flat position in `index` of each row of x, out of range where it has none.
  """
  del inverse
  return x.at[index].get(mode='fill', fill_value=0)


def _take_forward(x, index, inverse):
  return take_rows(x, index, inverse), (index, inverse)


def _take_backward(saved, y):
  index, inverse = saved
  return take_rows(y.reshape(-1, y.shape[-1]), inverse, index.reshape(-1)), None, None


take_rows.defvjp(_take_forward, _take_backward)


def _sort(chosen, experts, priority=None):
  """(order, place, sizes) of choices [choice]: sorted by expert, then by priority or position."""
  keys = (chosen,) if priority is None else (priority, chosen)
  order = jnp.lexsort(keys)
  place = jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype))
  return order, place, jnp.sum(chosen[:, None] == jnp.arange(experts), axis=0)


def ranks(chosen: jax.Array, experts: int, priority: jax.Array | None = None) -> jax.Array:
  """How many choices of the same expert and group come before each choice.

  Args:
    chosen: [group, choice] expert, `experts` for none.
    experts: number of experts.
    priority: like `chosen`, lower ones first; None goes by position.

  Returns:
    int32 like `chosen`.
  """
  def one(chosen, priority):
    _, place, sizes = _sort(chosen, experts, priority)
    starts = jnp.concatenate([jnp.zeros(1, sizes.dtype), jnp.cumsum(sizes)])
    return (place - starts[chosen]).astype(jnp.int32)

  return jax.vmap(one, in_axes=(0, None if priority is None else 0))(chosen, priority)


@flax.struct.dataclass
class Groups:
  """Where the choices of tokens stand among the rows that experts read.

  Attributes:
    chosen: [group, token, choice] expert, `experts` for none.
    index: rows' places among all choices; `batched`: [group, expert, capacity] among those of the
      group; out of range for a row without a choice.
    inverse: [group, token, choice] its row; `batched`: its row in [expert * capacity].
    sizes: [expert] number of choices; zeros where no form asks for it.
    form: one of FORMS, not 'auto'; `local` has no index and no inverse yet.
  """

  chosen: jax.Array
  index: jax.Array
  inverse: jax.Array
  sizes: jax.Array
  form: str = flax.struct.field(pytree_node=False)

  @property
  def experts(self) -> int:
    """Number of experts."""
    return self.sizes.size

  def sent(self, maps: Maps, weights: Any, x: jax.Array, extra: Any = None) -> jax.Array:
    """Sends every choice of every token through two maps with the weights of its expert.

    Args:
      maps: see `Maps`.
      weights: a tree of [expert, ...].
      x: [..., features] in the order of [group, token].
      extra: [..., features] in that of [group, token, choice], constants of the second map, without
        gradients.

    Returns:
      [group, token, choice, features], zeros for choices of no expert.
    """
    if self.form == 'local':
      return self._sent_where_tokens_are(maps, weights, x, extra)
    extra = None if extra is None else self._rows(extra)
    return self._back(self._through(maps, weights, self._rows(x), extra))

  def _sent_where_tokens_are(self, maps, weights, x, extra):
    axes = _batch_axes()
    cut = lambda a: None if a is None else a.reshape(_devices(axes), -1, *a.shape[-1:])
    choices, experts = self.chosen.shape[-1], self.experts

    def send(weights, chosen, x, extra):
      few = chosen.size <= experts
      # Pieces have lengths of their own on each device, so that no exchange may stand among them.
      form = 'gathered' if few else 'ragged' if is_split('tensor') else 'sorted'
      return group(chosen, experts, form).sent(maps, weights, x, extra)

    rows = PartitionSpec(axes)
    sent = jax.shard_map(send, in_specs=(PartitionSpec(), rows, rows, rows), out_specs=rows,
                         axis_names=frozenset(axes), check_vma=False)
    y = sent(weights, cut(self.chosen), cut(x), cut(extra))
    return y.reshape(*self.chosen.shape[:-1], choices, -1)

  def _rows(self, x: jax.Array) -> jax.Array:
    """Features of all tokens, the same for its choices or not, -> rows of features.

    Args:
      x: [..., features], in the order of [group, token] or of [group, token, choice].
    """
    groups, tokens, choices = self.chosen.shape
    x = x.reshape(groups, tokens, -1, x.shape[-1])
    x = jnp.broadcast_to(x, (groups, tokens, choices, x.shape[-1]))
    if self.form == 'gathered':
      return x.reshape(-1, x.shape[-1])
    if self.form != 'batched':
      return take_rows(x.reshape(-1, x.shape[-1]), self.index, self.inverse.reshape(-1))
    x = _constrained(x.reshape(groups, tokens * choices, -1), _KEPT)
    rows = jax.vmap(take_rows)(x, self.index, self.inverse.reshape(groups, -1))
    return _constrained(rows, _SENT, _RECEIVED)

  def _through(self, maps: Maps, weights: Any, rows: jax.Array, extra: Any = None) -> jax.Array:
    """Sends rows through two maps, see `group_pieces.through`."""
    if self.form != 'sorted':
      return maps.both(self, weights, rows, extra)[0]
    lengths = group_pieces.lengths_of(self.chosen.size, self.experts)
    return group_pieces.through(maps, lengths, weights, rows, extra, self.sizes)

  def project(self, rows: jax.Array, kernels: jax.Array, biases: jax.Array | None) -> jax.Array:
    """Rows of `in`, [expert, in, out] and [expert, out] -> rows of `out`; not for `sorted`."""
    if self.form == 'ragged':
      return group_pieces.AllGroups(self.sizes).project(rows, kernels, biases)
    if self.form == 'batched':
      y = jnp.einsum('gecd,edf->gecf', rows, kernels)
      return y if biases is None else add_vector(y, biases[None, :, None])
    own = jnp.minimum(self.chosen.reshape(-1), self.experts - 1)
    y = jnp.einsum('rd,rdf->rf', rows, kernels[own])
    return y if biases is None else add_vector(y, biases.astype(jnp.float32)[own])

  def _back(self, rows: jax.Array) -> jax.Array:
    """Rows of features -> [group, token, choice, features], zeros for choices of no expert."""
    shape = (*self.chosen.shape, rows.shape[-1])
    if self.form == 'batched':
      groups = shape[0]
      rows = _constrained(rows, _RECEIVED, _SENT).reshape(groups, -1, shape[-1])
      y = jax.vmap(take_rows)(rows, self.inverse.reshape(groups, -1),
                              self.index.reshape(groups, -1))
      y = _constrained(y, _KEPT)
    elif self.form == 'gathered':
      y = rows
    else:
      y = take_rows(rows, self.inverse.reshape(-1), self.index)
    return jnp.where((self.chosen < self.experts)[..., None], y.reshape(shape), 0)


def group(chosen: jax.Array, experts: int, form: str = 'auto',
          capacity: int | None = None) -> Groups:
  """Groups choices by expert.

  Args:
    chosen: [group, token, choice] expert, `experts` for none; a token's choices differ.
    experts: number of experts.
    form: one of FORMS; 'auto' takes `gathered` for fewer choices than experts, else `sorted`; on a
      mesh `local` without `capacity`, where the devices divide the tokens, else `batched`.
      `local` where no mesh divides the rows is 'auto'.
    capacity: most choices of one expert in a group, for `batched`; None makes room for all. Choices
      beyond it must be of no expert.

  Raises:
    UserError: `local` on a mesh that does not divide the tokens.
  """
  groups, tokens, choices = chosen.shape
  count = chosen.size
  if form in ('auto', 'local'):
    form = _form_on_mesh(form, groups * tokens, capacity) or (
        'gathered' if count <= experts else 'sorted')
  flat = chosen.reshape(-1)
  if form in ('gathered', 'local'):
    places = jnp.arange(count)
    sizes = jnp.zeros(experts, jnp.int32)
    return Groups(chosen, places, places.reshape(chosen.shape), sizes, form)
  if form != 'batched':
    order, place, sizes = _sort(flat, experts)
    spare = group_pieces.spare_of(count, experts) if form == 'sorted' else 0
    order = jnp.concatenate([order, jnp.full(spare, count, order.dtype)])
    return Groups(chosen, order, place.reshape(chosen.shape), sizes, form)
  capacity = tokens if capacity is None else min(capacity, tokens)
  own = chosen.reshape(groups, -1)
  slot = own * capacity + ranks(own, experts)
  slot = jnp.where(own < experts, slot, experts * capacity)
  places = jnp.broadcast_to(jnp.arange(tokens * choices), own.shape)
  empty = jnp.full((groups, experts * capacity), tokens * choices)
  put = jax.vmap(lambda empty, slot, places: empty.at[slot].set(places, mode='drop'))
  index = put(empty, slot, places).reshape(groups, experts, capacity)
  sizes = jnp.zeros(experts, jnp.int32)
  return Groups(chosen, index, slot.reshape(chosen.shape), sizes, form)


def _constrained(x, *axes):
  """x under one layout after the other, so that each step is a plain exchange."""
  for names in axes:
    x = nn.with_logical_constraint(x, names)
  return x


def _form_on_mesh(form, tokens, capacity):
  """The form of 'auto' or 'local' on a mesh; None on a single device."""
  if jax.sharding.get_abstract_mesh().size <= 1:
    return None
  axes = _batch_axes()
  if tokens % _devices(axes) and form == 'local':
    raise UserError(f"the form 'local' of routed experts cannot divide {tokens} tokens over"
                    f" {_devices(axes)} devices; take 'auto' or other rows.")
  if tokens % _devices(axes) or capacity is not None and form == 'auto':
    return 'batched'
  return 'local' if axes else 'ragged'


def _batch_axes() -> tuple[str, ...]:
  """Mesh axes that divide the rows of a batch, those of one device left out."""
  return tuple(axis for axis in BATCH_AXES if is_split(axis))


def _devices(axes):
  """Number of parts that mesh axes make."""
  return math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in axes)
