"""Tensors of the baselines in the original PEMT code: BitFit, AdaMix, MixDA, ATTEMPT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import itertools
import re
from typing import Any

from pemt_jax.interop import names

STACKS = ('encoder', 'decoder')
_NORMS = {'encoder': ('self_attention', 'mlp'),
          'decoder': ('self_attention', 'cross_attention', 'mlp')}
_ATTENTIONS = {'self_attention': 'SelfAttention', 'cross_attention': 'EncDecAttention'}
MIXDA_SITE = r'layer\.[12]\.DenseReluDense\.'
ATTEMPT_PATH = 'encoder/embed/attempt'
TARGET_PROMPT, SOURCE_PROMPTS = 'prefix_shared', 'mul_prefix_emb'
DOWN, UP = 'encoder.attn_W_down.weight', 'encoder.attn_W_up.weight'
LINEAR = 'encoder.attn_Wa.weight'
NORM = {'encoder.layer_norm.weight': 'scale', 'encoder.layer_norm.bias': 'bias'}
_GATE_LINEARS = (1, 4, 7, 10)


@dataclasses.dataclass(frozen=True)
class AdaMixShape:
  """Experts of AdaMix: numbers of down and up projections, units of the bottleneck."""

  down: int
  up: int
  size: int


@dataclasses.dataclass(frozen=True)
class MixDAShape:
  """MixDA: number and units of the knowledge adapters, widths of gate and task adapter, layers."""

  count: int
  size: int
  hidden: int
  task_size: int
  encoder_layers: tuple[int, ...]
  decoder_layers: tuple[int, ...]

  def layers(self, stack: str) -> tuple[int, ...]:
    """Layers of a stack that have it."""
    return self.encoder_layers if stack == 'encoder' else self.decoder_layers


@dataclasses.dataclass(frozen=True)
class AttemptShape:
  """ATTEMPT: prompt rows, sources, targets (0: one table without a leading axis), attention.

  `hidden` is 0 where the attention is not 'sub'.
  """

  length: int
  sources: int
  targets: int = 0
  hidden: int = 0
  linear: bool = False


def _number(stack: str, kind: str) -> int:
  """Index of a sub-layer in a block of the original."""
  return _NORMS[stack].index(kind)


def biases(layout: Any) -> Iterator[names.Weight]:
  """BitFit: a bias at every projection and norm of the layers, and at the head."""
  if not layout.biases:
    return
  config = layout.backbone
  blocks = [(stack, layer, kind) for stack in STACKS for layer in range(layout.layers(stack))
            for kind in _NORMS[stack]]
  for stack, layer, kind in blocks:
    place = f'{stack}.block.{layer}.layer.{_number(stack, kind)}'
    path = f'{stack}/layers/{kind}'
    inner = _ATTENTIONS.get(kind, 'DenseReluDense')
    for name, size in _widths(kind, config).items():
      yield names.Weight(f'{place}.{inner}.{name}.bias', f'{path}/{name}/bias/bias', (layer,),
                         (size,))
    yield names.Weight(f'{place}.layer_norm.bias', f'{path}_norm/bias/bias', (layer,),
                       (config.embed,))
  yield names.Weight('lm_head.bias', 'lm_head/bias/bias', (), (config.vocab_size,))


def _widths(kind: str, config: Any) -> dict[str, int]:
  """Output width of each projection of a sub-layer."""
  if kind != 'mlp':
    return dict.fromkeys('qkv', config.joined_kv) | {'o': config.embed}
  inward = ('wi_0', 'wi_1') if config.gated else ('wi',)
  return dict.fromkeys(inward, config.mlp) | {'wo': config.embed}


def _linear(name: str, path: str, index: tuple[int, ...],
            sizes: tuple[int, int]) -> tuple[names.Weight, names.Weight]:
  """A matrix and its bias; `sizes` are in, out."""
  return names.projection(name, path, sizes[::-1], index)


def adamix(layout: Any) -> Iterator[names.Weight]:
  """AdaMix: the experts after every feed-forward."""
  shape = layout.adamix
  if shape is None:
    return
  halves = (('A', 'down', shape.down, (layout.embed, shape.size)),
            ('B', 'up', shape.up, (shape.size, layout.embed)))
  places = [(stack, layer, half) for stack in STACKS for layer in range(layout.layers(stack))
            for half in halves]
  for stack, layer, (letter, half, count, sizes) in places:
    soup = (f'{stack}.block.{layer}.layer.{_number(stack, "mlp")}.DenseReluDense.ExpertSoup'
            f'.MoA_{letter}')
    path = f'{stack}/layers/mlp/wo/adamix/{half}'
    for k in range(count):
      yield from _linear(f'{soup}.deepspeed_experts.{k}', path, (layer, k), sizes)
    yield names.Weight(f'{soup}.expert_score_weight', f'{path}/score', (layer,), (count,))


def mixda(layout: Any) -> Iterator[names.Weight]:
  """MixDA: knowledge adapters, gate and task adapter of the layers that have them."""
  shape = layout.mixda
  if shape is None:
    return
  places = [(stack, position, layer) for stack in STACKS
            for position, layer in enumerate(shape.layers(stack))]
  widths = (layout.mlp, shape.hidden, shape.hidden, shape.hidden, shape.count + 1)
  known = (('adapter_down.0', 'knowledge_down', (layout.mlp, shape.size)),
           ('adapter_up', 'knowledge_up', (shape.size, layout.embed)))
  own = (('down', (layout.embed, shape.task_size)), ('up', (shape.task_size, layout.embed)))
  for stack, position, layer in places:
    path = f'{stack}/layers/mlp/wo/mixda'
    place = f'{stack}.block.{layer}.layer.{_number(stack, "mlp")}.DenseReluDense'
    for k, (theirs, ours, sizes) in itertools.product(range(shape.count), known):
      yield from _linear(f'{place}.kas.{k}.{theirs}', f'{path}/{ours}', (position, k), sizes)
    for i, number in enumerate(_GATE_LINEARS):
      yield from _linear(f'{place}.gating.linear.{number}', f'{path}/gate_{i}', (position,),
                         widths[i:i + 2])
    for half, sizes in own:
      yield from _linear(f'{place}.adapter_controller.adapters.{layout.target}.{half}_sampler',
                         f'{path}/{half}', (position,), sizes)


def attempt(layout: Any) -> Iterator[names.Weight]:
  """ATTEMPT: target prompts, source prompts and the attention."""
  shape = layout.attempt
  if shape is None:
    return
  rows = (shape.length, layout.embed)
  table = (shape.targets, *rows) if shape.targets else rows
  yield names.Weight(TARGET_PROMPT, f'{ATTEMPT_PATH}/table', (), table)
  yield names.Weight(SOURCE_PROMPTS, f'{ATTEMPT_PATH}/sources', (), (shape.sources, *rows))
  yield from attempt_attention(layout)


def attempt_attention(layout: Any) -> Iterator[names.Weight]:
  """The attention of ATTEMPT alone, as its small files hold it."""
  shape, embed = layout.attempt, layout.embed
  if shape.hidden:
    yield names.Weight(DOWN, f'{ATTEMPT_PATH}/attention_down/kernel', (), (shape.hidden, embed),
                       True)
    yield names.Weight(UP, f'{ATTEMPT_PATH}/attention_up/kernel', (), (embed, shape.hidden), True)
    for name, leaf in NORM.items():
      yield names.Weight(name, f'{ATTEMPT_PATH}/attention_norm/{leaf}', (), (embed,))
  if shape.linear:
    yield names.Weight(LINEAR, f'{ATTEMPT_PATH}/attention/kernel', (), (embed, embed), True)


def aliases_of(layout: Any) -> dict[str, str]:
  """Second names of the prompts of ATTEMPT."""
  if layout.attempt is None:
    return {}
  own = {'prefix_emb': TARGET_PROMPT, SOURCE_PROMPTS: SOURCE_PROMPTS}
  return {f'{stack}.{alias}': name for stack in STACKS for alias, name in own.items()}


def shapes_of_case(method: Mapping[str, Any], config: Any,
                   table: tuple[int, ...] = ()) -> dict[str, Any]:
  """Fields of the layout that a parity case's `method_config` describes.

  Args:
    method: options under the original's names.
    config: of the backbone.
    table: shape of the target prompts, whose number the options do not tell.
  """
  fields: dict[str, Any] = {'biases': bool(method.get('bitfit'))}
  if 'num_experts' in method:
    count = method['num_experts']
    fields['adamix'] = AdaMixShape(1 if method.get('sharing_down') else count,
                                   1 if method.get('sharing_up') else count, method['adapter_size'])
  if 'num_of_kas' in method:
    scale, layers = method['adapter_down_scale'], method['layers']
    layers = tuple(map(int, layers.split(','))) if isinstance(layers, str) else tuple(layers)
    fields['mixda'] = MixDAShape(method['num_of_kas'], config.mlp // scale,
                                 method.get('gating_hidden', 768), config.embed // scale, layers,
                                 layers)
  if method.get('attn_prefix_tuning'):
    form = method.get('attn_method', 'sub')
    fields['attempt'] = AttemptShape(
        method['prefix_dim'], method['prefix_num'], table[0] if len(table) == 3 else 0,
        hidden=(method.get('attn_hidden') or 100) if form == 'sub' else 0, linear=form == 'linear')
  return fields


def shapes_of_state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """The same fields, read off the names and shapes of a checkpoint."""
  found: dict[str, Any] = {'biases': any(name.endswith('SelfAttention.q.bias') for name in shapes)}
  experts = {letter: [name for name in shapes if re.search(
      rf'block\.0\..*MoA_{letter}\.deepspeed_experts\.\d+\.weight$', name)
      and name.startswith('encoder')] for letter in 'AB'}
  if experts['A']:
    found['adamix'] = AdaMixShape(len(experts['A']), len(experts['B']), shapes[experts['A'][0]][0])
  found['mixda'] = _mixda_of(shapes)
  if SOURCE_PROMPTS in shapes:
    own = shapes.get(TARGET_PROMPT, ())
    sources, length, _ = shapes[SOURCE_PROMPTS]
    found['attempt'] = AttemptShape(
        length, sources, own[0] if len(own) == 3 else 0, shapes.get(DOWN, (0,))[0],
        LINEAR in shapes)
  return found


def shapes_from_json(values: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of a layout that were written as JSON, with the shapes of baselines as such."""
  made = dict(values)
  for name, kind in (('adamix', AdaMixShape), ('mixda', MixDAShape), ('attempt', AttemptShape)):
    if isinstance(made.get(name), Mapping):
      made[name] = kind(**{key: tuple(value) if isinstance(value, list) else value
                           for key, value in made[name].items()})
  return made


def _mixda_of(shapes):
  place = re.compile(r'^(encoder|decoder)\.block\.(\d+)\..*\.kas\.(\d+)\.adapter_down\.0\.bias$')
  found = [match for match in map(place.match, shapes) if match]
  if not found:
    return None
  first = found[0][0].partition('.kas.')[0]
  task = next(shape for name, shape in shapes.items()
              if name.startswith(first) and name.endswith('down_sampler.bias'))
  layers = {stack: tuple(sorted({int(match[2]) for match in found if match[1] == stack}))
            for stack in STACKS}
  return MixDAShape(len({match[3] for match in found}), shapes[found[0][0]][0],
                    shapes[f'{first}.gating.linear.1.bias'][0], task[0], layers['encoder'],
                    layers['decoder'])
