"""Mistakes on the command line: one exact sentence, code 2, no traceback, nothing half-written."""

from __future__ import annotations

import json
import shutil

import pytest

from pemt_jax.experts import library
from pemt_jax.methods.zoo import ZOO
from pemt_jax.stages.prompts import STARTS
from tests.launch.conftest import FIELDS, write_rows

STAGE1, STAGE2 = 'configs/pemt/stage1.py:task=rte', 'configs/pemt/stage2.py:task=rte'
NAME = 'playground-charm'


@pytest.fixture
def fails(command, workdir):
  """`fails(sentence, script, ...)` checks a command that must not write anything."""

  def check(sentence, script, *options):
    before = sorted(workdir.rglob('*'))
    assert command(script, *options) == (2, '', sentence + '\n')
    assert sorted(workdir.rglob('*')) == before

  return check


@pytest.fixture
def train_fails(fails, workdir, overrides):
  """`train_fails(sentence, *options, config=...)` does the same for train.py."""

  def check(sentence, *options, config=STAGE1):
    fails(sentence, 'train', f'--config={config}', f"--workdir={workdir / 'run'}", *overrides,
          *options)

  return check


@pytest.mark.parametrize('options, sentence', [
    (['--config.tasks=rtee'], "there is no task 'rtee'; close names are rte."),
    (['--config.tasks=boolq'], "there is no task 'boolq'; close names are superglue-boolq."),
    (['--config.data.batchsize=3'],
     f'Unknown config key config.data.batchsize for {STAGE1}; the closest existing keys are '
     'config.data.batch_size, config.data.eval_batch_size, config.batch_sizes.'),
    (['--config.data.batch_size=many'],
     "Value 'many' of option --config.data.batch_size is not allowed: invalid literal for int() "
     "with base 10: 'many'; correct it."),
    (['--config.data.root=/none'], "data.root '/none' is not a folder; correct the path."),
    (['--config.model.name=/none/t5'], "Tokenizer folder '/none/t5' does not exist; give a folder "
     'with tokenizer.json or spiece.model, or a Hugging Face id.'),
    (['--config.data.files.train=/none.tsv'],
     "there is no file '/none.tsv'; correct the path in data.files."),
    (['--config.data.source=ftp'],
     "data.source 'ftp' is not known; choose one of local, hf, tfds, playground, crossfit."),
    (['--config.data.batch_size=0'], 'config.data.batch_size is 0; give a number of at least 1.'),
    (['--config.data.buckets=(0,)'], 'config.data.buckets is (0,); give a number of at least 1.'),
    (['--config.data.few_shot=0'], 'data.few_shot is 0; give a number of at least 1.'),
    (['--config.seeds=(-1,)'], 'config.seeds is -1; give a number of at least 0.'),
    (['--config.seeds=(1,1)'], "two replicas are called 'rte-seed1'; list each seed of "
     'config.seeds, each rate of config.learning_rates and each expert of config.starts once.'),
    (['--config.model.dtype=int8'], "model.dtype is 'int8'; choose one of float32, bfloat16."),
    (['--config.prompt.init=zeros'],
     f"prompt.init is 'zeros'; choose one of {', '.join(STARTS)}."),
    (['--config.prompt.length=-1'], 'prompt.length is -1; give a number of at least 0.'),
    (['--config.method.expert=mlp'], "method.expert is 'mlp'; choose one of lora, adapter."),
    (['--config.method.rank=0'], 'method.rank is 0; give a number of at least 1.'),
    (['--config.train.accumulate=3'], 'config.train.accumulate is 3, which does not divide a batch '
     'of 128 rows; choose a divisor of config.data.batch_size.'),
    (['--config.train.eval_every=0'], "config.train.eval_every is '0'; give 'epoch', 'never' or a "
     'number of steps >= 1.'),
    (['--config.train.selection_split=dev'],
     "the run names split 'dev'; choose one of train, validation, test."),
    (['--config.generation.num_beams=0'],
     'Generation option num_beams=0 is too small; set num_beams to at least 1.'),
    (['--config.stage=pemt/stage3'], "stage 'pemt/stage3' is unknown; choose one of pemt/stage1, "
     "pemt/stage2, span_corruption, language_modelling, or one or several, joined by '+', of"
     f" {', '.join(ZOO)}."),
], ids=lambda value: value[0].removeprefix('--config.') if isinstance(value, list) else '')
def test_a_wrong_value(train_fails, options, sentence):
  train_fails(sentence, *options)


ROW = {'sentence1': 'ann runs', 'sentence2': 'bob walks', 'label': 0}


@pytest.mark.parametrize('lines, sentence', [
    ([ROW, '{"sentence1": "ann'], 'line 2 of FILE is not JSON (Invalid control character at '
     'column 19); fix the line or remove it.'),
    ([ROW, [1]], 'line 2 of FILE holds a list where an object with named fields is expected; fix '
     'the line or remove it.'),
    ([ROW, {'sentence1': 'ann', 'label': 0}], "line 2 of FILE: field 'sentence2' is missing "
     '(fields found: sentence1, label); fix the row or remove it.'),
    ([ROW, ROW | {'label': 'maybe'}], "line 2 of FILE: field 'label' has value 'maybe', which is "
     'not among 0..1 (entailment, not_entailment); fix the row or remove it.'),
    ([ROW, ROW | {'label': -1}], "line 2 of FILE: field 'label' has value -1, which marks a row "
     'without a label; choose a split that has labels or remove the row.'),
    ([], "split 'train' of task 'rte' has no rows in FILE; fill it or choose another "
     'data.split_rule.'),
], ids=['no JSON', 'no object', 'no field', 'no label word', 'no label', 'empty split'])
def test_a_bad_row(train_fails, workdir, lines, sentence):
  write_rows(workdir, 'rte')
  file = workdir / 'glue' / 'rte' / 'train.jsonl'
  file.write_text(''.join(f'{line if isinstance(line, str) else json.dumps(line)}\n'
                          for line in lines))
  train_fails(sentence.replace('FILE', str(file)), f'--config.data.root={workdir}')


def test_a_row_with_another_number_of_columns(train_fails, workdir):
  write_rows(workdir, 'rte')
  (workdir / 'glue' / 'rte' / 'train.jsonl').unlink()
  file = workdir / 'glue' / 'rte' / 'train.tsv'
  file.write_text('sentence1\tsentence2\tlabel\nann\tbob\n')
  train_fails(f'line 2 of {file} has 2 columns where the header names 3; fix the line or remove '
              'it.', f'--config.data.root={workdir}')


def test_a_task_or_split_without_data(train_fails, workdir, rows):
  train_fails(f"task 'superglue-boolq' has no data below {rows}: there is no folder "
              'super_glue/boolq; put train.jsonl there or choose another data.source.',
              config='configs/pemt/stage1.py:task=superglue-boolq')
  write_rows(workdir, 'rte')
  (workdir / 'glue' / 'rte' / 'validation.jsonl').unlink()
  train_fails(f"task 'rte' has no split 'validation' below {workdir}: looked in glue/rte (holds "
              'train); add validation.jsonl there, name another split in data.split_names, or '
              'choose another data.split_rule or data.source.', f'--config.data.root={workdir}')
  train_fails(f"task 'qnli': split rule 'published' takes 500 validation rows out of the 12 rows "
              f"of {rows / FIELDS['qnli'][0] / 'train.jsonl'}; lower data.validation_rows or set "
              "data.split_rule='natural'.", '--config.data.validation_rows=500',
              config='configs/pemt/stage1.py:task=qnli')


def test_a_backbone_of_another_shape(train_fails, workdir, backbone):
  place = workdir / 't5'
  shutil.copytree(backbone, place)
  values = json.loads((place / 'config.json').read_text())
  weights, size = place / 'model.safetensors', values['vocab_size']
  (place / 'config.json').write_text(json.dumps(values | {'d_model': 32}))
  train_fails(f"'{weights}' has 'shared.weight' of shape [{size}, 16], expected [{size}, 32]; "
              'check that the sizes of the model belong to this file.',
              f'--config.model.name={place}')
  (place / 'config.json').unlink()
  train_fails(f"'{place / 'config.json'}' does not exist; a model folder needs the config.json of "
              'a Hugging Face T5.', f'--config.model.name={place}')


def test_sources_of_stage2(train_fails, workdir, stage1, stage2, backbone):
  experts, own = stage1.trained.workdir, f'--config.model.name={stage1.stage.backbone.name}'
  train_fails('stage 2 has no sources; set config.sources to the expert folders of stage 1.',
              config=STAGE2)
  train_fails(f"source {workdir / 'none'} holds no expert (card.json is missing); give folders of "
              'experts that a first stage wrote as config.sources.',
              f"--config.sources={workdir / 'none'}", config=STAGE2)
  train_fails(f"source {stage2.experts[NAME]} is an expert of 'pemt/stage2'; give experts of "
              "'pemt/stage1', or of 'propetl' on one prototype, as config.sources.", own,
              f'--config.sources={stage2.trained.workdir}', config=STAGE2)
  first = library.load_card(next(iter(stage1.experts.values())))
  found = library.backbone_hash(library_params(backbone))
  train_fails(f"Expert 'playground-omen' is a checkpoint of another backbone: it was trained on "
              f"'{first.backbone_id}' ({first.backbone_hash[:12]}), this run has '{backbone}' "
              f'({found[:12]}); set config.model.name, or --backbone, to its backbone.',
              f'--config.sources={experts}', config=STAGE2)
  train_fails('method.encoder_layers names layer 5, but the encoder has the layers 0 to 0; correct '
              'it.', own, f'--config.sources={experts}', '--config.method.encoder_layers=(5,)',
              config=STAGE2)
  train_fails('method.gate_temperature is 0.0; give a number above 0.', own,
              f'--config.sources={experts}', '--config.method.gate_temperature=0', config=STAGE2)


def library_params(backbone):
  from pemt_jax.interop import huggingface
  return huggingface.load_t5(backbone)[1]


def test_damaged_sources(train_fails, workdir, stage1):
  own = f'--config.model.name={stage1.stage.backbone.name}'
  copy = workdir / 'copy'
  shutil.copytree(next(iter(stage1.experts.values())), copy)
  for file in (copy / 'checkpoint' / 'arrays').rglob('*'):
    if file.is_file():
      file.write_bytes(b'x')
  damaged = copy / 'checkpoint'
  train_fails(f"{damaged / 'arrays' / '_CHECKPOINT_METADATA'} is not what was written; the tree is "
              f'damaged, remove {damaged} or copy it again.', own, f'--config.sources={copy}',
              config=STAGE2)
  (copy / 'card.json').write_text('{')
  train_fails(f"'{copy / 'card.json'}' is not valid JSON (Expecting property name enclosed in "
              'double quotes: line 1 column 2 (char 1)); restore or remove it.', own,
              f'--config.sources={copy}', config=STAGE2)


def test_a_bad_workdir(fails, workdir, overrides, stage2, config_file):
  (workdir / 'file').write_text('mine')
  fails(f"The workdir {workdir / 'file'} is a file; give a folder.", 'train', f'--config={STAGE1}',
        f"--workdir={workdir / 'file'}", *overrides)
  shutil.copytree(stage2.trained.workdir, workdir / 'run')
  fails(f"{workdir / 'run'} holds a run with config.train.learning_rate = 0.01, this call has 1.0; "
        'use the old value to resume it or choose another workdir.', 'train',
        f'--config={config_file(stage2.stage.config)}', f"--workdir={workdir / 'run'}",
        '--config.train.learning_rate=1')


def test_evaluate(fails, workdir, stage1, stage2, backbone):
  expert = stage2.experts[NAME]
  fails(f'{workdir} holds no expert; give the folder of an expert or of a finished run.',
        'evaluate', f'--workdir={workdir}')
  fails("Value 'dev' of option --split is not allowed: value should be one of "
        '<train|validation|test>; correct it.', 'evaluate', f'--workdir={expert}', '--split=dev')
  own = stage1.stage.backbone
  other = library.backbone_hash(library_params(backbone))
  fails(f"Expert '{NAME}' is a checkpoint of another backbone: it was trained on "
        f"'{own.name}' ({own.hash[:12]}), this run has '{backbone}' ({other[:12]}); set "
        'config.model.name, or --backbone, to its backbone.', 'evaluate', f'--workdir={expert}',
        f'--backbone={backbone}')
  shutil.copytree(next(iter(stage1.experts.values())), workdir / 'moved')
  card = json.loads((workdir / 'moved' / 'card.json').read_text())
  card['extra']['config']['method']['rank'] = 3
  (workdir / 'moved' / 'card.json').write_text(json.dumps(card))
  fails(f"{workdir / 'moved'} has 'decoder/layers/mlp/wo/lora/down' as float32 [1, 24, 2], "
        'expected float32 [1, 24, 3]; use a checkpoint of the same config.', 'evaluate',
        f"--workdir={workdir / 'moved'}")


def test_predict(fails, workdir, stage1, stage2):
  expert, rows = f'--workdir={stage2.experts[NAME]}', workdir / 'rows.tsv'
  rows.write_text('txt\na fox\n')
  out = f"--output={workdir / 'out.jsonl'}"
  fails('Option --input is missing; add --input=VALUE to the command.', 'predict', expert, out)
  fails(f"there is no file '{workdir / 'none.tsv'}' of rows to predict; correct the path of "
        '--input.', 'predict', expert, f"--input={workdir / 'none.tsv'}", out)
  fails(f"line 2 of {rows}: field 'text' is missing (fields found: txt, label); fix the row or "
        'remove it.', 'predict', expert, f'--input={rows}', out)
  fails(f"there is no folder '{workdir / 'none'}' for the predictions; make it or correct the path "
        'of --output.', 'predict', expert, f'--input={rows}',
        f"--output={workdir / 'none' / 'out.jsonl'}")
  fails(f'{stage1.trained.workdir} holds 2 experts (playground-omen, playground-tide); give the '
        'folder of one of them.', 'predict', f'--workdir={stage1.trained.workdir}',
        f'--input={rows}', out)


def test_report(fails, workdir):
  fails(f"Folder '{workdir}' given by --workdir holds no run (no result.json and no metrics.jsonl "
        'below it); give the --workdir of launch/train.py.', 'report', f'--workdir={workdir}')


def test_a_process_of_its_own_tells_the_same(run_python, workdir):
  done = run_python('launch/train.py', f'--config={STAGE2}', f"--workdir={workdir / 'run'}",
                    '--config.model.name=/none/t5', '--config.data.root=/none')
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr == ("Tokenizer folder '/none/t5' does not exist; give a folder with "
                         'tokenizer.json or spiece.model, or a Hugging Face id.\n')
  assert not (workdir / 'run').exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite(command, workdir, overrides):
  options = [*overrides, '--config.data.batch_size=4', '--config.train.warmup_steps=0',
             '--config.train.epochs=3', '--config.train.learning_rate=1e38',
             '--config.train.checkpoint_every=1', '--config.train.log_every=1']
  code, _, stderr = command('train', f'--config={STAGE1}', f'--workdir={workdir}', *options)
  assert code == 2 and stderr.count('\n') == 1
  assert stderr.startswith("The loss or gradient of replica 'rte' is not finite at step 2 (example "
                           'ids ')
  assert stderr.endswith(f"; last good checkpoint: {workdir / 'checkpoints' / 'run' / '1'}); lower "
                         'config.train.learning_rate or look at these examples.\n')
  assert not (workdir / 'result.json').exists() and not (workdir / 'experts').exists()


@pytest.mark.slow
def test_a_metric_that_the_task_does_not_have(command, workdir, overrides):
  code, _, stderr = command('train', f'--config={STAGE1}', f'--workdir={workdir}', *overrides,
                            '--config.train.metric=f1')
  assert (code, stderr) == (2, "config.train.metric is 'f1', the evaluation of 'rte' gives "
                            'accuracy, average_metrics, loss, cross_entropy_nats; choose one of '
                            "these or ''.\n")
  assert not (workdir / 'result.json').exists() and not (workdir / 'experts').exists()
