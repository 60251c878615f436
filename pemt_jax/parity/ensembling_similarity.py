"""Similarity and importance cases of weight ensembling: several source deltas on one backbone."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from pemt_jax.data.buckets import pad_batch
from pemt_jax.experts.similarity import METRICS
from pemt_jax.interop import ensembling_original, files
from pemt_jax.models.layers import Compute
from pemt_jax.models.t5 import T5
from pemt_jax.parity import common
from pemt_jax.parity.ensembling import layout_of, method_of
from pemt_jax.parity.ensembling_merge import under
from pemt_jax.stages.expert_set import Runner, Source, stack_trees
from pemt_jax.stages.similarity_rows import Measurer, SimilarityOptions

_PREDICTIONS = ('loss', 'kl', 'el2n', 'logit_cosine')
_GRADIENTS = {'dev': 'grand', 'block': 'grand_by_block', 'layer': 'grand_by_layer'}


def _batches(inputs: Mapping[str, np.ndarray], size: int) -> list[dict[str, np.ndarray]]:
  """Rows in their order, `size` at a time; filler rows complete the last batch."""
  whole = jax.device_get(common.read_batch(inputs))
  rows, length = whole['inputs'].shape
  found = []
  for start in range(0, rows, size):
    part = {name: leaf[start:start + size] for name, leaf in whole.items()}
    found.append(pad_batch(part, (size, length, whole['targets'].shape[1])))
  return found


def compute(case_dir: str | pathlib.Path, run: Compute = Compute()) -> dict[str, np.ndarray]:
  """Computes every array that a case names.

  Args:
    case_dir: folder with case.json, state.safetensors (the backbone), deltas.safetensors and
      inputs.npz.
    run: how to compute.

  Returns:
    name -> array, under the original's names.

  Raises:
    UserError: the files do not fit the case, or it requires an array that there is not.
  """
  folder = pathlib.Path(case_dir)
  case = json.loads((folder / 'case.json').read_text(encoding='utf-8'))
  layout = layout_of(case)
  method = method_of(layout, case['model_config'])
  state = files.read_tensors(folder / 'state.safetensors')
  frozen = ensembling_original.state_to_tree(state, layout, parts=('backbone',))['params']
  deltas = files.read_tensors(folder / 'deltas.safetensors')

  def source(name: str) -> Source:
    tree = ensembling_original.state_to_tree(under(deltas, f'{name}/'), layout,
                                             parts=ensembling_original.DELTAS)
    return tree['params'], tree['constants']

  options = case['method_config']
  stacked = stack_trees([source(f'source/{task}') for task in options['tasks']])
  # The original masks padded target positions, whose logits are recorded too.
  compute_as = dataclasses.replace(run, mask_targets=True)
  runner = Runner(T5(layout.config, method.plan, compute_as), frozen, stacked)
  with np.load(folder / 'inputs.npz') as inputs:
    batches = _batches(dict(inputs), options['predict_batch_size'])
  parts = {'similarity': _similarities, 'importance_GraNd': _gradients,
           'importance_block': _blocks}
  make = next(function for start, function in parts.items() if case['case'].startswith(start))
  found = dict(make(runner, batches, options, source))
  return common.named_results(found, case, folder, method.name)


def _similarities(runner: Runner, batches: list[dict[str, Any]], options: Mapping[str, Any],
                  source: Any) -> Iterator[tuple[str, Any]]:
  measurer = Measurer(runner, SimilarityOptions(_PREDICTIONS), batches[0])
  own = source(f"random_tuned/{options['target']}")
  for name, values in measurer.measure(batches, own, {}).items():
    yield METRICS[name].folder, values
  experts = {f'logits/{task}': jax.tree.map(lambda leaf, i=i: leaf[i], runner.stacked)
             for i, task in enumerate(options['tasks'])} | {'logits_random_tuned': own}
  real = np.concatenate([batch['inputs_mask'].any(axis=1) for batch in batches])
  for name, expert in experts.items():
    logits = np.concatenate([measurer.logits(batch, expert) for batch in batches])
    yield name, logits[real]


def _gradients(runner: Runner, batches: list[dict[str, Any]], options: Mapping[str, Any],
               source: Any) -> Iterator[tuple[str, Any]]:
  del source
  measurer = Measurer(runner, SimilarityOptions(tuple(_GRADIENTS.values())), batches[0])
  for target in options['targets']:
    caps = {_GRADIENTS[mode]: most for mode, most in options['caps'][target].items()}
    found = measurer.measure(batches, None, caps)
    for mode, name in _GRADIENTS.items():
      value = found[name]
      yield f'{target}/{mode}', (np.stack(list(value.values()), axis=1)
                                 if isinstance(value, dict) else value)


def _blocks(runner: Runner, batches: list[dict[str, Any]], options: Mapping[str, Any],
            source: Any) -> Iterator[tuple[str, Any]]:
  measurer = Measurer(runner, SimilarityOptions(('block_cosine',)), batches[0])
  found = measurer.measure(batches, source(f"random_tuned/{options['target']}"), {})
  yield 'block_cosine', np.stack(list(found['block_cosine'].values()), axis=1)
