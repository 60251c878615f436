"""What a checkpoint of the original PEMT code holds: its parts, their sizes and tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import dataclasses
import re
from typing import Any

from pemt_jax.interop import pemt_baselines
from pemt_jax.interop.pemt_baselines import AdaMixShape, AttemptShape, MixDAShape
from pemt_jax.models import t5_config
from pemt_jax.models.t5_config import T5Config

TASK_PROMPT = 'task_shared'
TUNED_PROMPT = 'prefix_shared'


def sampler_pattern(
    site: str, half: str = 'down|up', kind: str = 'weight|bias') -> re.Pattern[str]:
  """Pattern of adapter parameters: `site` is a pattern inside a block, the others are alternatives.

  Its group `task` is the task of the adapter, its group `layer` the block.
  """
  return re.compile(rf'block\.(?P<layer>\d+)\.{site}adapter_controller\.adapters\.(?P<task>.+)'
                    rf'\.(?:{half})_sampler\.(?:{kind})$')


# Sites of adapters inside a block.
EXPERT_SITE = r'layer\.[12]\.DenseReluDense\.'
TARGET_SITE = r'layer\.[12]\.'
ATTENTION_SITE = r'layer\.0\.'


def tasks_at(site: str, names: Iterable[str]) -> tuple[str, ...]:
  """Tasks that have an adapter at a site, in order of appearance."""
  found = map(sampler_pattern(site).search, names)
  return tuple(dict.fromkeys(match['task'] for match in found if match))


def unnamed_sources(count: int) -> tuple[str, ...]:
  """Names of sources that a file does not name."""
  return tuple(f'source_{number}' for number in range(count))


@dataclasses.dataclass(frozen=True)
class PemtLayout:
  """The parts of one checkpoint and their sizes; sizes of absent parts are 0.

  Attributes:
    backbone: config of the T5 in the checkpoint; None if it holds deltas only.
    embed: width of the residual stream.
    mlp: width of the feed-forward activation.
    encoder_layers: blocks of the encoder.
    decoder_layers: blocks of the decoder.
    expert_form: 'lora', 'adapter', or None without experts.
    sources: task of each expert, in the order of the bank. More than one is stage 2's mixture.
    expert_width: rank of the LoRA experts or bottleneck of the adapter experts.
    target: task whose name the target adapter and the self-attention adapter carry.
    target_width: bottleneck of the adapter after the feed-forward.
    attention_adapter_width: bottleneck of the adapter after self-attention.
    adapter_norms: which of 'pre' and 'post' LayerNorms those two adapters have.
    encoder_adapter_layers: encoder blocks that have those two adapters; None means all.
    decoder_adapter_layers: the same in the decoder.
    attention_rank: rank of the LoRA at q, k, v, o of every attention.
    joined_kv: width of all heads together, for the attention LoRA.
    prompt_name: 'task_shared', or 'prefix_shared' in prompt tuning.
    prompt_length: rows of the own prompt.
    prompt_rows: rows of its leaf, if left-padded to more than `prompt_length`; 0 means equal.
    source_lengths: rows of each source prompt; empty without prompt correlation.
    biases: whether BitFit's biases are there.
    adamix: AdaMix after each feed-forward, or None.
    mixda: MixDA in some feed-forwards, or None; its task adapter carries the name of `target`.
    attempt: ATTEMPT's prompts and attention, or None; they are not counted as `prompt_length`.
  """

  embed: int
  mlp: int
  encoder_layers: int
  decoder_layers: int
  backbone: T5Config | None = None
  expert_form: str | None = None
  sources: tuple[str, ...] = ()
  expert_width: int = 0
  target: str | None = None
  target_width: int = 0
  attention_adapter_width: int = 0
  adapter_norms: tuple[str, ...] = ()
  encoder_adapter_layers: tuple[int, ...] | None = None
  decoder_adapter_layers: tuple[int, ...] | None = None
  attention_rank: int = 0
  joined_kv: int = 0
  prompt_name: str = TASK_PROMPT
  prompt_length: int = 0
  prompt_rows: int = 0
  source_lengths: tuple[int, ...] = ()
  biases: bool = False
  adamix: AdaMixShape | None = None
  mixda: MixDAShape | None = None
  attempt: AttemptShape | None = None

  @property
  def has_target_adapter(self) -> bool:
    """Whether an adapter follows each feed-forward."""
    return self.target_width > 0

  @property
  def has_mixture(self) -> bool:
    """Whether there is a bank of experts with gates (the delta `pemt`)."""
    return len(self.sources) > 1

  def layers(self, stack: str) -> int:
    """Blocks of 'encoder' or 'decoder'."""
    return self.encoder_layers if stack == 'encoder' else self.decoder_layers

  def adapter_layers(self, stack: str) -> tuple[int, ...]:
    """Blocks of a stack that have the target adapter and the self-attention adapter."""
    chosen = (self.encoder_adapter_layers if stack == 'encoder' else self.decoder_adapter_layers)
    return tuple(range(self.layers(stack))) if chosen is None else chosen


def layout_from_case(case: Mapping[str, Any]) -> PemtLayout:
  """Returns the layout that a parity case describes.

  Args:
    case: parsed `case.json`: `model_config` and `method_config` with the original's option names,
      `trainable` (names of the trained parameters).

  Raises:
    UserError: if `model_config` is not a T5's.
  """
  method = case['method_config']
  config = t5_config.from_hf(case['model_config'], 'model_config of case.json')
  trained = case.get('trainable', ())
  tuning = 'prefix_dim' in method
  table = case.get('arrays', {}).get('grad/prefix_shared', {}).get('shape', ())
  baselines = pemt_baselines.shapes_of_case(method, config, tuple(table))
  length = method.get('prefix_dim' if tuning else 'prompt_len', 0)
  layout = PemtLayout(
      embed=config.embed, mlp=config.mlp, encoder_layers=config.encoder_layers,
      decoder_layers=config.decoder_layers, backbone=config,
      attention_rank=method.get('atten_lora_rank', 0),
      joined_kv=config.joined_kv if 'atten_lora_rank' in method else 0,
      prompt_name=TUNED_PROMPT if tuning else TASK_PROMPT,
      prompt_length=0 if 'attempt' in baselines else length,
      source_lengths=tuple(method.get('source_prompt_lens', ())), **baselines)
  if layout.mixda:
    task = next(iter(tasks_at(EXPERT_SITE, trained)), 'task')
    return dataclasses.replace(layout, target=method.get('task', task))
  layout = _with_case_experts(layout, method, trained)
  return _with_case_adapters(layout, method, trained)


def _with_case_experts(
    layout: PemtLayout, method: Mapping[str, Any], trained: Iterable[str]) -> PemtLayout:
  if 'ffout_reduction_factor' in method:
    sources = method.get('sources') or tasks_at(EXPERT_SITE, trained)
    form, width = 'adapter', layout.mlp // method['ffout_reduction_factor']
  elif 'lora_r' in method:
    sources = method.get('sources') or unnamed_sources(method.get('n_sources', 1))
    form, width = 'lora', method['lora_r']
  else:
    return layout
  return dataclasses.replace(
      layout, expert_form=form, sources=tuple(sources), expert_width=width)


def _with_case_adapters(
    layout: PemtLayout, method: Mapping[str, Any], trained: Iterable[str]) -> PemtLayout:
  after_feed_forward = method.get('add_adapter_in_feed_forward', True)
  after_attention = tasks_at(ATTENTION_SITE, trained)
  if 'task_reduction_factor' not in method or not (after_feed_forward or after_attention):
    return layout
  width = layout.embed // method['task_reduction_factor']
  named = tasks_at(TARGET_SITE, trained) + after_attention
  norms = [kind for kind, flag in (('pre', 'add_layer_norm_before_adapter'),
                                   ('post', 'add_layer_norm_after_adapter')) if method.get(flag)]
  return dataclasses.replace(
      layout, adapter_norms=tuple(norms),
      target=(method.get('target_task') or method.get('target') or method.get('task')
              or next(iter(named), None)),
      target_width=width if after_feed_forward else 0,
      attention_adapter_width=width if after_attention else 0,
      encoder_adapter_layers=_placed('encoder', layout.encoder_layers, named, trained),
      decoder_adapter_layers=_placed('decoder', layout.decoder_layers, named, trained))


def _placed(stack: str, depth: int, named: tuple[str, ...],
            trained: Iterable[str]) -> tuple[int, ...] | None:
  """Blocks of a stack whose adapters are trained; None if all are, or none is named at all."""
  patterns = [sampler_pattern(site) for site in (TARGET_SITE, ATTENTION_SITE)]
  found = {int(match['layer']) for name in trained if name.startswith(f'{stack}.')
           for pattern in patterns if (match := pattern.search(name))}
  return None if not named or len(found) == depth else tuple(sorted(found))
