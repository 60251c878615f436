"""Backbones of all families as Hugging Face folders, in and out."""

from __future__ import annotations

import pathlib
from typing import Any

from pemt_jax.interop import bart_files, files, gpt2_files, huggingface, roberta_files
from pemt_jax.models.bart_config import BartConfig
from pemt_jax.models.families import family_of
from pemt_jax.models.gpt2_config import GPT2Config
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.models.t5_config import T5Config
from pemt_jax.trees import Tree

_FILES = {T5Config: (huggingface.load_t5, huggingface.save_t5),
          RobertaConfig: (roberta_files.load_roberta, roberta_files.save_roberta),
          BartConfig: (bart_files.load_bart, bart_files.save_bart),
          GPT2Config: (gpt2_files.load_gpt2, gpt2_files.save_gpt2)}


def load(name_or_folder: str | pathlib.Path) -> tuple[Any, Tree]:
  """Loads a backbone of any family.

  Args:
    name_or_folder: folder with config.json and weights, a published name or a hub id.

  Returns:
    The config and the parameter tree (NumPy arrays on the host).

  Raises:
    UserError: nothing there, an unknown family, or names and shapes that differ from the config's.
  """
  folder = files.resolve_model(name_or_folder)
  return _FILES[family_of(folder).config][0](folder)


def save(folder: str | pathlib.Path, config: Any, params: Tree) -> None:
  """Writes a folder that Hugging Face transformers loads.

  Args:
    folder: made if absent; files of the same names are replaced.
    config: of the backbone.
    params: the backbone's parameter tree and nothing else.

  Raises:
    UserError: a tree that does not belong to the config.
  """
  _FILES[type(config)][1](folder, config, params)
