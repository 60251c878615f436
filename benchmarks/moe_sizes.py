"""Prints the table of sizes with dense experts and with experts that share central cores.

python -m benchmarks.moe_sizes --model=t5-base
"""

from __future__ import annotations

from absl import flags

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
