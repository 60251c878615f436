"""Plans: a stage from its config alone, compiled for devices that are not there."""

from __future__ import annotations

import functools
import importlib.util
import json

import pytest

from pemt_jax.errors import UserError
from pemt_jax.reports import plans
from pemt_jax.sharding.chips import CHIPS, Topology
from pemt_jax.sharding.costs import Collective, Costs, costs_of
from pemt_jax.sharding.hlo import Array, Module
from pemt_jax.stages import plan as plan_lib
from pemt_jax.stages.config import base_config
from pemt_jax.stages.plan import model_flops, predicted
from pemt_jax.stages.shapes import Assumed

T5 = {'vocab_size': 64, 'embed': 16, 'kv': 8, 'heads': 2, 'mlp': 32, 'encoder_layers': 2,
      'decoder_layers': 2}
ASSUMED = Assumed(sources=3, width=4, prompt=5)
ROWS, SOURCE, TARGET = 8, 12, 6


def tiny(stage, name='t5-small', shape=None, tasks=('rte',)):
  """The config of a stage on a backbone of a few thousand parameters."""
  config = base_config(stage)
  config.tasks = tasks
  config.model.name = name
  with config.unlocked():
    config.model.shape.update(T5 if shape is None else shape)
  data = config.data
  data.batch_size, data.eval_batch_size = ROWS, ROWS
  data.max_source_length, data.max_target_length = SOURCE, TARGET
  config.generation.max_length = 4
  config.model.scan_layers = True  # Devices of a CPU stand for others here.
  return config


def test_a_step_is_as_long_as_its_slowest_part():
  exchange = Collective('all-gather', (Array('bf16', (10**9,)),), 4, 3, '')
  costs = Costs(2e12, 4e9, (exchange,))
  found = predicted(costs, CHIPS['v5e'], 1e12)
  seconds = {'compute': 2e12 / 197e12, 'memory': 4e9 / 819e9, 'links': 3 * 1.5e9 / 200e9}
  assert found['seconds'] == pytest.approx(seconds)
  assert found['bound'] == 'links' and found['step_seconds'] == pytest.approx(seconds['links'])
  assert found['utilisation'] == pytest.approx(1e12 / 197e12 / seconds['links'])


def test_an_exchange_is_exposed_unless_something_is_computed_behind_it(repo_root):
  program = (repo_root / 'tests/sharding/program.hlo').read_text()
  exposed = lambda text: costs_of(Module(text), 4).exposed_bytes
  sums, state, whole = 2 * 8 * 16 * 4 * 3 / 4, 4 * 32 * 4, 3 * 8 * 32 * 2 / 2
  assert exposed(program) == 3 * (sums + state) + whole  # The spread gather is not.
  done = '  %arrived = '
  behind = '  %work = f32[4,32]{1,0} fusion(%state), kind=kLoop, calls=%work.1\n'
  work = '%work.1 (a: f32[4,32]) -> f32[4,32] {\n  ROOT %a = f32[4,32]{1,0} parameter(0)\n}\n\n'
  moved = program.replace('%body (', f'{work}%body (').replace(done, behind + done)
  assert exposed(moved) == 3 * sums + whole


def test_the_best_plan_fits_and_is_the_shortest():
  plan = lambda seconds, fits: {'fits': fits, 'step_seconds': seconds, 'chips': 4, 'rows': 8}
  slow, fast, large = plan(2.0, True), plan(1.0, True), plan(0.5, False)
  assert plans.best([slow, fast, large]) is fast
  assert plans.best([{'fits': True}, large]) is None
  assert plans.chip_hours(fast) == pytest.approx(1e6 / 8 * 4 / 3600)


def test_a_refused_program_has_its_reason_and_what_it_needs():
  message = ('RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO'
             ' temporaries (36.50G) exceeds available HBM (15.75G).')
  found = {'stage': 'switch', 'model': 't5-base', 'program': 'train', 'rows': 8, 'chips': 4,
           'topology': 'v5e:2x2', 'mesh': {'fsdp': 4}, 'fits': False, **plan_lib._refused(message)}
  assert found['memory'] == {'peak': 73 * 2**29} and found['refused'] == message
  assert '| fsdp=4 |    36.50 |   no |' in plans.shown([found])
  assert message in plans.shown([found])


def test_the_tables_of_the_docs_are_those_of_the_results(repo_root):
  found = plans.read(repo_root / 'results' / 'plans')
  text = (repo_root / 'docs/scaling.md').read_text()
  assert plans.table(found) in text and plans.costs(found) in text


@pytest.mark.parametrize('name', ['v5e', 'v7:4x4', 'v5e:4by4', 'v5e:'])
def test_an_unknown_slice_is_refused(name):
  with pytest.raises(UserError, match=f"topology '{name}'"):
    Topology.of(name)


def test_more_simulated_devices_than_there_are_is_refused():
  with pytest.raises(UserError, match="'cpu:4096' needs 4096 simulated devices"):
    Topology.of('cpu:4096').devices()


def test_flops_of_a_stage_follow_from_its_config():
  """Products of PEMT's first stage without a prompt and an encoder's gradient, by hand."""
  config = tiny('pemt/stage1')
  config.method.prompt, config.method.rank = False, 4
  one = model_flops(config, Topology.of('cpu:1'), 'train', ASSUMED)
  config.tasks, config.model.remat = ('rte', 'cola'), 'full'  # Twice the rows, nothing twice.
  assert model_flops(config, Topology.of('cpu:1'), 'train', ASSUMED) == 2 * one
  assert config.model.remat == 'full'  # The next mesh has the same config.
  inner, mlp, lora = 16 * 16, 2 * 16 * 32, 4 * (16 + 32)
  encoder, decoder = ROWS * SOURCE, ROWS * TARGET
  attention = lambda queries, keys: 2 * ROWS * 16 * queries * keys
  frozen = 2 * (encoder * (4 * inner + mlp) + decoder * (6 * inner + mlp) + encoder * 2 * inner)
  mixed = 2 * (attention(SOURCE, SOURCE) + attention(TARGET, TARGET) + attention(TARGET, SOURCE))
  tuned, head = 2 * (encoder + decoder) * lora, decoder * 16 * 64
  assert one == 2 * (2 * frozen + 3 * mixed + 3 * tuned + 2 * head)


@pytest.mark.slow
@pytest.mark.parametrize('stage, name, shape', [
    ('pemt/stage2', 't5-small', T5), ('propetl', 't5-small', T5), ('attempt', 't5-small', T5),
    ('task_moe', 't5-small', T5), ('switch', 't5-small', T5), ('mpo', 't5-small', T5),
    ('hyperformer', 't5-small', T5), ('span_corruption', 't5-small', T5),
    ('lora', 'roberta-base', {'vocab_size': 64, 'embed': 16, 'heads': 2, 'mlp': 32,
                              'encoder_layers': 2}),
    ('language_modelling', 'gpt2', {'vocab_size': 64, 'embed': 16, 'heads': 2,
                                    'decoder_layers': 2})])
def test_every_kind_of_stage_needs_its_config_only(stage, name, shape):
  config = tiny(stage, name, shape)
  for program in plan_lib.PROGRAMS:
    if (stage, program) != ('span_corruption', 'predict'):
      assert model_flops(config, Topology.of('cpu:1'), program, ASSUMED) > 0


@pytest.fixture(scope='module')
def planned(run_python, tmp_path_factory):
  """Plans of a tiny stage on simulated devices: (options) -> (what is printed, what is written)."""
  folder = tmp_path_factory.mktemp('plan')
  config = folder / 'config.py'
  config.write_text('from tests.stages.test_plan import tiny\n\n\n'
                    "def get_config():\n  return tiny('pemt/stage2')\n")

  @functools.cache
  def run(*options):
    file = folder / f'{len(list(folder.iterdir()))}.json'
    done = run_python('launch/plan.py', f'--config={config}', '--sources=3', '--source_width=4',
                      '--prompt_rows=5', f'--output={file}', *options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, json.loads(file.read_text())

  return run


SPLIT = ('--topology=cpu:8', '--mesh=fsdp=4,tensor=2')


@pytest.mark.slow
def test_a_step_on_a_mesh_exchanges_layers_one_by_one_and_no_frozen_gradient(planned):
  printed, (found,) = planned(*SPLIT)
  assert '| fsdp=4,tensor=2 |' in printed and 'pemt/stage2 on t5-small' in printed
  assert found['mesh'] == {'fsdp': 4, 'tensor': 2} and found['rows'] == ROWS and found['fits']
  assert found['findings']['frozen_gradients'] == found['findings']['whole_gathers'] == []
  assert found['model_flops'] < 8 * found['flops'] < 2 * found['model_flops']
  assert set(found['collectives']) >= {'all-reduce', 'all-gather'}
  memory = found['memory']
  parts = memory['arguments'] + memory['temporary'] + memory['code']
  assert 0 < parts <= memory['peak'] <= parts + memory['output']


@pytest.mark.slow
def test_a_loop_over_layers_counts_as_layers_one_by_one(planned):
  (looped,), (unrolled,) = (planned(*SPLIT, *more)[1]
                            for more in ((), ('--config.model.scan_layers=False',)))
  assert unrolled['model_flops'] <= looped['model_flops']
  assert unrolled['flops'] == pytest.approx(looped['flops'], rel=0.1)


@pytest.mark.slow
def test_decoding_counts_every_token(planned):
  short, long = (planned(*SPLIT, '--program=predict', f'--config.generation.max_length={length}')
                 [1][0] for length in (4, 8))
  step = (long['flops'] - short['flops']) / 4
  assert 0 < step < short['flops']
  exchanged = [sum(kind['runs'] for kind in plan['collectives'].values()) for plan in (short, long)]
  assert exchanged[1] > exchanged[0]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs the extra plan')
def test_a_slice_of_tpus_is_planned_without_one(planned):
  _, plans_of_meshes = planned('--topology=v5e:2x2', '--mesh=fsdp=4', '--mesh=fsdp=2,tensor=2')
  for found in plans_of_meshes:
    assert found['fits'] and found['findings']['whole_gathers'] == []
    assert found['step_seconds'] == max(found['seconds'].values()) > 0
    assert 0 < found['utilisation'] < 1
    assert found['model_flops'] < 4 * found['flops'] < 2 * found['model_flops']
