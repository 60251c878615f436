"""Every format into every other, and the command that does it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pemt_jax import trees
from pemt_jax.errors import UserError
from pemt_jax.interop import files
from pemt_jax.interop import formats
from pemt_jax.interop import huggingface
from pemt_jax.interop import pemt_files
from pemt_jax.interop import pemt_original
from pemt_jax.interop.pemt_layout import PemtLayout
from pemt_jax.models.t5_config import T5Config

TINY = T5Config(vocab_size=19, embed=8, kv=3, heads=2, mlp=12, encoder_layers=2, decoder_layers=2,
                relative_buckets=4)
STAGE1 = PemtLayout(embed=8, mlp=12, encoder_layers=2, decoder_layers=2, expert_form='lora',
                    sources=('mnli',), expert_width=2, prompt_length=3)
STAGE2 = dataclasses.replace(STAGE1, backbone=TINY, sources=('a', 'b'), target='cb',
                             target_width=2, source_lengths=(2, 4))
SAFE = formats.Options(weights='safetensors', sources=('a', 'b'))


def random_tree(layout):
  rng = np.random.default_rng(0)
  state = {weight.name: rng.normal(size=weight.shape).astype(np.float32)
           for weight in pemt_original.table_of(layout).weights}
  return pemt_original.state_to_tree(state, layout)


def convert(source_kind, target_kind, source, target, options=SAFE):
  return formats.convert(source_kind, target_kind, str(source), str(target), options)


@pytest.fixture
def expert(tmp_path):
  """Folder of one stage-1 expert."""
  folder = tmp_path / 'mnli'
  pemt_files.export_stage1(folder, random_tree(STAGE1)['params'], STAGE1, ending='.safetensors')
  return folder


@pytest.fixture
def checkpoint(tmp_path):
  """Folder of one full stage-2 checkpoint."""
  folder = tmp_path / 'checkpoint'
  pemt_files.export_checkpoint(folder, random_tree(STAGE2)['params'], STAGE2, torch_format=False)
  return folder


def assert_same_files(first, second):
  assert set(first) == set(second)
  for name in first:
    np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_expert_through_the_tree_file_and_back(tmp_path, expert):
  one = formats.Options(weights='safetensors')
  assert convert('pemt_stage1', 'safetensors', expert, tmp_path / 'x.safetensors', one) == []
  back = convert('safetensors', 'pemt_stage1', tmp_path / 'x.safetensors', tmp_path / 'y', one)
  assert back == []
  for name in ('lora.safetensors', 'task_embedding.safetensors'):
    assert_same_files(files.read_tensors(expert / name), files.read_tensors(tmp_path / 'y' / name))


def test_checkpoint_through_the_tree_file_and_back(tmp_path, checkpoint):
  assert convert('pemt_checkpoint', 'safetensors', checkpoint, tmp_path / 'x.safetensors') == []
  assert formats.layout_from_json(
      files.read_metadata(tmp_path / 'x.safetensors')['layout']).backbone == TINY
  assert convert('safetensors', 'pemt_checkpoint', tmp_path / 'x.safetensors', tmp_path / 'y') == []
  assert_same_files(files.read_tensors(checkpoint), files.read_tensors(tmp_path / 'y'))


def test_backbone_of_a_checkpoint_and_what_is_left_out(tmp_path, checkpoint):
  left_out = convert('pemt_checkpoint', 'hf_t5', checkpoint, tmp_path / 'hf')
  params = trees.flatten(random_tree(STAGE2)['params'])
  backbone = trees.flatten(huggingface.load_t5(tmp_path / 'hf')[1])
  assert set(left_out) == set(params) - set(backbone)
  assert_same_files(backbone, {path: params[path] for path in backbone})


def test_small_files_of_stage2_tell_that_they_lose_gates_and_norms(tmp_path, checkpoint):
  left_out = convert('pemt_checkpoint', 'pemt_stage2', checkpoint, tmp_path / 's2')
  assert 'encoder/layers/mlp/wo/pemt/gate/kernel' in left_out
  assert 'encoder/final_norm/scale' in left_out
  assert not any('/pemt/adapter/' in path or path.endswith('prompt/table') for path in left_out)


def test_expert_on_a_backbone_makes_a_full_checkpoint(tmp_path, expert):
  backbone = random_tree(dataclasses.replace(
      STAGE1, backbone=TINY, expert_form=None, sources=(), prompt_length=0))['params']
  huggingface.save_t5(tmp_path / 't5', TINY, backbone)
  convert('pemt_stage1', 'pemt_checkpoint', expert, tmp_path / 'full',
          formats.Options(weights='safetensors', backbone=str(tmp_path / 't5')))
  layout, tree = pemt_files.import_checkpoint(tmp_path / 'full', sources=['mnli'])
  assert layout == dataclasses.replace(STAGE1, backbone=TINY)
  expected = trees.merge(backbone, random_tree(STAGE1)['params'])
  assert_same_files(trees.flatten(tree['params']), trees.flatten(expected))


def test_original_folders_are_torch_files_by_default(tmp_path, expert):
  pytest.importorskip('torch')
  convert('pemt_stage1', 'pemt_stage1', expert, tmp_path / 'out', formats.Options())
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
      'lora.pt', 'task_embedding.pt']


def write_wide_backbone(folder):
  wide = dataclasses.replace(TINY, embed=10)
  layout = PemtLayout(embed=10, mlp=12, encoder_layers=2, decoder_layers=2, backbone=wide)
  huggingface.save_t5(folder, wide, random_tree(layout)['params'])
  return str(folder)


def test_mistakes_are_told(tmp_path, expert, checkpoint):
  out = tmp_path / 'out'
  cases = (
      (('hf', 'hf_t5', expert, out), "Unknown format 'hf'; known are hf_t5, pemt_stage1, "),
      (('pemt_stage1', 'hf_t5', expert, out, formats.Options()),
       'The input has no backbone, so it cannot be written as hf_t5; give --backbone.'),
      (('pemt_stage2', 'safetensors', expert, out),
       "Source 'a' names no folder; give --sources=TASK=FOLDER,..."),
      (('pemt_checkpoint', 'safetensors', checkpoint, out),
       f"--output '{out}' must end with .safetensors for this format."),
      (('safetensors', 'pemt_stage1', checkpoint / 'model.safetensors', out),
       f"'{checkpoint / 'model.safetensors'}' was not written by this converter"),
      (('pemt_stage1', 'pemt_checkpoint', expert, out,
        formats.Options(backbone=write_wide_backbone(tmp_path / 'wide'))),
       f"Backbone '{tmp_path / 'wide'}' has width 10 and 2 encoder layers, the deltas 8 and 2; "
       'give the backbone they were trained on.'))
  for arguments, sentence in cases:
    with pytest.raises(UserError) as error:
      convert(*arguments)
    assert str(error.value).startswith(sentence)
    assert not out.exists()


def test_command_converts_and_ends_mistakes_with_one_sentence(tmp_path, expert, run_python):
  out = tmp_path / 'x.safetensors'
  done = run_python('launch/convert.py', '--from=pemt_stage1', '--to=safetensors',
                    f'--input={expert}', f'--output={out}')
  assert (done.returncode, done.stdout) == (0, f'Wrote {out} (safetensors).\n'), done.stderr
  done = run_python('launch/convert.py', '--from=pemt_checkpoint', '--to=hf_t5',
                    f'--input={tmp_path / "no.bin"}', f'--output={out}')
  assert (done.returncode, done.stdout, done.stderr) == (
      2, '', f"Weight file '{tmp_path / 'no.bin'}' does not exist; check the path.\n")
