"""Experts on disk: what was trained is what is opened again, imported ones too."""

from __future__ import annotations

import shutil

import pytest

from pemt_jax.errors import UserError
from pemt_jax.experts import library, tree_files
from pemt_jax.interop import formats
from pemt_jax.stages import predict
from pemt_jax.stages.artefacts import open_expert
from pemt_jax.stages.build import build
from pemt_jax.stages.config import stage_names
from pemt_jax.stages.run import run_stage
from tests.stages import small

NAME = small.TARGET.replace('/', '-')


def final_metrics(result):
  return {name: values['final_metrics'] for name, values in result.trained.results.items()}


def assert_same_metrics(found, expected):
  assert found.keys() == expected.keys()
  for name, metrics in found.items():
    assert metrics == pytest.approx(expected[name], rel=1e-4, abs=1e-5)


def test_an_opened_expert_scores_what_its_run_reported(stage2):
  found = predict.evaluate_experts(stage2.experts[NAME], 'test', {})
  assert_same_metrics(found, final_metrics(stage2))


@pytest.mark.slow
def test_experts_of_stage1_score_without_the_padding_of_their_prompts(stage1):
  assert_same_metrics(predict.evaluate_experts(stage1.trained.workdir, 'test', {}),
                      final_metrics(stage1))


def test_a_card_names_what_the_expert_stands_on(stage2, stage1):
  card = library.load_card(stage2.experts[NAME])
  assert (card.method, card.task) == ('pemt/stage2', small.TARGET)
  assert card.backbone_hash == stage1.stage.backbone.hash
  assert card.extra['sources'] == [
      {'task': task, 'folder': f"../../sources/{task.replace('/', '-')}"}
      for task in small.SOURCES]
  assert [rule['name'] for rule in card.plan] == ['prompt', 'pemt']


def test_the_folder_of_a_run_may_move(stage2, stage1, workdir):
  shutil.copytree(stage2.trained.workdir, workdir / 'moved')
  expert = open_expert(workdir / 'moved' / 'experts' / NAME, stage1.stage.backbone)
  small.assert_same_leaves({'sources': expert.stage.sources.params['encoder']['embed']['prompt'][
      'sources']}, {'sources': stage2.stage.sources.params['encoder']['embed']['prompt'][
          'sources']}, 0)
  assert expert.stage.store.cache_dir == (workdir / 'moved' / 'cache').resolve()


@pytest.mark.slow
@pytest.mark.parametrize('layers, scan', [
    ({'encoder_layers': (1,), 'decoder_layers': ()}, False),
    ({'encoder_layers': (0,), 'decoder_layers': (1,)}, True)], ids=['encoder', 'both'])
def test_plans_that_differ_between_layers(workdir, layers, scan):
  shape = dict(small.SHAPE, encoder_layers=2, decoder_layers=2)
  backbone = small.write_backbone(workdir / 'backbone', **shape)
  config = small.config_of('pemt/stage1', backbone, model__scan_layers=scan)
  config.train.eval_every = 'never'
  run_stage(config, workdir / 'stage1')
  changes = {f'method__{name}': value for name, value in layers.items()}
  result = run_stage(small.config_of(
      'pemt/stage2', backbone, (small.TARGET,), sources=(str(workdir / 'stage1'),),
      model__scan_layers=scan, **changes), workdir / 'stage2')
  assert_same_metrics(predict.evaluate_experts(workdir / 'stage2', 'test', {}),
                      final_metrics(result))
  adapters = [leaf for path, leaf in small.leaves_of(result.experts[NAME]).items()
              if 'adapter/down/kernel' in path]
  assert all(len(leaf) == 1 for leaf in adapters)


def through_the_original(expert, folder, backbone, kind, **options):
  """An expert of the library, written in a format of the original code and imported again."""
  chosen = formats.Options(weights='safetensors', **options)
  middle = folder / ('full.safetensors' if kind == 'pemt_checkpoint' else 'files')
  on_backbone = {'backbone': backbone} if kind == 'pemt_checkpoint' else {}
  formats.convert('expert', kind, str(expert), str(middle),
                  formats.Options(weights='safetensors', **on_backbone))
  formats.convert(kind, 'expert', str(middle), str(folder / 'imported'),
                  formats.dataclasses.replace(chosen, backbone=backbone))
  return folder / 'imported'


def data_of(stage):
  """What an imported expert does not know of its data and decoding."""
  config = stage.config
  return {f'{part}.{name}': value for part in ('data', 'generation')
          for name, value in config[part].items() if not hasattr(value, 'items')}


@pytest.mark.slow
@pytest.mark.parametrize('form', ['lora', 'adapter'])
def test_an_imported_expert_of_stage1(backbone, workdir, form):
  task = small.SOURCES[0]
  result = run_stage(small.config_of('pemt/stage1', backbone, (task,), method__expert=form),
                     workdir / 'run')
  expert, = result.experts.values()
  imported = through_the_original(expert, workdir, backbone, 'pemt_stage1', sources=(task,))
  assert 'config' not in library.load_card(imported).extra
  found, = predict.evaluate_experts(imported, 'test', data_of(result.stage)).values()
  expected, = final_metrics(result).values()
  assert found == pytest.approx(expected, rel=1e-4)
  assert not (workdir / 'cache').exists()


@pytest.mark.slow
def test_an_imported_expert_of_stage2_brings_its_sources(stage2, backbone, workdir):
  imported = through_the_original(stage2.experts[NAME], workdir, backbone, 'pemt_checkpoint',
                                  sources=('mnli', 'qnli'), target=small.TARGET)
  card = library.load_card(imported)
  assert [source['folder'] for source in card.extra['sources']] == ['sources/mnli', 'sources/qnli']
  found, = predict.evaluate_experts(imported, 'test', data_of(stage2.stage)).values()
  expected, = final_metrics(stage2).values()
  assert found == pytest.approx(expected, rel=1e-4)


def test_an_expert_of_another_shape_is_an_error(stage1, workdir):
  source = next(iter(stage1.experts.values()))
  tuned, constants, card = library.load_expert(source)
  card.extra['config']['method']['rank'] = 3
  library.save_expert(workdir / 'wide', tuned, constants, card)
  with pytest.raises(UserError) as error:
    open_expert(workdir / 'wide', stage1.stage.backbone)
  assert str(error.value) == (
      f"{workdir / 'wide'} has 'decoder/layers/mlp/wo/lora/down' as float32 [1, 24, 2], expected "
      'float32 [1, 24, 3]; use a checkpoint of the same config.')


def test_an_expert_without_its_sources_is_an_error(stage2, workdir):
  shutil.copytree(stage2.experts[NAME], workdir / 'experts' / NAME)
  with pytest.raises(UserError) as error:
    open_expert(workdir / 'experts' / NAME, stage2.stage.backbone)
  missing = (workdir / 'sources' / 'playground-omen').resolve()
  assert str(error.value) == (f"expert 'playground-charm' needs its source expert {missing}, which "
                              'is not there; copy the folder of the whole run.')


@pytest.mark.slow
def test_experts_on_random_backbones_are_opened_whatever_their_seed(backbone, workdir):
  config = small.config_of('adapter', backbone, small.SOURCES[:1], model__weights='random',
                           seeds=(3, 4))
  result = run_stage(config, workdir)
  assert_same_metrics(predict.evaluate_experts(workdir, 'test', {}), final_metrics(result))


def test_an_expert_of_an_unknown_method_is_an_error(stage1, workdir):
  tuned, constants, card = library.load_expert(next(iter(stage1.experts.values())))
  card.method, card.extra = 'pemt/stage9', {}
  library.save_expert(workdir / 'new', tuned, constants, card)
  with pytest.raises(UserError) as error:
    open_expert(workdir / 'new', stage1.stage.backbone)
  assert str(error.value) == (
      "expert 'playground-omen' is of method 'pemt/stage9', which is none of"
      f' {", ".join(stage_names())}; install the version of pemt_jax that wrote it.')


def stage2_with(stage1, folders):
  return small.config_of('pemt/stage2', stage1.stage.backbone.name, (small.TARGET,),
                         sources=tuple(map(str, folders)))


def sentence_of(call, *arguments):
  with pytest.raises(UserError) as error:
    call(*arguments)
  return str(error.value)


def test_sources_that_do_not_fit_are_errors(stage1, stage2, workdir):
  backbone, experts = stage1.stage.backbone, list(stage1.experts.values())
  tuned, constants, card = library.load_expert(experts[1])
  card.extra['options']['alpha'] = 8.0
  library.save_expert(workdir / 'louder', tuned, constants, card)
  shutil.copytree(experts[0], workdir / experts[0].name)
  cases = [
      ((), 'stage 2 has no sources; set config.sources to the expert folders of stage 1.'),
      ((workdir / 'none',), f"source {workdir / 'none'} holds no expert (card.json is missing); "
       'give folders of experts that a first stage wrote as config.sources.'),
      (('a,b',), 'config.sources holds \'a,b\' as one folder; write --config.sources="'
       '(\'a\', \'b\')" for several.'),
      ((stage2.experts[NAME],), f"source {stage2.experts[NAME]} is an expert of 'pemt/stage2'; "
       "give experts of 'pemt/stage1', or of 'propetl' on one prototype, as config.sources."),
      ((experts[0], workdir / experts[0].name),
       "two sources are called 'playground-omen'; rename one of the folders."),
      ((experts[0], workdir / 'louder'),
       f"source {workdir / 'louder'} has experts of another form or size than {experts[0]}; train "
       'all sources with one stage-1 config.')]
  for folders, sentence in cases:
    assert sentence_of(build, stage2_with(stage1, folders), workdir / 'run', backbone) == sentence
  assert not (workdir / 'run').exists()


def test_a_run_keeps_the_sources_that_it_began_with(stage2, stage1, workdir):
  shutil.copytree(stage2.trained.workdir, workdir / 'run')
  other = shutil.copytree(next(iter(stage1.experts.values())), workdir / 'playground-omen')
  card = tree_files.read_json(other / 'card.json')
  tree_files.write_json(other / 'card.json', card | {'metrics': {'accuracy': 1.0}})
  config = stage2.stage.config.copy_and_resolve_references()
  with config.unlocked():
    config.sources = (str(other), str(list(stage1.experts.values())[1]))
  copy = workdir / 'run' / 'sources' / 'playground-omen'
  assert sentence_of(run_stage, config, workdir / 'run', stage1.stage.backbone) == (
      f'{copy} is a copy of another expert than {other}; choose another workdir or the sources '
      'that this run began with.')
