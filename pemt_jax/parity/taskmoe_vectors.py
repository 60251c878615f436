"""Task vectors: recorded embeddings of texts and Fisher information of adapters, all on BART."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.interop import bart_files, files, names
from pemt_jax.interop.taskmoe_names import adapter_table
from pemt_jax.methods import adapters
from pemt_jax.methods.base import LossForm, make_loss
from pemt_jax.models import bart_config
from pemt_jax.models.bart import Bart
from pemt_jax.models.layers import Compute
from pemt_jax.parity import common
from pemt_jax.stages.task_vectors import (
    encoder_reader, fisher_matrix, fisher_of, fisher_reader, mean_row, text_reader)
from pemt_jax.training.rules import split_params

SMOOTHING = 0.1  # of the original's loss, always
LONGEST = 16     # positions to which the batches of a case are padded, so that one program runs
_PAD = 1


def _padded(array: np.ndarray, fill: int) -> np.ndarray:
  return np.pad(array, ((0, 0), (0, LONGEST - array.shape[1])), constant_values=fill)


def _rows(inputs: Mapping[str, np.ndarray], number: int | None = None) -> dict[str, jax.Array]:
  """A batch of a case; it may have labels, padded with the padding id."""
  own = {name.rpartition('_')[0]: value for name, value in inputs.items()
         if name.endswith(f'_{number}')} if number is not None else dict(inputs)
  batch = {'inputs': jnp.asarray(_padded(own['input_ids'], _PAD), jnp.int32),
           'inputs_mask': jnp.asarray(_padded(own['attention_mask'], 0), jnp.float32)}
  if 'labels' in own:
    labels = _padded(own['labels'], _PAD)
    batch |= {'targets': jnp.asarray(labels, jnp.int32),
              'targets_mask': jnp.asarray(labels != _PAD, jnp.float32)}
  return batch


def _batches(inputs: Mapping[str, np.ndarray]) -> list[dict[str, jax.Array]]:
  return [_rows(inputs, number)
          for number in range(sum(name.startswith('input_ids_') for name in inputs))]


def _backbone(case_dir: pathlib.Path, case: Mapping[str, Any], run: Compute) -> tuple[Bart, Any]:
  config = bart_config.from_hf(case['model_config'], 'model_config of case.json')
  state = files.read_tensors(case_dir / 'state.safetensors')
  params = jax.tree.map(jnp.asarray, bart_files.from_state(state, config))
  return Bart(config, compute=run), {'params': params}


def text(case_dir: pathlib.Path, run: Compute = Compute()) -> dict[str, Any]:
  """Embeddings of two tasks by the untuned model; the second one's name comes first."""
  case, inputs = common.read_case(case_dir)
  model, variables = _backbone(case_dir, case, run)
  reader, rows, size = text_reader(model, 'legacy'), _rows(inputs), 2
  found = []
  for start, end in reversed(inputs['metadata_task'].tolist()):
    found.append(mean_row(reader, variables, [
        {name: leaf[first:min(first + size, end)] for name, leaf in rows.items()}
        for first in range(start, end, size)]))
  return common.named_results({'task_vecs': np.stack(found)}, case, case_dir, 'text')


def fine_tuned_text(case_dir: pathlib.Path, run: Compute = Compute()) -> dict[str, Any]:
  """Both readings of a tuned model's encoder."""
  case, inputs = common.read_case(case_dir)
  model, variables = _backbone(case_dir, case, run)
  found = {name: mean_row(encoder_reader(model, read, 'legacy'), variables, _batches(inputs))
           for name, read in (('avg', 'all'), ('bos', 'first'))}
  return common.named_results(found, case, case_dir, 'fine_tuned_text')


def fisher(case_dir: pathlib.Path, run: Compute = Compute()) -> dict[str, Any]:
  """Losses, the last example's gradients, and mean squared gradients in the recorded order."""
  case, inputs = common.read_case(case_dir)
  config = bart_config.from_hf(case['model_config'], 'model_config of case.json')
  size = case['method_config']['adapter_dim']
  method = adapters.houlsby(adapters.FamilyOptions(
      size=size, activation='gelu', after_cross_attention=True, after_dropout=True,
      tune_norms=False), config, 0)
  table = adapter_table(config, size)
  state = dict(files.read_tensors(case_dir / 'state.safetensors'))
  del state['lm_head.weight']  # this program's model has a head that it does not use
  params = jax.tree.map(jnp.asarray, names.load(state, table, str(case_dir)))
  frozen, tuned = split_params(params, method.tuned)
  loss_fn = make_loss(Bart(config, method.plan, run), method, LossForm(SMOOTHING, 'sum'))
  losses, batches = [], _batches(inputs)
  step = jax.jit(jax.value_and_grad(lambda *args: loss_fn(*args, None)[0]))
  for batch in batches:
    loss, grads = step(tuned, frozen, {}, batch)
    losses.append(loss)
  squares = fisher_of(fisher_reader(loss_fn), (tuned, frozen, {}), batches)
  found = {f'grad/{name}': value for name, value in names.dump(grads, table, partial=True).items()}
  found |= {'losses': np.stack(losses), 'fisher': fisher_matrix(squares)}
  return common.named_results(found, case, case_dir, method.name)
