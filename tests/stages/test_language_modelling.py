"""Stages on plain text: a GPT-2 from text files, experts on it, perplexity, continued prompts."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from configs import language_modelling
from pemt_jax.data import playground
from pemt_jax.data.packed_text import pack
from pemt_jax.data.tokenizer import train_word_tokenizer
from pemt_jax.errors import UserError
from pemt_jax.interop import gpt2_files
from pemt_jax.stages.predict import evaluate_experts, predict_file
from pemt_jax.stages.run import run_stage
from tests.stages import small

SHAPE = dict(vocab_size=600, embed=16, heads=2, mlp=24, decoder_layers=1, positions=48)


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  """Folder with a tokenizer of words, text to train on and held-out text."""
  folder, lines = tmp_path_factory.mktemp('text'), playground.corpus(0, 300)
  train_word_tokenizer([*playground.vocabulary(), *lines], folder / 'words', sentinels=0)
  (folder / 'train.txt').write_text('\n\n'.join(lines[:250]))
  (folder / 'other.txt').write_text('\n\n'.join(lines[250:]))
  return folder


def config_of(texts, argument=None, **changes):
  config = language_modelling.get_config(argument)
  with config.unlocked():
    config.model.shape.update(SHAPE)
  config.model.tokenizer = str(texts / 'words')
  config.data.text = (str(texts / 'train.txt'),)
  config.data.text_validation = (str(texts / 'other.txt'),)
  config.data.max_source_length = 16
  config.data.batch_size = 8
  config.generation.max_length = 6
  config.generation.prompt_tokens = 5
  config.train.update(steps=30, warmup_steps=0, eval_every=15, learning_rate=1e-2, log_every=15,
                      tensorboard=False, progress='never')
  config.update_from_flattened_dict(
      {name.replace('__', '.'): value for name, value in changes.items()})
  return config


@pytest.fixture(scope='module')
def backbone(texts, tmp_path_factory):
  """(folder of the run, result) of a GPT-2 from text."""
  workdir = tmp_path_factory.mktemp('run')
  return workdir, run_stage(config_of(texts, generation__samples=4), workdir)


def scores_of(workdir):
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [line for line in lines if 'validation/perplexity' in line]


def test_perplexity_falls_and_the_result_is_a_gpt2(texts, backbone):
  workdir, result = backbone
  found = scores_of(workdir)
  values = [line['validation/perplexity'] for line in found]
  assert len(values) == 2 and values[1] < values[0] < 200
  assert math.isclose(math.log(values[1]), found[1]['validation/loss'], rel_tol=1e-5)
  assert 0 <= found[1]['validation/bleu'] <= 100 and 0 < found[1]['validation/self_bleu'] <= 100
  config, params = gpt2_files.load_gpt2(result.experts['backbone'])
  assert (config.embed, config.pad_id, config.eos_id, config.start_id) == (16, 0, 1, 1)
  assert params['decoder']['layers']['mlp']['wi']['kernel'].shape == (1, 16, 24)
  name, = result.trained.results
  rows = (workdir / 'predictions' / f'{name}.validation.jsonl').read_text().splitlines()
  assert len(rows) == 4 and len(json.loads(rows[0])['source'].split()) == 5


@pytest.mark.slow
def test_an_expert_on_text_is_trained_scored_and_asked(texts, backbone, tmp_path):
  config = config_of(texts, 'tuned=lora+prompt', train__steps=2, train__eval_every=1,
                     prompt__length=3)
  config.model.name = str(backbone[1].experts['backbone'])
  config.model.tokenizer = ''
  result = run_stage(config, tmp_path)
  (name, folder), = result.experts.items()
  before = scores_of(backbone[0])[-1]['validation/perplexity']
  assert abs(scores_of(tmp_path)[-1]['validation/perplexity'] / before - 1) < 0.3
  again = evaluate_experts(folder, 'validation', {})[name]
  best = result.trained.results[name]['final_metrics']
  assert math.isclose(again['perplexity'], best['perplexity'], rel_tol=1e-5)
  lines = playground.corpus(0, 300)[250:253]
  rows = [{'source': ' '.join(line.split()[:size])} for line, size in zip(lines, (1, 3, 4))]
  (tmp_path / 'in.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  assert predict_file(folder, tmp_path / 'in.jsonl', tmp_path / 'out.jsonl',
                      {'generation.top_k': 1}) == 3
  found = [json.loads(line) for line in (tmp_path / 'out.jsonl').read_text().splitlines()]
  assert [row['source'] for row in found] == [row['source'] for row in rows]
  (tmp_path / 'one.jsonl').write_text(json.dumps(rows[1]))
  predict_file(folder, tmp_path / 'one.jsonl', tmp_path / 'alone.jsonl', {'generation.top_k': 1})
  assert json.loads((tmp_path / 'alone.jsonl').read_text()) == found[1]
  (tmp_path / 'in.jsonl').write_text('{"source": ""}')
  with pytest.raises(UserError, match="no text in 'source' to continue"):
    predict_file(folder, tmp_path / 'in.jsonl', tmp_path / 'out.jsonl', {})


@pytest.mark.slow
def test_text_to_text_tasks_run_on_a_gpt2(texts, backbone, tmp_path):
  config = small.config_of('lora', str(backbone[1].experts['backbone']), (small.TARGET,), steps=3)
  result = run_stage(config, tmp_path)
  (name, folder), = result.experts.items()
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  losses = [json.loads(line)['train/loss'] for line in lines if 'train/loss' in line]
  assert len(losses) == 3 and losses[-1] < losses[0]
  scores = evaluate_experts(folder, 'test', {})[name]
  assert scores['average_metrics'] == result.trained.results[name]['final_metrics'][
      'average_metrics']


def test_mistakes_are_told(texts, tmp_path):
  with pytest.raises(UserError, match='there is no test text; set config.data.text_test'):
    run_stage(config_of(texts, train__final_split='test'), tmp_path / 'a')
  with pytest.raises(UserError, match='needs an encoder, and'):
    config = small.config_of('pemt/stage1', 'gpt2', (small.TARGET,))
    config.model.weights, config.model.tokenizer = 'random', str(texts / 'words')
    with config.unlocked():
      config.model.shape.update(SHAPE)
    run_stage(config, tmp_path / 'b')
  t5 = config_of(texts)
  with t5.unlocked():
    t5.model.name, t5.model.shape = 't5-small', small.SHAPE | {'vocab_size': 600}
  with pytest.raises(UserError, match='needs a backbone without an encoder'):
    run_stage(t5, tmp_path / 'c')


def test_every_token_but_the_first_is_predicted_once():
  packed = pack(np.arange(20), 7, 0)
  assert packed.chunks.tolist() == [[*range(7)], [*range(6, 13)], [*range(12, 19)]]
  batch = packed.assemble(np.array([2, -1]), 0, (8, 1))
  assert batch['inputs'][0].tolist() == [*range(12, 19), 0] and not batch['inputs'][1].any()
  assert batch['inputs_mask'].sum() == 7 and batch['example_ids'].tolist() == [2, -1]
  train, held_out = packed.split(1)
  assert len(train) == 2 and held_out.chunks[0, 0] == 12
  assert train.fingerprint != held_out.fingerprint
  with pytest.raises(UserError, match='The text has 6 tokens, but one row takes 7'):
    pack(np.arange(6), 7, 0)
