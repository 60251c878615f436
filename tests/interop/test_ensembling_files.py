"""Tables of the original ensembling program: layouts, round trips, and files that are refused."""

from __future__ import annotations

import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.interop import ensembling_files as tables

MATRIX = tables.Matrix(('b', 'x'), ('a', 'b', 'c'),
                       np.array([[0.25, 1e-9, 3.0], [-1.0, 0.1, 7.5]]))


def same(first, second):
  assert (first.targets, first.sources) == (second.targets, second.sources)
  np.testing.assert_array_equal(first.values, second.values)


def test_layout_of_similarities(tmp_path):
  path = tmp_path / 'Loss' / 'result.tsv'
  for _ in range(2):  # the second call replaces the first, it does not append
    tables.write_similarity(path, MATRIX)
  assert path.read_text() == 'b\na,0.25\nb,1e-09\nc,3.0\nx\na,-1.0\nb,0.1\nc,7.5\n'
  same(tables.read_similarity(path), MATRIX)
  assert [file.name for file in path.parent.iterdir()] == ['result.tsv']


def test_layout_of_weights(tmp_path):
  path = tmp_path / 'final_weight.txt'
  weights = tables.Matrix(MATRIX.targets, MATRIX.sources,
                          np.array([[0.75, 0.0, 0.25], [0.5, 0.5, 0.0]]))
  tables.write_weights(path, weights)
  assert path.read_text() == 'b\n[0.75, 0.25]\nx\n[0.5, 0.5, 0.0]\n'
  same(tables.read_weights(path, weights.sources), weights)


def test_layouts_of_scores(tmp_path):
  tables.write_zero_shot(tmp_path / 'zero.tsv', MATRIX.values)
  assert (tmp_path / 'zero.tsv').read_text() == '0.25\n1e-09\n3.0\n-1.0\n0.1\n7.5\n'
  same(tables.read_zero_shot(tmp_path / 'zero.tsv', MATRIX.targets, MATRIX.sources), MATRIX)
  for target, row in zip(MATRIX.targets, MATRIX.values, strict=True):
    tables.write_tuned_scores(tmp_path, target, MATRIX.sources, np.stack([row, row + 1], axis=1))
  written = (tmp_path / 'b' / 'result.tsv').read_text()
  assert written == 'b\na,0.25,1.25\nb,1e-09,1.000000001\nc,3.0,4.0\n'
  same(tables.read_tuned_scores(tmp_path, MATRIX.targets), MATRIX)


def test_names_of_parts():
  assert tables.part_file('encoder', 3) == 'encoder_block_3_result.tsv'
  assert tables.part_file('decoder', 0, 2) == 'decoder_block_0_layer_2_result.tsv'


def test_rows_and_columns_are_chosen_by_name():
  found = MATRIX.chosen(['x', 'b'], ['c', 'a'], 'f')
  np.testing.assert_array_equal(found, [[7.5, -1.0], [3.0, 0.25]])
  with pytest.raises(UserError, match=r"f has no source 'd' \(it has a, b, c\)"):
    MATRIX.chosen(['x'], ['d'], 'f')


SIMILARITIES = [
    ('', 'is empty'),
    ('a,1\n', "line 1 is 'a,1', which is neither a target nor a source with 1 numbers"),
    ('t\na,1,2\n', "line 2 is 'a,1,2'"),
    ('t\na,one\n', "line 2 holds 'one' where a finite number"),
    ('t\na,nan\n', "line 2 holds 'nan'"),
    ('t\na,1\na,2\n', "line 3 names source 'a' a second time"),
    ('t\na,1\nt\na,1\n', "line 3 begins target 't' a second time"),
    ('t\na,1\nu\nb,1\n', r"has other sources for target 'u' \(b\) than for 't' \(a\)"),
    ('t\n\na,1\n', "line 2 is ''"),
    ('t\nu\na,1\n', "other sources for target 't'"),
]


@pytest.mark.parametrize('text, words', SIMILARITIES)
def test_wrong_similarities_are_one_sentence(text, words, tmp_path):
  path = tmp_path / 'result.tsv'
  path.write_text(text)
  with pytest.raises(UserError, match=words):
    tables.read_similarity(path)


WEIGHTS = [
    ('t\n', 'has 1 lines; two belong to each target'),
    ('t\n[1.0]\n', "has 1 weights for target 't', but 2 other sources are known"),
    ('t\n[1.0, None]\n', 'which is no list of finite numbers'),
    ('t\n[1.0, NaN]\n', 'which is no list of finite numbers'),
    ('t\n[0.5, 0.5]\nt\n[0.5, 0.5]\n', "names target 't' a second time"),
    ('t\n__import__("os")\n', 'which is no list of finite numbers'),
]


@pytest.mark.parametrize('text, words', WEIGHTS)
def test_wrong_weights_are_one_sentence(text, words, tmp_path):
  path = tmp_path / 'final_weight.txt'
  path.write_text(text)
  with pytest.raises(UserError, match=words):
    tables.read_weights(path, ['a', 'b'])


def test_other_wrong_files_are_one_sentence(tmp_path):
  with pytest.raises(UserError, match="there is no file '.*none.tsv'"):
    tables.read_similarity(tmp_path / 'none.tsv')
  (tmp_path / 'zero.tsv').write_text('1\n2\n')
  with pytest.raises(UserError, match='has 2 lines, but 1 targets with 3 sources make 3'):
    tables.read_zero_shot(tmp_path / 'zero.tsv', ['t'], ['a', 'b', 'c'])
  (tmp_path / 'bytes.tsv').write_bytes(b'\xff\xfe')
  with pytest.raises(UserError, match='is no text in UTF-8'):
    tables.read_similarity(tmp_path / 'bytes.tsv')
  tables.write_tuned_scores(tmp_path, 't', ['a'], np.ones((1, 2)))
  tables.write_tuned_scores(tmp_path, 'u', ['b'], np.ones((1, 2)))
  with pytest.raises(UserError, match=r"has other sources \(b\) than that of 't' \(a\)"):
    tables.read_tuned_scores(tmp_path, ['t', 'u'])
  (tmp_path / 'u' / 'result.tsv').write_text('t\na,1,1\n')
  with pytest.raises(UserError, match="is a table of t; give that of 'u' alone"):
    tables.read_tuned_scores(tmp_path, ['t', 'u'])
