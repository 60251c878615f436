"""Prompts of source tasks: what ATTEMPT attends to and SPoT starts from."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import ml_collections as mlc
import numpy as np

from pemt_jax.errors import UserError, one_of
from pemt_jax.experts.library import CARD, check_backbone, load_expert
from pemt_jax.interop import files
from pemt_jax.interop.pemt_layout import TUNED_PROMPT
from pemt_jax.methods import spot, zoo
from pemt_jax.methods.pemt import BankShape
from pemt_jax.models.layers import fold_name
from pemt_jax.stages.prompts import trim
from pemt_jax.stages.sources import PROMPT, Sources, find_sources
from pemt_jax.trees import flatten, unflatten

ATTEMPT = 'attempt'
INIT = 'sources'  # value of config.prompt.init
_FILE = 'prefix_embeddings'
_ENDINGS = ('.pt', '.safetensors')


@dataclasses.dataclass(frozen=True)
class PromptSources:
  """Prompts of equal length.

  Attributes:
    names: their tasks.
    tables: [source, prompt, embed].
  """

  names: tuple[str, ...]
  tables: np.ndarray

  def as_attempt(self) -> Sources:
    """The bank of ATTEMPT."""
    count, length, _ = self.tables.shape
    return Sources(self.names, BankShape('prompt', count, 0, prompt_lengths=(length,) * count),
                   unflatten({f'encoder/embed/{ATTEMPT}/sources': self.tables}))


def find_prompt_sources(names: Sequence[str]) -> list[pathlib.Path]:
  """Places that `config.sources` names: experts, files, or folders with `prefix_embeddings.pt`.

  Raises:
    UserError: nothing there.
  """
  found = []
  for name in names:
    path = pathlib.Path(name)
    inside = [path / f'{_FILE}{ending}' for ending in _ENDINGS]
    file = next((place for place in (path, *inside) if place.is_file()), None)
    found += [file] if file is not None else find_sources([name])
  return found


def load_prompt_sources(places: Sequence[pathlib.Path],
                        backbone: tuple[str, str]) -> PromptSources:
  """Loads prompts.

  Args:
    places: see `find_prompt_sources`.
    backbone: name and hash of the backbone in use; experts of another one are refused.

  Raises:
    UserError: no source, an expert without a prompt or of another backbone, or prompts of different
      sizes.
  """
  if not places:
    raise UserError('there is no source prompt; set config.sources to experts of the stage'
                    " 'prompt' or to files prefix_embeddings.pt.")
  found = [_load(place, backbone) for place in places]
  for place, (_, table) in zip(places, found, strict=True):
    if table.shape != found[0][1].shape:
      raise UserError(f'{place} has a prompt of shape {list(table.shape)} and {places[0]} one of'
                      f' {list(found[0][1].shape)}; train all sources with one prompt.length.')
  return PromptSources(tuple(name for name, _ in found), np.stack([table for _, table in found]))


def _load(place: pathlib.Path, backbone: tuple[str, str]) -> tuple[str, np.ndarray]:
  """(task, [prompt, embed]) of one place."""
  if place.is_file():
    state = files.read_tensors(place)
    name = next((n for n in (files.BARE, TUNED_PROMPT) if n in state), None)
    if name is None or np.ndim(state[name]) != 2:
      raise UserError(f'{place} does not hold one prompt; give a file prefix_embeddings.pt.')
    stem = place.stem.removeprefix(f'{_FILE}_')
    return place.parent.name if stem == _FILE else stem, np.asarray(state[name], np.float32)
  tuned, constants, card = load_expert(place)
  check_backbone(card, *backbone)
  flat = flatten(tuned)
  if f'{PROMPT}/table' not in flat:
    raise UserError(f"source {place} is an expert of '{card.method}' and has no prompt; give"
                    f" experts of the stage 'prompt' ({CARD} names the method).")
  return card.task, trim(flat[f'{PROMPT}/table'], flatten(constants)[f'{PROMPT}/mask'])


def reads_prompts(config: mlc.ConfigDict) -> bool:
  """Whether the stage begins with prompts of source tasks."""
  return ATTEMPT in zoo.names_of(config.stage) or config.prompt.init == INIT


def first_prompt(config: mlc.ConfigDict, sources: PromptSources, key: jax.Array,
                 backbone: tuple[str, str]) -> jax.Array:
  """SPoT's first prompt by `config.prompt.weighting`: [prompt, embed].

  Args:
    config: of the stage.
    sources: where the prompt comes from.
    key: of random weights.
    backbone: name and hash of the backbone in use.

  Raises:
    UserError: an unknown weighting, several prompts to copy, or a target that does not fit.
  """
  weighting = config.prompt.weighting
  one_of('prompt.weighting', weighting, spot.WEIGHTINGS)
  tables, count = sources.tables, len(sources.names)
  if weighting == 'copy':
    if count > 1:
      raise UserError(f"prompt.weighting is 'copy' and there are {count} source prompts; give one,"
                      f" or choose {' or '.join(spot.WEIGHTINGS[1:])}.")
    return tables[0]
  if weighting == 'random':
    return spot.mix(tables, jax.random.uniform(fold_name(key, 'prompt_weights'), (count,)))
  if not config.prompt.target:
    raise UserError("prompt.weighting is 'similarity', which needs a prompt of the target task; set"
                    ' config.prompt.target to its expert or file.')
  target = load_prompt_sources(find_prompt_sources([config.prompt.target]), backbone).tables[0]
  if target.shape != tables[0].shape:
    raise UserError(f'{config.prompt.target} has a prompt of shape {list(target.shape)}, the'
                    f' sources have {list(tables[0].shape)}; train all with one prompt.length.')
  return spot.mix(tables, spot.similarity_weights(tables, target))


def with_counts(options: object, sources: PromptSources, targets: int | None) -> object:
  """Options of ATTEMPT with the numbers of sources and targets of the stage.

  Args:
    options: of a stage; {name: options} where names are joined.
    sources: the source prompts.
    targets: number of tasks of a mixture; None leaves what the options say.
  """
  if isinstance(options, dict):
    return {name: with_counts(own, sources, targets) if name == ATTEMPT else own
            for name, own in options.items()}
  return dataclasses.replace(options, sources=len(sources.names),
                             targets=options.targets if targets is None else targets)
