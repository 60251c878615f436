"""The suites: which programs take turns, and what is compared."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import statistics
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import moe as moe_layer, numerics as bfloat16, zoo_sizes
from benchmarks.children import (
    Child, largest_difference, make_weights, ratio, summary, take_turns)
from benchmarks.lengths import FORMS, ROW, STEPS, statistics as length_statistics
from benchmarks.machine import cores
from benchmarks.options import Options
from pemt_jax.models.families import PLAYGROUND

SOURCES, RUNS, EXPERTS = 6, 20, 8
REMAT = ('none', 'dots', 'projections', 'full')
DROPOUTS = (0.0, 0.1)
BASES = {'pemt/stage2': 'pemt/stage1', 'propetl': 'adapter', 'task_moe': 'full', 'switch': 'full'}
DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class Plan:
  """What every suite needs to know.

  Attributes:
    models: published sizes, or folders.
    rounds: measured turns of each program.
    weights: folder for random weights.
    scan_layers: of the library's side; None is the config's default.
    sources: of the suite `similarity`, which has as many targets.
    note: called with a line of progress.
  """

  models: tuple[str, ...]
  rounds: int
  weights: pathlib.Path
  scan_layers: bool | None = None
  sources: int = 32
  note: Callable[[str], None] = print

  def options(self, model: str, **changes: Any) -> Options:
    """Options for a model, whose weights are made if absent."""
    folder = model if pathlib.Path(model).is_dir() else make_weights(model, self.weights)
    return Options(folder=str(pathlib.Path(folder).resolve()), threads=cores(),
                   scan_layers=self.scan_layers, **changes)


def _side(child: Child, found: dict[str, list[Any]], **more: Any) -> dict[str, Any]:
  return {'seconds': summary(found['seconds']), 'samples': found['seconds'],
          'cpu_seconds': found['cpu_seconds'], 'first': child.first,
          'memory': child.ask('memory'), **more}


def _compared(plan: Plan, options: Options, cold: dict[str, Any] | None,
              cache: str) -> dict[str, Any]:
  """One dropout rate of a model: both sides in turns, then the products alone."""
  with Child('ours', options, cache) as ours, Child('peer', options) as peer:
    found = take_turns({'ours': ours, 'peer': peer}, plan.rounds)
    bound = ours.ask('products')
    mine, other = found['ours']['seconds'], found['peer']['seconds']
    values = [found[name]['values'] for name in ('ours', 'peer')]
    return {
        'options': dataclasses.asdict(options), 'speedup': ratio(other, mine),
        'ours': _side(ours, found['ours'], first_cold=cold),
        'peer': _side(peer, found['peer']),
        'losses': values, 'largest_relative_difference_of_losses': largest_difference(*values),
        'lower_bound': bound,
        'ours_over_lower_bound': statistics.median(mine) / bound['seconds'],
        'ours_over_lower_bound_in_cpu_seconds':
            statistics.median(found['ours']['cpu_seconds']) / bound['cpu_seconds']}


def train_step(plan: Plan) -> Iterator[dict[str, Any]]:
  """The step of stage 1 against Hugging Face + PEFT, at dropout 0 and 0.1.

  Both start from the same weights and LoRA pairs and see the same tokens; neither has a task
  prompt. The first start of the library's side has an empty compilation cache.
  """
  for model, dropout in itertools.product(plan.models, DROPOUTS):
    with tempfile.TemporaryDirectory() as folder:
      options = plan.options(model, dropout=dropout, tuned=f'{folder}/tuned.npz')
      with Child('ours', options, f'{folder}/cache') as child:
        cold = child.first
      found = _compared(plan, options, cold, f'{folder}/cache')
    yield {'model': model, 'dropout': dropout, **found}
    plan.note(f'{model} dropout {dropout}: library {found["ours"]["seconds"]["median"]:.3f} s, '
              f'peer {found["peer"]["seconds"]["median"]:.3f} s, '
              f'products alone {found["lower_bound"]["seconds"]:.3f} s, first step '
              f'{cold["seconds"]:.1f} s cold, {found["ours"]["first"]["seconds"]:.1f} s cached')


def _turns_of(plan: Plan, programs: dict[str, tuple[str, Options]],
              counts: dict[str, int] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
  """Takes turns between programs; returns each one's side and its values."""
  with contextlib.ExitStack() as stack:
    children = {name: stack.enter_context(Child(kind, options))
                for name, (kind, options) in programs.items()}
    found = take_turns(children, plan.rounds, counts)
    return ({name: _side(child, found[name]) for name, child in children.items()},
            {name: found[name]['values'] for name in children})


def replicas(plan: Plan) -> Iterator[dict[str, Any]]:
  """Six sources in one program against one after the other."""
  yield from _side_by_side(plan, SOURCES)


def few_shot(plan: Plan) -> Iterator[dict[str, Any]]:
  """Twenty runs of few short rows in one program against one after the other."""
  yield from _side_by_side(plan, RUNS, batch=8, source=32, target=4)


def _side_by_side(plan: Plan, count: int, **shape: int) -> Iterator[dict[str, Any]]:
  for model, dropout in itertools.product(plan.models, DROPOUTS):
    options = plan.options(model, dropout=dropout, **shape)
    together = dataclasses.replace(options, replicas=count)
    sides, _ = _turns_of(plan, {'together': ('ours', together), 'in_turn': ('ours', options)},
                         {'in_turn': count})
    speedup = ratio(sides['in_turn']['samples'], sides['together']['samples'])
    yield {'model': model, 'dropout': dropout, 'replicas': count, 'speedup': speedup,
           'options': dataclasses.asdict(options), **sides}
    plan.note(f'{model} dropout {dropout}: {count} replicas together '
              f'{sides["together"]["seconds"]["median"]:.3f} s, in turn '
              f'{sides["in_turn"]["seconds"]["median"]:.3f} s')


def decoding(plan: Plan) -> Iterator[dict[str, Any]]:
  """Greedy decoding of 32 x 128 tokens to 32 tokens against `generate`."""
  for model in plan.models:
    options = plan.options(model, batch=32, target=32)
    sides, tokens = _turns_of(plan, {'ours': ('our_decoding', options),
                                     'peer': ('peer_decoding', options)})
    pairs = [(a, b) for mine, other in zip(tokens['ours'][0], tokens['peer'][0], strict=True)
             for a, b in zip(mine, other, strict=True)]
    equal = sum(a == b for a, b in pairs) / len(pairs)
    yield {
        'model': model, 'options': dataclasses.asdict(options), 'equal_tokens': equal,
        'distinct_tokens': len({a for a, _ in pairs}),
        'speedup': ratio(sides['peer']['samples'], sides['ours']['samples']), **sides}
    plan.note(f'{model}: library {sides["ours"]["seconds"]["median"]:.3f} s, generate '
              f'{sides["peer"]["seconds"]["median"]:.3f} s, equal tokens {equal:.2%}')


def precision(plan: Plan) -> Iterator[dict[str, Any]]:
  """The step of stage 1 and greedy decoding, both sides in float32 and in bfloat16."""
  shapes = {'step': ({'dropout': 0.1}, 'ours', 'peer'),
            'decoding': ({'batch': 32, 'target': 32}, 'our_decoding', 'peer_decoding')}
  for model, (what, (shape, *kinds)) in itertools.product(plan.models, shapes.items()):
    options = {dtype: plan.options(model, dtype=dtype, **shape) for dtype in DTYPES}
    sides, values = _turns_of(plan, {f'{side}_{dtype}': (kind, options[dtype]) for dtype in DTYPES
                                     for side, kind in zip(('ours', 'peer'), kinds, strict=True)})
    if what == 'step':
      with Child('ours', options['bfloat16']) as child:
        sides['ours_bfloat16']['lower_bound'] = child.ask('products')
    speedups = {name: ratio(side['samples'], sides['ours_bfloat16']['samples'])
                for name, side in sides.items()}
    yield {'model': model, 'program': what, 'options': dataclasses.asdict(options[DTYPES[0]]),
           'speed_of_ours_in_bfloat16_over': speedups, **sides,
           **({'losses': values} if what == 'step' else {})}
    plan.note(f'{model} {what}: ' + ', '.join(
        f'{name} {side["seconds"]["median"]:.3f} s' for name, side in sides.items()))


def scan(plan: Plan) -> Iterator[dict[str, Any]]:
  """Layers by scan against unrolled layers: time of a step and to the first one, uncached."""
  for model in plan.models:
    options = dataclasses.replace(plan.options(model), scan_layers=True)
    unrolled = dataclasses.replace(options, scan_layers=False)
    sides, _ = _turns_of(plan, {'scan': ('ours', options), 'unrolled': ('ours', unrolled)})
    yield {'model': model, 'options': dataclasses.asdict(options),
           'speedup_of_unrolled': ratio(sides['scan']['samples'], sides['unrolled']['samples']),
           **sides}
    plan.note(f'{model}: ' + ', '.join(
        f'{name} {side["seconds"]["median"]:.3f} s per step, first step '
        f'{side["first"]["phases"]["first_step"]:.1f} s' for name, side in sides.items()))


def similarity(plan: Plan) -> Iterator[dict[str, Any]]:
  """Similarity of sources to as many targets: one program against one pair at a time.

  A pair at a time with program and deltas in memory, and with every delta read from its folder.
  """
  for model, metric in itertools.product(plan.models, ('loss', 'grand')):
    options = plan.options(model, batch=50, source=32, target=4, replicas=plan.sources,
                           metric=metric)
    sides, matrices = _turns_of(plan, {name: (f'similarity_{name}', options)
                                       for name in ('together', 'pairs', 'reloaded')})
    flat = {name: [value for matrix in found for row in matrix for value in row]
            for name, found in matrices.items()}
    against = lambda name: ratio(sides[name]['samples'], sides['together']['samples'])
    yield {'model': model, 'metric': metric, 'sources': plan.sources, 'targets': plan.sources,
           'speedup': against('pairs'), 'speedup_over_reloaded': against('reloaded'),
           'largest_relative_difference': largest_difference(flat['together'], flat['pairs']),
           'options': dataclasses.asdict(options), **sides}
    plan.note(f'{metric}, {plan.sources} x {plan.sources}: together '
              f'{sides["together"]["seconds"]["median"]:.3f} s, a pair at a time '
              f'{sides["pairs"]["seconds"]["median"]:.3f} s, read each time '
              f'{sides["reloaded"]["seconds"]["median"]:.3f} s')


def deltas(plan: Plan) -> Iterator[dict[str, Any]]:
  """Every delta of the zoo: parameters and bytes on T5-base, time of a training step."""
  for model, stage in itertools.product(plan.models, zoo_sizes.stages()):
    options = plan.options(model, stage=stage, prompt=zoo_sizes.PROMPT)
    with Child('ours', options) as child:
      found = take_turns({'ours': child}, plan.rounds)['ours']
      size = zoo_sizes.tuned(stage, zoo_sizes.SIZE)
      yield {'model': model, 'stage': stage, **size, 'options': dataclasses.asdict(options),
             **_side(child, found)}
    seconds = summary(found['seconds'])['median']
    plan.note(f'{stage}: {size["parameters"]} parameters on {zoo_sizes.SIZE},'
              f' {1 / seconds:.2f} steps/s of {model}')


def methods(plan: Plan) -> Iterator[dict[str, Any]]:
  """Steps of the systems against the plain step that each one grows from, at equal tokens.

  PEMT's second stage has six sources. Layers of a task mixture have three copies and one hard route
  for each task, those of MPOE eight experts.
  """
  for model, dropout, (stage, base) in itertools.product(plan.models, DROPOUTS, BASES.items()):
    options = {name: plan.options(model, dropout=dropout, stage=name, prompt=zoo_sizes.PROMPT,
                                  experts=EXPERTS) for name in (base, stage)}
    sides, _ = _turns_of(plan, {name: ('ours', one) for name, one in options.items()})
    over = ratio(sides[stage]['samples'], sides[base]['samples'])
    yield {'model': model, 'dropout': dropout, 'stage': stage, 'base': base, 'over_base': over,
           'options': dataclasses.asdict(options[stage]), **sides}
    plan.note(f'{model} dropout {dropout}: ' + ', '.join(
        f'{name} {side["seconds"]["median"]:.3f} s' for name, side in sides.items()))


def moe(plan: Plan) -> Iterator[dict[str, Any]]:
  """A feed-forward with Switch experts against a dense one, at equal products for each token.

  2048 tokens and the sizes of a model: forward passes and gradients, the forms side by side.
  """
  for model, experts, kind in itertools.product(plan.models, moe_layer.EXPERTS,
                                                ('forward', 'gradient')):
    options = {form or 'dense': moe_layer.options_of(model, kind, experts, form)
               for form in ('', *moe_layer.FORMS)}
    sides, _ = _turns_of(plan, {name: ('feed_forward', own) for name, own in options.items()})
    over = {f'over_dense{clock}': {form: ratio(sides[form][samples], sides['dense'][samples])
                                   for form in moe_layer.FORMS}
            for clock, samples in (('', 'samples'), ('_cpu', 'cpu_seconds'))}
    yield {'model': model, 'experts': experts, 'kind': kind, **over,
           'steps_per_second': {name: 1 / side['seconds']['median']
                                for name, side in sides.items()},
           'options': {name: dataclasses.asdict(own) for name, own in options.items()}, **sides}
    plan.note(f'{kind}, {experts} experts: ' + ', '.join(
        f'{name} {1e3 * side["seconds"]["median"]:.1f} ms' for name, side in sides.items()))


def lengths(plan: Plan) -> Iterator[dict[str, Any]]:
  """Training on texts of real lengths, in non-padding tokens per second.

  The library pads to one length, or to buckets, or packs several texts into a row; the peer pads
  each batch to its longest text. All see about as many texts in a step.
  """
  for model in plan.models:
    programs = {form: ('peer_lengths' if form == 'dynamic' else 'our_lengths',
                       plan.options(model, lengths=form, dropout=0.1, batch=rows, source=ROW))
                for form, rows in FORMS.items()}
    sides, values = _turns_of(plan, programs, dict.fromkeys(programs, STEPS))
    for name, side in sides.items():
      tokens = [sum(values[name][i:i + STEPS]) for i in range(STEPS, len(values[name]), STEPS)]
      side |= {'tokens': tokens,
               'tokens_per_second': sum(tokens) / sum(side['samples']),
               'tokens_per_cpu_second': sum(tokens) / sum(side['cpu_seconds'])}
    peer = sides['dynamic']['tokens_per_second']
    yield {'model': model, 'mix': length_statistics(),
           'options': {name: dataclasses.asdict(own) for name, (_, own) in programs.items()},
           'over_peer': {name: side['tokens_per_second'] / peer for name, side in sides.items()},
           **sides}
    plan.note(f'{model}, non-padding tokens/s: ' + ', '.join(
        f'{name} {side["tokens_per_second"]:.0f}' for name, side in sides.items()))


def remat(plan: Plan) -> Iterator[dict[str, Any]]:
  """Policies of rematerialisation: time of a step, and temporaries of its program."""
  for model in plan.models:
    options = plan.options(model)
    with contextlib.ExitStack() as stack:
      children = {name: stack.enter_context(Child('ours', dataclasses.replace(options, remat=name)))
                  for name in REMAT}
      found = take_turns(children, plan.rounds)
      sides = {name: _side(child, found[name], program=child.ask('program_memory'))
               for name, child in children.items()}
    over = {name: ratio(side['samples'], sides['none']['samples'])
            for name, side in sides.items()}
    yield {'model': model, 'options': dataclasses.asdict(options), 'over_none': over, **sides}
    plan.note(f'{model}: ' + ', '.join(
        f'{name} {side["seconds"]["median"]:.3f} s {side["program"]["temporaries"]:.2f} GiB'
        for name, side in sides.items()))


def numerics(plan: Plan) -> Iterator[dict[str, Any]]:
  """Every method in bfloat16 against float32; nothing is timed."""
  for case in bfloat16.cases():
    found = bfloat16.deviation(case)
    yield {'backbone': case.backbone, 'method': case.name, **found}
    plan.note(f'{case.backbone} {case.name}: loss {found["loss_deviation"]:.4f}, gradients '
              f'{found["gradient_mean"]:.3f} ({found["gradient_largest"]:.3f} at most)')


# suite -> (function, models, measured turns)
SUITES = {
    'train_step': (train_step, ('t5-small', 't5-base'), 7),
    'replicas': (replicas, ('t5-small',), 5),
    'few_shot': (few_shot, (str(PLAYGROUND), 't5-small'), 5),
    # With a tied head random weights repeat one token: the second size is for the comparison.
    'decoding': (decoding, ('t5-small', 't5-v1_1-small'), 9),
    'precision': (precision, ('t5-small', 't5-base'), 5),
    'scan': (scan, ('t5-small', 't5-base'), 7),
    'similarity': (similarity, (str(PLAYGROUND),), 5),
    'deltas': (deltas, ('t5-small',), 3),
    'methods': (methods, ('t5-small',), 5),
    'moe': (moe, ('t5-small',), 7),
    'numerics': (numerics, (), 1),
    'remat': (remat, ('t5-small',), 5),
    'lengths': (lengths, ('t5-small',), 7),  # a window of batches
}
