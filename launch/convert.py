"""Translates a checkpoint of any supported format into any other."""

from __future__ import annotations

import pathlib
import sys

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pemt_jax import cli
from pemt_jax.interop import formats

_KINDS = list(formats.ABOUT)
_ABOUT = '; '.join(f'{kind}: {about}' for kind, about in formats.ABOUT.items())

FROM = flags.DEFINE_enum('from', None, _KINDS, f'Format to read. {_ABOUT}.', required=True)
TO = flags.DEFINE_enum('to', None, _KINDS, 'Format to write.', required=True)
INPUT = flags.DEFINE_string('input', None, 'File or folder to read; a name or hub id for hf_t5.',
                            required=True)
OUTPUT = flags.DEFINE_string('output', None, 'File or folder to write.', required=True)
SOURCES = flags.DEFINE_list(
    'sources', [], 'Task of each expert, in the order of training. --from=pemt_stage2 needs their '
    'folders too: mnli=DIR,qnli=DIR. For peft and adapterhub the task of the expert.')
TARGET = flags.DEFINE_string('target', None, 'Task of the target adapter, where a file has several '
                             'or none.')
BACKBONE = flags.DEFINE_string(
    'backbone', None, 'Backbone (folder, name, hub id) to put under deltas, or that an adapter '
    'folder of another program stands on.')
WEIGHTS = flags.DEFINE_enum('weights', '', ['', 'torch', 'safetensors'],
                            'Kind of weight files; empty means what the format usually has.')
SHARDS = flags.DEFINE_integer('shards', 1, 'Number of weight files of hf_t5.', lower_bound=1)


def main(argv: list[str]) -> None:
  """Converts and prints what was written and what found no place."""
  del argv
  options = formats.Options(
      sources=tuple(SOURCES.value), target=TARGET.value, backbone=BACKBONE.value,
      weights=WEIGHTS.value, shards=SHARDS.value)
  left_out = formats.convert(FROM.value, TO.value, INPUT.value, OUTPUT.value, options)
  print(f'Wrote {OUTPUT.value} ({TO.value}).')
  if left_out:
    print(f'Not in it, since {TO.value} has no place for them: {len(left_out)} arrays '
          f'({", ".join(left_out[:3])}{", ..." if len(left_out) > 3 else ""}).')


if __name__ == '__main__':
  cli.run(main)
