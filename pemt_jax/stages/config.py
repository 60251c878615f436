"""The fields of a stage's config, with the published values as defaults."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import ml_collections as mlc
from ml_collections import config_dict

from pemt_jax.data.datasets import DataConfig
from pemt_jax.data.tasks import SPLITS, get_task
from pemt_jax.errors import UserError
from pemt_jax.methods import baselines, language_modelling, pemt, zoo
from pemt_jax.models.decoding import GenerationConfig
from pemt_jax.sharding.mesh import MeshShape
from pemt_jax.training.config import default_train_config

# stage -> options of its method; beside them stand the names of `methods.zoo`, joined by '+', and
# these behind 'language_modelling/'.
STAGES = {
    'pemt/stage1': pemt.Stage1Options,
    'pemt/stage2': pemt.Stage2Options,
    'span_corruption': baselines.FullOptions,
    language_modelling.NAME: baselines.FullOptions,
}


# Decoding options that are None in a config as long as those of the backbone stand.
_GENERATION = {'num_beams': int, 'length_penalty': float, 'early_stopping': bool,
               'no_repeat_ngram_size': int, 'min_length': int, 'forced_bos_token_id': int,
               'forced_eos_token_id': int, 'start_id': int}
NO_TOKEN = -1  # a forced token in a config that takes back that of the backbone

# Fields of `train` that each replica has for itself, whatever the others of its program do.
_OWN_TRAIN_FIELDS = ('steps', 'epochs', 'learning_rate', 'warmup_steps')


def stage_names() -> tuple[str, ...]:
  """Stages by name; those of the zoo may also be joined by '+'."""
  return (*STAGES, *zoo.ZOO)


def is_stage(stage: str) -> bool:
  """Whether there is such a stage."""
  return stage in STAGES or bool(zoo.names_of(stage))


def _require_stage(stage: str) -> None:
  if not is_stage(stage):
    raise UserError(f"stage '{stage}' is unknown; choose one of {', '.join(STAGES)}, or one or"
                    f" several, joined by '+', of {', '.join(zoo.ZOO)}.")


def optional(value: Any, kind: type) -> config_dict.FieldReference:
  """A field that holds None or a value of `kind`."""
  return config_dict.FieldReference(value, field_type=kind)


def _fields(instance: Any, kinds: dict[str, type]) -> mlc.ConfigDict:
  """A ConfigDict with the fields of a dataclass; `kinds` types those that may be None."""
  config = mlc.ConfigDict()
  for field in dataclasses.fields(instance):
    value = getattr(instance, field.name)
    if value is None:
      value = optional(None, kinds.get(field.name, int))
    elif isinstance(value, dict):
      value = mlc.ConfigDict(value)
    config[field.name] = value
  return config


def _method_fields(stage: str) -> mlc.ConfigDict:
  """Options of the stage's method; those of several names stand below each name."""
  kinds = {'encoder_layers': tuple, 'decoder_layers': tuple}
  if stage in STAGES:
    return _fields(STAGES[stage](), kinds)
  options = zoo.default_options(stage)
  if len(options) == 1:
    return _fields(*options.values(), kinds)
  return mlc.ConfigDict({name: _fields(value, kinds) for name, value in options.items()})


def _mixture_fields() -> mlc.ConfigDict:
  """One replica for all tasks, which share what it trains; '' trains a replica for each task."""
  mixture = mlc.ConfigDict()
  mixture.sampling = ''           # '' | 'proportional' | 'equal' | 'temperature' (of rows ^ 1/T)
  mixture.temperature = 2.0       # T, at least 1
  mixture.batches = 'mixed'       # | 'single' task | 'drawn' (ProPETL) | 'episodes' of a task each
  mixture.episodes = 1            # of a batch of 'episodes'
  mixture.seed = optional(None, int)  # of 'drawn' (published: 0); None takes the replica's
  mixture.average = 'tasks'       # average_metrics: mean of the tasks' | of all 'values' (ProPETL)
  return mixture


def _generation_fields() -> mlc.ConfigDict:
  """Decoding options of evaluation and prediction."""
  generation = mlc.ConfigDict({'max_length': GenerationConfig.max_length})
  for name, kind in _GENERATION.items():  # see `GenerationConfig`; None: as the backbone has it
    generation[name] = optional(None, kind)
  generation.labels_only = False  # tasks with label words: the most probable of them, no free text
  generation.by_task = False      # a task's own max_length and num_beams come before these
  generation.compat_length_in_average = False  # of free texts, in average_metrics (published)
  generation.samples = 0          # held-out texts that evaluation continues (language modelling)
  generation.prompt_tokens = 16   # of each, at its beginning
  generation.temperature = 1.0    # of sampling; above 0
  generation.top_k = 0            # most probable tokens that may be drawn; 0 all, 1 no sampling
  generation.top_p = 1.0          # probability of the fewest tokens that may be drawn
  return generation


def _prompt_fields() -> mlc.ConfigDict:
  prompt = mlc.ConfigDict()
  # 'vocab' | 'sample' | 'normal' (published by PEMT) | 'uniform' | 'scaled_uniform' | 'sources'
  prompt.init = 'vocab'
  prompt.length = 0               # tokens; 0 takes the number of tokens of the description
  prompt.weighting = 'copy'       # of config.sources: 'copy' of one | 'similarity' | 'random'
  prompt.target = ''              # prompt of the target task, to which sources are compared
  prompt.descriptions = mlc.ConfigDict()  # task -> sentence in place of the task's own
  return prompt


def _model_fields() -> mlc.ConfigDict:
  """Backbone and how to compute."""
  model = mlc.ConfigDict()
  model.name = 't5-base'          # published name, hub id, local folder, or 'playground'
  model.tokenizer = ''            # the same; '' takes model.name
  model.weights = 'pretrained'    # 'pretrained' | 'random' (a folder's or name's config only)
  model.shape = mlc.ConfigDict()  # T5Config field -> value in place of the name's (random weights)
  model.embedding = 'random'      # 'random' | 'cooccurrence' start of random weights' embedding
  model.attention_start = 'random'  # 'random' | 'matching' start of random weights (T5)
  model.dtype = 'float32'         # 'float32' | 'bfloat16' activations and products
  # 'float32' | 'bfloat16' storage of frozen parameters; 'auto': bfloat16 on an accelerator
  model.frozen_dtype = 'auto'
  # 'default' | 'high' | 'highest': float32 products; 'default' rounds their inputs on accelerators
  model.matmul_precision = 'default'
  # Loop over layers by scan, or not; None: not for stacks of at most 8 layers on a CPU.
  model.scan_layers = optional(None, bool)
  # 'none' | 'dots' | 'projections' | 'full': what the backward pass recomputes of a layer
  model.remat = 'none'
  model.attention = 'auto'        # 'auto' | 'plain' | 'fused' kernel of the platform
  model.attention_dropout = optional(None, float)  # None: as the backbone; a kernel has 0.0 only
  return model


def _data_fields() -> mlc.ConfigDict:
  """Where rows come from and how they make batches."""
  data = _fields(DataConfig(), {'root': str})
  for name in ('files', 'split_names'):
    data[name] = {split: optional(None, str) for split in SPLITS}
  data.max_source_length = 256    # tokens of the input text, prompt not counted
  data.max_target_length = 128    # tokens; tasks with labels state their own limit
  data.compat_truncated_targets = False  # score against targets cut to that length (published)
  data.batch_size = 32            # rows per step and replica
  data.eval_batch_size = 128      # rows per evaluation batch and replica
  data.buckets = ()               # allowed input lengths; () takes powers of two from 32
  data.target_buckets = ()        # allowed target lengths; () takes powers of two from 8
  data.packing = False            # several examples of a task in one row; batch_size counts rows
  data.packed_length = 0          # positions of a packed input; 0: max_source_length and the prompt
  data.packed_target_length = 0   # of its targets; 0: what the inputs of a row need on average
  data.lookahead = 32             # steps whose rows are sorted by length together; 1: no sorting
  data.cache_dir = ''             # folder of the token cache; '' is <workdir>/cache
  data.text = ()                  # files or folders of plain text (span corruption, language)
  data.text_validation = ()       # held-out text; () holds out chunks (language modelling)
  data.text_test = ()             # the same for the split 'test'
  data.text_tasks = ()            # tasks whose train inputs are text too (span corruption)
  data.sentences = 20000          # sentences of the playground's text, if data.source says so
  data.unit = 'chunk'             # 'chunk' of max_source_length | 'line' (span corruption)
  data.objective = 'span_corruption'  # of pretraining | 'text_infilling' | 'prefix_lm'
  data.noise_density = optional(None, float)  # share of hidden tokens; None: 0.15, or 0.3 (BART)
  data.mean_span = 3.0            # hidden tokens in a row, on average (pretraining)
  data.permute_sentences = False  # of an input, before that (text infilling)
  data.validation_chunks = 64     # chunks held out (span corruption, language modelling)
  return data


def base_config(stage: str) -> mlc.ConfigDict:
  """Returns the config of a stage; a config file changes what its recipe needs.

  Raises:
    UserError: unknown stage.
  """
  _require_stage(stage)
  config = mlc.ConfigDict()
  config.stage = stage
  # Replicas: one for every task x start x seed x learning rate x batch size.
  config.tasks = ()               # task names
  config.seeds = (42,)            # >= 0; initialisation, dropout, data order
  config.learning_rates = ()      # peak rates; () takes train.learning_rate
  config.batch_sizes = ()         # rows per step; () takes data.batch_size
  config.mixture = _mixture_fields()
  config.together = 'all'         # in one program: 'all' replicas | those of a 'task' | 'none'
  config.frozen_seed = 0          # of deltas that stay at their random start
  config.few_shot_by_seed = False  # draw few-shot rows by the replica's seed, not data.data_seed
  config.mesh = _fields(MeshShape(), {})  # devices along each axis, one of them -1: what is left
  config.model = _model_fields()
  config.method = _method_fields(stage)
  config.trainable = ()           # ((path pattern, group or 'frozen'), ...) before the method's own
  config.prompt = _prompt_fields()
  if language_modelling.is_language(stage):
    config.prompt.descriptions[language_modelling.NAME] = 'continue the text'
  config.sources = ()             # folders of source experts, in the order of the bank
  config.starts = ()              # experts to start from, one replica for each; () starts afresh
  config.start_only = ()          # path patterns of what is taken from them; () takes all
  config.data = _data_fields()
  config.generation = _generation_fields()
  config.train = default_train_config()
  config.train.metric = 'average_metrics'
  # Fields that differ for a task, such as {'superglue-multirc': {'data': {'batch_size': 64}}}; see
  # `for_task` for what may differ.
  config.per_task = mlc.ConfigDict()
  return config.lock()


def options_of(config: mlc.ConfigDict) -> Any:
  """Returns the method's options: a dataclass, or {name: dataclass} of several joined names.

  Raises:
    UserError: an unknown stage, or options of another one.
  """
  _require_stage(config.stage)
  if config.stage in STAGES:
    return _as_options(STAGES[config.stage], config.method, config.stage)
  kinds = {name: zoo.ZOO[name].options for name in zoo.names_of(config.stage)}
  if len(kinds) == 1:
    return _as_options(*kinds.values(), config.method, config.stage)
  if set(config.method) != set(kinds):
    raise UserError(f"config.method does not hold the options of stage '{config.stage}'; choose a"
                    ' config file of that stage.')
  return {name: _as_options(kind, config.method[name], config.stage)
          for name, kind in kinds.items()}


def _as_options(kind: type, fields: mlc.ConfigDict, stage: str) -> Any:
  values = {name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items()}
  if set(values) != {field.name for field in dataclasses.fields(kind)}:
    raise UserError(f"config.method does not hold the options of stage '{stage}'; choose a"
                    ' config file of that stage.')
  return kind(**values)


def data_config(config: mlc.ConfigDict, seed: int | None = None) -> DataConfig:
  """Returns where rows come from; `seed` replaces the seed of the few-shot draw if configured."""
  names = {field.name for field in dataclasses.fields(DataConfig)}
  plain = config.data.to_dict()
  values = {name: value for name, value in plain.items() if name in names}
  for name in ('files', 'split_names'):
    values[name] = {split: given for split, given in values[name].items() if given is not None}
  if config.few_shot_by_seed and seed is not None:
    values['few_shot_seed'] = seed
  return DataConfig.from_mapping(values)


def for_task(config: mlc.ConfigDict, task: str) -> mlc.ConfigDict:
  """Returns the config with the differences of one task applied; `config` itself stays as it is.

  Where several tasks are trained in one program, `data` may differ between them, and of `train` the
  length, the peak rate and the warm-up. A task that has a program of its own may differ in all of
  `train`.

  Args:
    config: see `base_config`.
    task: canonical task name; `config.per_task` may use aliases.

  Raises:
    UserError: a difference is for no task, names no field, or a field that tasks share.
  """
  own = [differences for name, differences in config.per_task.items()
         if get_task(name).name == task]
  if not own:
    return config
  changed = copy.deepcopy(config)
  alone = len(config.tasks) == 1 or config.together != 'all'
  with changed.unlocked():
    for differences in own:
      _apply(changed, differences, f'per_task.{task}', '', alone)
  return changed


def _apply(node: mlc.ConfigDict, differences: mlc.ConfigDict, owner: str, place: str,
           alone: bool) -> None:
  for key, value in differences.items():
    name = f'{place}{key}'
    if key not in node:
      raise UserError(f"{owner} changes '{name}', which is no config field; correct it.")
    if isinstance(value, mlc.ConfigDict) and isinstance(node[key], mlc.ConfigDict):
      _apply(node[key], value, owner, f'{name}.', alone)
      continue
    _require_own(name, owner, alone)
    try:
      node[key] = value
    except TypeError as error:
      raise UserError(f"{owner} sets '{name}' to {value!r}, which is no"
                      f' {type(node[key]).__name__}; correct it.') from error


def _require_own(name: str, owner: str, alone: bool) -> None:
  part, _, field = name.partition('.')
  if part == 'data' or part == 'train' and field in _OWN_TRAIN_FIELDS:
    return
  if part != 'train':
    raise UserError(f"{owner} changes '{name}', which all tasks of a config share; only data and"
                    ' train may differ.')
  if not alone:
    raise UserError(f"{owner} changes '{name}', which all replicas of a program share; set"
                    ' config.together=task or give the task a config of its own.')


def parse_argument(text: str | None, **defaults: Any) -> dict[str, Any]:
  """Reads the argument of a config file, `file.py:name=value,name=value`.

  Args:
    text: what stands behind the colon.
    **defaults: known names with their defaults; values take the type of the default.

  Raises:
    UserError: an unknown name, or a value of another type.
  """
  values = dict(defaults)
  for part in filter(None, (text or '').split(',')):
    name, equals, value = part.partition('=')
    if name not in defaults or not equals:
      raise UserError(f"config argument '{part}' is unknown; give {', '.join(defaults)} as"
                      ' name=value, separated by commas.')
    try:
      values[name] = type(defaults[name])(value)
    except ValueError as error:
      raise UserError(f"config argument '{part}' is no {type(defaults[name]).__name__}; correct"
                      ' it.') from error
  return values


def generation_config(config: mlc.ConfigDict, model_config: Any) -> GenerationConfig:
  """Returns the decoding options: those of the backbone, with what the config says in their place.

  Args:
    config: of the stage.
    model_config: of the backbone; has ids, and perhaps decoding options of its checkpoint.
  """
  options = {'start_id': model_config.start_id, **dict(getattr(model_config, 'generation', ()))}
  options |= {name: config.generation[name] for name in _GENERATION
              if config.generation[name] is not None}
  for name in ('forced_bos_token_id', 'forced_eos_token_id'):
    if options.get(name) == NO_TOKEN:
      options[name] = None
  return GenerationConfig(config.generation.max_length, **options, eos_id=model_config.eos_id,
                          pad_id=model_config.pad_id)
