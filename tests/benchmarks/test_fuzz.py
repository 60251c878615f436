"""Damaged files of every kind are read or refused; `benchmarks/fuzz.py` goes on for longer."""

from __future__ import annotations

import os
import pathlib
import random

import hypothesis
import pytest
from hypothesis import strategies

from benchmarks import fuzzing, mutations, readers
from pemt_jax.errors import UserError

# Inputs that are made without a model or torch.
QUICK = ('rows_jsonl', 'rows_json', 'rows_csv', 'rows_tsv', 'rows_gzip', 'gym', 'text', 'tokenizer',
         't5_safetensors', 't5_shards', 'bart', 'family', 'ensembling_tables', 'task_vectors')
SEEDS = strategies.integers(0, 2**32)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tmp_path_factory.mktemp('fuzz')


def check(root, name, seed):
  fuzzing.prepare(root, name)
  outcome = fuzzing.attempt(root, name, seed)
  assert outcome.kind != 'broken', f'seed {seed}: {outcome}'


@pytest.mark.parametrize('name', QUICK)
@hypothesis.given(seed=SEEDS)
def test_damaged_files(root, name, seed):
  check(root, name, seed)


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(set(readers.CASES) - set(QUICK)))
@hypothesis.given(seed=SEEDS)
@hypothesis.settings(max_examples=30)
def test_damaged_experts_and_checkpoints(root, name, seed):
  pytest.importorskip('torch')
  check(root, name, seed)


@pytest.mark.parametrize('harm, reason', [
    (lambda folder: {}[str(folder)], 'KeyError'), (lambda folder: bytearray(10**15), 'Memory'),
    (lambda folder: os.system('true'), 'os.system'),
    (lambda folder: (folder.parents[2] / 'out').write_text(''), 'wrote'),
], ids=['exception', 'memory', 'program', 'file'])
def test_the_fuzzer_sees_harm(tmp_path, monkeypatch, harm, reason):
  def read(folder):
    if (folder / 'a').read_bytes() != b'whole':
      try:
        harm(folder)
      except MemoryError as error:
        raise UserError('It is refused.') from error

  case = readers.Case(lambda folder: (folder / 'a').write_bytes(b'whole'), read)
  monkeypatch.setitem(readers.CASES, 'case', case)
  monkeypatch.setattr(mutations, 'damage', lambda folder, rng: (folder / 'a').write_text('') and '')
  fuzzing.prepare(tmp_path / 'root', 'case')
  outcome = fuzzing.attempt(tmp_path / 'root', 'case', 0, fuzzing.Watch())
  assert outcome.kind == 'broken' and (reason in outcome.reason or reason == 'Memory')


def test_a_seed_tells_the_damage(tmp_path):
  found = set()
  for _ in range(2):
    path = pathlib.Path(tmp_path / 'a.json')
    path.write_text('{"a": [1, 2, {"b": "c"}]}')
    mutations.damage(tmp_path, random.Random(7))
    found.add(path.read_bytes() if path.is_file() else b'')
  assert len(found) == 1
