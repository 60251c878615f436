"""Readers of foreign files for the fuzzer: how a whole input is made, and how it is read."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import json
import pathlib
import shutil
import zlib
from collections.abc import Callable
from unittest import mock

from absl import flags
from ml_collections import ConfigDict, config_flags
import numpy as np

from pemt_jax import cli, guards
from pemt_jax.data import gym_files, sources, tasks
from pemt_jax.data.datasets import DataConfig, load_task
from pemt_jax.data.text import read_documents
from pemt_jax.data.tokenizer import load_tokenizer, train_word_tokenizer
from pemt_jax.errors import UserError
from pemt_jax.experts import library, packed
from pemt_jax.interop import (
    bart_files, cards, ensembling_checkpoint, ensembling_files, files, formats, huggingface,
    task_vector_files)
from pemt_jax.methods import propetl, zoo
from pemt_jax.methods.base import boxed_shapes
from pemt_jax.models.bart_config import BartConfig
from pemt_jax.models.families import family_of
from pemt_jax.models.t5 import T5
from pemt_jax.models.t5_config import T5Config
from pemt_jax.reports import html
from pemt_jax.stages.artefacts import config_of, open_expert
from pemt_jax.stages.config import base_config, data_config, options_of
from pemt_jax.stages.predict import read_examples
from pemt_jax.stages.rows import replica_specs
from pemt_jax.training.config import check_train_config
from pemt_jax.training.rules import split_params
from pemt_jax.trees import flatten, unflatten

Folder = pathlib.Path
REPO = pathlib.Path(__file__).resolve().parents[1]
WHOLE, OUTPUT, BACKBONE = 'whole', 'output', 'backbone'  # folders beside each other
_CONFIG = T5Config(vocab_size=16, embed=8, kv=4, heads=2, mlp=12, encoder_layers=1,
                   decoder_layers=1, relative_buckets=4)
_ROWS = [{'sentence1': f'ann {i} \u00e9', 'sentence2': 'bob', 'label': i % 2, 'idx': i}
         for i in range(4)]


@dataclasses.dataclass(frozen=True)
class Case:
  """A reader.

  Attributes:
    make: writes a whole input into an empty folder.
    read: reads a folder; a `UserError` is as good as an answer.
  """

  make: Callable[[Folder], object]
  read: Callable[[Folder], object]


def _values(shape: tuple[int, ...], path: str) -> np.ndarray:
  rng = np.random.default_rng(zlib.crc32(path.encode()))
  return rng.normal(size=shape).astype(np.float32)


def _backbone(folder: Folder) -> str:
  """A random T5 that all cases share, beside the folder of one."""
  place = folder.parent / BACKBONE
  if not place.is_dir():
    shapes = huggingface.t5_table(_CONFIG).leaf_shapes()
    huggingface.save_t5(place, _CONFIG, unflatten({path: _values(shape, path)
                                                   for path, shape in shapes.items()}))
  return str(place)


def _expert(folder: Folder, stage: str, names: tuple[str, ...] = ('rte',), **values) -> None:
  """An expert of random values; several tasks for methods that have tasks."""
  name = _backbone(folder)
  config, backbone = huggingface.load_t5(name)
  options = dataclasses.replace(zoo.ZOO[stage].default_options(), **values)
  length = 3 if stage == 'prompt' else 0
  method = zoo.ZOO[stage].make(options, config, length)
  shapes = flatten(boxed_shapes(T5(config, method.plan))['params'])
  _, tuned = split_params(unflatten({
      path: _values(leaf.value.shape if hasattr(leaf, 'value') else leaf.shape, path)
      for path, leaf in shapes.items()}), method.tuned)
  constants = {'encoder': {'embed': {'prompt': {'mask': np.ones(3, np.float32)}}}} if length else {}
  library.save_expert(folder, tuned, constants, cards.card_of(
      'expert', stage, method, options, names[0], (name, backbone), tasks=list(names)))


def _foreign(kind: str, stage: str, weights: str = '', **values) -> Case:
  """An adapter folder of another program, made out of an expert."""
  def make(folder):
    _expert(folder.parent / 'expert', stage, **values)
    _convert(kind, folder, 'expert', weights)

  def read(folder):
    _convert('expert', folder.parent / OUTPUT, folder.name, '', kind)

  return Case(make, read)


def _convert(to: str, target: Folder, source: str, weights: str = '', kind: str = 'expert') -> None:
  options = formats.Options(backbone=str(target.parent / BACKBONE) if kind != 'expert' else None,
                            weights=weights, sources=('rte',) if kind == 'pemt_stage1' else ())
  formats.convert(kind, to, str(target.parent / source), str(target), options)


def _rows(name: str, write: Callable[[pathlib.Path], object]) -> Case:
  """Rows of a task in one file, read for training and for predictions."""
  def read(folder):
    path = folder / name
    config = DataConfig(files={'train': str(path)}, split_rule='natural')
    load_task('rte', 'train', config)
    read_examples(path, 'rte')

  return Case(lambda folder: write(folder / name), read)


def _write_json_lines(path: pathlib.Path) -> None:
  path.write_text(''.join(json.dumps(row) + '\n' for row in _ROWS))


def _write_separated(mark: str, path: pathlib.Path) -> None:
  lines = [mark.join(map(str, values)) for values in (_ROWS[0], *(row.values() for row in _ROWS))]
  path.write_text('\n'.join(lines) + '\n')


def _write_parquet(path: pathlib.Path) -> None:
  import pandas
  pandas.DataFrame(_ROWS * 20).to_parquet(path)


def _write_gym(folder: Folder) -> None:
  place = folder / 'glue-rte'
  place.mkdir()
  for part in ('train', 'dev', 'test'):
    gym_files.write_lines(place / f'glue-rte_16_13_{part}.tsv', [('ann', ['entailment'])] * 3)
  few = [{'seed': 21, 'k': 16, 'split': 'train', 'input': 'a', 'output': 'b', 'options': ['b']}]
  (place / 'fewshot.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in few * 3))


def _read_gym(folder: Folder) -> None:
  for wanted in ('glue-rte_16_13', 'glue-rte_16_21'):
    gym_files.read_prebuilt('glue-rte', 'train', folder, wanted)


def _write_text(folder: Folder) -> None:
  (folder / 'a.txt').write_text('one two\nthree\n\nfour\n')
  with gzip.open(folder / 'b.txt.gz', 'wt') as file:
    file.write('five six\n' * 50)


def _write_task_rows(folder: Folder) -> None:
  """Rows whose fields are those of many templates, of wrong and of right types."""
  row = {'question': 'who', 'context': 'ann', 'passage': 'ann', 'answers': {'text': ['ann']},
         'query': 'x @placeholder', 'entities': ['ann'], 'choices': {'text': ['a', 'b'],
                                                                     'label': ['A', 'B']},
         'label': 0, 'idx': {'paragraph': 0, 'question': 1, 'answer': 2}, 'text': 'ann saw bob',
         'span1_index': 0, 'span2_index': 2, 'span1_text': 'ann', 'span2_text': 'bob',
         'answer': ['a'], 'premise': 'p', 'hypothesis': 'h', 'sentence1': 's', 'sentence2': 't',
         'paragraph': 'p', 'options': ['a', 'b'], 'answerKey': 'A', 'choice1': 'a', 'choice2': 'b'}
  (folder / 'rows.jsonl').write_text(json.dumps(row) + '\n')


def _read_task_rows(folder: Folder) -> None:
  table = sources.read_file(folder / 'rows.jsonl')
  for task in (*tasks.TASKS.values(), *tasks.GYM_TASKS.values()):
    for index, row in enumerate(table.rows):
      _ignored(table, index, task.template, row)


def _ignored(table, index, template, row) -> None:
  with contextlib.suppress(UserError), table.reading(index):  # Other tasks have other columns.
    template(row)


def _write_weights(weights: str, folder: Folder) -> None:
  huggingface.save_t5(folder, _CONFIG, huggingface.load_t5(_backbone(folder))[1],
                      shards=2 if weights == 'shards' else 1, torch_format=weights == 'torch')


def _write_legacy(folder: Folder) -> None:
  import torch
  tensors = {name: torch.from_numpy(np.array(value))
             for name, value in files.read_tensors(_backbone(folder)).items()}
  torch.save(tensors, folder / files.TORCH, _use_new_zipfile_serialization=False)
  shutil.copy(pathlib.Path(_backbone(folder)) / 'config.json', folder)


def _write_bart(folder: Folder) -> None:
  config = BartConfig(16, 8, 2, 12, 1, 1, positions=8)
  shapes = bart_files.bart_table(config).leaf_shapes()
  bart_files.save_bart(folder, config, unflatten({path: _values(shape, path)
                                                  for path, shape in shapes.items()}))


def _write_checkpoint(folder: Folder) -> None:
  flags = {'tune_method': 'lora', 'apply_lora': True, 'lora_r': 2}
  table = ensembling_checkpoint.Checkpoint({}, flags).table(_CONFIG)
  tree = unflatten({path: _values(shape, path) for path, shape in table.leaf_shapes().items()})
  made = ensembling_checkpoint.from_tree(tree, flags, _CONFIG)
  ensembling_checkpoint.write(folder / 'a.pt', made)


def _read_checkpoint(folder: Folder) -> None:
  ensembling_checkpoint.read(folder / 'a.pt').tree(_CONFIG)


def _write_tables(folder: Folder) -> None:
  matrix = ensembling_files.Matrix(('a', 'b'), ('c', 'd'), np.ones((2, 2)))
  ensembling_files.write_similarity(folder / 'result.tsv', matrix)
  ensembling_files.write_weights(folder / 'final_weight.txt', matrix)
  ensembling_files.write_zero_shot(folder / 'zero.tsv', matrix.values)


def _read_tables(folder: Folder) -> None:
  ensembling_files.read_weights(folder / 'final_weight.txt', ('c', 'd'))
  ensembling_files.read_zero_shot(folder / 'zero.tsv', ('a', 'b'), ('c', 'd'))
  ensembling_files.read_similarity(folder / 'result.tsv')


def _write_vectors(folder: Folder) -> None:
  from pemt_jax.experts.task_vectors import TaskVectors
  task_vector_files.write_task_vectors(folder, TaskVectors(('a', 'b'), np.ones((2, 3), np.float32)))


def _read_tokenizer(folder: Folder) -> None:
  load_tokenizer(folder).encode_batch(['one two', ' \u202e\x00three', ''])


def _read_expert(folder: Folder) -> None:
  config_of(library.load_expert(folder)[2])


def _write_opened(folder: Folder) -> None:
  train_word_tokenizer(['one two three'], _backbone(folder), 2)
  _expert(folder, 'lora', rank=2)


def _write_packed(folder: Folder) -> None:
  _expert(folder.parent / 'masked', 'propetl', reduction=2, owners=('layer',))
  packed.pack_expert(folder.parent / 'masked', folder)


def _write_run(folder: Folder) -> None:
  """A workdir as a stage leaves it."""
  from pemt_jax.reports import files as report_files
  texts = {
      'result.json': {'records': [{'task': 'cb', 'method': 'm', 'metric': 'f', 'value': 1.0}],
                      'replicas': {'cb-seed1': {'metric': 'f', 'best_step': 7, 'final_metrics': {
                          'test/f': 0.5}, 'test': {'loss': 0.25}}}, 'seconds': 12.5,
                      'tables': [{'title': 't', 'columns': ['a'], 'rows': [
                          {'name': 'r', 'cells': {'a': 1}}]}]},
      'config.json': {'seed': 42, 'stage': 'lora', 'tasks': ['cb']},
      'environment.json': {'packages': {'jax': '0.10'}, 'devices': 1, 'device_kind': 'cpu'},
      'times.json': {'step': 3.0, 'input': 0.5}, 'parameters.json': {'frozen_parameters': 1234},
      'resources.json': {'seconds': 4.0, 'peak_host_bytes': 2097152}}
  for name, value in texts.items():
    (folder / name).write_text(json.dumps(value))
  (folder / 'metrics.jsonl').write_text(''.join(
      json.dumps({'step': step, 'replica': 'cb-seed1', 'train/loss': 1.0}) + '\n'
      for step in range(3)))
  report_files.save_correlation(folder / 'correlation.npz', report_files.Correlation(
      ('cb',), ('mnli', 'qqp'), np.ones((1, 2))))


def _write_overrides(folder: Folder) -> None:
  config = base_config('lora')
  (folder / 'a.json').write_text(json.dumps(
      [[key, _as_text(config, key)] for key in cli.flat_keys(config)]))


def _as_text(config: ConfigDict, key: str) -> str:
  for part in key.split('.'):
    config = config[part]
  return str(config)


def _read_overrides(folder: Folder) -> None:
  """Gives overrides that are not the defaults on a command line, and checks the config."""
  with guards.reading(folder):
    pairs = [(str(key), str(value)) for key, value in guards.read_json(folder / 'a.json')]
  config = base_config('lora')
  known = set(cli.flat_keys(config))
  changed = [f'--config.{key}={value}' for key, value in pairs
             if key not in known or _as_text(config, key) != value]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values, lock_config=True)
  with mock.patch.object(flags, 'FLAGS', values):
    cli.parse_flags(['train', f"--config={REPO / 'configs/baselines/lora.py'}:task=rte", *changed])
  config = values['config'].value
  check_train_config(config.train)
  for spec in replica_specs(config):
    data_config(spec.config)
    options_of(spec.config)


def _read_family(folder: Folder) -> None:
  family_of(folder).read(folder)


CASES: dict[str, Case] = {
    'rows_jsonl': _rows('a.jsonl', _write_json_lines),
    'rows_json': _rows('a.json', lambda path: path.write_text(json.dumps(_ROWS))),
    'rows_csv': _rows('a.csv', functools.partial(_write_separated, ',')),
    'rows_tsv': _rows('a.tsv', functools.partial(_write_separated, '\t')),
    'rows_gzip': _rows('a.jsonl.gz', lambda path: path.write_bytes(
        gzip.compress(''.join(json.dumps(row) + '\n' for row in _ROWS * 50).encode()))),
    'rows_parquet': _rows('a.parquet', _write_parquet),
    'overrides': Case(_write_overrides, _read_overrides),
    'templates': Case(_write_task_rows, _read_task_rows),
    'gym': Case(_write_gym, _read_gym),
    'text': Case(_write_text, lambda folder: list(read_documents(sorted(folder.iterdir())))),
    'tokenizer': Case(lambda folder: train_word_tokenizer(['one two three'], folder, 2),
                      _read_tokenizer),
    't5_safetensors': Case(functools.partial(_write_weights, ''), huggingface.load_t5),
    't5_shards': Case(functools.partial(_write_weights, 'shards'), huggingface.load_t5),
    't5_torch': Case(functools.partial(_write_weights, 'torch'), huggingface.load_t5),
    't5_torch_legacy': Case(_write_legacy, huggingface.load_t5),
    'bart': Case(_write_bart, bart_files.load_bart),
    'family': Case(_write_bart, _read_family),
    'expert': Case(functools.partial(_expert, stage='lora'), _read_expert),
    'opened': Case(_write_opened, open_expert),
    'packed': Case(_write_packed, _read_expert),
    'peft_lora': _foreign('peft', 'lora'),
    'peft_prompt': _foreign('peft', 'prompt', 'torch'),
    'adapterhub': _foreign('adapterhub', 'pfeiffer', reduction=2),
    'propetl': _foreign('propetl', 'propetl', reduction=2, owners=('layer',)),
    'hyperformer': _foreign('hyperformer', 'adapter_controller', reduction=2),
    'ensembling_checkpoint': Case(_write_checkpoint, _read_checkpoint),
    'ensembling_tables': Case(_write_tables, _read_tables),
    'task_vectors': Case(_write_vectors, task_vector_files.read_task_vectors),
    'report': Case(_write_run, html.write_report),
}
