"""Both stages of PEMT, evaluation, similarity and merging on all devices; run as a program.

python -m tests.sharding.whole_way FOLDER [axis=devices ...]; prints the figures as JSON.
"""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np

from pemt_jax.sharding.mesh import mesh_overrides
from pemt_jax.stages import merging, predict, similarity
from pemt_jax.stages.run import run_stage
from pemt_jax.stages.similarity_rows import SimilarityOptions
from tests.stages import small

SHAPE = dict(small.SHAPE, heads=4, embed=32, mlp=32)


def config_of(stage, *args, mesh, **changes):
  """A config of a tiny run on a mesh; a large epsilon keeps rounding out of the updates."""
  config = small.config_of(stage, *args, train__epsilon=1e-2, **changes)
  with config.unlocked():
    config.update_from_flattened_dict(mesh)
  return config


def main(folder: pathlib.Path, mesh: dict[str, int]) -> dict[str, object]:
  """All figures."""
  backbone = small.write_backbone(folder / 'backbone', **SHAPE)
  first = run_stage(config_of('pemt/stage1', backbone, mesh=mesh), folder / 'stage1')
  alone = {axis: size for axis, size in mesh.items() if axis != 'mesh.replica'}
  second = run_stage(config_of('pemt/stage2', backbone, (small.TARGET,), mesh=alone,
                               sources=(str(folder / 'stage1'),), data__few_shot=6),
                     folder / 'stage2')
  found = {name: {metric: float(value) for metric, value in values['final_metrics'].items()}
           for stage in (first, second) for name, values in stage.trained.results.items()}
  found['evaluated'] = predict.evaluate_experts(folder / 'stage2', 'validation', alone)
  sources = [str(folder / 'stage1')]
  config = config_of('pemt/stage1', backbone, mesh=alone)
  measured = similarity.measure(
      sources, [], SimilarityOptions(('loss', 'el2n', 'grand'), batch_size=8),
      similarity.References(), folder / 'similarity', config)
  found['similarity'] = {
      name: np.asarray(matrix.values).tolist() for name, matrix in measured.items()
      if not isinstance(matrix, dict)}
  for method in ('fisher', 'search'):
    merged = merging.merge_experts(
        sources, [], merging.MergeOptions(method, rows=8, labels='data', candidates=4, rounds=1),
        folder / method, config)
    found[method] = {task: [float(np.abs(leaf).sum()) for leaf in small.leaves_of(place).values()]
                     for task, place in merged.items()}
  return found


if __name__ == '__main__':
  print(json.dumps(main(pathlib.Path(sys.argv[1]), mesh_overrides(sys.argv[2:]))))
