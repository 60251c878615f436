"""Folders of the package adapters: recorded logits, same bytes in and out, strict configs."""

from __future__ import annotations

import functools
import json
import shutil

import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from pemt_jax import trees
from pemt_jax.errors import UserError
from pemt_jax.experts import library
from pemt_jax.interop import adapterhub
from pemt_jax.interop import files
from pemt_jax.interop import formats
from pemt_jax.interop import huggingface
from pemt_jax.interop import peft_experts
from pemt_jax.methods.base import boxed_shapes
from pemt_jax.models.segments import cut
from pemt_jax.models.t5 import T5

# Kinds of the fixture, and those whose weights are torch files.
TORCH = ('double_seq_bn', 'norms')
KINDS = ('double_seq_bn', 'seq_bn', 'par_bn', 'norms', 'everywhere')
# Options of the stages that the kinds become.
STAGES = {'double_seq_bn': ('houlsby', 'output'), 'seq_bn': ('pfeiffer', 'sum'),
          'par_bn': ('parallel', 'input'), 'norms': ('houlsby', 'output'),
          'everywhere': ('parallel', 'input')}


@pytest.fixture(scope='module')
def fixture(golden_root):
  """The recorded folder, see make_adapterhub_fixture.py."""
  return golden_root / 'adapterhub'


@functools.cache
def backbone(folder):
  return huggingface.load_t5(folder / 'backbone')


def need_torch(kind):
  if kind in TORCH:
    pytest.importorskip('torch')


def weights_file(folder):
  safe = folder / adapterhub.SAFETENSORS
  return safe if safe.is_file() else folder / adapterhub.TORCH


def assert_same(found, expected):
  assert set(found) == set(expected)
  for name in expected:
    np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize('kind', KINDS)
def test_an_imported_adapter_gives_the_recorded_logits(tmp_path, fixture, kind):
  need_torch(kind)
  options = formats.Options(backbone=str(fixture / 'backbone'), sources=('cb',))
  assert formats.convert('adapterhub', 'expert', str(fixture / kind), str(tmp_path), options) == []
  tuned, _, card = library.load_expert(tmp_path)
  assert (card.method, card.extra['options']['reads'], card.task) == (*STAGES[kind], 'cb')
  config, params = backbone(fixture)
  model = T5(config, peft_experts.method_of(card, config, tuned).plan)
  shapes = jax.tree.map(lambda leaf: getattr(leaf, 'value', leaf), boxed_shapes(model)['params'],
                        is_leaf=lambda leaf: hasattr(leaf, 'names'))
  params = cut(trees.merge(params, tuned), shapes)
  case = files.read_tensors(fixture / 'case.safetensors')
  target = case['decoder_inputs'].astype(np.int32)
  logits, _ = jax.jit(model.apply)(
      {'params': params}, case['inputs'].astype(np.int32), case['inputs_mask'].astype(np.float32),
      target, np.ones(target.shape, np.float32))
  np.testing.assert_allclose(logits, case[f'logits/{kind}'], rtol=0, atol=1e-5)
  assert np.abs(logits - case['logits/none']).max() > 0.1


@pytest.mark.parametrize('kind', KINDS)
def test_an_adapter_comes_through_an_expert_bit_for_bit(tmp_path, fixture, kind):
  need_torch(kind)
  kept = 'torch' if kind in TORCH else 'safetensors'
  into = formats.Options(backbone=str(fixture / 'backbone'))
  formats.convert('adapterhub', 'expert', str(fixture / kind), str(tmp_path / kind), into)
  left_out = formats.convert('expert', 'adapterhub', str(tmp_path / kind), str(tmp_path / 'out'),
                             formats.Options(weights=kept))
  assert left_out == []
  assert_same(files.read_tensors(weights_file(tmp_path / 'out')),
              files.read_tensors(weights_file(fixture / kind)))
  theirs, ours = (json.loads((folder / adapterhub.CONFIG).read_text())
                  for folder in (fixture / kind, tmp_path / 'out'))
  assert ours['name'] == kind
  for key, value in ours['config'].items():
    assert theirs['config'][key] == pytest.approx(value) or key == 'non_linearity', key
  config, _ = backbone(fixture)
  file = tmp_path / adapterhub.CONFIG
  assert adapterhub.form_of(ours, config, file) == adapterhub.form_of(theirs, config, file)


@pytest.fixture
def folder(tmp_path, fixture):
  """A copy of one kind that needs no torch."""
  shutil.copytree(fixture / 'par_bn', tmp_path / 'par_bn')
  return tmp_path / 'par_bn'


def change(folder, outer=None, **inner):
  file = folder / adapterhub.CONFIG
  values = json.loads(file.read_text()) | (outer or {})
  if values['config'] is not None:
    values['config'] |= inner
  file.write_text(json.dumps(values))


@pytest.mark.parametrize('outer,inner,sentence', [
    ({}, {'phm_layer': True}, "sets 'phm_layer' to True, which has no form here; train without it"),
    ({}, {'inv_adapter': 'nice'}, "sets 'inv_adapter' to 'nice'"),
    ({}, {'use_gating': True}, "sets 'use_gating' to True"),
    ({}, {'stochastic_depth': 0.1}, "sets 'stochastic_depth' to 0.1"),
    ({}, {'non_linearity': 'leakyrelu'}, "sets 'non_linearity' to 'leakyrelu'"),
    ({}, {'scaling': 'learned'}, "sets 'scaling' to 'learned', a learned one has no form here; m"),
    ({}, {'reduction_factor': {'default': 2}}, "as 'reduction_factor'; only one number"),
    ({}, {'original_ln_after': False}, "sets 'original_ln_after' to False"),
    ({}, {'output_adapter': False}, 'has none of mh_adapter, cross_adapter, output_adapter'),
    ({}, {'leave_out': [5]}, 'leaves out layer 5, the backbone has 5'),
    ({}, {'an_option_of_tomorrow': 'x'}, "sets 'an_option_of_tomorrow' to 'x'"),
    ({}, {'ln_after': True, 'adapter_residual_before_ln': True},
     "sets 'adapter_residual_before_ln' to True"),
    ({}, {'architecture': 'lora'}, "has architecture 'lora'; only bottleneck adapters"),
    ({'model_type': 'bert'}, {}, "has model_type 'bert', the backbone has 't5'"),
    ({'hidden_size': 16}, {}, 'has hidden_size 16, the backbone has 8'),
    ({'name': None}, {}, "has None as 'name'; it must be the adapter's name"),
    ({'config': None}, {}, 'has architecture None; only bottleneck adapters'),
])
def test_options_without_a_form_are_told(fixture, folder, outer, inner, sentence):
  change(folder, outer, **inner)
  with pytest.raises(UserError) as error:
    adapterhub.read(folder, backbone(fixture)[0])
  assert str(folder / adapterhub.CONFIG) in str(error.value) and sentence in str(error.value)


@pytest.mark.parametrize('inner,reads', [
    ({'original_ln_before': False}, 'output'),
    ({'original_ln_before': False, 'residual_before_ln': False}, 'output'),
    ({'original_ln_before': True}, 'sum'),
    ({'original_ln_before': True, 'residual_before_ln': False, 'original_ln_after': False}, 'sum'),
    ({'original_ln_before': True, 'residual_before_ln': False}, None),
    ({'original_ln_before': False, 'original_ln_after': False}, None),
    ({'original_ln_before': True, 'residual_before_ln': 'post_add'}, None),
])
def test_orders_of_sums_are_read_as_t5_runs_them(fixture, folder, inner, reads):
  change(folder, is_parallel=False, **inner)
  read = lambda: adapterhub.read(folder, backbone(fixture)[0])
  if reads is None:
    with pytest.raises(UserError, match='which has no form here'):
      read()
  else:
    assert read()[0].reads == reads


def test_older_configs_have_older_names_of_activations(fixture, folder):
  config = backbone(fixture)[0]
  change(folder, non_linearity='gelu')
  assert adapterhub.read(folder, config)[0].activation == 'gelu'
  file = folder / adapterhub.CONFIG
  values = json.loads(file.read_text())
  del values['version']
  file.write_text(json.dumps(values))
  assert adapterhub.read(folder, config)[0].activation == 'gelu_new'


KEY = 'decoder.block.2.layer.2.adapters.par_bn.adapter_up.weight'


@pytest.mark.parametrize('spoil,sentence', [
    (lambda s: s.pop(KEY), f"lacks '{KEY}' of shape [8, 4]"),
    (lambda s: s.update(more=np.zeros(1)), "has the unexpected key 'more'"),
    (lambda s: s.update({KEY: np.zeros((8, 3))}), f"has '{KEY}' of shape [8, 3], expected [8, 4]"),
])
def test_tensors_are_strict(fixture, folder, spoil, sentence):
  file = folder / adapterhub.SAFETENSORS
  state = dict(files.read_tensors(file))
  spoil(state)
  files.write_tensors(file, state)
  with pytest.raises(UserError) as error:
    adapterhub.read(folder, backbone(fixture)[0])
  assert str(file) in str(error.value) and sentence in str(error.value)


def test_a_stored_head_must_be_the_backbones(fixture):
  config, params = backbone(fixture)
  head = params['shared']['embedding']
  assert adapterhub.read(fixture / 'seq_bn', config, head)[0].reads == 'sum'
  with pytest.raises(UserError, match='holds a head that is not the backbone'):
    adapterhub.read(fixture / 'seq_bn', config, head + 1)


@hypothesis.given(embed=st.integers(1, 5000), data=st.data())
def test_written_factors_give_the_size_again(embed, data):
  size = data.draw(st.integers(1, embed))
  factor = json.loads(json.dumps(adapterhub._factor(embed, size)))
  assert int(embed // factor) == size


def test_what_adapters_cannot_hold_is_told(tmp_path, fixture):
  options = formats.Options(backbone=str(fixture / 'backbone'))
  formats.convert('adapterhub', 'expert', str(fixture / 'par_bn'), str(tmp_path / 'a.b'), options)
  with pytest.raises(UserError, match="Adapter 'a.b' has a dot in its name"):
    formats.convert('expert', 'adapterhub', str(tmp_path / 'a.b'), str(tmp_path / 'out'), options)
  with pytest.raises(UserError, match="'parallel', for which peft has no form; convert it to adap"):
    formats.convert('expert', 'peft', str(tmp_path / 'a.b'), str(tmp_path / 'out'), options)
  with pytest.raises(UserError, match='There is no way from adapterhub to hf_t5; convert to an ex'):
    formats.convert('adapterhub', 'hf_t5', str(fixture / 'par_bn'), str(tmp_path / 'out'), options)
  with pytest.raises(UserError, match="names no backbone ..model_name..; give --backbone."):
    formats.convert('adapterhub', 'expert', str(fixture / 'par_bn'), str(tmp_path / 'out'),
                    formats.Options())
  assert not (tmp_path / 'out').exists()
