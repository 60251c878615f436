"""Model folders of the MPOE code become experts, and experts such folders or plain models."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import linen as nn

from pemt_jax.errors import UserError
from pemt_jax.experts import library
from pemt_jax.interop import backbones, cards, files, folded, formats
from pemt_jax.methods import zoo
from pemt_jax.methods.base import backbone_of, boxed_shapes, shift_right
from pemt_jax.models import t5_config
from pemt_jax.models.bart_config import BartConfig
from pemt_jax.models.gpt2_config import GPT2Config
from pemt_jax.models.segments import cut, join
from pemt_jax.training.rules import split_params
from pemt_jax.trees import unflatten
from tests import tiny

FAST = ('t5_moe_mpo', 't5_switch_mpo_all_frozen_central')
CASES = [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in (
    *FAST, 't5_mpo_all_truncated', 't5_mpo_mlp_attention_central_frozen', 't5_switch_dense',
    't5_moe_dense')]
GPT2 = GPT2Config(vocab_size=32, embed=8, heads=2, mlp=16, decoder_layers=2, positions=24)
BART = BartConfig(vocab_size=32, embed=8, heads=2, mlp=16, encoder_layers=2, decoder_layers=2,
                  positions=24)
EVERYWHERE = {'components': ('word_embed', 'mlp', 'attention'), 'cores': 3, 'mlp_rank': 3}
ALONE = {'experts': 'mpo', 'count': 1, 'cores': 3, 'freeze': (1,)}


def convert(first, second, source, target, **options):
  return formats.convert(first, second, str(source), str(target), formats.Options(**options))


def saved(folder, config):
  """Folder of a backbone of random values."""
  shapes = tiny.shapes(backbone_of(config))['params']
  params = {path: tiny.random_leaf(path, shape, 0) for path, shape in shapes.items()}
  backbones.save(folder, config, unflatten(params))
  return str(folder)


@pytest.mark.parametrize('name', CASES)
def test_a_folder_of_the_original_becomes_an_expert_and_comes_back(name, shared_root, tmp_path):
  case = shared_root / 'golden' / 'mpoe' / name
  if not case.is_dir():
    pytest.skip(f'no recorded case {name}')
  values = json.loads((case / 'case.json').read_text())
  flags, state = values['method_config'], files.read_tensors(case / 'state.safetensors')
  (tmp_path / 'original').mkdir()
  (tmp_path / 'original/config.json').write_text(json.dumps(values['model_config'] | flags))
  files.write_tensors(tmp_path / 'original/model.safetensors',
                      {key: np.asarray(state[key]) for key in state})
  backbone = saved(tmp_path / 't5', t5_config.from_hf(values['model_config']))
  assert convert('mpoe', 'expert', tmp_path / 'original', tmp_path / 'rte', backbone=backbone) == []
  _, _, card = library.load_expert(tmp_path / 'rte')
  assert card.task == 'hyperformer/rte'
  assert convert('expert', 'mpoe', tmp_path / 'rte', tmp_path / 'again',
                 weights='safetensors') == []
  again = files.read_tensors(tmp_path / 'again')
  for key in state:
    np.testing.assert_array_equal(again[key], state[key], err_msg=key)
  written = json.loads((tmp_path / 'again/config.json').read_text())
  assert {key: written[key] for key in ('moe_type', 'num_experts', 'mpo_layers')} == {
      key: flags[key] or ('nompo' if key == 'mpo_layers' else flags[key])
      for key in ('moe_type', 'num_experts', 'mpo_layers')}
  for key in ('linear_trunc', 'emb_trunc', 'attention_trunc'):
    assert written[key] == flags[key], key


def write_expert(folder, stage, config, backbone, **options):
  """An expert of random values; returns the model and its parameters."""
  options = dataclasses.replace(zoo.ZOO[stage].default_options(), **options)
  method = zoo.make(stage, options, config, 0)
  model = backbone_of(config, method.plan)
  _, tuned = split_params(tiny.variables_of(model)['params'], method.tuned)
  _, params = backbones.load(backbone)
  tuned = join(tuned)
  library.save_expert(folder, tuned, {}, cards.card_of(
      folder.name, stage, method, options, 'glue-rte', (backbone, params)))
  return model, folded.whole(tuned, method, config, params, folder.name)


def theirs(folder, inputs, mask, targets):
  """Logits of transformers."""
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  kind = transformers.AutoModelForCausalLM if targets is None else (
      transformers.AutoModelForSeq2SeqLM)
  model = kind.from_pretrained(folder).eval()
  more = {} if targets is None else {'decoder_input_ids': torch.from_numpy(targets).long()}
  with torch.no_grad():
    return model(torch.from_numpy(inputs).long(), attention_mask=torch.from_numpy(mask).long(),
                 **more).logits.numpy()


@pytest.mark.parametrize('stage, config, options', [
    ('switch', tiny.CONFIG, ALONE),
    pytest.param('mpo', GPT2, EVERYWHERE, marks=pytest.mark.slow),
    pytest.param('mpo', BART, EVERYWHERE, marks=pytest.mark.slow),
    pytest.param('switch', BART, ALONE | {'encoder_layers': (1,), 'decoder_layers': (0,)},
                 marks=pytest.mark.slow),
    pytest.param('switch', GPT2, ALONE | {'experts': 'dense', 'freeze': ()},
                 marks=pytest.mark.slow)])
def test_a_folded_expert_gives_its_logits_to_transformers(stage, config, options, tmp_path):
  backbone = saved(tmp_path / 'backbone', config)
  model, params = write_expert(tmp_path / 'expert', stage, config, backbone, **options)
  assert convert('expert', 'folded', tmp_path / 'expert', tmp_path / 'plain') == []
  batch = tiny.make_batch()
  inputs, mask = batch['inputs'], batch['inputs_mask']
  params = cut(params, nn.meta.unbox(boxed_shapes(model))['params'])
  if config is GPT2:
    run = jax.jit(lambda p: model.apply({'params': p}, inputs, mask, method='read')[0])
    found, wanted = run(params), theirs(tmp_path / 'plain', inputs, mask, None)
    found, wanted = np.asarray(found)[mask > 0], wanted[mask > 0]
  else:
    found = tiny.forward(model, {'params': params}, batch)[0]
    shifted = np.array(shift_right(batch['targets'], config.start_id))
    wanted = theirs(tmp_path / 'plain', inputs, mask, shifted)
  scale = np.abs(wanted).max()
  assert scale > 0.1
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * scale)


def test_what_has_no_other_form_is_refused(tmp_path):
  backbone = saved(tmp_path / 'backbone', tiny.CONFIG)
  write_expert(tmp_path / 'two', 'switch', tiny.CONFIG, backbone, count=2, experts='mpo', cores=3,
               encoder_layers=(0,))
  with pytest.raises(UserError, match='the 2 experts of the feed-forwards .* cannot be folded'):
    convert('expert', 'folded', tmp_path / 'two', tmp_path / 'plain')
  with pytest.raises(UserError, match="'two' has routed feed-forwards in some layers, for which"):
    convert('expert', 'mpoe', tmp_path / 'two', tmp_path / 'original')
  with pytest.raises(UserError, match='has neither cores nor routers; read it with --from=hf_t5'):
    convert('mpoe', 'expert', backbone, tmp_path / 'again', backbone=backbone)
  with pytest.raises(UserError, match='give --backbone with the T5'):
    convert('mpoe', 'expert', backbone, tmp_path / 'again')
  with pytest.raises(UserError, match="'folded' is only written"):
    convert('folded', 'expert', backbone, tmp_path / 'again')
  assert not any((tmp_path / name).exists() for name in ('plain', 'original', 'again'))
