"""What a task states: the names of its rows, how a row becomes text, how texts are scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pemt_jax.data.templates import Row, Template
from pemt_jax.errors import UserError

SPLITS = ('train', 'validation', 'test')
SIZES = ('small', 'large', 'mapped')
DEFAULT_TEMPLATE = 'default'


GYM_TESTS = ('split', 'last_share', 'first_share', 'next_rows')


@dataclasses.dataclass(frozen=True)
class GymRule:
  """How the few-shot gym cuts and draws the rows of a task.

  Attributes:
    kind: 'text' draws k rows in all, 'classification' k rows of each label.
    family: group of related tasks.
    test: what the test rows are: 'split', all rows of the task's test split; 'first_share', the
      first `share` of that split after a shuffle; 'last_share', the last `share` of the train
      split, whose first four fifths, shuffled, are the pool; 'next_rows', the rows behind the pool.
    rows: rows of the pool and of test, for 'next_rows'.
    official_test: the data set's own labelled test split, where it has one.
    share: of the rows, for 'first_share' and 'last_share'.
  """

  kind: str
  family: str
  test: str = 'split'
  rows: tuple[int, int] = (0, 0)
  official_test: str | None = None
  share: float = 0.2


@dataclasses.dataclass(frozen=True)
class Task:
  """One text-to-text task; it says nothing about where its rows come from.

  Attributes:
    name: name in configs, metrics and folders.
    benchmark: group the task belongs to.
    template: row -> examples.
    metrics: names in `evaluation.metrics.METRICS`; their values are averaged for model selection.
    description: sentence whose tokens set the length of the task prompt.
    label_words: target words in class order; empty for free text.
    reported: further metrics that are reported but not averaged.
    splits: split -> split of the data set it is read from.
    size: published split rule: 'small' halves the validation rows into validation and test, 'large'
      takes validation rows out of train, 'mapped' reads every split as `splits` says.
    hf: Hugging Face data set and config, or None.
    hf_splits: data set split -> its data set and config, where they differ from `hf`.
    tfds: TFDS name, or None.
    tfds_row: brings a TFDS row into the fields of the template, where they differ.
    tfds_splits: split -> TFDS split, where it differs from `splits`.
    folders: candidates below the local root, the first that has the split is read.
    blank: label fields -> values that make a row without a label readable; any that fit.
    few_shot_label: field whose values the few-shot draw balances; None draws k rows in all.
    target_tokens: length limit of targets in tokens, end mark included; None takes the config's.
    decoding: published decoding options of the task, such as `max_length` and `num_beams`.
    decode_texts: outputs whose longest sets the published decoding length; () takes `label_words`.
    postprocess: name in `evaluation.postprocess.POSTPROCESS`.
    variants: further templates by a name that says what they do.
    aliases: other names accepted for this task.
    fixed_row_limits: split -> published row limit of that split, where the original imposes one.
    prepare: rows of a data set split -> the same rows with what is drawn once per split.
    gym: rule of the few-shot gym, for its tasks.
  """

  name: str
  benchmark: str
  template: Template
  metrics: tuple[str, ...]
  description: str
  label_words: tuple[str, ...] = ()
  reported: tuple[str, ...] = ()
  splits: Mapping[str, str] = dataclasses.field(
      default_factory=lambda: {'train': 'train', 'validation': 'validation', 'test': 'validation'})
  size: str = 'mapped'
  hf: tuple[str, str | None] | None = None
  hf_splits: Mapping[str, tuple[str, str | None]] = dataclasses.field(default_factory=dict)
  tfds: str | None = None
  tfds_row: Callable[[Row], Row] | None = None
  tfds_splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
  folders: tuple[str, ...] = ()
  blank: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {'label': 1})
  few_shot_label: str | None = 'label'
  target_tokens: int | None = None
  decoding: Mapping[str, int] = dataclasses.field(default_factory=dict)
  decode_texts: tuple[str, ...] = ()
  postprocess: str = 'text'
  variants: Mapping[str, Template] = dataclasses.field(default_factory=dict)
  aliases: tuple[str, ...] = ()
  fixed_row_limits: Mapping[str, int] = dataclasses.field(default_factory=dict)
  prepare: Callable[[Sequence[Row]], list[Row]] | None = None
  gym: GymRule | None = None

  def template_named(self, variant: str) -> Template:
    """Returns the template called `variant`; 'default' is the task's own.

    Raises:
      UserError: the task has no such template.
    """
    if variant == DEFAULT_TEMPLATE:
      return self.template
    if variant not in self.variants:
      raise UserError(f"task '{self.name}' has no template '{variant}'; choose one of "
                      f"{', '.join((DEFAULT_TEMPLATE, *self.variants))}.")
    return self.variants[variant]

  def natural_split(self, split: str) -> str:
    """Returns the data set's own split for `split`; a borrowed test split becomes its real one."""
    name = self.splits[split]
    borrowed = split == 'test' and name == self.splits['validation']
    return 'test' if borrowed else name
