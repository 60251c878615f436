"""The parts of the measurement on an accelerator; each is a function that returns JSON values.

The library and its peer take turns (A B A B) on one device and in one process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import importlib.util
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from benchmarks import gpu_programs as programs
from benchmarks.children import ratio, summary
from benchmarks.machine import cores
from benchmarks.options import Options
from pemt_jax.models import attention
from pemt_jax.models.layers import Compute

SOURCES = 6
_TURN_SECONDS = 0.5
_PEER = ('torch', 'transformers', 'peft')
_COMPILES = 120.0  # seconds that `torch.compile` of a large model may take


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What is measured.

  Attributes:
    models: published size or folder -> rows of a training step.
    lengths: tokens of inputs and targets of a training step.
    decoding: rows, tokens of the inputs, new tokens.
    replicas: model and rows of a replica's step; its lengths are those of `short`.
    short: tokens of inputs and targets of a replica.
    runs: few-shot runs in one program.
    experts: numbers of experts of a routed feed-forward, of the model of `replicas`.
    attention: (batch, heads, length, head) of one attention.
    matrix: rows and columns of the matrices whose products give the matrix rate.
    dtype: of activations, products and frozen weights on both sides.
    rounds: measured turns of each program.
    plain: models that are also measured with plain attention, where the platform has a kernel.
    compiled: measure the peer through `torch.compile` too, which takes a minute and more.
  """

  models: Mapping[str, int]
  lengths: tuple[int, int]
  decoding: tuple[int, int, int]
  replicas: tuple[str, int]
  short: tuple[int, int]
  runs: int
  experts: tuple[int, ...]
  attention: tuple[tuple[int, int, int, int], ...]
  matrix: int
  dtype: str
  rounds: int
  plain: tuple[str, ...] = ()
  compiled: bool = True


@dataclasses.dataclass
class Bench:
  """What the parts share.

  Attributes:
    sizes: see `Sizes`.
    left: seconds until the budget ends.
    rates: of the device, by `rates`.
  """

  sizes: Sizes
  left: Callable[[], float]
  rates: dict[str, float] = dataclasses.field(default_factory=dict)

  def options(self, model: str, **more: Any) -> Options:
    """Options of a program."""
    device = 'cuda' if jax.default_backend() == 'gpu' else 'cpu'
    return Options(model, dtype=self.sizes.dtype, device=device, threads=cores(), **more)

  def compute(self, **more: Any) -> Compute:
    """How the library's side computes."""
    return Compute(dtype=self.sizes.dtype, **more)


def take_turns(sides: Mapping[str, Any], rounds: int) -> dict[str, dict[str, Any]]:
  """Seconds of a call of each side; turns alternate, each of about half a second."""
  counts = {}
  for name, side in sides.items():
    side.turn(1)
    counts[name] = max(1, min(50, int(_TURN_SECONDS / side.turn(1))))
  samples = {name: [] for name in sides}
  for _ in range(rounds):
    for name, side in sides.items():
      samples[name].append(side.turn(counts[name]))
  return {name: {'seconds': summary(found), 'samples': found, 'calls_of_a_turn': counts[name]}
          for name, found in samples.items()}


def _against(found: dict[str, Any], name: str, baseline: str) -> float | None:
  """How many times as fast as the baseline a side is; None without it."""
  if baseline not in found:
    return None
  return ratio(found[baseline]['samples'], found[name]['samples'])['of_medians']


def missing_peer() -> str:
  """The first package that the peer needs and that is absent; ''."""
  absent = (name for name in _PEER if importlib.util.find_spec(name) is None)
  return next(absent, '')


@contextlib.contextmanager
def _freed() -> Iterator[None]:
  """Gives the memory of a part's programs back behind it."""
  try:
    yield
  finally:
    gc.collect()
    jax.clear_caches()
    if not missing_peer():
      import torch
      if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _with_memory(make: Callable[[], Any]) -> tuple[Any, float | None]:
  """A peer's program behind its first step, and the memory that it took in GiB (CUDA only)."""
  import torch
  if not torch.cuda.is_available():
    return make(), None
  torch.cuda.reset_peak_memory_stats()
  before = torch.cuda.memory_allocated()
  program = make()
  return program, (torch.cuda.max_memory_allocated() - before) / 2**30


def _add_peers(bench: Bench, options: Options, sides: dict[str, Any],
               found: dict[str, Any]) -> None:
  """Puts the eager and the compiled peer beside the library, with what keeps one out."""
  absent = missing_peer()
  if absent:
    found['without_peer'] = f'{absent} is not installed'
    return
  from benchmarks import peer
  sides['peer'], found['peer_memory_gib'] = _with_memory(lambda: peer.TrainStep(options))
  if not bench.sizes.compiled or bench.left() < _COMPILES:
    found['without_compiled_peer'] = f'{bench.left():.0f} s are left'
    return
  compiled = dataclasses.replace(options, compiled=True)
  try:
    sides['peer_compiled'] = peer.TrainStep(compiled)
  except Exception as error:  # Without a C++ compiler, for example; the rest still counts.
    found['without_compiled_peer'] = f'{type(error).__name__}: {error}'[:300]


def train_step(model: str, bench: Bench) -> dict[str, Any]:
  """Stage 1 (LoRA of rank 64 on `wo`) against transformers with PEFT, eager and compiled."""
  source, target = bench.sizes.lengths
  rows = bench.sizes.models[model]
  options = bench.options(model, batch=rows, source=source, target=target)
  found: dict[str, Any] = {'options': dataclasses.asdict(options)}
  sides = {'library': programs.TrainStep(options, bench.compute())}
  if model in bench.sizes.plain and jax.default_backend() in attention.KERNELS:
    sides['library_plain_attention'] = programs.TrainStep(options, bench.compute(attention='plain'))
  _add_peers(bench, options, sides, found)
  found |= take_turns(sides, bench.sizes.rounds)
  for name, side in sides.items():
    if not isinstance(side, programs.Program):
      continue
    seconds = found[name]['seconds']['median']
    rate = side.gflop / seconds / 1e3
    found[name] |= {
        'gflop': side.gflop, 'memory_gib': side.memory, 'first_step_seconds': side.first_seconds,
        'tokens_per_second': rows * (source + target) / seconds, 'tflop_per_second': rate,
        'utilisation': rate / bench.rates['matrix_tflop_per_second']}
  for baseline in ('peer', 'peer_compiled', 'library_plain_attention'):
    found[f'speed_over_{baseline}'] = _against(found, 'library', baseline)
  return found


def decoding(model: str, bench: Bench) -> dict[str, Any]:
  """Greedy decoding against `generate`."""
  rows, source, target = bench.sizes.decoding
  options = bench.options(model, batch=rows, source=source, target=target)
  sides = {'library': programs.Decoding(options, bench.compute())}
  if not missing_peer():
    from benchmarks import peer
    sides['peer'] = peer.Decoding(options)
  found = take_turns(sides, bench.sizes.rounds)
  return {'options': dataclasses.asdict(options), **found,
          'speed_over_peer': _against(found, 'library', 'peer')}


def replicas(count: int, bench: Bench) -> dict[str, Any]:
  """Several runs in one program against one after the other."""
  model, rows = bench.sizes.replicas
  options = bench.options(model, batch=rows, source=bench.sizes.short[0],
                          target=bench.sizes.short[1])
  sides = {name: programs.TrainStep(dataclasses.replace(options, replicas=number), bench.compute())
           for name, number in (('together', count), ('alone', 1))}
  found = take_turns(sides, bench.sizes.rounds)
  share = ratio(found['together']['samples'], found['alone']['samples'])['of_medians'] / count
  return {'options': dataclasses.asdict(options), 'count': count, **found,
          'time_of_one_program_over_one_after_the_other': share,
          'memory_gib': {name: side.memory for name, side in sides.items()}}


def experts(bench: Bench) -> dict[str, Any]:
  """Routed feed-forwards with their gradients against a dense one."""
  options = bench.options(bench.sizes.replicas[0], metric='gradient')
  sides = {'dense': programs.FeedForward(options)}
  for number, form in itertools.product(bench.sizes.experts, programs.FORMS):
    own = dataclasses.replace(options, experts=number, form=form)
    sides[f'{form}_{number}'] = programs.FeedForward(own)
  found = take_turns(sides, bench.sizes.rounds)
  return {name: {**side, 'over_dense': 1.0 / _against(found, name, 'dense')}
          for name, side in found.items()}


def attentions(bench: Bench) -> dict[str, Any]:
  """One attention with its gradient: the kernel of the platform, if any, against the plain form."""
  found: dict[str, Any] = {}
  kernel = attention.KERNELS.get(jax.default_backend())
  for shape in bench.sizes.attention:
    sides = {'plain': programs.Attention(shape, bench.sizes.dtype, None)}
    if kernel is not None:
      sides['fused'] = programs.Attention(shape, bench.sizes.dtype, kernel)
    times = take_turns(sides, bench.sizes.rounds)
    found['x'.join(map(str, shape))] = {
        **{name: times[name] | {'memory_gib': side.memory} for name, side in sides.items()},
        'speed_of_fused': _against(times, 'fused', 'plain') if kernel else None}
  return found


def rates(bench: Bench) -> dict[str, Any]:
  """Matrix and memory rate of the device, against which the other parts are held."""
  bench.rates = programs.rates(bench.sizes.matrix, bench.sizes.dtype)
  return bench.rates


def all_parts(sizes: Sizes) -> dict[str, tuple[Callable[[Bench], dict[str, Any]], float]]:
  """name -> (function, seconds that it may take); a part is skipped where less is left."""
  found: dict[str, tuple[Callable[[Bench], dict[str, Any]], float]] = {'rates': (rates, 10.0)}
  for model in sizes.models:
    found[f'train_step {model}'] = (functools.partial(train_step, model), 90.0)
  found['attention'] = (attentions, 45.0)
  for count in (SOURCES, sizes.runs):
    found[f'replicas {count}'] = (functools.partial(replicas, count), 45.0)
  for model in list(sizes.models)[:1]:
    found[f'decoding {model}'] = (functools.partial(decoding, model), 30.0)
  return found | {'experts': (experts, 90.0)}


def run_part(name: str, function: Callable[[Bench], dict[str, Any]], needed: float,
             bench: Bench) -> dict[str, Any]:
  """Runs a part; one that fails or finds too little time says so in its result."""
  if bench.left() < needed:
    left = f'{bench.left():.0f} s are left and it may take {needed:.0f} s'
    return {'part': name, 'skipped': left}
  start = time.perf_counter()
  with _freed():
    try:
      found = function(bench)
    except Exception as error:  # Out of memory, for example: the other parts still count.
      found = {'failed': f'{type(error).__name__}: {error}'[:2000]}
  return {'part': name, **found, 'part_seconds': time.perf_counter() - start}
