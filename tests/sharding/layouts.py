"""Layouts of all parameters of every method at published sizes; run as a program it writes them.

A line of `layouts/<method>.txt` is a path, a shape, and how a mesh with two devices along each axis
cuts it. Parameters of the plain backbone stand in the file of the backbone only.
"""

from __future__ import annotations

import functools
import pathlib
import warnings

from jax.sharding import AbstractMesh

from pemt_jax.methods import pemt, zoo
from pemt_jax.methods.base import backbone_of, boxed_shapes
from pemt_jax.models import bart_config, gpt2_config, roberta_config, t5_config
from pemt_jax.models.sites import Plan
from pemt_jax.sharding import rules
from pemt_jax.trees import flatten

FOLDER = pathlib.Path(__file__).parent / 'layouts'
MESH = AbstractMesh((2, 2, 2, 2), ('data', 'fsdp', 'tensor', 'expert'))
T5, PROMPT = t5_config.PUBLISHED['t5-base'], 100
BACKBONES = {'t5-base': T5, 'bart-base': bart_config.PUBLISHED['bart-base'],
             'roberta-base': roberta_config.PUBLISHED['roberta-base'],
             'gpt2': gpt2_config.PUBLISHED['gpt2']}
SOURCES = pemt.BankShape('lora', 6, 64, 1.0, prompt_lengths=(PROMPT,) * 6)
METHODS = {
    **{name: functools.partial(
        lambda name: zoo.make(name, zoo.ZOO[name].default_options(), T5, PROMPT), name)
       for name in zoo.ZOO},
    'pemt/stage1': lambda: pemt.stage1(pemt.Stage1Options(), T5, PROMPT),
    'pemt/stage2': lambda: pemt.stage2(pemt.Stage2Options(), T5, PROMPT, SOURCES)}


def path_of(name: str) -> pathlib.Path:
  """File of a backbone or method."""
  return FOLDER / f"{name.replace('/', '_')}.txt"


@functools.cache
def specs(config, plan: Plan = Plan()) -> dict[str, str]:
  """{path: shape and layout} of all parameters."""
  boxed = flatten(boxed_shapes(backbone_of(config, plan))['params'])
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # three experts, the vocabularies of BART and GPT-2
    found = {path: rules.partition_spec(path, leaf.names, leaf.value.shape, MESH)
             for path, leaf in boxed.items()}
  return {path: f'{boxed[path].value.shape} {tuple(spec)}' for path, spec in found.items()}


def lines(name: str) -> list[str]:
  """The lines of a backbone or method."""
  if name in BACKBONES:
    found = specs(BACKBONES[name])
  else:
    plain = specs(T5)
    found = {path: text for path, text in specs(T5, METHODS[name]().plan).items()
             if plain.get(path) != text}
  return [f'{path} {text}' for path, text in sorted(found.items())]


if __name__ == '__main__':
  for each in (*BACKBONES, *METHODS):
    path_of(each).write_text(''.join(f'{line}\n' for line in lines(each)), encoding='utf-8')
