"""Adapters at chosen sub-layers: Houlsby, Pfeiffer, parallel, and Compacter."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping

from pemt_jax.deltas.adapter import ACTIVATIONS, READS, Adapter, Bottleneck
from pemt_jax.deltas.compacter import Compacter
from pemt_jax.errors import UserError, at_least, one_of
from pemt_jax.methods.base import FROZEN, Method
from pemt_jax.methods.pemt import NORMS
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.models.t5_config import T5Config

Layers = tuple[int, ...] | None

# What adapters read -> the same at the end of a sub-layer, whose base gives the sum.
_BEHIND_DROPOUT = {'output': 'sublayer', 'sum': 'output', 'input': 'input'}


@dataclasses.dataclass(frozen=True)
class FamilyOptions:
  """Bottleneck adapters; the defaults are the Houlsby form that PEMT is compared with.

  Attributes:
    reduction: an adapter has embed // reduction units.
    size: units in place of those; 0 takes the reduction.
    activation: of the adapters.
    after_self_attention: adapters at the end of self-attention.
    after_cross_attention: adapters at the end of cross-attention.
    after_mlp: adapters at the end of the feed-forward.
    reads: what they read, see `deltas.adapter.Adapter`.
    after_dropout: they stand behind the dropout of the sub-layer's output and not in front of it.
    scaling: of their output.
    biases: whether they have biases.
    pre_norm: layer norm in front of the bottleneck.
    post_norm: layer norm behind it.
    tune_adapter_norms: train these two (the published code leaves them as they start).
    stddev: of their initial kernels.
    up_init: 'normal', 'zero' or 'ones', see `deltas.adapter.Bottleneck`. With ones all units stay
      equal; where norms follow the sums, as in BART, the model starts as the backbone.
    tune_norms: also train the backbone's norms.
    tune_head: also train the head, which a tied backbone shares with its embedding.
    encoder_layers: layers of the encoder that have adapters; None means all.
    decoder_layers: the same in the decoder.
  """

  reduction: int = 16
  size: int = 0
  activation: str = 'gelu_new'
  after_self_attention: bool = True
  after_cross_attention: bool = False
  after_mlp: bool = True
  reads: str = 'output'
  after_dropout: bool = False
  scaling: float = 1.0
  biases: bool = True
  pre_norm: bool = False
  post_norm: bool = False
  tune_adapter_norms: bool = True
  stddev: float = 0.01
  up_init: str = 'normal'
  tune_norms: bool = True
  tune_head: bool = False
  encoder_layers: Layers = None
  decoder_layers: Layers = None

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word, a number out of its range, or no place for an adapter.
    """
    at_least(self, 1, 'reduction')
    at_least(self, 0, 'size', 'stddev')
    one_of('method.activation', self.activation, ACTIVATIONS)
    one_of('method.reads', self.reads, READS)
    one_of('method.up_init', self.up_init, ('normal', 'zero', 'ones'))
    if self.after_dropout:
      one_of('method.reads with method.after_dropout', self.reads, _BEHIND_DROPOUT)
    if not (self.after_self_attention or self.after_cross_attention or self.after_mlp):
      raise UserError('no sub-layer has an adapter; set one of method.after_self_attention,'
                      ' method.after_cross_attention and method.after_mlp.')


# Values of the named forms that differ from the defaults.
PFEIFFER = (('after_self_attention', False), ('tune_norms', False))
PARALLEL = (('after_self_attention', False), ('reads', 'normed'), ('scaling', 4.0), ('size', 512),
            ('activation', 'relu'), ('up_init', 'zero'), ('tune_norms', False))
# The adapter of the ensembling programs.
ENSEMBLING = (('size', 12), ('activation', 'swish'), ('after_cross_attention', True),
              ('biases', False), ('stddev', 0.02), ('tune_norms', False))


@dataclasses.dataclass(frozen=True)
class CompacterOptions:
  """Compacter after self-attention and feed-forward.

  Attributes:
    reduction: an adapter has embed // reduction units.
    terms: Kronecker products in a sum; it divides embed and the units.
    rank: of the second factors; 0 keeps them whole.
    shared: one set of first factors for the model; False: each matrix has its own.
    activation: of the adapters.
    after_self_attention: adapters at the end of self-attention; False is Compacter++.
    tune_norms: also train the backbone's norms.
  """

  reduction: int = 32
  terms: int = 4
  rank: int = 1
  shared: bool = True
  activation: str = 'gelu_new'
  after_self_attention: bool = True
  tune_norms: bool = True

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word or a number out of its range.
    """
    at_least(self, 1, 'reduction', 'terms')
    at_least(self, 0, 'rank')
    one_of('method.activation', self.activation, ACTIVATIONS)


def layers_of(chosen: Mapping[str, Layers],
              config: T5Config) -> tuple[tuple[str, int], ...] | None:
  """(stack, layer) pairs of a choice of layers; None for all.

  Args:
    chosen: stack -> layers, or None for all of them.
    config: of the backbone.

  Raises:
    UserError: a layer that the backbone does not have, or none at all.
  """
  if all(layers is None for layers in chosen.values()):
    return None
  depth = {'encoder': config.encoder_layers, 'decoder': config.decoder_layers}
  found = []
  for stack, layers in chosen.items():
    layers = range(depth[stack]) if layers is None else layers
    for layer in layers:
      if layer not in range(depth[stack]):
        raise UserError(f'method names layer {layer} of the {stack}, which has the layers 0 to'
                        f' {depth[stack] - 1}; correct it.')
    found += [(stack, layer) for layer in layers]
  if not found:
    raise UserError('method names no layer; give at least one.')
  return tuple(found)


def rules_at(name: str, delta: Adapter | Compacter, places: Iterable[str],
             layers: tuple[tuple[str, int], ...] | None) -> tuple[Rule, ...]:
  """Rules that place a delta at the last projections of sub-layers.

  Args:
    name: of the rules.
    delta: what is placed.
    places: such as `*/mlp/wo`.
    layers: see `layers_of`.
  """
  rules = []
  for place in places:
    own = layers
    if layers is not None and place.startswith('decoder/'):
      own = tuple(pair for pair in layers if pair[0] == 'decoder')
    if own != ():
      rules.append(Rule(name, place, delta, own))
  return tuple(rules)


def _family(name: str, stage: str, options: FamilyOptions, config: T5Config,
            prompt_length: int) -> Method:
  del prompt_length
  size = options.size or max(config.embed // options.reduction, 1)
  bottleneck = Bottleneck(size, options.activation, options.pre_norm, options.post_norm,
                          options.biases, options.stddev, options.up_init, options.scaling)
  places = {'*/self_attention/o': options.after_self_attention,
            'decoder/cross_attention/o': options.after_cross_attention,
            '*/mlp/wo': options.after_mlp}
  layers = layers_of({'encoder': options.encoder_layers, 'decoder': options.decoder_layers}, config)
  places, reads = [place for place, chosen in places.items() if chosen], options.reads
  if options.after_dropout:
    places = [f'{place.rpartition("/")[0]}_residual' for place in places]
    reads = _BEHIND_DROPOUT[reads]
  rules = rules_at(name, Adapter(bottleneck, reads), places, layers)
  tuned = []
  if not options.tune_adapter_norms and (options.pre_norm or options.post_norm):
    tuned.append((f'.*/{name}/(pre|post)_norm/.*', 'frozen'))
  tuned.append((f'.*/{name}/.*', 'adapter'))
  if options.tune_norms:
    tuned.append(NORMS)
  if options.tune_head:
    tuned.append(head_weight(config))
  return Method(stage, Plan(rules), (*tuned, FROZEN))


def head_weight(config: T5Config) -> tuple[str, str]:
  """Rule that trains the head's matrix."""
  return ('shared/embedding' if config.tied_head else 'lm_head/kernel', 'head')


# (options, backbone config, prompt rows) -> method. After attention and feed-forward (Houlsby et
# al. 2019), after the feed-forward only (Pfeiffer et al. 2021), beside it (He et al. 2022), and the
# form of the ensembling programs: three sub-layers, no biases, swish, N(0, 0.02^2).
houlsby = functools.partial(_family, 'adapter', 'houlsby')
pfeiffer = functools.partial(_family, 'adapter', 'pfeiffer')
parallel = functools.partial(_family, 'parallel', 'parallel')
houlsby_ensembling = functools.partial(_family, 'adapter', 'houlsby_ensembling')


def compacter(options: CompacterOptions, config: T5Config, prompt_length: int) -> Method:
  """Adapters of Kronecker sums (Mahabadi et al. 2021)."""
  del prompt_length
  delta = Compacter(max(config.embed // options.reduction, 1), options.terms, options.rank,
                    options.shared, activation=options.activation)
  places = ['*/self_attention/o'] if options.after_self_attention else []
  tuned = [('.*/compacter/.*', 'adapter')]
  if options.tune_norms:
    tuned.append(NORMS)
  return Method('compacter', Plan(rules_at('compacter', delta, [*places, '*/mlp/wo'], None)),
                (*tuned, FROZEN))
