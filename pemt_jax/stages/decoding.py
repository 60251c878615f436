"""Decoding options of each task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_collections as mlc

from pemt_jax.data.tasks import get_task
from pemt_jax.data.tokenizer import Tokenizer
from pemt_jax.models.decoding import GenerationConfig


def task_options(task: str, options: GenerationConfig, tokenizer: Tokenizer) -> GenerationConfig:
  """Returns options with those that a task states in their place.

  A task with label words decodes as many tokens as the longest of them has, end mark included; the
  start token counts, so that the end mark of the longest is left out, unless it is forced.

  Args:
    task: name of the task.
    options: for whatever the task does not state.
    tokenizer: counts the tokens.
  """
  stated = get_task(task)
  own = dict(stated.decoding)
  texts = stated.decode_texts or stated.label_words
  if texts and 'max_length' not in own:
    forced = options.forced_eos_token_id is not None  # would stand in the place of the last token
    own['max_length'] = max(map(len, tokenizer.encode_batch(list(texts)))) + forced
  return dataclasses.replace(options, **own)


def label_options(task: str, options: GenerationConfig, tokenizer: Tokenizer) -> GenerationConfig:
  """Returns options that predict one of the label words of a task; free texts stay free.

  Args:
    task: name of the task.
    options: the others.
    tokenizer: gives the tokens of the words, as it does for targets.
  """
  words = get_task(task).label_words
  if not words:
    return options
  labels = tuple(map(tuple, tokenizer.encode_batch(list(words))))
  return dataclasses.replace(options, labels=labels, max_length=1 + max(map(len, labels)))


class TaskPredict:
  """Compiled predictions by task; tasks with the same options share one.

  Attributes:
    default: prediction with the options of the config.
  """

  def __init__(self, config: mlc.ConfigDict, options: GenerationConfig, tokenizer: Tokenizer,
               make: Callable[[GenerationConfig], Callable[..., Any]]):
    """Prepares predictions; each is compiled when it is used.

    Args:
      config: config of the stage.
      options: its decoding options.
      tokenizer: see `task_options`.
      make: decoding options -> compiled prediction.
    """
    self._by_task, self._labels = config.generation.by_task, config.generation.labels_only
    self._options, self._tokenizer = options, tokenizer
    self._make, self.default = make, make(options)
    self._made = {options: self.default}

  def __call__(self, task: str) -> Callable[..., Any]:
    """Returns the prediction of a task."""
    options = self._options
    if self._by_task:
      options = task_options(task, options, self._tokenizer)
    if self._labels:
      options = label_options(task, options, self._tokenizer)
    if options not in self._made:
      self._made[options] = self._make(options)
    return self._made[options]
