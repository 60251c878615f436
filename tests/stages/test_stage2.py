"""Stage 2: what a run writes about its gates, and every ablation."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from pemt_jax.data.tasks import get_task
from pemt_jax.experts import tree_files
from pemt_jax.methods.base import make_loss
from pemt_jax.stages.build import build
from pemt_jax.stages.run import run_stage
from pemt_jax.trees import flatten
from tests.stages import small

NAME = small.TARGET.replace('/', '-')
WEIGHTS = ('moe_weight_0', 'moe_weight_1')


def config_of(stage1, sources=None, **changes):
  """Stage 2 on the experts of a first stage."""
  folders = tuple(map(str, sources or stage1.experts.values()))
  return small.config_of('pemt/stage2', stage1.stage.backbone.name, (small.TARGET,),
                         sources=folders, data__few_shot=6, **changes)


def test_mean_gates_are_logged_for_every_split_and_sum_to_one(stage2):
  lines = [json.loads(line) for line in
           (stage2.trained.workdir / 'metrics.jsonl').read_text().splitlines()]
  for prefix in ('train/', 'validation/'):
    found = [[line[prefix + name] for name in WEIGHTS] for line in lines if
             prefix + WEIGHTS[0] in line]
    assert len(found) == 2
    np.testing.assert_allclose(np.sum(found, axis=1), 1.0, rtol=1e-5)
  result = tree_files.read_json(stage2.trained.workdir / 'result.json')['replicas'][NAME]
  assert result['final_split'] == 'test'
  assert sum(result['final_metrics'][name] for name in WEIGHTS) == pytest.approx(1.0)


def test_gates_file_holds_the_means_that_were_logged(stage2):
  with np.load(stage2.trained.workdir / 'gates.npz') as found:
    assert found['sources'].tolist() == list(small.SOURCES)
    assert found['targets'].tolist() == [small.TARGET]
    gates = np.concatenate([found['encoder'], found['decoder']], axis=1)  # [replica, layer, source]
  assert gates.shape == (1, 2, 2)
  final = stage2.trained.results[NAME]['final_metrics']
  np.testing.assert_allclose(gates.mean(axis=(0, 1)), [final[name] for name in WEIGHTS], rtol=1e-5)


def test_correlation_file_compares_the_target_with_each_source(stage2, stage1):
  with np.load(stage2.trained.workdir / 'correlation.npz') as found:
    assert found['rows'].tolist() == [NAME] and found['columns'].tolist() == list(small.SOURCES)
    matrix = found['matrix']
  table = small.leaves_of(stage2.experts[NAME])['encoder/embed/prompt/table'].mean(0)
  for index, folder in enumerate(stage1.experts.values()):
    other = small.leaves_of(folder)['encoder/embed/prompt/table'].mean(0)
    cosine = table @ other / np.linalg.norm(table) / np.linalg.norm(other)
    np.testing.assert_allclose(matrix[0, index], cosine, rtol=1e-5)


def test_parameters_and_predictions_are_written(stage2):
  folder = stage2.trained.workdir
  counts = tree_files.read_json(folder / 'parameters.json')
  embed, mlp, layers, sources = 16, 24, 2, 2
  prompt = len(get_task(small.TARGET).description.split()) + 1
  adapters = layers * (2 * embed * 1 + 1 + embed)
  gates, norms = (mlp + embed) * sources, (2 + 3 + 2) * embed
  assert counts['tuned_parameters_per_replica'] == adapters + gates + norms + prompt * embed
  lines = [json.loads(line) for line in
           (folder / 'predictions' / f'{NAME}.test.jsonl').read_text().splitlines()]
  assert len(lines) == 16 and set(lines[0]) == {'source', 'target', 'prediction'}
  right = np.mean([line['target'] == line['prediction'] for line in lines])
  assert 100 * right == pytest.approx(stage2.trained.results[NAME]['final_metrics']['accuracy'])


def test_a_list_of_experts_is_the_folder_of_their_run(stage1, stage2):
  stage = build(config_of(stage1), stage2.trained.workdir, stage1.stage.backbone)
  assert stage.sources.names == stage2.stage.sources.names
  small.assert_same_leaves(flatten(stage.sources.params), flatten(stage2.stage.sources.params), 0)
  turned = build(config_of(stage1, [*stage1.experts.values()][::-1]), stage2.trained.workdir,
                 stage1.stage.backbone)
  assert turned.sources.names == stage.sources.names[::-1]


# Fields of Stage2Options -> parts of the tuned tree that they take away.
ABLATIONS = {
    'prompt': ({'prompt': False}, {'prompt'}),
    'prompt, pool of all positions': ({'prompt': False, 'pool_without_prompt': 'all'}, {'prompt'}),
    'correlation': ({'correlation': False}, set()),
    'target adapter': ({'target_adapter': False}, {'adapter'}),
    'adapter in the encoder only': ({'decoder_layers': ()}, set()),
    'adapter in the decoder only': ({'encoder_layers': (), 'decoder_layers': (0,)}, set()),
    'single source': ({}, {'gate'}),
    'gate': ({'tune_gate': False}, {'gate'}),
    'sparsity loss': ({'sparsity_weight': 0.0}, set()),
    'norms': ({'tune_norms': False}, {'_norm'}),
    'norms in the adapter': ({'adapter_pre_norm': True, 'adapter_post_norm': True}, set()),
    'frozen norms in the adapter': (
        {'adapter_pre_norm': True, 'tune_adapter_norms': False}, set()),
    'padding in the loss': ({'mask_padding': False}, set()),
}
PARTS = ('prompt', 'adapter', 'gate', '_norm')
FAST = ('prompt', 'target adapter', 'single source', 'gate')


def ablation(stage1, *names):
  """Config of several ablations at once."""
  sources = list(stage1.experts.values())[:1] if 'single source' in names else None
  fields = {f'method__{field}': value for name in names
            for field, value in ABLATIONS[name][0].items()}
  return config_of(stage1, sources, **fields)


@pytest.mark.parametrize('name', [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ABLATIONS])
def test_an_ablation_takes_away_what_it_names(stage1, workdir, name):
  config, absent = ablation(stage1, name), ABLATIONS[name][1]
  stage = build(config, workdir, stage1.stage.backbone)
  tuned = flatten(stage.start.tuned_shapes())
  missing = {part for part in PARTS if not any(part in path for path in tuned)}
  assert missing == absent
  spec, = stage.specs.values()
  batch = stage.store.eval_batches(spec, 'validation')[0]
  frozen, tuned = stage.start.frozen, stage.start.tuned_shapes()
  loss, metrics = jax.eval_shape(make_loss(stage.model, stage.method), tuned, frozen,
                                 stage.start.shapes.get('constants', {}), batch, jax.random.key(0))
  assert loss.shape == ()
  assert ('moe_weight_1' in metrics) == (name != 'single source')
  assert ('sparsity_loss' in metrics) == (name not in ('single source', 'target adapter'))
  assert not list(workdir.glob('*/*.part'))


# Every ablation runs once; those that touch different parts run together.
TOGETHER = (
    ('target adapter', 'padding in the loss'),
    ('gate', 'sparsity loss', 'adapter in the decoder only'),
    ('prompt, pool of all positions', 'frozen norms in the adapter', 'norms'),
    ('correlation', 'norms in the adapter', 'adapter in the encoder only'),
    ('prompt', 'single source'))


@pytest.mark.slow
@pytest.mark.parametrize('names', TOGETHER, ids=', '.join)
def test_ablations_run(stage1, workdir, names):
  result = run_stage(ablation(stage1, *names), workdir, stage1.stage.backbone)
  final = result.trained.results[NAME]['final_metrics']
  assert np.isfinite(final['loss'])
  if 'gate' in names:
    np.testing.assert_allclose([final[weight] for weight in WEIGHTS], 0.5)
  start = flatten(result.stage.start(result.trained.replicas[0])[0])
  changed = [path for path, leaf in flatten(result.trained.tuned).items()
             if not np.array_equal(leaf[0], start[path])]
  assert any('adapter' in path or 'gate' in path for path in changed)


@pytest.mark.slow
@pytest.mark.parametrize('expert', ['lora', 'adapter'])
def test_both_stages_on_a_gated_backbone_with_an_untied_head(base, workdir, expert):
  backbone = small.write_backbone(workdir / 'backbone', **small.V11)
  config = small.config_of('pemt/stage1', backbone, method__expert=expert)
  config.train.eval_every, config.train.final_split = 'never', ''
  sources = run_stage(config, workdir / 'stage1')
  config = small.config_of('pemt/stage2', backbone, (small.TARGET,),
                           sources=(str(workdir / 'stage1'),))
  result = run_stage(config, workdir / 'stage2', sources.stage.backbone)
  final = result.trained.results[NAME]['final_metrics']
  assert np.isfinite(final['loss'])
  assert sum(final[name] for name in WEIGHTS) == pytest.approx(1.0)
  shape = result.stage.sources.shape
  assert (shape.expert, shape.width) == (expert, {'lora': 2, 'adapter': 24 // 8}[expert])


@pytest.mark.slow
def test_seeds_and_rates_are_replicas_of_one_program(stage1, workdir):
  config = config_of(stage1, seeds=(0, 1), learning_rates=(1e-2, 1e-3))
  result = run_stage(config, workdir, stage1.stage.backbone)
  assert list(result.experts) == [f'{NAME}-seed{seed}-lr{rate}' for seed in (0, 1)
                                  for rate in ('0.01', '0.001')]
  found = [small.leaves_of(folder) for folder in result.experts.values()]
  for path, leaf in found[0].items():
    assert all(not np.array_equal(leaf, other[path]) for other in found[1:]), path
