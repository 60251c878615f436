"""PEMT: source experts and task prompts (stage 1), correlation-guided mixture (stage 2).

Lin, Fu, Liu, Li, Sun: PEMT: Multi-Task Correlation Guided Mixture-of-Experts Enables
Parameter-Efficient Transfer Learning, Findings of ACL 2024, arXiv 2402.15082.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pemt_jax.deltas.adapter import ACTIVATIONS, Adapter, Bottleneck, ParallelAdapter
from pemt_jax.deltas.lora import LoRA
from pemt_jax.deltas.prompt import Prompt
from pemt_jax.errors import UserError, at_least, number, one_of
from pemt_jax.experts import routes
from pemt_jax.experts.bank import AdapterExperts, LoRAExperts
from pemt_jax.experts.masked import Masked
from pemt_jax.experts.masked_bank import MaskedExperts
from pemt_jax.experts.mixture import SourceMixture
from pemt_jax.methods.base import FROZEN, Auxiliary, Method, Metrics
from pemt_jax.models.sites import Aux, Plan, Rule
from pemt_jax.models.t5_config import T5Config

NORMS = (r'(encoder|decoder)/(.*/)?\w+_norm/scale', 'norm')
PROMPT = ('(encoder|decoder)/embed/prompt/table', 'prompt')
BANK = 'pemt'  # rule of a bank
SINGLE = 'propetl'  # rule of a prototype under masks without a bank


@dataclasses.dataclass(frozen=True)
class Stage1Options:
  """Stage 1: one expert and one prompt per source task.

  Attributes:
    expert: 'lora' beside `mlp/wo`, or 'adapter' (the adapter-expert variant).
    rank: LoRA rank.
    alpha: LoRA scaling is alpha / rank.
    up_init: 'uniform' (published) or 'zero', see `LoRA`.
    reduction: adapter experts have mlp // reduction hidden units.
    activation: of adapter experts.
    prompt: whether a task prompt is trained.
    tune_norms: whether the backbone's norms are trained.
  """

  expert: str = 'lora'
  rank: int = 64
  alpha: float = 64.0
  up_init: str = 'uniform'
  reduction: int = 48
  activation: str = 'gelu_new'
  prompt: bool = True
  tune_norms: bool = False

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word or a number out of its range.
    """
    at_least(self, 1, 'rank', 'reduction')
    one_of('method.expert', self.expert, ('lora', 'adapter'))
    one_of('method.up_init', self.up_init, ('uniform', 'zero'))
    one_of('method.activation', self.activation, ACTIVATIONS)


@dataclasses.dataclass(frozen=True)
class Stage2Options:
  """Stage 2: a target task on frozen source experts.

  Every ablation of the method is one field.

  Attributes:
    prompt: prepend a target prompt; without it gates read `pool_without_prompt`.
    correlation: let the target prompt attend to the source prompts.
    correlation_dropout: rate on those attention weights in training.
    target_adapter: train an adapter after each feed-forward.
    reduction: the target adapter has embed // reduction hidden units.
    activation: of the target adapter.
    adapter_pre_norm: layer norm before the adapter's bottleneck.
    adapter_post_norm: layer norm after it.
    tune_adapter_norms: train those norms (they stay fixed in the original).
    encoder_layers: encoder layers with a target adapter; None means all.
    decoder_layers: decoder layers with a target adapter; None means all, () none.
    sparsity_weight: factor of the task sparsity loss, >= 0.
    gate: 'linear', one map for each layer (published), or 'router', a network for each layer with a
      hidden layer (Ye et al. 2022).
    gate_hidden: hidden units of a router.
    gate_mode: how logits become weights: 'softmax' (published), 'gumbel_softmax' or
      'gumbel_softmax_st', see `experts.routes.select`.
    gate_temperature: divides the gates' logits, > 0.
    tune_gate: False leaves the uniform gate.
    tune_norms: train all norms of the backbone.
    pool_without_prompt: 'first' or 'all' encoder positions.
    mask_padding: see `SourceMixture`.
  """

  prompt: bool = True
  correlation: bool = True
  correlation_dropout: float = 0.1
  target_adapter: bool = True
  reduction: int = 16
  activation: str = 'gelu_new'
  adapter_pre_norm: bool = False
  adapter_post_norm: bool = False
  tune_adapter_norms: bool = True
  encoder_layers: tuple[int, ...] | None = None
  decoder_layers: tuple[int, ...] | None = None
  sparsity_weight: float = 0.1
  gate: str = 'linear'
  gate_hidden: int = 64
  gate_mode: str = 'softmax'
  gate_temperature: float = 1.0
  tune_gate: bool = True
  tune_norms: bool = True
  pool_without_prompt: str = 'first'
  mask_padding: bool = True

  def __post_init__(self):
    """Checks the values.

    Raises:
      UserError: an unknown word or a number out of its range.
    """
    at_least(self, 1, 'reduction')
    one_of('method.gate', self.gate, ('linear', 'router'))
    one_of('method.gate_mode', self.gate_mode, routes.MODES)
    at_least(self, 1, 'gate_hidden')
    number('method.gate_temperature', self.gate_temperature, self.gate_temperature > 0, 'above 0')
    at_least(self, 0, 'sparsity_weight')
    number('method.correlation_dropout', self.correlation_dropout,
           0 <= self.correlation_dropout < 1, 'from 0 to below 1')
    one_of('method.activation', self.activation, ACTIVATIONS)
    one_of('method.pool_without_prompt', self.pool_without_prompt, ('first', 'all'))


@dataclasses.dataclass(frozen=True)
class BankShape:
  """What stage 2 needs to know of its source experts.

  Attributes:
    expert: 'lora', 'adapter', or 'masked': one prototype under masks.
    count: number of experts.
    width: LoRA rank or adapter size.
    scaling: of LoRA experts.
    activation: of adapter experts.
    prompt_lengths: real lengths of the source prompts; empty if they have none.
    masked: the prototype and its masks, for 'masked'.
  """

  expert: str
  count: int
  width: int
  scaling: float = 1.0
  activation: str = 'gelu_new'
  prompt_lengths: tuple[int, ...] = ()
  masked: Masked | None = None

  @property
  def place(self) -> str:
    """Site of the experts in a stack, behind the stack's name."""
    return self.masked.sites[0].partition('/')[2] if self.masked else 'mlp/wo'

  @property
  def sites(self) -> tuple[str, ...]:
    """Patterns of the experts' sites."""
    return self.masked.sites if self.masked else ('*/mlp/wo',)


def stage1(options: Stage1Options, config: T5Config, prompt_length: int) -> Method:
  """Returns stage 1.

  Args:
    options: see `Stage1Options`.
    config: of the backbone.
    prompt_length: rows of the prompt, padding included; read only with a prompt.
  """
  rules, tuned = [], []
  if options.prompt:
    rules.append(Rule('prompt', 'encoder/embed', Prompt(prompt_length)))
    tuned.append(PROMPT)
  if options.expert == 'lora':
    delta = LoRA(options.rank, options.alpha / options.rank, options.up_init)
    name = 'lora'
  else:
    delta = ParallelAdapter(
        Bottleneck(max(config.mlp // options.reduction, 1), options.activation))
    name = 'ffout'
  rules.append(Rule(name, '*/mlp/wo', delta))
  tuned.append((f'.*/wo/{name}/.*', 'expert'))
  if options.tune_norms:
    tuned.append(NORMS)
  return Method('pemt/stage1', Plan(tuple(rules)), (*tuned, FROZEN))


def _adapter_places(options: Stage2Options, config: T5Config) -> set[tuple[str, int]]:
  chosen = {'encoder': options.encoder_layers, 'decoder': options.decoder_layers}
  depth = {'encoder': config.encoder_layers, 'decoder': config.decoder_layers}
  for stack, layers in chosen.items():
    for layer in layers or ():
      if layer not in range(depth[stack]):
        raise UserError(f'method.{stack}_layers names layer {layer}, but the {stack} has the layers'
                        f' 0 to {depth[stack] - 1}; correct it.')
  if not options.target_adapter:
    return set()
  return {(stack, layer) for stack, layers in chosen.items()
          for layer in (range(depth[stack]) if layers is None else layers)}


def _split_layers(places: set[tuple[str, int]], config: T5Config):
  """(layers with adapter, layers without); None instead of all layers."""
  every = ([('encoder', i) for i in range(config.encoder_layers)]
           + [('decoder', i) for i in range(config.decoder_layers)])
  inside = tuple(place for place in every if place in places)
  outside = tuple(place for place in every if place not in places)
  return (None if not outside else inside), (None if not inside else outside)


def stage2(options: Stage2Options, config: T5Config, prompt_length: int,
           bank: BankShape) -> Method:
  """Returns stage 2; a single source has no gate and no sparsity loss.

  Args:
    options: see `Stage2Options`.
    config: of the backbone.
    prompt_length: rows of the target prompt, padding included; read only with a prompt.
    bank: shape of the source experts.
  """
  rules, tuned = [], []
  if options.prompt:
    lengths = bank.prompt_lengths if options.correlation else ()
    prompt = Prompt(prompt_length, lengths, options.correlation_dropout)
    rules.append(Rule('prompt', 'encoder/embed', prompt))
    tuned.append(PROMPT)
  bottleneck = Bottleneck(max(config.embed // options.reduction, 1), options.activation,
                          options.adapter_pre_norm, options.adapter_post_norm)
  inside, outside = _split_layers(_adapter_places(options, config), config)
  if bank.count == 1:
    rules += _single_source(bank, bottleneck, inside)
  else:
    rules += _mixture(options, bank, bottleneck, inside, outside)
  if inside != ():
    if not options.tune_adapter_norms and (options.adapter_pre_norm or options.adapter_post_norm):
      tuned.append((r'.*/wo/.*/?adapter/(pre|post)_norm/.*', 'frozen'))
    tuned.append((f'.*/{bank.place}/(pemt/)?adapter/.*', 'adapter'))
  if bank.count > 1 and options.tune_gate:
    tuned.append((f'.*/{bank.place}/pemt/gate/.*', 'gate'))
  if options.tune_norms:
    tuned.append(NORMS)
  return Method('pemt/stage2', Plan(tuple(rules)), (*tuned, FROZEN),
                mixture_auxiliary(options.sparsity_weight), mean_gates)


def _single_source(bank, bottleneck, inside):
  if bank.masked is not None:
    rules = [Rule(SINGLE, site, bank.masked) for site in bank.sites]
  elif bank.expert == 'lora':
    rules = [Rule('lora', '*/mlp/wo', LoRA(bank.width, bank.scaling))]
  else:
    experts = Bottleneck(bank.width, bank.activation)
    rules = [Rule('ffout', '*/mlp/wo', ParallelAdapter(experts))]
  if inside != ():
    rules.append(Rule('adapter', f'*/{bank.place}', Adapter(bottleneck), inside))
  return rules


def _mixture(options, bank, bottleneck, inside, outside):
  if bank.masked is not None:
    experts = MaskedExperts(bank.masked)
  else:
    experts = (LoRAExperts(bank.width, bank.scaling) if bank.expert == 'lora'
               else AdapterExperts(bank.width, bank.activation))
  mixture = SourceMixture(
      experts, bank.count, bottleneck, options.gate_temperature,
      pool_without_prompt=options.pool_without_prompt, mask_padding=options.mask_padding,
      gate_hidden=options.gate_hidden if options.gate == 'router' else 0,
      gate_mode=options.gate_mode)
  rules = []
  if inside != ():
    rules += _at_sites(bank, mixture, inside)
  if outside != ():
    bare = dataclasses.replace(mixture, adapter=None)
    rules += _at_sites(bank, bare, outside)
  return rules


def _at_sites(bank, mixture, layers):
  """Rules of a mixture in some layers; None means all."""
  found = []
  for site in bank.sites:
    stack = site.partition('/')[0]
    own = layers if layers is None or stack == '*' else tuple(p for p in layers if p[0] == stack)
    found += [Rule(BANK, site, mixture, own)] if own != () else []
  return found


def mixture_auxiliary(sparsity_weight: float) -> Auxiliary:
  """Task sparsity loss and gate metrics from the auxiliaries of `SourceMixture`.

  The loss is sparsity_weight * the mean over all layers of both stacks of sum_i mean(g_i) c_i.
  `moe_weight_<i>` is the mean gate of source i over layers and rows.
  """
  def auxiliary(aux: Aux, rows: jax.Array) -> tuple[jax.Array, Metrics]:
    gates = [value for name, value in sorted(aux.items()) if name.endswith('/pemt/gate')]
    losses = [value for name, value in sorted(aux.items()) if name.endswith('/misalignment')]
    metrics: Metrics = {}
    if gates:
      stacked = jnp.concatenate(gates)
      weights = jnp.einsum('lbx,b->x', stacked, rows)
      weights /= stacked.shape[0] * jnp.maximum(rows.sum(), 1.0)
      metrics |= {f'moe_weight_{i}': weights[i] for i in range(weights.shape[0])}
      log_gate = jnp.log(jnp.maximum(stacked, 1e-30))
      entropy = -jnp.einsum('lbx,lbx,b->', stacked, log_gate, rows)
      metrics['gate_entropy_nats'] = entropy / (stacked.shape[0] * jnp.maximum(rows.sum(), 1.0))
    if not losses:
      return jnp.zeros((), jnp.float32), metrics
    sparsity = jnp.mean(jnp.concatenate(losses))
    return sparsity_weight * sparsity, metrics | {'sparsity_loss': sparsity}

  return auxiliary


def mean_gates(aux: Aux, rows: jax.Array) -> Metrics:
  """Mean gates [layer, expert] of each stack over real rows."""
  weight = rows / jnp.maximum(rows.sum(), 1.0)
  return {f'gates/{name.partition("/")[0]}': jnp.einsum('lbx,b->lx', gate, weight)
          for name, gate in aux.items() if name.endswith(f'/{BANK}/gate')}
