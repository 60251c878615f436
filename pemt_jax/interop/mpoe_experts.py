"""Model folders of the MPOE code on T5 <-> experts of the library.

A folder has the weights of the whole model and `config.json`, as transformers write them. What is
factorised and routed is read off the names and shapes of the tensors; `is_scale_prob` off
`config.json`.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from pemt_jax.data.tasks_hyperformer import HYPERFORMER_PREFIX
from pemt_jax.errors import UserError
from pemt_jax.experts import library, tree_files
from pemt_jax.experts.feed_forward import MPOExperts
from pemt_jax.experts.mpo_shapes import Factors
from pemt_jax.interop import cards, files, folded, huggingface, mpoe_moe_names, mpoe_names, names
from pemt_jax.interop.mpoe_moe_names import RULES, RoutedLayout
from pemt_jax.methods import moe, mpo, zoo
from pemt_jax.methods.base import Method
from pemt_jax.models import t5_config
from pemt_jax.models.t5_config import T5Config
from pemt_jax.trees import flatten, unflatten

KIND = 'mpoe'
ABOUT = 'model folder of the MPOE code (T5) with factorised matrices or routed feed-forwards'
NO_LIMIT = 30000  # the original's default, above every rank
_CORE = re.compile(r'(.*)_mpo\.(?:tensor_set\.)?(\d+)')
_ROUTER = re.compile(r'.*\.(sffn)\.switch\.weight|.*\.(moe_layer)\.gate\.w_gating')
_KERNELS = {'w1': 'wi', 'w2': 'wo'}
_TABLES = ('shared', 'lm_head')
_KINDS = {rule: kind for kind, rule in RULES.items()}  # name of a stage -> the original's word
_LIMITS = {'word_embed': 'emb_trunc', 'mlp': 'linear_trunc', 'attention': 'attention_trunc'}

Shapes = Mapping[str, tuple[int, ...]]
Options = dict[str, Any]  # name of a method -> its options


def _chains(shapes: Shapes) -> dict[str, tuple[Factors, tuple[int, ...]]]:
  """(factors [in, out], ranks) of each projection, such as 'q', and of 'experts.wi'."""
  cores: dict[str, dict[int, tuple[int, ...]]] = {}
  for name, shape in shapes.items():
    match = _CORE.fullmatch(name)
    if match:
      cores.setdefault(match[1], {})[int(match[2])] = shape[-4:]
  found = {}
  for module, parts in cores.items():
    chain = [parts[number] for number in sorted(parts)]
    kernel = module.rpartition('.')[2]
    name = f'experts.{_KERNELS.get(kernel, kernel)}' if '.experts.' in module else kernel
    factors = Factors(tuple(core[1] for core in chain), tuple(core[2] for core in chain))
    ranks = (*(core[0] for core in chain), chain[-1][3])
    found.setdefault(name, (factors if name in _TABLES else factors.swapped, ranks))
  return found


def _limit(place: str, chains: Mapping[str, tuple[Factors, tuple[int, ...]]]) -> int | None:
  """The common limit of ranks; None where all are full."""
  cut = [max(ranks) for factors, ranks in chains.values() if ranks != factors.ranks()]
  limit = max(cut) if cut else None
  for name, (factors, ranks) in chains.items():
    if factors.ranks(limit) != ranks:
      raise UserError(f"'{place}' has the ranks {list(ranks)} at '{name}', which no common limit"
                      ' gives; convert a model that was cut by one limit for each component.')
  return limit


def options_from(state: Mapping[str, Any], flags: Mapping[str, Any], place: str) -> Options:
  """What a state dict was made by.

  Args:
    state: its tensors.
    flags: fields of `config.json`.
    place: for messages.

  Raises:
    UserError: neither cores nor routers, or ranks without a common limit.
  """
  shapes = {name: tuple(np.shape(state[name])) for name in state}
  chains, found = _chains(shapes), {}
  routers = [match for match in map(_ROUTER.fullmatch, shapes) if match]
  if routers:
    found |= _routed(routers[0], shapes[routers[0][0]], chains, flags, place)
  own = {name: chain for name, chain in chains.items() if not name.startswith('experts.')}
  if own:
    found[mpo.NAME] = _factorised(own, state, place)
  if not found:
    raise UserError(f"'{place}' has neither cores nor routers; read it with --from=hf_t5.")
  return found


def _routed(router: re.Match, shape: tuple[int, ...], chains: Any, flags: Mapping[str, Any],
            place: str) -> Options:
  name = moe.SWITCH if router[1] else moe.TOP2
  own = {kernel.removeprefix('experts.'): chain for kernel, chain in chains.items()
         if kernel.startswith('experts.')}
  options = {'count': shape[0] if router[1] else shape[1], 'experts': 'mpo' if own else 'dense'}
  if own:
    options |= {'rank': _limit(place, own) or 0,
                'cores': len(own['wi'][0].rows),
                'factors': tuple((kernel, factors.rows, factors.cols)
                                 for kernel, (factors, _) in own.items())}
  if name == moe.SWITCH:
    options['scaling'] = 'probability' if flags.get('is_scale_prob') else 'gradient'
  return {name: zoo.ZOO[name].options(**options)}


def _factorised(chains: Any, state: Mapping[str, Any], place: str) -> mpo.MPOOptions:
  part = lambda name: ('word_embed' if name in _TABLES else 'attention' if name in 'qkvo'
                       else name[:2])
  parts = {name: part(name) for name in chains}
  limits = {own: _limit(place, {name: chain for name, chain in chains.items()
                                if parts[name] in own_parts})
            for own, own_parts in (('embed_rank', ('word_embed',)), ('mlp_rank', ('wi', 'wo')),
                                   ('attention_rank', ('attention',)))}
  present = set(parts.values())
  components = tuple(name for name in ('word_embed', 'wi', 'wo', 'attention') if name in present)
  if {'wi', 'wo'} <= present:
    components = (*(name for name in components if name not in ('wi', 'wo')), 'mlp')
  core = lambda table, number: np.asarray(state[f'{table}_mpo.tensor_set.{number}'])
  tied = 'lm_head' not in chains or all(
      np.array_equal(core('shared', number), core('lm_head', number))
      for number in range(len(chains['lm_head'][0].rows)))
  return mpo.MPOOptions(
      components=components, cores=len(next(iter(chains.values()))[0].rows), tied=tied, **limits,
      factors=tuple((name if name != 'shared' else 'word_embed', factors.rows, factors.cols)
                    for name, (factors, _) in chains.items() if name != 'lm_head'))


def table_of(config: T5Config, options: Options, method: Method) -> names.Table:
  """Names of all tensors of a model."""
  routed = None
  for name in options.keys() & _KINDS.keys():
    own = options[name]
    experts = moe.experts_of(own, config, 'expert' if name == moe.SWITCH else 'shared')
    is_mpo = isinstance(experts, MPOExperts)
    routed = RoutedLayout(_KINDS[name], own.count, config.embed, config.mlp,
                          dict(experts.factors) if is_mpo else None, own.rank or None)
  return mpoe_names.with_cores(mpoe_moe_names.t5_table(config, routed), method.plan)


def to_expert(source: str | pathlib.Path, target: str | pathlib.Path, backbone: str | None = None,
              task: str | None = None) -> list[str]:
  """Reads a folder of the original program and writes an expert.

  All cores are stored, those that the original froze too: others would have to fit to the signs
  of a decomposition of the backbone.

  Args:
    source: folder with weights and config.json.
    target: folder of the expert.
    backbone: T5 that it started from.
    task: that it was trained on; default is the name of the target.

  Returns:
    No paths; everything has a place.

  Raises:
    UserError: no backbone, or tensors that do not fit.
  """
  source, target = pathlib.Path(source), pathlib.Path(target)
  if backbone is None:
    raise UserError('An expert belongs to a backbone; give --backbone with the T5 that the folder'
                    ' started from.')
  state = files.read_tensors(source)
  options = options_from(state, tree_files.read_json(source / 'config.json'), str(source))
  config, params = huggingface.load_t5(backbone)
  stage, own = '+'.join(options), options if len(options) > 1 else next(iter(options.values()))
  method = zoo.make(stage, own, config, 0)
  tuned = mpoe_moe_names.state_to_tree(state, table_of(config, options, method))
  task = cards.task_here(task or target.name, HYPERFORMER_PREFIX)
  library.save_expert(target, tuned, {}, cards.card_of(
      target.name, stage, method, own, task, (backbone, params), tasks=[task],
      data={'template': 'name_in_front'}))
  return []


def from_expert(source: str | pathlib.Path, target: str | pathlib.Path, weights: str = '',
                backbone: str | None = None) -> list[str]:
  """Reads an expert and writes a folder of the original program.

  Args:
    source: folder of the expert.
    target: folder to write.
    weights: 'torch' or 'safetensors'; '' means torch, as the program does.
    backbone: that the expert stands on; default is that of the card.

  Returns:
    No paths; everything has a place.

  Raises:
    UserError: another backbone, or an expert that the original program has no form for.
  """
  tuned, _, card = library.load_expert(source)
  name = backbone or card.backbone_id
  config, params = huggingface.load_t5(name)
  library.check_backbone(card, name, library.backbone_hash(params))
  options, method = folded.method_of(card, config)
  _require_form(card, options, config)
  table = table_of(config, options, method)
  tree = flatten(folded.whole(tuned, method, config, params, card.name))
  state = mpoe_moe_names.tree_to_state(unflatten(tree), table, aliases=True)
  target = pathlib.Path(target)
  file = files.SAFETENSORS if weights == 'safetensors' else files.TORCH
  files.write_tensors(target / file, state)
  tree_files.write_json(target / 'config.json', t5_config.to_hf(config) | flags_of(options))
  return []


def _require_form(card, options, config):
  for name, own in options.items():
    reason = None
    if name not in (*_KINDS, mpo.NAME):
      reason = f"the method '{name}'"
    elif config.gated:
      reason = 'a gated feed-forward'
    elif name == mpo.NAME and ('wi' in own.parts) != ('wo' in own.parts):
      reason = 'one factorised projection of the feed-forward'
    elif name in _KINDS and own.experts not in ('dense', 'mpo'):
      reason = f"experts of the form '{own.experts}'"
    elif name in _KINDS and not (own.encoder_layers is own.decoder_layers is None):
      reason = 'routed feed-forwards in some layers'
    elif name == moe.SWITCH and (own.scaling, own.scaled) == ('probability', 'output'):
      reason = "method.scaled 'output'"
    if reason:
      raise UserError(f"expert '{card.name}' has {reason}, for which the MPOE code has no form;"
                      ' keep it as an expert.')


def flags_of(options: Options) -> dict[str, Any]:
  """The original's fields of `config.json` for a model."""
  found = {'moe_type': '', 'num_experts': 0, 'is_scale_prob': False, 'tensor_learn': False}
  ranks, parts = dict.fromkeys(_LIMITS.values(), NO_LIMIT), set()
  for name, own in options.items():
    if name == mpo.NAME:
      limits = {'word_embed': own.embed_rank, 'mlp': own.mlp_rank, 'attention': own.attention_rank}
      here = {'mlp' if part in ('wi', 'wo') else part for part in own.parts}
    else:
      limits, here = {'mlp': own.rank or None}, {'mlp'} if own.experts == 'mpo' else set()
      found |= {'moe_type': _KINDS[name], 'num_experts': own.count,
                'is_scale_prob': getattr(own, 'scaling', '') == 'probability'}
    parts |= here
    ranks |= {_LIMITS[part]: limits[part] or NO_LIMIT for part in here}
  layers = ','.join(part for part in _LIMITS if part in parts)
  return found | ranks | {'mpo_layers': layers or 'nompo', 'load_layer': layers or 'noload'}
