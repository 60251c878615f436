"""Predictions of trained experts: scores on splits, and predictions for files of rows."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.data import pipeline, sources
from pemt_jax.data.tasks import get_task
from pemt_jax.data.tasks_base import DEFAULT_TEMPLATE
from pemt_jax.data.templates import Example
from pemt_jax.errors import UserError
from pemt_jax.experts.library import CARD, expert_folder, list_experts
from pemt_jax.methods.language_modelling import is_language
from pemt_jax.sharding import processes
from pemt_jax.stages.artefacts import LoadedExpert, open_expert
from pemt_jax.stages.backbone import Backbone
from pemt_jax.stages.classification import class_scores
from pemt_jax.stages.config import data_config
from pemt_jax.stages.language_modelling import continued_texts
from pemt_jax.stages.labels import make_label_scorer, score_rows
from pemt_jax.training.experiment import Replica


def expert_folders(place: pathlib.Path) -> list[pathlib.Path]:
  """Folders of the experts that a run or expert folder holds.

  Raises:
    UserError: none.
  """
  if (place / CARD).is_file():
    return [place]
  names = list_experts(place)
  if not names:
    raise UserError(f'{place} holds no expert; give the folder of an expert or of a finished run.')
  return [expert_folder(place, name) for name in names]


def evaluate_experts(place: pathlib.Path, split: str,
                     overrides: dict[str, Any]) -> dict[str, dict[str, float]]:
  """Scores all experts below a folder; returns name -> metrics.

  Raises:
    UserError: no expert, another backbone, or no rows.
  """
  results: dict[str, dict[str, float]] = {}
  backbone: Backbone | None = None
  for folder in expert_folders(place):
    expert = open_expert(folder, backbone, overrides)
    backbone = expert.stage.backbone
    replica = Replica(expert.name, 0, 0.0, 0, 1)
    results[folder.name], = expert.stage.evaluator(
        expert.tuned, expert.stage.start.frozen, expert.constants, (replica,), split)
  return results


def read_examples(path: pathlib.Path, task_name: str,
                  template_name: str = DEFAULT_TEMPLATE) -> list[Example]:
  """Reads rows to predict: a column `source`, or the fields of the task; labels are not read.

  Args:
    path: rows in a form that `data.sources.read_file` knows.
    task_name: task whose fields the rows may have.
    template_name: see `Task.variants`.

  Raises:
    UserError: no file, no rows, or a row that is no input of the task.
  """
  if not path.is_file():
    raise UserError(f"there is no file '{path}' of rows to predict; correct the path of --input.")
  task, table = get_task(task_name), sources.read_file(str(path))
  template = task.template_named(template_name)
  if not table.rows:
    raise UserError(f'{path} holds no rows; give a file with rows to predict.')
  examples = []
  for index, row in enumerate(table.rows):
    if row.get('source') is not None:
      examples.append(Example(str(row['source']), str(row.get('target') or ''), {}))
      continue
    with table.reading(index):
      examples.append(template({**row, **task.blank})[0])
  return examples


def predict_file(place: pathlib.Path, source: pathlib.Path, target: pathlib.Path,
                 overrides: dict[str, Any], task: str = '') -> int:
  """Writes one JSON object per row: source, prediction and, for tasks with labels, label_scores.

  A label's score is the sum of the log-probabilities of its tokens, in nats.

  Args:
    place: folder of an expert, or of a run with one.
    source: rows, see `read_examples`.
    target: file to write.
    overrides: dotted config path -> value in place of the trained config's.
    task: task of the rows where the expert was trained on several; '' is the first.

  Returns:
    Number of rows.

  Raises:
    UserError: several experts below `place`, a task that the expert does not know, or rows that do
      not fit.
  """
  if not target.parent.is_dir():
    raise UserError(f"there is no folder '{target.parent}' for the predictions; make it or correct"
                    ' the path of --output.')
  folders = expert_folders(place)
  if len(folders) > 1:
    raise UserError(f"{place} holds {len(folders)} experts ({', '.join(f.name for f in folders)});"
                    ' give the folder of one of them.')
  expert = open_expert(folders[0], None, overrides)
  if is_language(expert.stage.config.stage):
    return _write_lines(target, _continued(expert, source))
  task = _task_of(expert, task)
  own = data_config(expert.stage.config).for_task(task)
  examples = read_examples(source, task, own.template)
  texts, scores = predict_examples(expert, examples, task)
  words = get_task(task).label_words
  lines: list[dict[str, Any]] = []
  for i, (example, text) in enumerate(zip(examples, texts, strict=True)):
    row: dict[str, Any] = {'source': example.source, 'prediction': text}
    if scores is not None:
      row['label_scores'] = {word: float(s) for word, s in zip(words, scores[i], strict=True)}
    lines.append(row)
  return _write_lines(target, lines)


def _write_lines(target: pathlib.Path, rows: list[dict[str, Any]]) -> int:
  """Writes rows as JSON lines in one move, by one process; returns their number."""
  if not processes.is_first():
    return len(rows)
  lines = [json.dumps(row, ensure_ascii=False) for row in rows]
  partial = target.with_name(f'.{target.name}.part')
  partial.write_text('\n'.join(lines) + '\n', encoding='utf-8')
  partial.replace(target)
  return len(lines)


def _continued(expert: LoadedExpert, source: pathlib.Path) -> list[dict[str, Any]]:
  """Rows `source` of a file with what an expert on plain text writes behind them."""
  if not source.is_file():
    raise UserError(f"there is no file '{source}' of texts to continue; correct the path of"
                    ' --input.')
  table = sources.read_file(str(source))
  prompts = [row.get('source') for row in table.rows]
  for place, prompt in enumerate(prompts):
    if not isinstance(prompt, str) or not prompt:
      raise UserError(f"{table.place(place)}: no text in 'source' to continue.")
  stage = expert.stage
  texts = continued_texts(stage, (expert.tuned, stage.start.frozen, expert.constants), prompts)
  return [{'source': prompt, 'prediction': text}
          for prompt, text in zip(prompts, texts, strict=True)]


def _task_of(expert: LoadedExpert, task: str) -> str:
  """The task of a name; '' is the first that the expert was trained on."""
  known = expert.stage.specs[expert.name].tasks
  if not task:
    return known[0]
  name = get_task(task).name
  if name not in known:
    raise UserError(f"expert '{expert.card.name}' was trained on {', '.join(known)} and not on"
                    f" '{task}'; correct --task.")
  return name


def predict_examples(expert: LoadedExpert, examples: list[Example],
                     task: str = '') -> tuple[list[str], np.ndarray | None]:
  """Returns decoded texts, and label scores [example, label] for tasks with labels.

  Args:
    expert: see `open_expert`.
    examples: rows.
    task: of the rows; '' is the first task of the expert.
  """
  stage, fields = expert.stage, expert.stage.config.data
  task = _task_of(expert, task)
  frozen = stage.start.frozen
  first = lambda tree: jax.tree.map(lambda a: jnp.asarray(a[0]), tree)
  trees = (first(expert.tuned), frozen, first(expert.constants))
  if stage.backbone.has_head:
    return class_scores(stage, trees, examples, task)
  tokenizer, words = stage.backbone.tokenizer, get_task(task).label_words
  data = pipeline.tokenize_examples(
      examples, tokenizer, max_source_length=fields.max_source_length,
      max_target_length=fields.max_target_length,
      task_id=stage.specs[expert.name].tasks.index(task))
  batches = list(pipeline.eval_batches(
      data, min(fields.eval_batch_size, len(examples)), list(fields.buckets) or None,
      list(fields.target_buckets) or None))
  texts: dict[int, str] = {}
  for batch in batches:
    (out, _), = stage.evaluator.predict_batch(
        expert.tuned, frozen, expert.constants, [task], [batch])
    decoded = tokenizer.decode_batch(out)
    texts |= {int(example): decoded[row]
              for row, example in enumerate(batch['example_ids']) if example >= 0}
  ordered = [texts[index] for index in range(len(examples))]
  if not words:
    return ordered, None
  scorer = make_label_scorer(stage.model, stage.method, tokenizer, words)
  return ordered, score_rows(scorer, trees, batches)
