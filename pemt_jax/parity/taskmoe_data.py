"""Recorded cases of the task-level mixture without a model: draws, batches, scores, the loss."""

from __future__ import annotations

import io
import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from pemt_jax.data import gym
from pemt_jax.data.tokenized import Ragged
from pemt_jax.evaluation import answers
from pemt_jax.methods.base import smoothing_loss, token_cross_entropy
from pemt_jax.parity.common import read_case
from pemt_jax.reports import few_shot

# The published reader of text files took 17 digits of a number, a leading zero among them.
_SURPLUS = re.compile(r'\b(\d\.\d{16})\d+')
_CLASSES = 'FewshotGymClassificationDataset'


def _read(case_dir: pathlib.Path) -> Any:
  return json.loads((case_dir / 'inputs.json').read_text(encoding='utf-8'))


def metrics(case_dir: pathlib.Path) -> list[float]:
  """Value of each metric, a fraction."""
  forms = gym.SCORES['all_classes']
  found = []
  for given in _read(case_dir):
    name = gym.METRIC_NAMES[given['metric']]
    predictions = [text.strip() for text in given['predictions']]
    values = answers.ANSWER_METRICS[forms.get(name, name)](predictions, given['golds'])
    found += [value / 100.0 for value in values.values()]
  return found


def draws(case_dir: pathlib.Path) -> dict[str, Any]:
  """Inputs of the train and dev rows of each draw."""
  given = _read(case_dir)
  texts, labels = zip(*given['pool'], strict=True)
  runs = []
  for run in given['runs']:
    kind = 'classification' if run['kind'] == _CLASSES else 'text'
    rows = gym.few_shot_rows(kind, labels, run['k'], run['seed'])
    runs.append({part: [texts[row] for row in own]
                 for part, own in zip(('train', 'dev'), rows, strict=True)})
  return {'runs': runs}


def summaries(case_dir: pathlib.Path) -> dict[str, Any]:
  """Summary of each folder of results, and their comparison, as text files would hold them."""
  folders: dict[str, dict[str, pd.DataFrame]] = {}
  for path, rows in _read(case_dir)['results'].items():
    folder, task = path.split('/')
    table = pd.DataFrame(rows, columns=list(few_shot.COLUMNS))
    folders.setdefault(folder, {})[task.removeprefix('singletask-')] = table
  collected = {folder: few_shot.summary_of(dict(sorted(tables.items()))).to_csv()
               for folder, tables in folders.items()}
  compared, gain = few_shot.relative_gain(
      *(pd.read_csv(io.StringIO(_SURPLUS.sub(r'\1', text))) for text in collected.values()))
  return {'collected': collected, 'comparison': compared.to_csv(), 'arg': gain}


def batches(case_dir: pathlib.Path) -> dict[str, np.ndarray]:
  """Rows without columns of padding, and the places of each row's answers."""
  case, inputs = read_case(case_dir)
  ids, lengths = inputs['input_ids'], inputs['attention_mask'].sum(1)
  rows = Ragged.from_lists([row[:length] for row, length in zip(ids, lengths, strict=True)])
  pad = int(ids[inputs['attention_mask'] == 0][0])
  trimmed, mask = rows.padded(np.arange(len(ids)), int(rows.lengths.max()), pad)
  ends = np.cumsum([0, *map(len, case['method_config']['answers'])])
  found = {'trimmed_ids': trimmed, 'trimmed_mask': mask,
           'spans': np.stack([ends[:-1], ends[1:]], axis=1)}
  return {name: np.asarray(value, np.int64) for name, value in found.items()}


def loss(case_dir: pathlib.Path) -> dict[str, np.ndarray]:
  """Summed loss with and without smoothing, and its gradient."""
  case, inputs = read_case(case_dir)
  share, labels = case['method_config']['epsilon'], jnp.asarray(inputs['labels'])
  mask = (labels != case['method_config']['ignore_index']).astype(jnp.float32)

  def smoothed(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    total, _ = token_cross_entropy(logits, labels, mask)
    return (1.0 - share) * total + share * smoothing_loss(logits, mask), total

  (value, total), gradient = jax.value_and_grad(smoothed, has_aux=True)(
      jnp.asarray(inputs['logits']))
  return {'loss': np.asarray(value), 'nll': np.asarray(total), 'grad/logits': np.asarray(gradient)}
