"""Writes, or checks against, the recorded outputs of the package adapters on a tiny random T5.

It runs in an environment of its own, see requirements-adapterhub.txt:

  python tests/interop/make_adapterhub_fixture.py --output=tests/golden/adapterhub
  python tests/interop/make_adapterhub_fixture.py --check=FOLDER --output=tests/golden/adapterhub

The first writes a backbone, one folder of `save_adapter` for each kind and the logits. The second
loads FOLDER/<kind> by `load_adapter` and compares with the recorded logits.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

from absl import app
from absl import flags

OUTPUT = flags.DEFINE_string('output', None, 'Folder of the fixture.', required=True)
CHECK = flags.DEFINE_string('check', '', 'Folder with one adapter folder for each kind to check.')

CASE = 'case.safetensors'


def kinds() -> dict[str, tuple[Any, bool, bool]]:
  """Kind -> (config of adapters, whether weights are safetensors, whether the head is stored)."""
  from adapters import DoubleSeqBnConfig, ParBnConfig, SeqBnConfig

  return {
      'double_seq_bn': (DoubleSeqBnConfig(reduction_factor=2), False, True),
      'seq_bn': (SeqBnConfig(reduction_factor=4), True, True),
      'par_bn': (ParBnConfig(reduction_factor=2), True, False),
      'norms': (DoubleSeqBnConfig(
          reduction_factor=8 / 3, cross_adapter=True, leave_out=[1, 2], ln_before=True,
          ln_after=True, non_linearity='gelu'), False, False),
      'everywhere': (ParBnConfig(
          reduction_factor=2, mh_adapter=True, cross_adapter=True, scaling=0.5,
          non_linearity='gelu_new'), True, False),
  }


def random_model() -> Any:
  """A T5 of 2 and 3 layers whose weights are large enough for every part to be seen."""
  import torch
  import transformers

  torch.manual_seed(0)
  config = transformers.T5Config(
      vocab_size=32, d_model=8, d_kv=4, num_heads=2, d_ff=16, num_layers=2, num_decoder_layers=3,
      relative_attention_num_buckets=8, decoder_start_token_id=0, pad_token_id=0)
  model = transformers.T5ForConditionalGeneration(config)
  randomise(model)
  return model.eval()


def randomise(model: Any, part: str = '') -> None:
  """Draws the parameters whose name holds `part`."""
  import torch

  with torch.no_grad():
    for name, value in model.named_parameters():
      if part in name:
        norm = 'norm' in name and name.endswith('weight')
        value.copy_(0.4 * torch.randn_like(value) + float(norm))


def random_case() -> dict[str, Any]:
  """Token ids [3, 6] and [3, 4] and the mask of the first; the later rows are padded."""
  import torch

  mask = (torch.arange(6) < torch.tensor([[6], [4], [2]])).long()
  return {'inputs': torch.randint(2, 32, (3, 6)) * mask, 'inputs_mask': mask,
          'decoder_inputs': torch.randint(2, 32, (3, 4))}


def logits_of(model: Any, case: dict[str, Any]) -> Any:
  """[3, 4, vocab]."""
  import torch

  with torch.no_grad():
    return model(input_ids=case['inputs'], attention_mask=case['inputs_mask'],
                 decoder_input_ids=case['decoder_inputs']).logits


def write(folder: pathlib.Path) -> None:
  """Writes the fixture."""
  import adapters
  from safetensors.torch import save_file

  folder.mkdir(parents=True, exist_ok=True)
  model, case = random_model(), random_case()
  model.save_pretrained(folder / 'backbone')
  (folder / 'backbone' / 'generation_config.json').unlink(missing_ok=True)
  adapters.init(model)
  case['logits/none'] = logits_of(model, case)
  for kind, (config, safe, head) in kinds().items():
    model.add_adapter(kind, config=config)
    randomise(model, f'adapters.{kind}.')
    model.set_active_adapters(kind)
    model.save_adapter(str(folder / kind), kind, with_head=head, use_safetensors=safe)
    case[f'logits/{kind}'] = logits_of(model, case)
  save_file(case, folder / CASE)
  size = sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())
  print(f'Wrote {folder}: {len(kinds())} adapters, {size / 1024:.0f} KiB.')


def check(exported: pathlib.Path, folder: pathlib.Path) -> bool:
  """Loads exported adapters and compares logits; says what it finds."""
  import adapters
  from safetensors.torch import load_file
  import transformers

  case, good = load_file(folder / CASE), True
  for kind in kinds():
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder / 'backbone').eval()
    adapters.init(model)
    safe = (exported / kind / 'adapter.safetensors').is_file()
    found = {}
    name = model.load_adapter(str(exported / kind), with_head=False, use_safetensors=safe,
                              set_active=True, loading_info=found)
    assert not found['missing_keys'] and not found['unexpected_keys'], found
    logits = logits_of(model, case)
    error = float((logits - case[f'logits/{kind}']).abs().max())
    moved = float((logits - case['logits/none']).abs().max())
    good &= error < 1e-5 < moved
    print(f'{kind} (loaded as {name}): largest difference {error:.1e}, '
          f'to the plain backbone {moved:.1e}')
  return good


def main(argv: list[str]) -> None:
  """Writes the fixture, or checks against it."""
  del argv
  folder = pathlib.Path(OUTPUT.value)
  if not CHECK.value:
    write(folder)
  elif not check(pathlib.Path(CHECK.value), folder):
    sys.exit('An adapter gives other logits than the recorded ones.')


if __name__ == '__main__':
  app.run(main)
