"""Experts of the library against the files of the original PEMT code, both ways."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from flax import linen as nn

from pemt_jax import trees
from pemt_jax.errors import UserError
from pemt_jax.experts import library
from pemt_jax.interop import expert_format
from pemt_jax.interop import files
from pemt_jax.interop import formats
from pemt_jax.interop import huggingface
from pemt_jax.interop import pemt_files
from pemt_jax.interop import pemt_original
from pemt_jax.interop.pemt_layout import PemtLayout
from pemt_jax.methods import zoo
from pemt_jax.methods.base import boxed_shapes
from pemt_jax.models.segments import join_shapes
from pemt_jax.models.t5 import T5
from pemt_jax.models.t5_config import T5Config
from pemt_jax.stages.artefacts import config_of
from pemt_jax.stages.config import options_of
from pemt_jax.training.rules import split_params

TINY = T5Config(vocab_size=19, embed=8, kv=3, heads=2, mlp=12, encoder_layers=2, decoder_layers=2,
                relative_buckets=4)
PLAIN = PemtLayout(embed=8, mlp=12, encoder_layers=2, decoder_layers=2, backbone=TINY)
LORA = dataclasses.replace(PLAIN, backbone=None, expert_form='lora', sources=('mnli',),
                           expert_width=2, prompt_length=3)
ADAPTER = dataclasses.replace(LORA, expert_form='adapter')
STAGE2 = dataclasses.replace(LORA, backbone=TINY, sources=('a', 'b'), target='cb', target_width=2,
                             source_lengths=(2, 4))
STAGE2_LAYOUTS = {
    'mixture of LoRA': STAGE2,
    'mixture of adapters': dataclasses.replace(STAGE2, expert_form='adapter'),
    'without target adapter': dataclasses.replace(STAGE2, target=None, target_width=0),
    'one source': dataclasses.replace(STAGE2, sources=('a',), source_lengths=(2,)),
    'no prompt': dataclasses.replace(STAGE2, prompt_length=0, source_lengths=()),
    'adapter in some layers': dataclasses.replace(STAGE2, decoder_adapter_layers=(1,)),
}


def random_state(layout, seed=0):
  rng = np.random.default_rng(seed)
  return {weight.name: rng.normal(size=weight.shape).astype(np.float32)
          for weight in pemt_original.table_of(layout).weights}


@pytest.fixture
def backbone(tmp_path):
  """Folder of the T5 that experts stand on."""
  tree = pemt_original.state_to_tree(random_state(PLAIN), PLAIN)
  huggingface.save_t5(tmp_path / 't5', TINY, tree['params'])
  return str(tmp_path / 't5')


def options(backbone=None, sources=()):
  return formats.Options(weights='safetensors', backbone=backbone, sources=tuple(sources))


def assert_same(found, expected):
  assert set(found) == set(expected)
  for name in found:
    np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize('layout', [LORA, ADAPTER, dataclasses.replace(LORA, prompt_length=0)])
def test_stage1_files_through_the_library_and_back(tmp_path, backbone, layout):
  tree = pemt_original.state_to_tree(random_state(layout, 1), layout)
  pemt_files.export_stage1(tmp_path / 'mnli', tree['params'], layout, ending='.safetensors')
  formats.convert('pemt_stage1', 'expert', str(tmp_path / 'mnli'), str(tmp_path / 'experts/mnli'),
                  options(backbone))
  tuned, _, card = library.load_expert(tmp_path / 'experts/mnli')
  assert_same(trees.flatten(tuned), trees.flatten(tree['params']))
  library.check_backbone(card, 't5', library.backbone_hash(huggingface.load_t5(backbone)[1]))
  formats.convert('expert', 'pemt_stage1', str(tmp_path / 'experts/mnli'), str(tmp_path / 'back'),
                  options())
  for path in (tmp_path / 'mnli').iterdir():
    assert_same(files.read_tensors(tmp_path / 'back' / path.name), files.read_tensors(path))


@pytest.mark.parametrize('name', STAGE2_LAYOUTS)
def test_checkpoint_through_the_library_and_back(tmp_path, backbone, name):
  layout = STAGE2_LAYOUTS[name]
  state = random_state(layout, 1)
  frozen = random_state(PLAIN)
  state |= {key: value for key, value in frozen.items() if 'norm' not in key}
  files.write_tensors(tmp_path / 'full.safetensors', state)
  left_out = formats.convert(
      'pemt_checkpoint', 'expert', str(tmp_path / 'full.safetensors'), str(tmp_path / 'cb'),
      options(backbone, layout.sources))
  assert not left_out
  tuned = trees.flatten(library.load_expert(tmp_path / 'cb')[0])
  assert not any('/kernel' in path and '/pemt/' not in path and '/adapter/' not in path
                 for path in tuned)
  assert 'encoder/final_norm/scale' in tuned and 'encoder/embed/prompt/sources' not in tuned
  formats.convert('expert', 'pemt_checkpoint', str(tmp_path / 'cb'), str(tmp_path / 'back'),
                  options(backbone))
  assert_same(files.read_tensors(tmp_path / 'back'), state)


def test_imported_experts_serve_as_sources_of_stage2(tmp_path, backbone):
  sources = pytest.importorskip('pemt_jax.stages.sources')
  folders = []
  for number, length in enumerate((2, 4)):
    layout = dataclasses.replace(LORA, sources=(f'task{number}',), prompt_length=length)
    tree = pemt_original.state_to_tree(random_state(layout, number), layout)
    folders.append(tmp_path / f'task{number}')
    expert_format.write(folders[-1], tree['params'], tree['constants'], layout, backbone)
  loaded = sources.load_sources(
      folders, 't5', library.backbone_hash(huggingface.load_t5(backbone)[1]))
  assert loaded.names == ('task0', 'task1')
  assert (loaded.shape.scaling, loaded.shape.prompt_lengths) == (1.0, (2, 4))
  found = expert_format._bank({name: str(folder) for name, folder in zip(
      loaded.names, folders, strict=True)})[0]
  assert_same(trees.flatten(found), trees.flatten(loaded.params))


def test_lora_scaling_becomes_part_of_the_up_factor(tmp_path, backbone):
  tree = pemt_original.state_to_tree(random_state(LORA), LORA)
  expert_format.write(tmp_path / 'x', tree['params'], tree['constants'], LORA, backbone)
  tuned, constants, card = library.load_expert(tmp_path / 'x')
  card.extra['options']['alpha'] = 3.0 * card.extra['options']['rank']
  library.save_expert(tmp_path / 'x', tuned, constants, card)
  found = trees.flatten(expert_format.read(tmp_path / 'x').params)
  for path, leaf in trees.flatten(tree['params']).items():
    np.testing.assert_array_equal(found[path], 3 * leaf if path.endswith('/up') else leaf)


def test_rows_of_the_vocabulary_that_the_original_cut_are_no_change(tmp_path, backbone):
  cut = dataclasses.replace(STAGE2, backbone=dataclasses.replace(TINY, vocab_size=15))
  state = random_state(cut, 1)
  state |= {key: value for key, value in random_state(PLAIN).items() if 'norm' not in key}
  state['shared.weight'] = state['shared.weight'][:15]
  files.write_tensors(tmp_path / 'full.safetensors', state)
  formats.convert('pemt_checkpoint', 'expert', str(tmp_path / 'full.safetensors'),
                  str(tmp_path / 'cb'), options(backbone, ('a', 'b')))
  assert 'shared' not in library.load_expert(tmp_path / 'cb')[0]


def test_mistakes_are_told(tmp_path, backbone):
  tree = pemt_original.state_to_tree(random_state(LORA), LORA)
  odd = dataclasses.replace(ADAPTER, expert_width=5)
  odd_tree = pemt_original.state_to_tree(random_state(odd), odd)
  plain = pemt_original.state_to_tree(random_state(PLAIN), PLAIN)
  cases = (
      ((tree['params'], {}, LORA, None), 'An expert belongs to a backbone; give --backbone.'),
      ((odd_tree['params'], {}, odd, backbone), 'A bottleneck of 5 units cannot be written as '
       '12 // n, which is how experts state their width; keep it in another format.'),
      ((plain['params'], {}, PLAIN, backbone), 'The input has no expert of PEMT (LoRA or adapter '
       'at mlp/wo), so there is nothing to write as an expert.'))
  for arguments, sentence in cases:
    with pytest.raises(UserError) as error:
      expert_format.write(tmp_path / 'x', *arguments)
    assert str(error.value) == sentence
    assert not (tmp_path / 'x').exists()
  with pytest.raises(UserError, match='holds no expert, card.json is missing'):
    formats.convert('expert', 'pemt_stage1', str(tmp_path / 'x'), str(tmp_path / 'y'), options())


HOUSES = {
    'houlsby': dataclasses.replace(PLAIN, backbone=None, target='cb', target_width=2,
                                   attention_adapter_width=2, adapter_norms=('pre', 'post')),
    'houlsby in some layers': dataclasses.replace(
        PLAIN, backbone=None, target='cb', target_width=2, attention_adapter_width=2,
        encoder_adapter_layers=(1,)),
    'lora': dataclasses.replace(PLAIN, backbone=None, attention_rank=2, joined_kv=6),
}


@pytest.mark.parametrize('name', HOUSES)
def test_files_of_baselines_through_the_library_and_back(tmp_path, backbone, name):
  layout = HOUSES[name]
  tree = pemt_original.state_to_tree(random_state(layout, 1), layout)
  pemt_files.export_stage1(tmp_path / 'in', tree['params'], layout, ending='.safetensors')
  formats.convert('pemt_stage1', 'expert', str(tmp_path / 'in'), str(tmp_path / 'expert'),
                  options(backbone))
  assert library.load_card(tmp_path / 'expert').method == name.split()[0]
  formats.convert('expert', 'pemt_stage1', str(tmp_path / 'expert'), str(tmp_path / 'out'),
                  options())
  for file in (tmp_path / 'in').iterdir():
    assert_same(files.read_tensors(tmp_path / 'out' / file.name), files.read_tensors(file))
  card = library.load_card(tmp_path / 'expert')
  method = zoo.make(card.method, options_of(config_of(card)), TINY, 0)
  params = nn.meta.unbox(boxed_shapes(T5(TINY, method.plan)))['params']
  tuned = split_params(params, method.tuned)[1]
  assert set(trees.flatten(join_shapes(tuned))) == set(trees.flatten(tree['params']))


def test_a_bank_of_masks_has_no_place_in_files_of_pemt(tmp_path):
  for name, method, extra in (
      ('masks', 'propetl', {}),
      ('target', 'pemt/stage2', {'sources': [{'task': 'a,b', 'folder': '../masks'}]})):
    library.save_expert(tmp_path / name, {'a': np.zeros(1, np.float32)}, {}, library.ExpertCard(
        name, method, [], 'tiny', 'hash', 'charm', extra=extra))
  with pytest.raises(UserError, match="source 'a,b' is a prototype under masks, for which files"):
    expert_format.read(tmp_path / 'target')
