"""Prompt and attention files of the original code, in and out, and experts made of them."""

from __future__ import annotations

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.experts.library import load_card, load_expert
from pemt_jax.interop import files, formats, huggingface, names, pemt_prompts
from pemt_jax.interop.pemt_prompts import PromptFolder
from pemt_jax.models.t5_config import T5Config
from pemt_jax.trees import flatten

EMBED, ROWS, HIDDEN = 8, 3, 5
TINY = T5Config(vocab_size=19, embed=EMBED, kv=3, heads=2, mlp=12, encoder_layers=1,
                decoder_layers=1, relative_buckets=4)
RNG = np.random.default_rng(0)
TABLES = {task: RNG.normal(size=(ROWS, EMBED)).astype(np.float32) for task in ('wic', 'boolq')}
ATTENTION = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in (
    ('attention_down/kernel', (EMBED, HIDDEN)), ('attention_up/kernel', (HIDDEN, EMBED)),
    ('attention_norm/scale', (EMBED,)), ('attention_norm/bias', (EMBED,)))}
SAFE = '.safetensors'
PATH = 'encoder/embed/attempt'


def assert_same(first, second):
  assert list(first) == list(second)
  for name, value in first.items():
    np.testing.assert_array_equal(value, second[name], err_msg=name)


@pytest.fixture(scope='module')
def backbone(tmp_path_factory):
  folder = tmp_path_factory.mktemp('backbone')
  rng = np.random.default_rng(0)
  state = {weight.name: rng.normal(size=weight.shape).astype(np.float32)
           for weight in huggingface.t5_table(TINY).weights}
  huggingface.save_t5(folder, TINY, names.load(state, huggingface.t5_table(TINY)))
  return str(folder)


@pytest.mark.parametrize('ending', ['.pt', SAFE])
@pytest.mark.parametrize('tables', [TABLES, {'': TABLES['wic']}], ids=['several', 'one'])
def test_what_is_written_is_read(tmp_path, ending, tables):
  if ending == '.pt':
    pytest.importorskip('torch')
  pemt_prompts.write(tmp_path, PromptFolder(tables, ATTENTION), ending)
  stored = {path.name for path in tmp_path.iterdir()}
  assert {f'attn_W_down{ending}', f'layer_norm_bias{ending}'} < stored
  assert (f'prefix_embeddings_wic{ending}' if '' not in tables
          else f'prefix_embeddings{ending}') in stored
  found = pemt_prompts.read(tmp_path, list(tables) if '' not in tables else ())
  assert_same(found.prompts, tables)
  assert_same(dict(sorted(found.attention.items())), dict(sorted(ATTENTION.items())))
  stored = files.read_tensors(tmp_path / f'attn_W_down{ending}')
  assert stored[next(iter(stored))].shape == (HIDDEN, EMBED)


def test_attempt_becomes_an_expert_and_goes_out_again(tmp_path, backbone):
  pemt_prompts.write(tmp_path / 'in', PromptFolder(TABLES, ATTENTION), SAFE)
  places = {}
  for task, shift in (('mnli', 1.0), ('qnli', 2.0)):
    places[task] = tmp_path / task
    pemt_prompts.write(places[task], PromptFolder({'': TABLES['wic'] + shift}, {}), SAFE)
  options = formats.Options(sources=tuple(f'{t}={p}' for t, p in places.items()),
                            target='wic,boolq', backbone=backbone, weights='safetensors')
  run = lambda *kinds: formats.convert(*kinds, options)
  assert run('pemt_prompts', 'expert', str(tmp_path / 'in'), str(tmp_path / 'expert')) == []
  tuned, constants, card = load_expert(tmp_path / 'expert')
  assert constants == {} and (card.method, card.task) == ('attempt', 'wic')
  flat = flatten(tuned)
  np.testing.assert_array_equal(flat[f'{PATH}/table'], np.stack([TABLES['wic'], TABLES['boolq']]))
  assert card.extra['options']['targets'] == 2 and card.extra['options']['sources'] == 2
  bank = files.read_tensors(tmp_path / 'expert' / card.extra['sources'][1]['folder'])
  np.testing.assert_array_equal(bank['prefix_shared'], TABLES['wic'] + 2.0)
  assert run('expert', 'pemt_prompts', str(tmp_path / 'expert'), str(tmp_path / 'out')) == []
  found = pemt_prompts.read(tmp_path / 'out')
  np.testing.assert_array_equal(found.prompts['1'], TABLES['boolq'])
  assert_same(dict(sorted(found.attention.items())), dict(sorted(ATTENTION.items())))


def test_one_prompt_becomes_an_expert_of_prompt_tuning(tmp_path, backbone):
  pemt_prompts.write(tmp_path / 'cb', PromptFolder({'': TABLES['wic']}, {}), SAFE)
  pemt_prompts.to_expert(tmp_path / 'cb', tmp_path / 'expert', backbone, {})
  assert (load_card(tmp_path / 'expert').method, load_card(tmp_path / 'expert').task) == (
      'prompt', 'cb')
  pemt_prompts.from_expert(tmp_path / 'expert', tmp_path / 'out', 'safetensors')
  assert_same(pemt_prompts.read(tmp_path / 'out').prompts, {'': TABLES['wic']})


def test_mistakes_are_one_sentence(tmp_path, backbone):
  pemt_prompts.write(tmp_path / 'in', PromptFolder(TABLES, ATTENTION), SAFE)
  pemt_prompts.write(tmp_path / 'short', PromptFolder({'': TABLES['wic'][:2]}, {}), SAFE)
  (tmp_path / 'empty').mkdir()
  cases = [
      (lambda: pemt_prompts.read(tmp_path / 'empty'), 'holds no prefix_embeddings.pt'),
      (lambda: pemt_prompts.read(tmp_path / 'in', ['rte']), 'has prompts of boolq, wic, expected'),
      (lambda: pemt_prompts.to_expert(tmp_path / 'in', tmp_path / 'e', None, {}),
       'An expert belongs to a backbone'),
      (lambda: pemt_prompts.to_expert(tmp_path / 'in', tmp_path / 'e', backbone, {}),
       'has the attention of ATTEMPT, which reads source prompts'),
      (lambda: pemt_prompts.to_expert(tmp_path / 'in', tmp_path / 'e', backbone,
                                      {'mnli': str(tmp_path / 'short')}),
       "Source 'mnli' has a prompt of shape")]
  for run, words in cases:
    with pytest.raises(UserError) as error:
      run()
    assert words in str(error.value)
  assert not (tmp_path / 'e').exists()
