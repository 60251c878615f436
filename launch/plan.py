"""Compiles a stage for chips that are not there and predicts memory, exchanges and step time.

python launch/plan.py --config=configs/pemt/stage2.py --topology=v5e:4x4 \\
  --mesh=fsdp=16 --mesh=fsdp=4,tensor=4 [--program=predict] [--output=FILE] [--config.x.y=z ...]

Nothing is read but the config: no weights, no tokenizer, no rows. `cpu:8` compiles for simulated
devices; TPUs need the extra `plan` (bash launch/setup.sh plan).
"""

from __future__ import annotations

import pathlib
import sys

from absl import flags
from ml_collections import config_flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from pemt_jax import cli

CONFIG = config_flags.DEFINE_config_file('config', None, 'Stage config.', lock_config=True)
TOPOLOGY = flags.DEFINE_string('topology', None, 'Slice, such as v5e:4x4, v5p:2x2x4 or cpu:8.',
                               required=True)
MESH = flags.DEFINE_multi_string(
    'mesh', [], 'Devices along axes, such as fsdp=4,tensor=4; several: the best one is marked.')
PROGRAM = flags.DEFINE_enum('program', 'train', ['train', 'predict'], 'What to compile.')
OUTPUT = flags.DEFINE_string('output', '', 'File for all figures as JSON; "" writes none.')
SOURCES = flags.DEFINE_integer('sources', 6, 'Source experts, where the stage has them.')
EXPERT = flags.DEFINE_enum('source_expert', 'lora', ['lora', 'adapter'], 'Form of the sources.')
WIDTH = flags.DEFINE_integer('source_width', 64, 'Rank or hidden units of the sources.')
PROMPT = flags.DEFINE_integer('prompt_rows', 32, 'Rows of prompts whose length no config states.')


def main(_: list[str]) -> None:
  """Plans every mesh; prints and writes what is known after each."""
  import jax
  from pemt_jax.reports import plans
  from pemt_jax.sharding.chips import Topology
  from pemt_jax.sharding.mesh import mesh_overrides
  from pemt_jax.stages.plan import plan
  from pemt_jax.stages.shapes import Assumed
  topology = Topology.of(TOPOLOGY.value)
  jax.config.update('jax_platforms', 'cpu')  # No accelerator is needed or taken.
  if topology.kind == 'cpu':
    jax.config.update('jax_num_cpu_devices', topology.size)
  assumed = Assumed(SOURCES.value, EXPERT.value, WIDTH.value, PROMPT.value)
  meshes = [mesh_overrides(text.split(',')) for text in MESH.value] or [{}]
  found = []
  for mesh in meshes:
    found.append(plan(CONFIG.value, topology, mesh, PROGRAM.value, assumed))
    if OUTPUT.value:
      plans.write(found, OUTPUT.value)
  print(plans.shown(found))


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  cli.run(main)
