"""Stages on RoBERTa and BERT with a head: rows with labels, scores, experts, mistakes."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from pemt_jax.data.playground import vocabulary
from pemt_jax.data.tokenizer import train_word_tokenizer
from pemt_jax.errors import UserError
from pemt_jax.experts.library import load_expert
from pemt_jax.interop import formats, roberta_files
from pemt_jax.methods.base import initialiser
from pemt_jax.models.roberta import Roberta
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.stages.artefacts import open_expert
from pemt_jax.stages.build import build
from pemt_jax.stages.predict import evaluate_experts, predict_examples
from pemt_jax.stages.run import run_stage
from pemt_jax.trees import flatten
from tests.stages import small

SHAPE = {'embed': 16, 'heads': 2, 'mlp': 24, 'encoder_layers': 2, 'positions': 40, 'pad_id': 0,
         'start_id': 2, 'eos_id': 1}
WORDS = ('the', 'cat', 'sat', 'on', 'a', 'mat', 'dog', 'ran', 'far')


def write_roberta(folder, labels=0, **changes):
  """A random encoder with a word tokenizer; the unknown word's id stands at the front."""
  tokenizer = train_word_tokenizer([*vocabulary(), *WORDS], folder, sentinels=4)
  config = RobertaConfig(vocab_size=tokenizer.vocab_size, **(SHAPE | changes))
  params, _ = initialiser(Roberta(config, labels=labels))(jax.random.key(0))
  roberta_files.save_roberta(folder, config, jax.tree.map(np.asarray, params))
  return str(folder)


@pytest.fixture(scope='module')
def roberta(base):
  return write_roberta(base / 'roberta')


@pytest.fixture(scope='module')
def run(base, roberta):
  """ProPETL on two tasks with two labels each, in one program."""
  config = small.config_of('propetl', roberta, steps=3, method__owners=('layer',),
                           method__reduction=4, method__density=0.5, train__eval_every=1)
  return run_stage(config, base / 'classes')


@pytest.fixture(scope='module')
def mixed(base, roberta):
  """ProPETL with masks of tasks and layers on a mixture of both tasks."""
  config = small.config_of(
      'propetl', roberta, method__owners=('task', 'layer'), method__reduction=4,
      mixture__sampling='equal', train__eval_every='never')
  return run_stage(config, base / 'mixed')


def test_replicas_train_and_score_with_the_metrics_of_their_tasks(run, base):
  for task in small.SOURCES:
    result = run.trained.results[task.replace('/', '-')]
    assert set(result['final_metrics']) >= {'accuracy', 'loss', 'average_metrics'}
    lines = [json.loads(line) for line in
             (base / 'classes' / 'predictions' / f'{task.replace("/", "-")}.test.jsonl')
             .read_text().splitlines()]
    assert len(lines) == 16 and {'source', 'target', 'prediction'} <= set(lines[0])
    right = np.mean([line['prediction'] == line['target'] for line in lines])
    assert result['final_metrics']['accuracy'] == pytest.approx(100 * right)


def test_scores_prototype_and_head_are_trained_and_the_backbone_is_not(run):
  tuned, _, card = load_expert(run.experts['playground-omen'])
  paths = set(flatten(tuned))
  assert 'head/out/kernel' in paths and 'deltas/propetl/down/kernel' in paths
  assert 'encoder/propetl/layer_mlp_norm/down_kernel' in paths
  assert not any('self_attention' in path for path in paths)
  assert card.extra['options']['form'] == 'adapter'


def test_an_expert_scores_again_what_it_scored(run):
  folder = run.experts['playground-tide']
  found = evaluate_experts(folder, 'test', {})
  expected = run.trained.results['playground-tide']['final_metrics']
  for name, value in next(iter(found.values())).items():
    assert value == pytest.approx(expected[name], rel=1e-5), name
  opened = open_expert(folder)
  spec = next(iter(opened.stage.specs.values()))
  examples = opened.stage.store.examples(spec, 'test').examples
  words = [example.target for example in examples]
  texts, scores = predict_examples(opened, examples)
  right = np.mean([text == word for text, word in zip(texts, words)])
  assert expected['accuracy'] == pytest.approx(100 * right)
  np.testing.assert_allclose(np.exp(scores).sum(-1), 1.0, rtol=1e-5)


def test_experts_become_folders_of_the_original_and_come_back(run, roberta, tmp_path):
  expert = run.experts['playground-omen']
  options = formats.Options(weights='safetensors')
  assert not formats.convert('expert', 'propetl_roberta', str(expert), str(tmp_path), options)
  folder = tmp_path / 'omen'
  assert {file.name for file in folder.iterdir()} == {
      'adapter_config.json', 'head_config.json', 'adapter_mask.safetensors',
      'pytorch_adapter.safetensors', 'pytorch_model_head.safetensors'}
  options = formats.Options(sources=('playground/omen',), backbone=roberta)
  back = tmp_path / 'back'
  formats.convert('propetl_roberta', 'expert', str(folder), str(back), options)
  overrides = {'data.source': 'playground', 'data.template': 'default', 'data.max_test_rows': 16,
               'data.max_source_length': 24, 'data.split_rule': 'published'}
  found = evaluate_experts(back, 'test', overrides)['back']
  expected = run.trained.results['playground-omen']['final_metrics']
  assert found['loss'] == pytest.approx(expected['loss'], rel=1e-5)
  assert found['accuracy'] == expected['accuracy']


def test_a_packed_expert_scores_the_same(run, tmp_path):
  expert = run.experts['playground-tide']
  formats.convert('expert', 'packed', str(expert), str(tmp_path / 'packed'), formats.Options())
  found = evaluate_experts(tmp_path / 'packed', 'test', {})['packed']
  expected = run.trained.results['playground-tide']['final_metrics']
  assert found['loss'] == pytest.approx(expected['loss'], rel=1e-6)


def test_masks_of_tasks_have_no_place_in_the_original(mixed, tmp_path):
  expert = mixed.experts['mixture']
  with pytest.raises(UserError, match='this expert has masks of task, layer over a prototype'):
    formats.convert('expert', 'propetl_roberta', str(expert), str(tmp_path), formats.Options())


def test_a_batch_may_mix_tasks_under_masks_of_their_own(mixed):
  result = mixed
  spec, = result.stage.specs.values()
  batch = next(result.stage.store.stream(spec))
  assert set(batch['task_ids']) == {0, 1} and batch['labels'].shape == (8,)
  tuned = flatten(load_expert(result.experts['mixture'])[0])
  assert tuned['deltas/propetl/task/down_kernel'].shape == (2, 16, 4)
  metrics = result.trained.results['mixture']['final_metrics']
  assert {f'{task}/accuracy' for task in small.SOURCES} <= set(metrics)


def rows_of(folder, task, labels):
  rng = np.random.default_rng(0)
  text = lambda: ' '.join(rng.choice(WORDS, size=rng.integers(2, 6)))
  files = {}
  for split in ('train', 'validation', 'test'):
    rows = [{'sentence1': text(), 'sentence2': text(), 'label': labels(rng)} for _ in range(12)]
    path = folder / f'{task}.{split}.jsonl'
    path.write_text('\n'.join(map(json.dumps, rows)))
    files[split] = str(path)
  return files


def paired(stage, backbone, files, task, **changes):
  config = small.config_of(stage, backbone, tasks=(task,), data__source='local',
                           data__template='pair', data__split_rule='natural', **changes)
  with config.unlocked():
    for split, path in files.items():
      config.data.files[split] = path
  return config


def test_pairs_stand_apart_and_a_regression_is_scored_by_correlation(base, roberta):
  files = rows_of(base, 'stsb', lambda rng: float(rng.uniform(0, 5)))
  config = paired('lora', roberta, files, 'propetl/stsb', train__eval_every='never')
  result = run_stage(config, base / 'regression')
  batch = result.stage.store.eval_batches(next(iter(result.stage.specs.values())), 'test')[0]
  row = batch['inputs'][0][batch['inputs_mask'][0] > 0].tolist()
  assert row[0] == 2 and row[-1] == 1 and row.count(1) == 3
  middle = row.index(1)
  assert row[middle + 1] == 1  # RoBERTa repeats the end between the texts
  assert 'token_types' not in batch and batch['labels'].dtype == np.float32
  metrics = result.trained.results['propetl-stsb']['final_metrics']
  assert {'pearson', 'spearmanr', 'loss'} <= set(metrics) or any('pearson' in m for m in metrics)
  tuned = load_expert(result.experts['propetl-stsb'])[0]
  assert flatten(tuned)['head/out/kernel'].shape == (16, 1)


def test_bert_gets_token_types_and_keeps_a_fitting_head(base):
  files = rows_of(base, 'rte', lambda rng: int(rng.integers(2)))
  folder = write_roberta(base / 'bert', labels=2, kind='bert', token_types=2)
  stage = build(paired('full', folder, files, 'rte'), base / 'bert_run')
  spec = next(iter(stage.specs.values()))
  for batch in stage.store.eval_batches(spec, 'test'):
    real_rows = batch['example_ids'] >= 0
    for row, types in zip(batch['inputs'][real_rows], batch['token_types'][real_rows]):
      end = row.tolist().index(1)
      real = int((row != 0).sum())
      assert types[:end + 1].sum() == 0 and types[end + 1:real].all() and not types[real:].any()
  _, params = roberta_files.load_roberta(folder)
  tuned, _ = stage.start(stage.experiment().replicas[0])
  np.testing.assert_array_equal(tuned['head']['out']['kernel'], params['head']['out']['kernel'])


def test_a_head_of_another_size_starts_afresh(base):
  files = rows_of(base, 'rte', lambda rng: int(rng.integers(2)))
  folder = write_roberta(base / 'three', labels=3)
  stage = build(paired('full', folder, files, 'rte'), base / 'three_run')
  tuned, _ = stage.start(stage.experiment().replicas[0])
  assert tuned['head']['out']['kernel'].shape == (16, 2)


@pytest.mark.parametrize('changes, sentence', [
    ({'tasks': ('mnli', 'rte')}, 'heads of one size, not mnli 3, rte 2'),
    ({'stage': 'pemt/stage1'}, 'stage pemt/stage1 needs a text-to-text backbone'),
    ({'stage': 'span_corruption'}, 'stage span_corruption needs a text-to-text backbone')])
def test_what_does_not_fit_is_told(base, roberta, changes, sentence):
  changes = {'stage': 'lora', 'tasks': ('rte',)} | changes
  (base / 'text.txt').write_text('the cat sat on the mat\n' * 20)
  config = small.config_of(changes['stage'], roberta, tasks=changes['tasks'], data__source='local',
                           data__text=(str(base / 'text.txt'),))
  with pytest.raises(UserError, match=sentence):
    run_stage(config, base / 'mistake')


def test_a_tokenizer_of_another_backbone_is_told(base):
  folder = write_roberta(base / 'other', pad_id=1, start_id=0, eos_id=2)
  config = small.config_of('lora', folder, tasks=('rte',))
  with pytest.raises(UserError, match='the tokenizer has id 0 for padding, but backbone'):
    build(config, base / 'other_run')
