"""The peer's side: Hugging Face transformers with PEFT on PyTorch."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import time
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration

from benchmarks.options import Options, batch_of
from benchmarks.timing import timed, timed_turn
from pemt_jax.models.t5_config import t5_config, to_hf

_PLACE = re.compile(r'\.(encoder|decoder)\.block\.(\d+)\..*\.wo\.lora_([AB])\.')
_NAMES = {'A': 'down', 'B': 'up'}


def load_model(options: Options) -> T5ForConditionalGeneration:
  """Loads the folder, or draws weights of a published size; dropout as in the options."""
  torch.set_num_threads(options.threads)
  if pathlib.Path(options.folder).is_dir():
    model = T5ForConditionalGeneration.from_pretrained(options.folder, dropout_rate=options.dropout)
  else:
    shapes = dataclasses.replace(t5_config(options.folder), dropout=options.dropout)
    with torch.device(options.device):
      model = T5ForConditionalGeneration(T5Config(**to_hf(shapes)))
  model.config.use_cache = False  # Training keeps no keys and values.
  return model.to(options.device, getattr(torch, options.dtype))


def _tensors(options: Options, vocab: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
  batch = batch_of(options, vocab, step)
  return tuple(torch.from_numpy(batch[name]).long().to(options.device)
               for name in ('inputs', 'targets'))


def load_tuned(model: torch.nn.Module, path: str) -> int:
  """Copies the LoRA pairs that the library started from; returns their number.

  Args:
    model: PEFT model with LoRA on every `wo`.
    path: file of the library's side; kernels are [in, out] with a leading [layer] axis.

  Raises:
    KeyError: a pair is missing in the file.
  """
  copied = 0
  with np.load(path) as leaves, torch.no_grad():
    for name, value in model.named_parameters():
      place = _PLACE.search(name)
      if place is None:
        continue
      stack, layer, letter = place.groups()
      leaf = leaves[f'{stack}/layers/mlp/wo/lora/{_NAMES[letter]}'][int(layer)]
      value.copy_(torch.from_numpy(np.ascontiguousarray(leaf.T)))
      copied += 1
  return copied


class TrainStep:
  """Forward, backward, clipping and AdamW on the LoRA pairs."""

  def __init__(self, options: Options):
    start = time.perf_counter()
    lora = LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules=['wo'],
                      lora_dropout=0.0, bias='none', task_type='SEQ_2_SEQ_LM')
    self._model = get_peft_model(load_model(options), lora)
    if options.tuned:
      load_tuned(self._model, options.tuned)
    self._model.train()
    self._tuned = [p for p in self._model.parameters() if p.requires_grad]
    self._optimiser = torch.optim.AdamW(self._tuned, lr=options.learning_rate, weight_decay=0.0)
    self._options, self._step = options, 0
    self._loss = torch.compile(self._model) if options.compiled else self._model
    built = time.perf_counter()
    self.first_loss = self._update().item()
    self.phases = {'build': built - start, 'first_step': time.perf_counter() - built}

  def _batch(self) -> dict[str, torch.Tensor]:
    """What the model reads in this step."""
    inputs, targets = _tensors(self._options, self._model.config.vocab_size, self._step)
    return {'input_ids': inputs, 'attention_mask': torch.ones_like(inputs), 'labels': targets}

  def _update(self) -> torch.Tensor:
    loss = self._loss(**self._batch()).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self._tuned, 1.0)
    self._optimiser.step()
    self._optimiser.zero_grad(set_to_none=True)
    self._step += 1
    return loss.detach()

  def run(self, count: int = 1) -> dict[str, list[Any]]:
    """Makes updates; the values are their losses, see `timing.timed`."""
    return timed(lambda: self._update().item(), count)

  def turn(self, count: int) -> float:
    """Seconds of an update, of `count` that run behind each other."""
    return timed_turn(self._update, lambda loss: loss.item(), count)


class Decoding:
  """`generate`, greedy, of the plain model."""

  def __init__(self, options: Options):
    start = time.perf_counter()
    self._model = load_model(options).eval()
    self._inputs, _ = _tensors(options, self._model.config.vocab_size, 0)
    self._length = options.target
    built = time.perf_counter()
    self._decode()
    self.phases = {'build': built - start, 'first_step': time.perf_counter() - built}
    self.first_loss = None

  def _decode(self) -> np.ndarray:
    with torch.inference_mode():
      tokens = self._model.generate(
          input_ids=self._inputs, attention_mask=torch.ones_like(self._inputs), num_beams=1,
          do_sample=False, use_cache=True, max_new_tokens=self._length,
          min_new_tokens=self._length)
    return tokens[:, 1:].cpu().numpy()

  def run(self, count: int = 1) -> dict[str, list[Any]]:
    """Decodes; the values are tokens [batch][target], see `timing.timed`."""
    return timed(lambda: self._decode().tolist(), count)

  def turn(self, count: int) -> float:
    """Seconds of a decoding, of `count` that run behind each other."""
    return timed_turn(self._decode, lambda tokens: None, count)
