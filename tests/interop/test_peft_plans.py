"""Plans of the library and forms of adapter folders; experts made of one and the other."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from pemt_jax import trees
from pemt_jax.errors import UserError
from pemt_jax.experts import library
from pemt_jax.experts.library import ExpertCard
from pemt_jax.interop import formats
from pemt_jax.interop import huggingface
from pemt_jax.interop import peft
from pemt_jax.interop import peft_forms
from pemt_jax.interop import peft_plans
from pemt_jax.methods import pemt
from pemt_jax.methods import zoo
from pemt_jax.models.t5_config import T5Config
from pemt_jax.stages import artefacts
from pemt_jax.stages import config

TINY = T5Config(vocab_size=19, embed=8, kv=3, heads=2, mlp=12, encoder_layers=2, decoder_layers=3,
                relative_buckets=4)
ENDS = ('encoder/self_attention/o', 'encoder/mlp/wo', 'decoder/self_attention/o',
        'decoder/cross_attention/o', 'decoder/mlp/wo')
HOULSBY = peft_forms.BottleneckForm(ENDS, 'output', 3, 'swish', 0.5, True, True)
# Form -> stage that it becomes.
FORMS = (
    (peft_forms.LoRAForm(('encoder/self_attention/v', 'decoder/self_attention/v',
                          'decoder/cross_attention/v'), 2, 1.5), 'lora'),
    (peft_forms.LoRAForm(('encoder/mlp/wi', 'decoder/self_attention/o'), 3, 3.0**-0.5), 'lora'),
    (peft_forms.IA3Form(('decoder/mlp/wi',), ('encoder/self_attention/o',)), 'ia3'),
    (peft_forms.PromptForm(4), 'prompt'),
    (peft_forms.PrefixForm(5), 'prefix_kv'),
    (HOULSBY, 'houlsby'),
    (dataclasses.replace(HOULSBY, reads='sum', sites=ENDS[1::3]), 'pfeiffer'),
    (dataclasses.replace(HOULSBY, reads='input', layers=(('encoder', 1), ('decoder', 0))),
     'parallel'),
    (dataclasses.replace(HOULSBY, sites=ENDS[2:], layers=(('decoder', 2),)), 'houlsby'),
)


@pytest.mark.parametrize('form,stage', FORMS)
def test_a_form_becomes_a_stage_and_the_same_form(form, stage):
  found, options = peft_plans.stage_of(form, TINY, 'folder')
  assert found == stage
  plan = zoo.make(stage, options, TINY, getattr(form, 'length', 0)).plan
  again = peft_plans.form_of(plan, TINY, 'folder')
  if isinstance(form, peft_forms.LoRAForm):
    assert again.scaling == pytest.approx(form.scaling, rel=1e-12)
    again = dataclasses.replace(again, scaling=form.scaling)
  assert again == form
  assert options_in_config(stage, options) == options


def options_in_config(stage, options):
  """What commands make of the card of such an expert."""
  card = ExpertCard('name', stage, [], 'backbone', '', 'superglue-cb', extra={
      'options': json.loads(json.dumps(dataclasses.asdict(options)))})
  return config.options_of(artefacts.config_of(card))


def plan_of(stage, **options):
  made = {name: dataclasses.replace(zoo.ZOO[name].default_options(), **options.get(name, {}))
          for name in zoo.names_of(stage)}
  return zoo.make(stage, made if len(made) > 1 else made[stage], TINY, 3).plan


@pytest.mark.parametrize('stage,options,sentence', [
    ('lora+ia3', {}, "'x' has IA3 and LoRA; an adapter folder holds one of LoRA, IA3, Prompt"),
    ('full', {}, "'x' has no delta; an adapter folder holds one of"),
    ('prefix_kv', {}, "has prefixes at encoder/self_attention, decoder/self_attention, decoder/c"),
    ('houlsby_ensembling', {}, "has adapters without biases, for which adapterhub has no form"),
    ('houlsby+pfeiffer', {'pfeiffer': {'after_mlp': False, 'after_cross_attention': True}},
     None),
    ('houlsby+pfeiffer', {'pfeiffer': {'after_mlp': False, 'after_cross_attention': True,
                                       'reads': 'sum'}}, 'has adapters of different sizes'),
    ('houlsby+parallel', {}, "has 2 deltas at 'encoder/mlp/wo'; an adapter folder holds one"),
])
def test_plans_without_a_form_are_told(stage, options, sentence):
  plan = plan_of(stage, **options)
  if sentence is None:
    assert peft_plans.form_of(plan, TINY, 'x').sites == ENDS
    return
  with pytest.raises(UserError) as error:
    peft_plans.form_of(plan, TINY, 'x')
  assert sentence in str(error.value)


@pytest.fixture
def backbone(tmp_path):
  """(folder, parameters) of a random T5."""
  rng = np.random.default_rng(0)
  shapes = huggingface.t5_table(TINY).leaf_shapes()
  params = trees.unflatten({path: rng.normal(size=shape).astype(np.float32)
                            for path, shape in shapes.items()})
  huggingface.save_t5(tmp_path / 't5', TINY, params)
  return tmp_path / 't5', params


def save(folder, backbone, method, options, params, constants=None):
  place, loaded = backbone
  library.save_expert(folder, params, constants or {}, ExpertCard(
      name=folder.name, method=method, plan=[], task='cb', backbone_id=str(place),
      backbone_hash=library.backbone_hash(loaded),
      extra={'options': dataclasses.asdict(options)}))


def export(kind, source, target, **options):
  return formats.convert('expert', kind, str(source), str(target), formats.Options(**options))


def test_an_expert_of_stage_1_and_what_is_left_out(tmp_path, backbone):
  rng = np.random.default_rng(1)
  shapes = {f'{stack}/layers/mlp/wo/lora/{name}': (depth, *shape)
            for stack, depth in (('encoder', 2), ('decoder', 3))
            for name, shape in (('down', (12, 2)), ('up', (2, 8)))}
  leaves = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
  leaves['encoder/final_norm/scale'] = np.ones(8, np.float32)
  options = pemt.Stage1Options(rank=2, alpha=5.0, prompt=False, tune_norms=True)
  save(tmp_path / 'mnli', backbone, 'pemt/stage1', options, trees.unflatten(leaves))
  left_out = export('peft', tmp_path / 'mnli', tmp_path / 'out')
  assert left_out == ['encoder/final_norm/scale']
  values = json.loads((tmp_path / 'out' / peft.CONFIG).read_text())
  assert (values['lora_alpha'], values['target_modules']) == (5, ['wo'])
  assert values['base_model_name_or_path'] == str(backbone[0])
  form, tree = peft.read(tmp_path / 'out', TINY)
  assert form == peft_forms.LoRAForm(('encoder/mlp/wo', 'decoder/mlp/wo'), 2, 2.5)
  for path, leaf in trees.flatten(tree).items():
    np.testing.assert_array_equal(leaf, leaves[path], err_msg=path)


def test_padding_of_a_prompt_is_dropped(tmp_path, backbone):
  table = np.arange(40, dtype=np.float32).reshape(5, 8)
  own = lambda name, value: trees.unflatten({f'encoder/embed/prompt/{name}': value})
  save(tmp_path / 'cb', backbone, 'prompt', zoo.ZOO['prompt'].default_options(),
       own('table', table), own('mask', np.array([0, 0, 1, 1, 1], np.float32)))
  assert export('peft', tmp_path / 'cb', tmp_path / 'out') == []
  form, tree = peft.read(tmp_path / 'out', TINY)
  assert form.length == 3
  np.testing.assert_array_equal(tree['encoder']['embed']['prompt']['table'], table[2:])


def test_mistakes_are_told(tmp_path, backbone):
  prompt = trees.unflatten({peft.PROMPT_TABLE: np.zeros((2, 8), np.float32)})
  options = zoo.ZOO['prompt'].default_options()
  save(tmp_path / 'cb', backbone, 'prompt', options, prompt)
  save(tmp_path / 'odd', backbone, 'pemt/stage2', pemt.Stage2Options(), prompt)
  huggingface.save_t5(tmp_path / 'other', TINY, trees.unflatten(
      {path: 2 * leaf for path, leaf in trees.flatten(backbone[1]).items()}))
  out = tmp_path / 'out'
  for call, sentence in (
      (lambda: export('peft', tmp_path / 'cb', out, backbone=str(tmp_path / 'other')),
       "Expert 'cb' is a checkpoint of another backbone"),
      (lambda: export('peft', tmp_path / 'odd', out),
       "Expert 'odd' is of method 'pemt/stage2', for which adapter folders have no form"),
      (lambda: export('adapterhub', tmp_path / 'cb', out),
       "of method 'prompt', for which adapterhub has no form; convert it to peft."),
      (lambda: formats.convert('peft', 'safetensors', 'a', 'b', formats.Options()),
       'There is no way from peft to safetensors; convert to an expert first.')):
    with pytest.raises(UserError) as error:
      call()
    assert sentence in str(error.value)
  assert not out.exists()


def test_the_command_goes_both_ways(tmp_path, backbone, run_python):
  form = peft_forms.PromptForm(2)
  peft.write(tmp_path / 'theirs', form, trees.unflatten(
      {peft.PROMPT_TABLE: np.ones((2, 8), np.float32)}), TINY, str(backbone[0]))
  run = lambda *flags: run_python('launch/convert.py', *flags)
  done = run('--from=peft', '--to=expert', f'--input={tmp_path}/theirs',
             f'--output={tmp_path}/ours', '--sources=cb')
  assert (done.returncode, done.stdout) == (0, f'Wrote {tmp_path}/ours (expert).\n'), done.stderr
  assert library.load_card(tmp_path / 'ours').task == 'cb'
  done = run('--from=expert', '--to=peft', f'--input={tmp_path}/ours', f'--output={tmp_path}/back')
  assert done.returncode == 0, done.stderr
  assert ((tmp_path / 'back' / peft.SAFETENSORS).read_bytes()
          == (tmp_path / 'theirs' / peft.SAFETENSORS).read_bytes())
