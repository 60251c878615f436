"""ProPETL on a small random RoBERTa, two tasks of GLUE: that the forms run, not how good they are.

python launch/train.py --config=configs/real_data/propetl_roberta.py:form=lora \\
  --workdir=runs/real_data/roberta_lora --config.model.tokenizer=FOLDER_OF_ROBERTA_TOKENIZER \\
  --config.data.root=DATA

`shared=0` trains the form without sharing and without masks. Figures: results/propetl.md.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.propetl import roberta_glue
from pemt_jax.stages.config import parse_argument

TASKS = ('propetl/sst2', 'propetl/mrpc')
SIZES = {'adapter': {'reduction': 4}, 'lora': {'rank': 8, 'alpha': 12.0},
         'prefix': {'length': 16, 'hidden': 64}}


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """Arguments `form`: adapter, lora or prefix; `shared`: 1 or 0; `steps`."""
  values = parse_argument(argument, form='adapter', shared=1, steps=200)
  form, steps = values['form'], values['steps']
  config = roberta_glue.get_config(f'form={form},shared={values["shared"]}')
  config.tasks, config.seeds = TASKS, (42,)
  config.model.weights = 'random'
  with config.model.shape.unlocked():
    config.model.shape.update({'embed': 128, 'heads': 4, 'mlp': 256, 'encoder_layers': 2,
                               'dropout': 0.0, 'attention_dropout': 0.0})
  config.method.update(SIZES[form])
  data, train = config.data, config.train
  data.source = 'local'
  data.batch_size, data.max_source_length, data.buckets = 32, 64, (64,)
  data.max_validation_rows, data.max_test_rows = 256, 512
  train.steps, train.warmup_steps, train.eval_every = steps, steps // 10, steps // 4
  train.learning_rate = 1e-3
  return config
