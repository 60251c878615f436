"""What the recorded cases of several systems share: batches, forward passes, results by name."""

from __future__ import annotations

import importlib
import inspect
import json
import pathlib
from collections.abc import Container, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.errors import UserError
from pemt_jax.interop.names import Table
from pemt_jax.models import generation
from pemt_jax.models.decoding import GenerationConfig
from pemt_jax.models.generation import shift_right
from pemt_jax.models.layers import Compute
from pemt_jax.models.sites import Aux
from pemt_jax.models.t5 import T5
from pemt_jax.trees import Tree, flatten, unflatten


def read_case(case_dir: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """(parsed case.json, arrays of inputs.npz) of a case's folder."""
  case = json.loads((case_dir / 'case.json').read_text())
  with np.load(case_dir / 'inputs.npz') as stored:
    return case, dict(stored)


def by_name(case_dir: pathlib.Path, run: Compute, system: str,
            functions: Mapping[str, tuple[str, str]]) -> Any:
  """What the function of a case computes: every array that the case names, or texts.

  Args:
    case_dir: folder of the case.
    run: how to compute; what has no model does not read it.
    system: of the case, for messages.
    functions: start of a case's name -> module below `parity` and function; the first decides.

  Raises:
    UserError: no code for this case.
  """
  name = json.loads((case_dir / 'case.json').read_text())['case']
  for start, (module, function) in functions.items():
    if name.startswith(start):
      found = getattr(importlib.import_module(f'pemt_jax.parity.{module}'), function)
      return found(case_dir, *([run] if 'run' in inspect.signature(found).parameters else []))
  raise UserError(f"{case_dir}: no code for the case '{name}' of {system}; choose cases that begin"
                  f" with {', '.join(functions)}.")


def split_named(params: Tree, table: Table, wanted: Container[str],
                start: str = 'grad/') -> tuple[Tree, Tree]:
  """(tuned, frozen): tuned are the leaves of which a case names an array.

  Args:
    params: parameter tree.
    table: original names of its leaves.
    wanted: names of arrays, an original name behind `start` each.
    start: how those of tuned leaves begin.
  """
  paths = {path for path, names in table.names_of_paths().items()
           if any(f'{start}{name}' in wanted for name in names.values())}
  flat = flatten(params)
  pick = lambda inside: unflatten({p: v for p, v in flat.items() if (p in paths) == inside})
  return pick(True), pick(False)


def read_batch(inputs: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
  """Original inputs -> a batch; labels have -100 for padding and may be absent."""
  batch = {'inputs': jnp.asarray(inputs['input_ids'], jnp.int32),
           'inputs_mask': jnp.asarray(inputs['attention_mask'], jnp.float32)}
  if 'labels' in inputs:
    labels = inputs['labels']
    batch |= {'targets': jnp.asarray(np.where(labels < 0, 0, labels), jnp.int32),
              'targets_mask': jnp.asarray(labels >= 0, jnp.float32)}
  if 'task_ids' in inputs:
    batch['task_ids'] = jnp.asarray(inputs['task_ids'], jnp.int32)
  return batch


def forward(model: T5, variables: Tree,
            batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array, Aux]:
  """Final encoder states [batch, length, embed], logits [batch, length, vocab], auxiliaries."""
  @jax.jit
  def run(variables, batch):
    task_ids = batch.get('task_ids')
    encoded = model.apply(variables, batch['inputs'], batch['inputs_mask'], task_ids,
                          method='encode')
    decoder_inputs = shift_right(batch['targets'], model.config.start_id)
    logits, aux = model.apply(variables, decoder_inputs, batch['targets_mask'], encoded, task_ids,
                              method='decode')
    return encoded.states, logits, aux

  return run(variables, batch)


def greedy(model: T5, variables: Tree, batch: Mapping[str, jax.Array], length: int) -> jax.Array:
  """Greedy tokens [batch, length] of the cached decoder, the start token first."""
  return generated(model, variables, batch, length, 1)


def generated(model: T5, variables: Tree, batch: Mapping[str, jax.Array], length: int,
              beams: int) -> jax.Array:
  """Tokens [batch, length] of greedy decoding (one beam) or beam search, the start token first."""
  config, rows = model.config, batch['inputs'].shape[0]
  options = GenerationConfig(max_length=length, num_beams=beams, start_id=config.start_id,
                             eos_id=config.eos_id, pad_id=config.pad_id)

  @jax.jit
  def run(variables, inputs, mask, task_ids):
    encoded = model.apply(variables, inputs, mask, task_ids, method='encode')
    memory, cache = model.apply(variables, encoded, rows, length, task_ids,
                                method='start_decoding')
    step = lambda tokens, position, cache: model.apply(
        variables, tokens, position, cache, memory, method='decode_step')
    return generation.generate(step, cache, rows, options)

  return run(variables, batch['inputs'], batch['inputs_mask'], batch.get('task_ids'))


def named_results(found: Mapping[str, Any], case: Mapping[str, Any], case_dir: pathlib.Path,
                  method: str) -> dict[str, np.ndarray]:
  """Cuts what was computed to what a case names, in its types.

  Args:
    found: name -> array.
    case: parsed case.json; `arrays` names the outputs.
    case_dir: its folder, for messages.
    method: name of the method, for messages.

  Raises:
    UserError: the case requires an array that was not computed.
  """
  wanted = case['arrays']
  missing = [name for name, array in wanted.items()
             if array.get('required') and name not in found]
  if missing:
    raise UserError(f"{case_dir / 'case.json'} requires '{missing[0]}', which method"
                    f" '{method}' does not produce; correct its arrays or its method_config.")
  return {name: np.asarray(value).astype(wanted[name]['dtype'])
          for name, value in found.items() if name in wanted}
