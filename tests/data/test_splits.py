"""Laws of split rules, few-shot draws and row limits."""

from __future__ import annotations

import random

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from pemt_jax.data import splits
from pemt_jax.data.tasks import SPLITS, TASKS, get_task
from pemt_jax.errors import UserError


@pytest.fixture(scope='module')
def golden_case(golden_root):
  folder = golden_root / 'pemt' / 'data_pipeline'
  if not folder.is_dir():
    pytest.skip(f'no {folder}')
  return folder


def test_permutations_equal_the_golden_ones(golden_case):
  with np.load(golden_case / 'outputs.npz') as wanted:
    kinds = {'randperm42': splits.randperm, 'pyshuffle42': splits.python_shuffle}
    assert len(wanted.files) == 10
    for name in wanted.files:
      kind, count = name.split('/')
      np.testing.assert_array_equal(kinds[kind](int(count))[:200], wanted[name])


@pytest.mark.parametrize('count, seed', [(1, 0), (2, 7), (1000, 42), (70001, 4096)])
def test_permutation_equals_torch(count, seed):
  torch = pytest.importorskip('torch')
  wanted = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()
  np.testing.assert_array_equal(splits.randperm(count, seed), wanted)


@hypothesis.given(st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_permutations_hold_every_row_once(count, seed):
  for order in (splits.randperm(count, seed), splits.python_shuffle(count, seed)):
    np.testing.assert_array_equal(np.sort(order), np.arange(count))


@pytest.mark.parametrize('rule', splits.SPLIT_RULES)
@pytest.mark.parametrize('name', ['cola', 'sst2', 'mnli', 'paws'])
def test_splits_that_share_a_table_share_no_row(name, rule):
  count = 25
  tables: dict[str, list[int]] = {}
  for split in ('train', 'validation', 'test'):
    plan = splits.plan_split(get_task(name), split, rule, validation_rows=10)
    tables.setdefault(plan.read, []).extend(splits.split_indices(plan, count))
  for rows in tables.values():
    assert sorted(rows) == list(range(count))


def test_published_rules_by_size():
  def read(name, split):
    plan = splits.plan_split(get_task(name), split, 'published')
    return plan.read, plan.part
  assert read('cola', 'train') == ('train', 'all')
  assert read('cola', 'validation') == ('validation', 'first_half')
  assert read('cola', 'test') == ('validation', 'second_half')
  assert read('sst2', 'validation') == ('train', 'head')
  assert read('sst2', 'train') == ('train', 'rest')
  assert read('sst2', 'test') == ('validation', 'all')
  assert read('yelp_polarity', 'test') == ('test', 'all')
  assert read('mnli', 'validation') == ('validation_mismatched', 'all')
  assert read('piqa', 'test') == ('validation', 'all')


@pytest.mark.parametrize('name', ['cola', 'sst2', 'paws'])
def test_halved_validation_leaves_train_whole(name):
  plans = [splits.plan_split(get_task(name), split, 'halved_validation') for split in SPLITS]
  assert [(plan.read, plan.part) for plan in plans] == [
      ('train', 'all'), ('validation', 'first_half'), ('validation', 'second_half')]


def test_published_splits_reproduce_the_golden_indices(golden_examples):
  for name, case in golden_examples.items():
    task, sizes = TASKS[name], case['sizes']
    for split, key in (('train', 'train_indices_first'), ('validation', 'validation_indices_first'),
                       ('validation', 'validation_half_indices'), ('test', 'test_half_indices')):
      if key not in case or (task.size == 'mapped' and 'half' in key):
        continue
      plan = splits.plan_split(task, split, 'published')
      indices = splits.split_indices(plan, sizes[plan.read])
      assert indices[:len(case[key])].tolist() == case[key], (name, split)
      if name != 'superglue-record':  # Its rows become one example per answer.
        assert len(indices) == case['splits'][split]['num_rows'], (name, split)


def test_few_shot_draws_reproduce_the_golden_indices(golden_examples):
  drawn = 0
  for name, case in golden_examples.items():
    wanted = case['few_shot_4']
    if 'error' in wanted:
      assert TASKS[name].few_shot_label is None, name
      continue
    count = case['sizes']['train']
    labels = None if TASKS[name].few_shot_label is None else _labels(wanted, count)
    indices = splits.few_shot_indices(labels, count, 4, give_up_after=1000)
    assert indices == wanted['indices'], name
    drawn += 1
  assert drawn == 22


def _labels(wanted: dict, count: int) -> list:
  """Returns the labels of a case; rows it skips without a label get one that is drawn in full."""
  if isinstance(wanted['labels'], list):
    return wanted['labels']
  known = dict(zip(wanted['indices'], wanted['labels_of_indices'], strict=True))
  taken: dict = {}
  labels = [None] * count
  for row in splits.python_shuffle(count):
    full = [label for label, number in taken.items() if number == 4]
    labels[row] = known[row] if row in known else full[0]
    if row in known:
      taken[known[row]] = taken.get(known[row], 0) + 1
  return labels


@hypothesis.given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.integers(1, 9))
def test_few_shot_takes_k_rows_of_each_label_or_all_there_are(labels, shots):
  rows = splits.few_shot_indices(labels, len(labels), shots, seed=3)
  drawn = [labels[row] for row in rows]
  assert len(set(rows)) == len(rows)
  assert all(drawn.count(label) == min(shots, labels.count(label)) for label in set(labels))


def test_few_shot_passes_over_excluded_rows_and_keeps_the_order_of_the_walk():
  labels = [row % 2 for row in range(40)]
  plain = splits.few_shot_indices(labels, 40, 20)
  exclude = plain[:10]
  assert splits.few_shot_indices(labels, 40, 20, exclude=exclude) == plain[10:]


def test_few_shot_without_labels_takes_k_rows_in_all():
  order = list(range(30))
  random.Random(42).shuffle(order)
  assert splits.few_shot_indices(None, 30, 8) == order[:8]


def test_few_shot_walk_that_gives_up_misses_rare_labels():
  order = splits.python_shuffle(1500)
  labels = [0] * 1500
  labels[order[1200]] = 1
  assert len(splits.few_shot_indices(labels, 1500, 4, give_up_after=1000)) == 4
  assert splits.few_shot_indices(labels, 1500, 4)[-1] == order[1200]


def test_row_limits_permute_rows_in_file_order_and_only_cut_permuted_ones():
  task = get_task('cola')
  train = splits.plan_split(task, 'train', 'published')
  rows = splits.split_indices(train, 50)
  np.testing.assert_array_equal(splits.limit_indices(rows, train, 7), splits.randperm(50)[:7])
  np.testing.assert_array_equal(splits.limit_indices(rows, train, None), np.arange(50))
  half = splits.plan_split(task, 'validation', 'published')
  rows = splits.split_indices(half, 50)
  np.testing.assert_array_equal(splits.limit_indices(rows, half, 7), splits.randperm(50)[:7])


def test_unknown_rule_is_an_error():
  with pytest.raises(UserError) as error:
    splits.plan_split(get_task('cola'), 'train', 'half')
  assert str(error.value) == ("data.split_rule 'half' is not known; choose one of published, "
                              'natural, first_n_of_train, halved_validation, halved_or_cut.')
