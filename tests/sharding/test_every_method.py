"""Every method on 8 simulated devices, and the layouts of all parameters."""

from __future__ import annotations

import itertools

import pytest

from pemt_jax.methods import zoo
from tests.sharding import layouts

# Each list is one process.
PROGRAMS = (
    ('pemt/stage2', 'adapter+lora+prompt+ia3+bitfit', 'houlsby+lora_mlp+prefix+compacter', 'maml'),
    ('pfeiffer+parallel+lora_ensembling+bias_mlp+prefix_kv', 'full', 'switch', 'task_moe'),
    ('houlsby_ensembling+lora_br+intrinsic_prefix', 'fastfood', 'meta_adapter', 'adamix+mixda',
     'attempt+intrinsic_adapter'),
    ('intrinsic_lora', 'propetl+adapter_controller', 'hyperformer_pp', 'mpo', 'top2',
     'hyperformer'))
SHORT = ('lora', 'switch', 'propetl', 'pemt/stage2')


def test_every_method_stands_in_a_program():
  named = itertools.chain.from_iterable(name.split('+') for name in itertools.chain(*PROGRAMS))
  assert sorted(named) == sorted((*zoo.ZOO, 'pemt/stage2'))


@pytest.mark.slow
@pytest.mark.parametrize('names', PROGRAMS, ids=str)
def test_training_and_decoding_on_a_mesh_equal_those_on_one_device(run_python, names):
  done = run_python('-W', 'ignore', '-m', 'tests.sharding.every_method', *names, devices=8,
                    timeout=900)
  assert done.returncode == 0, done.stderr[-4000:]
  assert done.stdout.splitlines() == [f'{name}: equal' for name in names]


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=() if name in SHORT else [pytest.mark.slow])
    for name in (*layouts.BACKBONES, *layouts.METHODS)])
def test_layouts_are_those_of_the_file(name):
  """`python -m tests.sharding.layouts` writes the files anew; look at what changed."""
  written = layouts.path_of(name).read_text(encoding='utf-8').splitlines()
  assert layouts.lines(name) == written
