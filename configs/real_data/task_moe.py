"""Task-level mixture of experts on 24 short gym tasks, and few-shot tuning of four others.

python launch/train.py --config=configs/real_data/task_moe.py:stage=1,vectors=VECTORS \\
  --workdir=runs/real_data/task_moe/stage1 --config.data.root=GYM \\
  --config.model.name=runs/real_data/bart/backbone
python launch/train.py --config=configs/real_data/task_moe.py:stage=2,first=EXPERT \\
  --workdir=runs/real_data/task_moe/stage2 --config.data.root=GYM \\
  --config.model.name=runs/real_data/bart/backbone

GYM holds a folder for each task. EXPERT is `experts/mixture` of the first stage. The backbone comes
from configs/real_data/pretrain_bart.py. `routes` of stage 1 may
be average or task_random; `stage=vectors` is what launch/task_vectors.py reads, for all tasks;
`stage=multi_task` trains one plain model on the same rows; `stage=few_shot` tunes on UNSEEN, where
ROOT is given as --config.root and the backbone as --config.model. Figures: results/task_moe.md.
"""

from __future__ import annotations

import ml_collections as mlc

from configs.task_moe import few_shot, multi_task, stage1, stage2, vectors
from pemt_jax.data.gym import GYM_PREFIX
from pemt_jax.errors import UserError, one_of
from pemt_jax.stages.config import parse_argument

# Inputs of at most 50 words in the median row; all are train tasks of the random split.
SEEN = (
    'emotion', 'emo', 'glue-sst2', 'rotten_tomatoes', 'tweet_eval-sentiment', 'sms_spam',
    'hate_speech_offensive', 'tweet_eval-hate', 'ethos-gender', 'google_wellformed_query',
    'superglue-wic', 'trec-finegrained', 'glue-mnli', 'sick', 'paws', 'medical_questions_pairs',
    'blimp-anaphor_number_agreement', 'blimp-ellipsis_n_bar_2', 'crows_pairs', 'mc_taco',
    'quartz-no_knowledge', 'quarel', 'lama-conceptnet', 'numer_sense')
# Of the test and dev parts.
UNSEEN = ('ag_news', 'tweet_eval-emotion', 'trec', 'blimp-sentential_negation_npi_licensor_present')
STAGES = ('1', '2', 'multi_task', 'few_shot', 'vectors')


def _sized(config: mlc.ConfigDict) -> mlc.ConfigDict:
  """Sizes of a run that takes minutes on a CPU; embeddings stay as they are."""
  data, train = config.data, config.train
  data.max_source_length, data.buckets = 64, (64,)
  data.max_target_length, data.target_buckets = 8, (8,)
  data.eval_batch_size = 40
  data.max_validation_rows, data.max_test_rows = 40, 80
  config.generation.max_length, config.generation.num_beams = 8, 1
  config.trainable = (('shared/embedding', 'frozen'),)
  train.clip_norm, train.tensorboard = 1.0, False
  return config


def _mixture(config: mlc.ConfigDict, steps: int) -> mlc.ConfigDict:
  """What all runs on the seen tasks have in common; rows of all draws, 80 for each task."""
  _sized(config).tasks = tuple(GYM_PREFIX + title for title in SEEN)
  config.data.batch_size = 16
  config.data.train_on_validation = False
  train = config.train
  train.accumulate = 1
  train.learning_rate, train.steps, train.warmup_steps = 1e-3, steps, steps * 6 // 100
  train.metric, train.final_split = 'average_metrics', 'test'
  train.eval_after, train.eval_every = 0, max(steps // 2, 1)
  return config


def _routed(values: dict[str, str | int]) -> mlc.ConfigDict:
  """A stage whose temperature falls over the same share of its steps as published."""
  steps = values['steps']
  if values['stage'] == '1':
    config = _mixture(stage1.get_config(
        f'start_id=-1,vectors={values["vectors"]},routes={values["routes"]}').unlock(), steps)
    config.method.anneal_rate = 9.0 / steps
    if values['routes'] == 'router':
      config.train.group_multipliers = {'router': 10.0, 'task_vectors': 10.0}
  else:
    if values['vectors']:
      raise UserError(f"config argument 'vectors={values['vectors']}' would replace the vectors"
                      ' that the first stage has tuned; leave it out.')
    config = _mixture(stage2.get_config(f'start_id=-1,first={values["first"]}').unlock(), steps)
    config.method.anneal_rate = 6.0 / steps
  config.method.vector_size = 128
  return config


def _few_shot(stage: str) -> mlc.ConfigDict:
  """One draw, two rates."""
  config = few_shot.get_config(f'stage={stage}').unlock()
  config.tasks, config.samples = UNSEEN, (100,)
  config.learning_rates, config.batch_sizes = (3e-4, 1e-3), (8,)
  train = _sized(config.tuned).train
  config.tuned.data.max_validation_rows = None
  train.steps, train.warmup_steps, train.eval_every = 40, 4, 20
  return config


def get_config(argument: str | None = None) -> mlc.ConfigDict:
  """Arguments `stage`, `routes`, `vectors`, `first`, `steps` and, few-shot, `tuned`: its stage."""
  values = parse_argument(argument, stage='1', routes='router', vectors='', first='', steps=160,
                          tuned='full')
  stage = values['stage']
  one_of('stage', stage, STAGES)
  if stage in '12':
    return _routed(values).lock()
  if stage == 'few_shot':
    return _few_shot(values['tuned']).lock()
  if stage == 'multi_task':
    return _mixture(multi_task.get_config().unlock(), values['steps']).lock()
  config = vectors.get_config().unlock()
  config.tasks = tuple(GYM_PREFIX + title for title in (*SEEN, *UNSEEN))
  config.data.max_source_length, config.data.max_target_length = 64, 8
  config.data.max_train_rows = 16
  return config.lock()
