"""similarity.py and merge.py as a user types them."""

from __future__ import annotations

import json

import pytest

from pemt_jax.stages.run import run_stage
from tests.stages import small

NAMES = tuple(task.replace('/', '-') for task in small.SOURCES)


@pytest.fixture(scope='module')
def sources(backbone, tmp_path_factory):
  """A run of two sources."""
  place = tmp_path_factory.mktemp('sources')
  config = small.config_of('lora', backbone, steps=1)
  config.method.rank = 2
  run_stage(config, place)
  return place


def test_similarities_then_a_merge_then_its_scores(command, sources, workdir):
  tables, merged = workdir / 'similarity', workdir / 'merged'
  code, stdout, stderr = command('similarity', f'--sources={sources}', f'--output={tables}',
                                 '--metrics=loss,el2n', f'--targets={small.TARGET}',
                                 '--batch_size=8')
  assert (code, stderr) == (0, '')
  lines = stdout.splitlines()
  assert [line.split(' (')[0].rpartition(' ')[0] for line in lines[:2]] == [
      'loss: playground-charm <-', 'el2n: playground-charm <-']
  assert lines[2:] == [str(tables)]
  code, stdout, stderr = command('merge', f'--sources={sources}', f'--output={merged}',
                                 f'--targets={small.TARGET}', '--method=similarity',
                                 f'--similarity={tables}', '--metric=el2n')
  folder = merged / 'experts' / 'without_playground-charm'
  assert (code, stdout, stderr) == (0, f'{small.TARGET}: {folder}\n', '')
  code, stdout, stderr = command('evaluate', f'--workdir={merged}', '--split=validation')
  assert (code, stderr) == (0, '') and stdout.startswith('without_playground-charm accuracy=')
  gains = tables / 'gains.tsv'
  gains.write_text(f'playground-charm\n{NAMES[0]},0.5\n{NAMES[1]},0.25\n')
  code, stdout, stderr = command('similarity', f'--gains={gains}', f'--output={tables}')
  assert (code, stderr) == (0, '') and '| loss | 2 |' in stdout
  assert json.loads((tables / 'transfer.json').read_text())['metrics']['loss']['pairs'] == 2


@pytest.mark.parametrize('script, options, sentence', [
    ('similarity', [], 'no source is given; give folders of experts as --sources.'),
    ('similarity', ['--sources=/none'],
     '/none holds no expert; give the folder of an expert or of a finished run.'),
    ('similarity', ['--sources={sources}', '--metrics=lost'],
     "the similarity metric is 'lost'; choose one of loss, kl, el2n, logit_cosine, grand,"
     ' block_cosine, cosine, euclidean, performance, grand_by_block, grand_by_layer.'),
    ('similarity', ['--sources={sources}', '--metrics=kl'],
     "similarity 'kl' needs --tuned; give it, or leave the metric out."),
    ('similarity', ['--sources={sources}', '--targets=omenn'],
     "there is no task 'omenn'; "),
    ('merge', [], 'no source is given; give folders of experts as --sources.'),
    ('merge', ['--sources={sources}', '--method=mean'],
     "the merge method is 'mean'; choose one of average, families, similarity, weights,"
     ' task_arithmetic, ties, dare, fisher, search.'),
    ('merge', ['--sources={sources}', '--method=similarity'],
     "merging by 'similarity' needs a file; give it as --similarity."),
    ('merge', ['--sources={sources}', '--method=weights', '--weights=/none.txt'],
     "there is no file '/none.txt'; correct the path."),
    ('merge', ['--sources={sources}', '--method=ties', '--keep=2'],
     'the share of entries that TIES keeps is 2.0; give a number above 0 and at most 1.'),
])
def test_mistakes_are_one_sentence(command, sources, workdir, script, options, sentence):
  options = [option.format(sources=sources) for option in options]
  code, stdout, stderr = command(script, f"--output={workdir / 'out'}", *options)
  assert (code, stdout) == (2, '')
  assert stderr.startswith(sentence) and len(stderr.splitlines()) == 1
  assert not list(workdir.rglob('*.*'))
