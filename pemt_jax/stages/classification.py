"""Stages on encoders with a head: rows with labels, predicted classes and values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pemt_jax.data import pipeline
from pemt_jax.data.buckets import FILLER
from pemt_jax.data.datasets import TaskData
from pemt_jax.data.labelled import LabelledData, TextForm, label_examples
from pemt_jax.data.tasks import get_task
from pemt_jax.data.templates import Example
from pemt_jax.data.tokenizer import Tokenizer
from pemt_jax.errors import UserError
from pemt_jax.methods.base import Method
from pemt_jax.methods.classification import text_loss
from pemt_jax.models.roberta import Roberta
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.stages.backbone import Backbone
from pemt_jax.stages.evaluate import over_replicas
from pemt_jax.stages.rows import ReplicaSpec
from pemt_jax.trees import Tree


def labels_of(tasks: Sequence[str]) -> int:
  """Outputs of the head: the number of label words, or 1 for a task of numbers.

  Raises:
    UserError: tasks that share a program differ in it.
  """
  sizes = {task: len(get_task(task).label_words) or 1 for task in tasks}
  if len(set(sizes.values())) > 1:
    shown = ', '.join(f'{task} {size}' for task, size in sizes.items())
    raise UserError(f'tasks that train in one program need heads of one size, not {shown}; give'
                    ' tasks with as many labels, or one config for each.')
  return next(iter(sizes.values()))


def check_tokenizer(tokenizer: Tokenizer, config: RobertaConfig, name: str) -> None:
  """Checks that padding and end have the ids that the backbone knows.

  Raises:
    UserError: they have others.
  """
  for role, theirs, ours in (('padding', tokenizer.pad_id, config.pad_id),
                             ('the end', tokenizer.eos_id, config.eos_id)):
    if theirs != ours:
      raise UserError(f"the tokenizer has id {theirs} for {role}, but backbone '{name}' has {ours};"
                      " set model.tokenizer to the backbone's own.")


def prepared(backbone: Backbone,
             specs: Iterable[ReplicaSpec]) -> tuple[Backbone, LabelReader]:
  """The backbone without a head of another size, and what reads its rows.

  Args:
    backbone: with or without the head of a checkpoint; the pooler of pretraining is left out.
    specs: of the replicas.

  Raises:
    UserError: heads of several sizes are asked for, or the tokenizer is of another backbone.
  """
  labels = labels_of(_tasks(specs))
  check_tokenizer(backbone.tokenizer, backbone.config, backbone.name)
  params = {name: tree for name, tree in backbone.params.items() if name != 'pooler'}
  if 'head' in params and params['head']['out']['kernel'].shape[-1] != labels:
    del params['head']
  return (dataclasses.replace(backbone, params=params),
          LabelReader(backbone.tokenizer, backbone.config))


def model_of(backbone: Backbone, method: Method, specs: Iterable[ReplicaSpec]) -> Roberta:
  """The backbone with a method's plan and a head for the tasks of the replicas."""
  return Roberta(backbone.config, method.plan, backbone.compute, labels_of(_tasks(specs)))


def _tasks(specs: Iterable[ReplicaSpec]) -> list[str]:
  return [task for spec in specs for task in spec.tasks]


class LabelReader:
  """Makes rows with labels; `stages.rows.RowStore` calls it in place of target texts."""

  def __init__(self, tokenizer: Tokenizer, config: RobertaConfig):
    """Takes the special ids of a backbone."""
    self._tokenizer, self._config = tokenizer, config

  def __call__(self, data: TaskData, fields: Any, cache_dir: Any) -> LabelledData:
    """Rows of a split.

    Args:
      data: examples of one task.
      fields: the `data` part of a config.
      cache_dir: folder of token caches.

    Raises:
      UserError: targets that are no labels, or no room for texts.
    """
    return label_examples(data.examples, data.task, self._tokenizer, self.form(fields), cache_dir)

  def form(self, fields: Any) -> TextForm:
    """How the backbone wants its texts; `fields` limits their length."""
    config, bert = self._config, self._config.kind == 'bert'
    return TextForm(config.start_id, config.eos_id, () if bert else (config.eos_id,), bert,
                    min(fields.max_source_length, config.max_length))


def make_class_predict(model: Roberta, method: Method) -> Callable[..., Any]:
  """Returns the compiled (tuned, frozen, constants, batch) -> (values, statistics).

  All leaves but those of `frozen` have a leading [replica] axis; values are [replica, batch, 1]:
  numbers of classes, or the values of a regression.
  """
  def predict(tuned: Tree, frozen: Tree, constants: Tree, batch: Mapping[str, jax.Array],
              axis: str | None):
    del axis
    variables = method.variables(tuned, frozen, constants)
    logits, aux = model.apply(variables, batch['inputs'], batch['inputs_mask'],
                              batch.get('token_types'), batch.get('task_ids'))
    rows = jnp.max(batch['inputs_mask'], axis=1).astype(jnp.float32)
    total, weight = text_loss(logits, batch['labels'], rows)
    extra, metrics = method.auxiliary(aux, rows)
    values = logits if model.labels == 1 else jnp.argmax(logits, axis=-1)[:, None]
    if model.labels == 1:
      metrics = metrics | {'squared_error': total / jnp.maximum(weight, 1.0)}
    observed = method.observe(aux, rows)
    return values, metrics | observed | {'total': total, 'weight': weight, 'extra': extra}

  return over_replicas(predict)


def label_texts(task: str, values: Sequence[Any]) -> list[str]:
  """Label words of class numbers, or numbers as text: [rows] of [1] values."""
  words = get_task(task).label_words
  column = [np.ravel(value)[0] for value in values]
  if not words:
    return [repr(float(value)) for value in column]
  return [words[int(number)] for number in column]


def class_scores(stage: Any, trees: tuple[Tree, Tree, Tree], examples: Sequence[Example],
                 task: str) -> tuple[list[str], np.ndarray | None]:
  """Predictions for examples without labels.

  Args:
    stage: built for the task.
    trees: (tuned, frozen, constants) without a replica axis.
    examples: rows.
    task: of the rows.

  Returns:
    Label words or numbers as text; [example, label] log-probabilities in nats, or None for numbers.
  """
  fields, model = stage.config.data, stage.model
  data = label_examples(examples, None, stage.backbone.tokenizer, stage.store.reader.form(fields))
  number = [spec for spec in stage.specs.values()][0].tasks.index(task)
  variables = stage.method.variables(*trees)

  @jax.jit
  def run(variables, batch):
    return model.apply(variables, batch['inputs'], batch['inputs_mask'], batch.get('token_types'),
                       batch['task_ids'] + number)[0]

  found = np.zeros((len(examples), model.labels), np.float32)
  for batch in pipeline.eval_batches(data, min(fields.eval_batch_size, len(examples)),
                                     list(fields.buckets) or None):
    real = batch['example_ids'] != FILLER
    found[batch['example_ids'][real]] = np.asarray(run(variables, batch))[real]
  if model.labels == 1:
    return label_texts(task, found), None
  scores = np.asarray(jax.nn.log_softmax(found))
  return label_texts(task, np.argmax(scores, axis=-1)), scores
