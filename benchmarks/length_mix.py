"""Reads the train rows of PEMT's six source tasks and writes the histogram of their lengths.

python benchmarks/length_mix.py --data=<folder of task folders> --tokenizer=<folder>
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections import Counter

from absl import flags

REPO = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from benchmarks.lengths import MIX, ROW
from configs.pemt.presets import SOURCES
from pemt_jax import cli

DATA = flags.DEFINE_string('data', None, 'Folder of task folders.', required=True)
TOKENIZER = flags.DEFINE_string('tokenizer', None, 'Folder of a tokenizer.', required=True)


def main(_: list[str]) -> None:
  """Writes [input length, target length, number of texts] of each task."""
  from pemt_jax.data.datasets import DataConfig, load_task
  from pemt_jax.data.pipeline import tokenize_examples
  from pemt_jax.data.tokenizer import load_tokenizer
  tokenizer, tasks = load_tokenizer(TOKENIZER.value), {}
  for name in SOURCES:
    found = load_task(name, 'train', DataConfig(root=DATA.value, split_rule='natural'))
    data = tokenize_examples(found.examples, tokenizer, max_source_length=ROW,
                             max_target_length=found.task.target_tokens or 128)
    pairs = Counter(zip(data.input_lengths.tolist(), data.target_lengths.tolist(), strict=True))
    tasks[name] = [[*pair, count] for pair, count in sorted(pairs.items())]
  lines = ',\n'.join(f'{json.dumps(name)}: {json.dumps(kinds, separators=(",", ":"))}'
                     for name, kinds in tasks.items())
  MIX.write_text(f'{{{lines}}}\n', encoding='utf-8')
  print(MIX)


if __name__ == '__main__':
  cli.run(main)
