"""Task vectors from a backbone: embeddings, Fisher information, principal components, commands."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.data.tokenizer import load_tokenizer
from pemt_jax.errors import UserError
from pemt_jax.experts.library import load_expert
from pemt_jax.interop.task_vector_files import read_task_vectors
from pemt_jax.stages import task_vectors
from pemt_jax.stages.rows import RowStore, replica_specs
from pemt_jax.stages.task_vectors import VectorOptions, make_task_vectors
from tests.stages import small

ADAPTERS = {'method__size': 3, 'method__activation': 'gelu', 'method__after_cross_attention': True,
            'method__after_dropout': True, 'method__tune_norms': False}
QUIET = {'train__eval_every': 'never', 'train__final_split': '', 'data__max_train_rows': 12}


def tiny_config(backbone, stage='full', tasks=small.SOURCES, **changes):
  return small.config_of(stage, backbone, tasks, **QUIET, **changes)


def test_random_vectors_need_no_rows(workdir):
  config = tiny_config('nowhere')
  found = make_task_vectors(config, VectorOptions('random', width=5, seed=3), workdir)
  stored = read_task_vectors(workdir)
  assert stored.names == found.names == ('playground/omen', 'playground/tide')
  np.testing.assert_array_equal(stored.vectors, found.vectors)
  assert found.vectors.shape == (2, 5)


def test_text_embeddings_average_what_the_head_reads(backbone, workdir):
  config = tiny_config(backbone)
  found = make_task_vectors(config, VectorOptions('text'), workdir / 'masked')
  wide = tiny_config(backbone, data__buckets=(40,), data__max_source_length=40)
  other = make_task_vectors(wide, VectorOptions('text', batch_size=12), workdir / 'wide')
  np.testing.assert_allclose(found.vectors, other.vectors, atol=1e-5)  # padding does not count
  legacy = make_task_vectors(config, VectorOptions('text', 'legacy'), workdir / 'legacy')
  assert np.abs(legacy.vectors - found.vectors).max() > 1e-3
  assert found.vectors.shape == (2, small.SHAPE['embed'])


@pytest.fixture(scope='module')
def fisher(backbone, tmp_path_factory):
  """Config, output and vectors of adapters, both tasks in one program, nothing reduced."""
  output = tmp_path_factory.mktemp('fisher')
  config = tiny_config(backbone, 'houlsby', **ADAPTERS)
  options = VectorOptions('fisher', width=0, scale='none')
  return config, output, make_task_vectors(config, options, output)


def test_fisher_vectors_are_mean_squared_gradients_of_each_row(fisher):
  config, output, found = fisher
  shape, embed, size = small.SHAPE, small.SHAPE['embed'], 3
  matrices = 2 * (2 * shape['encoder_layers'] + 3 * shape['decoder_layers'])
  assert found.vectors.shape == (2, matrices * embed * size)
  assert np.all(found.vectors >= 0) and np.all(found.vectors.max(1) > 0)
  # The down projection of the decoder's cross-attention of one task, row by row.
  stage = task_vectors.run_stage(config, output / task_vectors.TUNING).stage
  tuned, constants, _ = load_expert(output / 'tuning/experts/playground-omen')
  loss_fn = task_vectors.make_loss(stage.model, stage.method, task_vectors.LossForm(0.0, 'sum'))
  store = RowStore(load_tokenizer(config.model.name), output / 'again')
  rows = store.eval_batches(replica_specs(config)[0], 'train')[0]
  grad = jax.jit(jax.grad(lambda values, row: loss_fn(
      values, stage.start.frozen, constants, row, None)[0]))
  total = 0.0
  for i in range(12):
    one = {name: jnp.asarray(leaf[i:i + 1]) for name, leaf in rows.items()
           if name.startswith(('inputs', 'targets'))}
    own = grad(jax.tree.map(jnp.asarray, tuned), one)
    kernel = own['decoder']['layers']['cross_attention_residual']['adapter']['down']['kernel'][0]
    total = total + np.asarray(kernel, np.float64) ** 2 / 12
  sixth = found.vectors[0].reshape(matrices, -1)[4 + 2]
  np.testing.assert_allclose(sixth, total.T.ravel(), rtol=1e-3, atol=1e-9)


def test_fisher_vectors_are_reduced(fisher):
  _, output, whole = fisher
  rows = dict(zip(whole.names, whole.vectors, strict=True))
  found = task_vectors.principal_components(rows, 1)
  centred = whole.vectors - whole.vectors.mean(0)
  length = np.linalg.norm(centred[0])
  np.testing.assert_allclose(np.abs(found.vectors[:, 0]), length, rtol=1e-4)
  np.testing.assert_allclose(np.abs(found.unit().vectors), 1.0, rtol=1e-4)
  direction = centred[0] / length
  sign = np.sign(direction[np.argmax(np.abs(direction))])
  assert np.sign(found.vectors[0, 0]) == sign  # the largest entry of the component is positive
  with pytest.raises(UserError, match='width is 3, but 2 tasks have only 2 principal components'):
    make_task_vectors(tiny_config('nowhere'), VectorOptions('fisher', width=3), output)


@pytest.mark.slow
def test_tuned_embeddings_one_task_after_the_other(backbone, workdir):
  config = tiny_config(backbone, together='task', tasks=small.SOURCES[:1])
  options = VectorOptions('fine_tuned_text', batch_size=12)
  found = make_task_vectors(config, options, workdir)
  assert (workdir / 'tuning/playground-omen/result.json').is_file()
  assert found.vectors.shape == (1, small.SHAPE['embed'])
  again = make_task_vectors(config, options, workdir)  # nothing is trained again
  np.testing.assert_array_equal(found.vectors, again.vectors)
  before = make_task_vectors(config, VectorOptions('text', batch_size=12), workdir / 'text')
  assert np.abs(before.vectors - found.vectors).max() > 1e-3


def test_mistakes(backbone, workdir):
  with pytest.raises(UserError, match="the kind of task vectors is 'task2vec'; choose one of rand"):
    VectorOptions('task2vec')
  seeds = tiny_config(backbone, seeds=(1, 2))
  with pytest.raises(UserError, match="'fisher' vectors need one replica for each task"):
    make_task_vectors(seeds, VectorOptions('fisher', width=0), workdir)
  with pytest.raises(UserError, match='the method tunes no adapter kernels'):
    task_vectors.fisher_matrix({'shared': {'embedding': np.zeros((2, 2))}})
