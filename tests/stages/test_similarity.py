"""Similarities and merges of trained experts, from a run of three sources to tables and experts."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.experts.library import load_card, load_expert
from pemt_jax.experts.similarity import METRICS
from pemt_jax.interop import ensembling_files as tables
from pemt_jax.stages import merging, predict, similarity, transfer
from pemt_jax.stages.expert_set import load_sources
from pemt_jax.stages.run import run_stage
from pemt_jax.stages.similarity_rows import SimilarityOptions
from pemt_jax.trees import flatten
from tests.stages import small

TASKS = (*small.SOURCES, small.TARGET)
NAMES = tuple(task.replace('/', '-') for task in TASKS)
ALL = (*METRICS, 'grand_by_block', 'grand_by_layer')


def config_of(backbone, steps=3, **changes):
  config = small.config_of('lora', backbone, TASKS, steps, train__final_split='validation',
                           train__eval_every=steps, **changes)
  config.method.rank = 2
  return config


@pytest.fixture(scope='module')
def sources(backbone, tmp_path_factory):
  """A run of three sources."""
  place = tmp_path_factory.mktemp('sources')
  run_stage(config_of(backbone, train__learning_rate=0.1), place)
  return str(place)


@pytest.fixture(scope='module')
def moved(backbone, sources, tmp_path_factory):
  """Every source after a step on every target."""
  place = tmp_path_factory.mktemp('moved')
  starts = tuple(f'{sources}/experts/{name}' for name in NAMES)
  run_stage(config_of(backbone, 1, starts=starts), place)
  return str(place)


@pytest.fixture(scope='module')
def measured(sources, moved, tmp_path_factory):
  """All metrics in batches of 6 rows, the last one filled up: 16 rows per target."""
  place = tmp_path_factory.mktemp('measured')
  references = similarity.References((sources,), moved, moved)
  found = similarity.measure([sources], [], SimilarityOptions(ALL, batch_size=6), references, place)
  return found, place


def leaves(folder):
  return flatten(load_expert(folder)[0])


def test_every_metric_has_its_tables(measured):
  found, place = measured
  assert tuple(found) == ALL
  for name, metric in METRICS.items():
    if name != 'block_cosine':
      written = tables.read_similarity(place / metric.folder / tables.RESULT)
      assert (written.targets, written.sources) == (NAMES, NAMES)
      np.testing.assert_array_equal(written.values, found[name].values)
  parts = {file.name for folder in ('Block_cosine', 'GraNd_block', 'GraNd_layer')
           for file in (place / folder).iterdir()}
  assert parts == {tables.part_file(stack, 0) for stack in ('encoder', 'decoder')} | {
      tables.part_file('encoder', 0, 0), tables.part_file('decoder', 0, 0),
      tables.part_file('decoder', 0, 1)}
  summary = json.loads((place / similarity.SUMMARY).read_text())
  assert summary['metrics']['loss']['sign'] == -1 and summary['targets'] == list(TASKS)


def test_an_expert_is_most_like_itself(measured):
  found, _ = measured
  np.testing.assert_allclose(np.diag(found['kl'].values), 0.0, atol=1e-4)
  np.testing.assert_allclose(np.diag(found['cosine'].values), 1.0, atol=1e-6)
  for matrix in found['block_cosine'].values():
    np.testing.assert_allclose(np.diag(matrix.values), 6.0, atol=1e-4)
    assert (matrix.values <= 6.0001).all() and matrix.values.min() < 5.999


def test_all_rows_in_one_batch_give_the_loss_of_the_evaluator(sources, tmp_path):
  options = SimilarityOptions(('loss', 'el2n'), batch_size=16)
  found = similarity.measure([sources], [TASKS[1]], options, similarity.References(), tmp_path)
  assert found['loss'].targets == (NAMES[1],)
  metrics = predict.evaluate_experts(pathlib.Path(sources), 'validation', {})
  np.testing.assert_allclose(found['loss'].values[0, 1],
                             metrics[NAMES[1]]['cross_entropy_nats'], rtol=1e-5)
  alone = similarity.measure([f'{sources}/experts/{NAMES[2]}'], [TASKS[1]], options,
                             similarity.References(), tmp_path)
  for name in ('loss', 'el2n'):
    np.testing.assert_allclose(found[name].values[0, 2], alone[name].values[0, 0], rtol=1e-5)


@pytest.mark.slow
def test_first_batch_all_rows_sums_and_means(sources, measured, tmp_path):
  names = ('el2n', 'logit_cosine', 'grand')
  run = lambda **changes: similarity.measure(
      [sources], [], SimilarityOptions(names, batch_size=6, **changes), similarity.References(),
      tmp_path)
  every, mean = run(rows='all'), run(normalise='mean')
  published, _ = measured
  assert (every['el2n'].values > published['el2n'].values).all()  # the first batch, or all three
  np.testing.assert_allclose(every['logit_cosine'].values, published['logit_cosine'].values)
  np.testing.assert_allclose(every['grand'].values, published['grand'].values)  # the cap is 10
  np.testing.assert_allclose(mean['grand'].values * 3, published['grand'].values)
  ratio = published['el2n'].values / mean['el2n'].values  # tokens of the first batch
  np.testing.assert_allclose(ratio, np.round(ratio[:, :1]) * np.ones((1, 3)), rtol=1e-9)
  one, noisy = run(gradient_batches=1), run(gradient_batches=1, dropout=True)
  assert (one['grand'].values < published['grand'].values).all()
  assert (np.abs(noisy['grand'].values - one['grand'].values) > 1e-3).all()


@pytest.mark.slow
def test_gradients_by_part_add_up(sources, tmp_path):
  names = ('grand', 'grand_by_block', 'grand_by_layer')
  found = similarity.measure([sources], [], SimilarityOptions(names, 6, gradient_batches=1),
                             similarity.References(), tmp_path)
  for part in names[1:]:
    total = np.sqrt(sum(matrix.values**2 for matrix in found[part].values()))
    np.testing.assert_allclose(total, found['grand'].values, rtol=1e-5)


def test_distances_and_gains_come_from_the_moved_experts(sources, moved, measured):
  found, _ = measured
  before = leaves(f'{sources}/experts/{NAMES[2]}')
  after = leaves(f'{moved}/experts/{NAMES[0]}-from-{NAMES[2]}')
  gaps = [np.linalg.norm(a - b) for path, leaf in before.items()
          for a, b in zip(leaf, after[path], strict=True)]
  np.testing.assert_allclose(found['euclidean'].values[0, 2], sum(gaps), rtol=1e-5)
  result = json.loads((pathlib.Path(moved) / 'result.json').read_text())['replicas']
  zero = predict.evaluate_experts(pathlib.Path(sources), 'validation', {})
  gain = (result[f'{NAMES[1]}-from-{NAMES[1]}']['best_value'] - zero[NAMES[1]]['average_metrics'])
  np.testing.assert_allclose(found['performance'].values[1, 1], gain, atol=1e-6)


@pytest.mark.slow
def test_performance_reads_tables_too(sources, measured, tmp_path):
  rng = np.random.default_rng(0)
  before, after = rng.uniform(size=(2, 3, 3))
  tables.write_zero_shot(tmp_path / tables.ZERO_SHOT, before)
  for name, row in zip(NAMES, after, strict=True):
    tables.write_tuned_scores(tmp_path, name, NAMES, np.stack([row, row], axis=1))
  found = similarity.measure([sources], [], SimilarityOptions(('performance',)),
                             similarity.References(scores=str(tmp_path)), tmp_path, zero_shot=True)
  np.testing.assert_allclose(found['performance'].values, after - before)
  scores = tables.read_zero_shot(tmp_path / tables.ZERO_SHOT, NAMES, NAMES).values
  zero = predict.evaluate_experts(pathlib.Path(sources), 'validation', {})
  np.testing.assert_allclose(np.diag(scores), [zero[n]['average_metrics'] for n in NAMES])


def test_transfer_report(measured):
  _, place = measured
  gains = place / 'gains.tsv'
  loss = tables.read_similarity(place / 'Loss' / tables.RESULT)
  tables.write_similarity(gains, tables.Matrix(NAMES, NAMES, -loss.values))
  text = transfer.write_report(place, gains)
  found = json.loads((place / 'transfer.json').read_text())['metrics']
  assert found['loss']['spearman'] == pytest.approx(1.0) and found['loss']['pairs'] == 6
  assert found['loss']['best_found'] == 1.0 and found['loss']['regret'] == 0.0
  assert '| loss | 6 | 1.000 |' in text and (place / 'transfer.svg').read_text().startswith('<svg')


def merged(sources, place, method, **changes):
  options = merging.MergeOptions(method=method, **changes)
  return merging.merge_experts([sources], [], options, place)


def test_average_leaves_the_target_out_and_is_an_expert(sources, tmp_path):
  folders = merged(sources, tmp_path, 'average')
  assert [folder.name for folder in folders.values()] == [f'without_{name}' for name in NAMES]
  found = leaves(folders[TASKS[0]])
  others = [leaves(f'{sources}/experts/{name}') for name in NAMES[1:]]
  for path, leaf in found.items():
    np.testing.assert_allclose(leaf, (others[0][path] + others[1][path]) / 2, atol=1e-6)
  assert load_card(folders[TASKS[0]]).extra['merge']['weights'] == {
      NAMES[0]: 0.0, NAMES[1]: 0.5, NAMES[2]: 0.5}
  assert (tmp_path / 'final_weight.txt').read_text().splitlines()[:2] == [NAMES[0], '[0.5, 0.5]']
  assert (tmp_path / 'hot_pic_all.png').stat().st_size > 1000
  scores = predict.evaluate_experts(tmp_path, 'validation', {})
  assert set(scores) == {f'without_{name}' for name in NAMES}


@pytest.mark.slow
def test_a_merge_starts_a_run(backbone, sources, tmp_path):
  folders = merged(sources, tmp_path / 'merged', 'average')
  config = config_of(backbone, 1, starts=(str(tmp_path / 'merged'),), train__learning_rate=0.0)
  result = run_stage(config, tmp_path / 'run')
  for name, task in zip(NAMES, TASKS, strict=True):
    small.assert_same_leaves(leaves(result.experts[name]), leaves(folders[task]))


def test_weights_of_a_similarity_and_of_a_file_are_the_same_merge(sources, measured, tmp_path):
  found, place = measured
  first = merged(sources, tmp_path / 'a', 'similarity', similarity=str(place), metric='el2n',
                 temperature=0.5)
  scores = found['el2n'].values[0, 1:]
  expected = np.exp(-(scores - scores.min()) / 0.5)
  weights = tables.read_weights(tmp_path / 'a' / 'final_weight.txt', NAMES).values
  np.testing.assert_allclose(weights[0, 1:], expected / expected.sum(), rtol=1e-3)
  second = merged(sources, tmp_path / 'b', 'weights',
                  weights=str(tmp_path / 'a' / 'final_weight.txt'))
  third = merged(sources, tmp_path / 'c', 'similarity', metric='el2n', temperature=0.5,
                 similarity=str(place / 'EL2N' / 'result.tsv'))
  for task in TASKS:
    small.assert_same_leaves(leaves(first[task]), leaves(second[task]))
    small.assert_same_leaves(leaves(first[task]), leaves(third[task]))


def test_names_in_files_may_be_short(sources, tmp_path):
  short = tuple(task.rpartition('/')[2] for task in TASKS)
  scores = np.random.default_rng(0).normal(size=(3, 3))
  tables.write_similarity(tmp_path / 'result.tsv', tables.Matrix(short, short, scores))
  merged(sources, tmp_path / 'a', 'similarity', similarity=str(tmp_path / 'result.tsv'))
  found = tables.read_weights(tmp_path / 'a' / 'final_weight.txt', NAMES)
  tables.write_weights(tmp_path / 'short.txt', tables.Matrix(short, short, found.values))
  merged(sources, tmp_path / 'b', 'weights', weights=str(tmp_path / 'short.txt'))
  again = tables.read_weights(tmp_path / 'b' / 'final_weight.txt', NAMES)
  np.testing.assert_array_equal(found.values, again.values)


def test_families_divide_by_hand(sources, tmp_path):
  path = tmp_path / 'families.json'
  path.write_text(json.dumps({'one': list(TASKS[:2]), 'two': [TASKS[2], TASKS[0]][:1]}))
  options = merging.MergeOptions(method='families', families=str(path))
  folders = merging.merge_experts([sources], TASKS[:2], options, tmp_path)
  small.assert_same_leaves(leaves(folders[TASKS[0]]), leaves(f'{sources}/experts/{NAMES[1]}'))


def test_families_of_the_gym_need_no_file():
  tasks = ('crossfit/boolq', 'crossfit/mc_taco', 'crossfit/codah')
  found = merging.families_of('', tasks)
  assert found == {'binary': list(tasks[:2]), 'multiple_choice_qa': [tasks[2]]}


def test_task_vectors(sources, tmp_path):
  one, two = (leaves(f'{sources}/experts/{name}') for name in NAMES[1:])
  base = leaves(f'{sources}/experts/{NAMES[0]}')
  from_zero = leaves(merged(sources, tmp_path, 'task_arithmetic', scale=0.5)[TASKS[0]])
  from_base = leaves(merged(sources, tmp_path, 'task_arithmetic', scale=0.5,
                            base=f'{sources}/experts/{NAMES[0]}')[TASKS[0]])
  for path, leaf in base.items():
    np.testing.assert_allclose(from_zero[path], 0.5 * (one[path] + two[path]), atol=1e-6)
    np.testing.assert_allclose(from_base[path], 0.5 * (one[path] + two[path]), atol=1e-6)
  ties = leaves(merged(sources, tmp_path, 'ties', keep=0.01)[TASKS[0]])
  dare = leaves(merged(sources, tmp_path, 'dare', rate=0.9)[TASKS[0]])
  share = lambda found: np.mean([np.mean(leaf == 0) for leaf in found.values()])
  assert share(ties) > 0.9 and 0.6 < share(dare) < 0.95


def test_the_moved_experts_can_be_merged(sources, moved, tmp_path):
  found = leaves(merged(sources, tmp_path, 'average', moved=moved)[TASKS[0]])
  one, two = (leaves(f'{moved}/experts/{NAMES[0]}-from-{name}') for name in NAMES[1:])
  for path, leaf in found.items():
    np.testing.assert_allclose(leaf, (one[path] + two[path]) / 2, atol=1e-6)


@pytest.mark.parametrize('labels', ['model', pytest.param('data', marks=pytest.mark.slow)])
def test_fisher_means_lie_between_the_sources(sources, tmp_path, labels):
  found = leaves(merged(sources, tmp_path, 'fisher', rows=4, labels=labels)[TASKS[0]])
  plain = leaves(merged(sources, tmp_path, 'average')[TASKS[0]])
  pair = [leaves(f'{sources}/experts/{name}') for name in NAMES[1:]]
  apart = 0.0
  for path, leaf in found.items():
    low, high = (np.minimum(*(p[path] for p in pair)), np.maximum(*(p[path] for p in pair)))
    assert (leaf >= low - 1e-6).all() and (leaf <= high + 1e-6).all()
    apart = max(apart, np.abs(leaf - plain[path]).max())
  assert apart > 1e-3


@pytest.mark.slow
def test_the_search_beats_the_average_on_its_rows(sources, tmp_path):
  merged(sources, tmp_path / 'search', 'search', rows=16, candidates=8, rounds=2)
  merged(sources, tmp_path / 'average', 'average')
  loss = lambda place: predict.evaluate_experts(place, 'validation', {})
  found, plain = loss(tmp_path / 'search'), loss(tmp_path / 'average')
  for name in found:
    assert found[name]['cross_entropy_nats'] <= plain[name]['cross_entropy_nats'] + 1e-6
  weights = tables.read_weights(tmp_path / 'search' / 'final_weight.txt', NAMES).values
  np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-5)
  assert not np.diag(weights).any()


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['adapter+prefix', 'houlsby_ensembling+ia3+prompt'])
def test_other_deltas_are_measured_and_merged(backbone, workdir, kind):
  config = small.config_of(kind, backbone, TASKS, 1, prompt__length=3)
  run_stage(config, workdir / 'run')
  run = str(workdir / 'run')
  names = ('loss', 'kl', 'grand', 'block_cosine', 'cosine')
  found = similarity.measure([run], [], SimilarityOptions(names, 8), similarity.References((run,)),
                             workdir)
  assert all(np.isfinite(found[name].values).all() for name in names if name != 'block_cosine')
  np.testing.assert_allclose(np.diag(found['kl'].values), 0.0, atol=1e-4)
  for method in ('average', 'task_arithmetic', 'ties', 'dare', 'fisher', 'search'):
    place = workdir / method
    folders = merged(run, place, method, rows=4, candidates=4, rounds=1)
    shapes = {path: leaf.shape for path, leaf in leaves(f'{run}/experts/{NAMES[0]}').items()}
    assert {path: leaf.shape for path, leaf in leaves(folders[TASKS[0]]).items()} == shapes
    assert all(np.isfinite(leaf).all() for leaf in leaves(folders[TASKS[0]]).values())
  predict.evaluate_experts(workdir / 'fisher', 'validation', {})
  if 'ia3' in kind:  # two sources near one: their sum of changes is near one, not near two
    folder = workdir / 'task_arithmetic' / 'experts' / f'without_{NAMES[0]}'
    scales = [leaf for path, leaf in leaves(folder).items() if '/ia3/' in path]
    assert scales and all(np.abs(leaf - 1).max() < 0.3 for leaf in scales)


def test_mistakes_are_one_sentence(sources, stage1, base, tmp_path):
  measure = lambda metric, **references: similarity.measure(
      [sources], [], SimilarityOptions((metric,)), similarity.References(**references), tmp_path)
  cases = [
      (lambda: measure('wrong'), "the similarity metric is 'wrong'; choose one of loss, kl,"),
      (lambda: measure('kl'), "similarity 'kl' needs --tuned"),
      (lambda: measure('euclidean', moved=sources), "--moved has no expert of source 'playground-"),
      (lambda: measure('performance', scores=sources), "has no 'average_metrics' of replica"),
      (lambda: load_sources([sources, sources]), "two sources are experts of task 'playground/"),
      (lambda: load_sources([f'{sources}/experts/{NAMES[2]}', str(base / 'stage1')]),
       "is an expert of 'pemt/stage1' with other options than"),
      (lambda: load_sources([]), 'no source is given'),
      (lambda: merged(str(base / 'stage1'), tmp_path, 'average'), 'prompt/'),
      (lambda: merged(sources, tmp_path, 'magic'), "the merge method is 'magic'; choose one of"),
      (lambda: merged(sources, tmp_path, 'weights'), "'weights' needs a file"),
      (lambda: merged(sources, tmp_path, 'fisher', moved='x'), 'leave --moved out'),
      (lambda: merged(sources, tmp_path, 'families'), "task 'playground/omen' states no family"),
      (lambda: transfer.write_report(tmp_path, 'none.tsv'), "there is no file 'none.tsv'"),
  ]
  for call, words in cases:
    with pytest.raises(UserError) as error:
      call()
    assert words in str(error.value)
  assert not list(tmp_path.glob('experts/*')) and not (tmp_path / 'final_weight.txt').exists()
