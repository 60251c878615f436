"""Hugging Face RoBERTa and BERT checkpoints: same numbers in and out, logits of transformers."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from pemt_jax import trees
from pemt_jax.errors import UserError
from pemt_jax.interop import files, names, roberta_files
from pemt_jax.methods.base import boxed_shapes
from pemt_jax.models import roberta_config
from pemt_jax.models.roberta import Roberta
from pemt_jax.models.roberta_config import RobertaConfig

ROBERTA = RobertaConfig(vocab_size=30, embed=16, heads=4, mlp=24, encoder_layers=2, positions=14)
BERT = dataclasses.replace(ROBERTA, kind='bert', token_types=2, norm_epsilon=1e-12, pad_id=0,
                           start_id=2, eos_id=3)
KINDS = {'roberta': ROBERTA, 'bert': BERT}


def theirs_of(config, labels):
  """A random model of transformers; every parameter is large enough to be seen."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  values = roberta_config.to_hf(config, labels)
  family = {'roberta': 'Roberta', 'bert': 'Bert'}[config.kind]
  name = f'{family}ForSequenceClassification' if labels else f'{family}Model'
  options = {key: value for key, value in values.items() if key != 'model_type'}
  model = getattr(transformers, name)(getattr(transformers, f'{family}Config')(**options)).eval()
  torch.manual_seed(1)
  for path, weight in model.named_parameters():
    scale = 1.0 if 'LayerNorm' in path else 0.4
    weight.data = torch.randn_like(weight) * scale
  return model


def batch_of(config, rows=3, length=9):
  rng = np.random.default_rng(0)
  real = np.arange(length) < np.array([[length], [6], [3]])[:rows]
  ids = np.where(real, rng.integers(4, config.vocab_size, (rows, length)), config.pad_id)
  types = rng.integers(0, config.token_types, (rows, length))
  return ids.astype(np.int32), real.astype(np.float32), types.astype(np.int32)


@pytest.mark.parametrize('kind', KINDS)
def test_states_and_logits_are_those_of_transformers(kind, tmp_path):
  config, labels = KINDS[kind], 3
  theirs = theirs_of(config, labels)
  torch = pytest.importorskip('torch')
  theirs.save_pretrained(tmp_path)
  found, params = roberta_files.load_roberta(tmp_path)
  assert found == config
  ids, mask, types = batch_of(config)
  with torch.no_grad():
    expected = theirs(input_ids=torch.from_numpy(ids).long(),
                      attention_mask=torch.from_numpy(mask).long(),
                      token_type_ids=torch.from_numpy(types).long(), output_hidden_states=True)
  model = Roberta(config, labels=labels)

  @jax.jit
  def run(params):
    encoded = model.apply({'params': params}, ids, mask, types, method='encode')
    return encoded.states, model.apply({'params': params}, encoded, method='classify')[0]

  states, logits = run(params)
  last = expected.hidden_states[-1].numpy()
  np.testing.assert_allclose(np.where(mask[..., None] > 0, states, 0),
                             np.where(mask[..., None] > 0, last, 0), atol=1e-5)
  np.testing.assert_allclose(logits, expected.logits.numpy(), atol=1e-4, rtol=1e-5)
  assert expected.logits.std() > 0.1


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('labels', [0, 3])
def test_tensors_of_transformers_come_in_and_go_out_unchanged(kind, labels, tmp_path):
  theirs = theirs_of(KINDS[kind], labels)
  theirs.save_pretrained(tmp_path / 'theirs')
  config, params = roberta_files.load_roberta(tmp_path / 'theirs')
  roberta_files.save_roberta(tmp_path / 'ours', config, params, shards=2)
  again = type(theirs).from_pretrained(tmp_path / 'ours')
  assert again.config.num_labels == theirs.config.num_labels
  mine, expected = again.state_dict(), theirs.state_dict()
  assert mine.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(mine[name].numpy(), value.numpy(), err_msg=name)


def random_params(config, labels, pooler):
  rng = np.random.default_rng(0)
  shapes = roberta_files.roberta_table(config, labels, pooler).leaf_shapes()
  return trees.unflatten({path: rng.normal(size=shape).astype(np.float32)
                          for path, shape in shapes.items()})


@pytest.mark.parametrize('kind, labels, pooler', [
    ('roberta', 0, True), ('roberta', 3, True), ('roberta', 1, False), ('bert', 0, True),
    ('bert', 2, False), ('bert', 0, False)])
def test_saved_model_loads_bit_for_bit(kind, labels, pooler, tmp_path):
  config, params = KINDS[kind], random_params(KINDS[kind], labels, pooler)
  roberta_files.save_roberta(tmp_path, config, params)
  found_config, found = roberta_files.load_roberta(tmp_path)
  assert found_config == config
  assert trees.flatten(found).keys() == trees.flatten(params).keys()
  jax.tree.map(np.testing.assert_array_equal, found, params)


def test_old_spelling_and_heads_of_pretraining_load(tmp_path):
  params = random_params(BERT, 0, True)
  roberta_files.save_roberta(tmp_path, BERT, params)
  state = {name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
      'LayerNorm.bias', 'LayerNorm.beta'): value
           for name, value in files.read_tensors(tmp_path).items()}
  state |= {'cls.predictions.bias': np.zeros(30), 'cls.seq_relationship.weight': np.zeros((2, 16)),
            'bert.embeddings.position_ids': np.arange(14)[None]}
  files.write_tensors(tmp_path / 'model.safetensors', state)
  jax.tree.map(np.testing.assert_array_equal, roberta_files.load_roberta(tmp_path)[1], params)


def test_names_are_strict(tmp_path):
  roberta_files.save_roberta(tmp_path, ROBERTA, random_params(ROBERTA, 0, False))
  state = dict(files.read_tensors(tmp_path))
  files.write_tensors(tmp_path / 'model.safetensors', state | {'roberta.extra': np.zeros(2)})
  with pytest.raises(UserError, match="unexpected key 'extra'"):
    roberta_files.load_roberta(tmp_path)
  del state['roberta.encoder.layer.1.output.dense.bias']
  files.write_tensors(tmp_path / 'model.safetensors', state)
  with pytest.raises(UserError, match=r"lacks 'encoder.layer.1.output.dense.bias' of shape \[16\]"):
    roberta_files.load_roberta(tmp_path)


def test_every_tensor_and_every_parameter_of_a_published_size_has_its_place():
  for name, config in roberta_config.PUBLISHED.items():
    table = roberta_files.roberta_table(config, 2, config.kind == 'roberta')
    total = sum(int(np.prod(weight.shape)) for weight in table.weights)
    assert len({weight.name for weight in table.weights}) == len(table.weights)
    assert names.Table(table.weights).leaf_shapes()['shared/embedding'][0] == config.vocab_size
    model = boxed_shapes(Roberta(config, labels=2))['params']
    found = {path: leaf.value.shape for path, leaf in trees.flatten(model).items()}
    assert found == {path: shape for path, shape in names.Table(table.weights).leaf_shapes().items()
                     if not path.startswith('pooler/')}
    # Published sizes in millions of parameters.
    expected = {'roberta-base': 125, 'roberta-large': 356, 'bert-base-uncased': 109,
                'bert-base-cased': 108, 'bert-large-uncased': 335, 'bert-large-cased': 334}[name]
    assert abs(total / 1e6 - expected) < 1.5, (name, total)
