"""Prints the table of sizes with dense experts and with experts that share central cores.

python benchmarks/moe_sizes.py --model=t5-base
"""

from __future__ import annotations

import pathlib
import sys

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pemt_jax import cli
from pemt_jax.methods.moe_sizes import as_markdown
from pemt_jax.models.families import family_of

MODEL = flags.DEFINE_string('model', 't5-base', 'Published name or folder of a backbone.')
EXPERTS = flags.DEFINE_multi_integer('experts', [1, 4, 8, 12, 16, 32, 64, 128],
                                     'Numbers of experts of a feed-forward.')


def main(_: list[str]) -> None:
  """Prints the table."""
  print(as_markdown(family_of(MODEL.value).read(MODEL.value), EXPERTS.value))


if __name__ == '__main__':
  cli.run(main)
