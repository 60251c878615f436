"""Pretraining leaves a backbone that the other stages load."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pemt_jax.data import playground
from pemt_jax.data.tokenizer import load_tokenizer, train_word_tokenizer
from pemt_jax.errors import UserError
from pemt_jax.experts import tree_files
from pemt_jax.interop import backbones, huggingface
from pemt_jax.stages import span_corruption
from pemt_jax.stages.config import base_config
from pemt_jax.stages.run import run_stage
from tests.stages import small


def config_of(**data):
  config = base_config('span_corruption')
  config.model.name = 't5-small'
  config.model.weights = 'random'
  with config.unlocked():
    config.model.shape.update(small.SHAPE | {'vocab_size': 600})
  config.data.max_source_length = 16
  config.data.batch_size = 8
  config.data.eval_batch_size = 8
  config.data.validation_chunks = 8
  config.train.steps = 4
  config.train.learning_rate = 1e-2
  config.train.log_every = 1
  config.train.metric, config.train.greater_is_better = 'loss', False
  config.train.final_split = ''
  config.train.tensorboard = False
  config.data.update(data)
  return config


def losses(workdir):
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [line['train/loss'] for line in lines if 'train/loss' in line]


def check_backbone(folder, tokenizer):
  shapes, params = huggingface.load_t5(folder)
  assert (shapes.embed, shapes.vocab_size) == (16, 600)
  assert all(np.isfinite(leaf).all() for leaf in (params['shared']['embedding'],
                                                  params['encoder']['final_norm']['scale']))
  assert load_tokenizer(folder).fingerprint == tokenizer.fingerprint


def test_text_of_files_becomes_a_backbone(workdir):
  lines = playground.corpus(0, 120)
  tokenizer = train_word_tokenizer(lines, workdir / 'words', sentinels=8)
  (workdir / 'text').mkdir()
  (workdir / 'text' / 'a.txt').write_text('\n'.join(lines))
  (workdir / 'glue' / 'cola').mkdir(parents=True)
  (workdir / 'glue' / 'cola' / 'train.jsonl').write_text('{"sentence": "red", "label": 1}')
  config = config_of(text=(str(workdir / 'text'),), text_tasks=('cola',), root=str(workdir))
  config.model.tokenizer = str(workdir / 'words')
  config.model.embedding = 'cooccurrence'
  result = run_stage(config, workdir / 'run')
  found = losses(workdir / 'run')
  assert len(found) == 4 and np.isfinite(found).all()
  check_backbone(result.experts['backbone'], tokenizer)
  assert tree_files.read_json(workdir / 'run' / 'resources.json')['peak_host_bytes'] > 0


def bart_config_of(folder):
  config = config_of(text=(str(folder / 'text'),), objective='text_infilling',
                     permute_sentences=True)
  config.model.name, config.model.tokenizer = 'bart-base', str(folder / 'words')
  config.model.shape = {'vocab_size': 160, 'embed': 16, 'heads': 2, 'mlp': 24, 'positions': 40,
                        'encoder_layers': 2, 'decoder_layers': 2}
  return config


@pytest.mark.slow
def test_text_infilling_makes_a_bart_that_learns(workdir):
  lines = playground.corpus(0, 120)
  words = train_word_tokenizer([*playground.vocabulary(), *lines], workdir / 'words', sentinels=1)
  (workdir / 'text').mkdir()
  (workdir / 'text' / 'a.txt').write_text('\n'.join(lines))
  config = bart_config_of(workdir)
  with config.unlocked():
    config.model.shape.vocab_size = words.vocab_size
  config.train.steps = 30
  config.model.embedding = 'cooccurrence'
  result = run_stage(config, workdir / 'run')
  found = losses(workdir / 'run')
  assert np.mean(found[-5:]) < np.mean(found[:5]) - 0.3
  shapes, params = backbones.load(result.experts['backbone'])
  assert (shapes.pad_id, shapes.eos_id, shapes.start_id, shapes.embed) == (0, 1, 1, 16)
  assert dict(shapes.generation) == {'early_stopping': True, 'forced_eos_token_id': 1,
                                     'no_repeat_ngram_size': 3, 'num_beams': 4}
  assert not params['logits_bias'].any() and params['shared']['embedding'].any()
  assert load_tokenizer(result.experts['backbone']).fingerprint == words.fingerprint


def test_sentences_change_places_only_in_text_infilling(workdir):
  config = config_of(source='playground', sentences=150, permute_sentences=True)
  with pytest.raises(UserError, match="a part of data.objective='text_infilling'"):
    run_stage(config, workdir)


@pytest.mark.slow
def test_the_playground_becomes_a_backbone_that_stage1_trains_on(workdir):
  result = run_stage(config_of(source='playground', sentences=150), workdir / 'run')
  assert result.experts == {'backbone': workdir / 'run' / 'backbone'}
  check_backbone(result.experts['backbone'],
                 load_tokenizer(workdir / 'run' / span_corruption.TOKENIZER))
  again = run_stage(config_of(source='playground', sentences=150), workdir / 'run')
  assert again.trained.results == result.trained.results
  stage1 = run_stage(small.config_of('pemt/stage1', str(workdir / 'run' / 'backbone')),
                     workdir / 'stage1')
  assert set(stage1.experts) == {name.replace('/', '-') for name in small.SOURCES}


def test_no_text_is_an_error(workdir):
  with pytest.raises(UserError) as error:
    run_stage(config_of(), workdir / 'run')
  assert str(error.value) == ('pretraining has no text; set config.data.text to text files or '
                              'folders.')
  assert not (workdir / 'run').exists()


def test_counts_of_neighbours_need_chunks(workdir):
  config = config_of(source='playground', sentences=150, unit='line')
  config.model.embedding = 'cooccurrence'
  with pytest.raises(UserError) as error:
    run_stage(config, workdir / 'run')
  assert str(error.value) == ("model.embedding='cooccurrence' counts in chunks; set "
                              "data.unit='chunk'.")


def test_matching_attention_is_for_t5(workdir):
  config = config_of(source='playground', sentences=150)
  config.model.name, config.model.attention_start = 'bart-base', 'matching'
  config.model.shape = {'vocab_size': 400, 'embed': 16, 'heads': 2, 'mlp': 24, 'positions': 40,
                        'encoder_layers': 1, 'decoder_layers': 1}
  with pytest.raises(UserError) as error:
    run_stage(config, workdir / 'run')
  assert str(error.value) == ("model.attention_start='matching' is for T5; set it to 'random'.")


def test_continuations_need_chunks(workdir):
  config = config_of(source='playground', sentences=150, unit='line', objective='prefix_lm')
  with pytest.raises(UserError) as error:
    run_stage(config, workdir / 'run')
  assert str(error.value) == "data.objective='prefix_lm' cuts chunks; set data.unit='chunk'."


@pytest.mark.slow
def test_a_small_start_and_an_adaptation(workdir):
  config = config_of(source='playground', sentences=150)
  config.model.attention_start, config.seeds = 'matching', (3,)
  first = run_stage(config, workdir / 'first')
  again = config_of(source='playground', sentences=150, objective='prefix_lm', max_target_length=4)
  again.model.name, again.model.weights = str(first.experts['backbone']), 'pretrained'
  again.model.shape = {}
  second = run_stage(again, workdir / 'second')
  _, before = huggingface.load_t5(first.experts['backbone'])
  _, after = huggingface.load_t5(second.experts['backbone'])
  query, key = (before['decoder']['layers']['cross_attention'][name]['kernel'] for name in 'qk')
  assert np.corrcoef(np.ravel(query), np.ravel(key))[0, 1] > 0.5  # They started as the same.
  assert not np.array_equal(before['shared']['embedding'], after['shared']['embedding'])
  assert np.isfinite(losses(workdir / 'second')).all() and len(losses(workdir / 'second')) == 4
