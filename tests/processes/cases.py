"""What several processes do together, each case on a mesh that shares something else among them.

A case is a function (folder of the shared runs, folder to write) that also works alone.
"""

from __future__ import annotations

import json

from pemt_jax.sharding import processes
from pemt_jax.stages import merging, predict, similarity
from pemt_jax.stages.run import run_stage
from pemt_jax.stages.similarity_rows import SimilarityOptions
from tests.stages import small

UNSEEN = {'train__eval_every': 'never', 'train__final_split': ''}


def _config(base, stage, tasks=small.SOURCES, mesh=None, **changes):
  """A tiny stage; alone it stands on one device."""
  config = small.config_of(stage, str(base / 'backbone'), tasks, **changes)
  if processes.count() > 1:
    config.mesh.update(mesh or {})
  return config


def stage1(base, folder):
  """Replicas of 24 and 7 rows in batches of 8 and 4: some parts of batches are empty."""
  config = small.stage1_config(str(base / 'backbone'), data__eval_batch_size=12)
  run_stage(config, folder)


def stage2(base, folder):
  """Batches of 6 rows, which 4 devices do not divide; source experts in two parts."""
  run_stage(_config(base, 'pemt/stage2', (small.TARGET,), {'expert': 2}, data__few_shot=6,
                    data__batch_size=6, sources=(str(base / 'stage1'),), **UNSEEN), folder)


def propetl(base, folder):
  """A mixture of tasks; heads and feed-forward in parts."""
  run_stage(_config(base, 'propetl', mesh={'tensor': 2}, mixture__sampling='temperature',
                    mixture__batches='drawn', **UNSEEN), folder)


def lora(base, folder):
  """Two replicas on different processes, which read the same rows."""
  run_stage(_config(base, 'lora', mesh={'replica': 2, 'data': 1, 'fsdp': -1}, **UNSEEN), folder)


def switch(base, folder):
  """Experts that tokens are sent to on all processes."""
  config = _config(base, 'switch', small.SOURCES[:1], {'data': 1, 'expert': -1}, **UNSEEN)
  config.method.update({'experts': 'mpo', 'count': 4, 'cores': 3, 'freeze': (1,)})
  run_stage(config, folder)


def experts(base, folder):
  """Scores, predictions, similarity and merging of the experts of `lora`."""
  del base
  source = folder.parent / 'lora'
  rows = folder / 'rows.jsonl'
  folder.mkdir(parents=True, exist_ok=True)
  if processes.is_first():
    rows.write_text(''.join(json.dumps({'source': text}) + '\n' for text in (
        'is it lucky today , says ann ?', 'the tide is high', 'an omen')))
  processes.wait('rows')
  found = predict.evaluate_experts(source, 'test', {})
  predict.predict_file(sorted((source / 'experts').iterdir())[0], rows,
                       folder / 'predictions.jsonl', {})
  similarity.measure([str(source)], [], SimilarityOptions(('loss',), 8), similarity.References(),
                     folder / 'similarity')
  merging.merge_experts([str(source)], [], merging.MergeOptions(), folder / 'merged')
  if processes.is_first():
    (folder / 'scores.json').write_text(json.dumps(found))


def long(base, folder):
  """Twelve steps with a checkpoint at the end only."""
  run_stage(_config(base, 'lora', steps=12, train__checkpoint_every=100, **UNSEEN), folder)


CASES = {case.__name__: case for case in (
    stage1, stage2, propetl, lora, switch, experts, long)}
