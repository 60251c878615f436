"""Laws of the BART backbone, alone and planned; numbers of Hugging Face are in tests/interop."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from pemt_jax.deltas.adapter import Bottleneck
from pemt_jax.deltas.lora import LoRA
from pemt_jax.deltas.post_norm import PostNormAdapter
from pemt_jax.deltas.prefix import Prefix
from pemt_jax.deltas.prompt import Prompt
from pemt_jax.errors import UserError
from pemt_jax.methods.base import boxed_shapes
from pemt_jax.models.bart import Bart
from pemt_jax.models.bart_config import BartConfig
from pemt_jax.models.layers import Compute
from pemt_jax.models.sites import Plan, Rule
from pemt_jax.sharding.rules import RULES
from pemt_jax.trees import flatten, unflatten
from tests import tiny

CONFIG = BartConfig(vocab_size=32, embed=8, heads=2, mlp=12, encoder_layers=2, decoder_layers=2,
                    positions=16)
KEY = jax.random.key(5)


def planned(*rules, config=CONFIG, compute=Compute()):
  return Bart(config, Plan(tuple(Rule(*rule) for rule in rules)), compute)


RULES_OF_ALL = (('lora', '*/self_attention/[qv]', LoRA(2)),
                ('adapter', '*/mlp_norm', PostNormAdapter(Bottleneck(3, 'relu'))),
                ('prefix', '*/*_attention', Prefix(2, 3, biases=True)),
                ('prompt', 'encoder/embed', Prompt(3)))
FULL, PLAIN = planned(*RULES_OF_ALL), Bart(CONFIG)
SEGMENTED = planned(*RULES_OF_ALL[2:], (*RULES_OF_ALL[1], (('decoder', 1),)))


def test_every_site_is_called_and_every_parameter_has_known_axes():
  # The table of tokens and a whole layer are no sites around an operation.
  sites = [site for site in PLAIN.sites() if site != 'shared' and not site.endswith('/layer')]
  model = planned(*(('probe', site, tiny.Affine()) for site in sites))
  variables, batch = tiny.variables_of(model), tiny.make_batch()
  logits, aux = tiny.forward(model, variables, batch)
  assert {name.removesuffix('/probe/seen') for name in aux} == set(sites)
  np.testing.assert_allclose(logits, tiny.forward(PLAIN, variables, batch)[0], rtol=1e-6, atol=1e-6)
  known = {name for name, _ in RULES}
  boxed = flatten(boxed_shapes(model)['params'])
  assert {name for leaf in boxed.values() for name in leaf.names} <= known
  for path, leaf in boxed.items():
    assert (leaf.names[0] == 'layer') == ('/layers/' in path), path
  # In training, what enters `wo` is dropped out at the rate of the activations, and nothing else.
  busy = dataclasses.replace(model, config=dataclasses.replace(
      CONFIG, dropout=0.0, attention_dropout=0.0, activation_dropout=0.5))
  _, aux = tiny.forward(busy, variables, tiny.make_batch(length=12, target_length=12), KEY)
  del aux['encoder/embed/probe/seen']  # ids
  for name, seen in aux.items():
    share = np.mean(np.asarray(seen) == 0)
    assert abs(share - 0.5) < 0.1 if name.endswith('mlp/wo/probe/seen') else share < 0.01, name


@pytest.mark.parametrize('model', [
    SEGMENTED, pytest.param(FULL, marks=pytest.mark.slow),
    pytest.param(PLAIN, marks=pytest.mark.slow)], ids=['segmented', 'full', 'plain'])
def test_cached_decoding_equals_decoding_of_whole_targets(model):
  variables, batch = tiny.variables_of(model), tiny.make_batch()
  other = np.random.default_rng(1).permutation(batch['targets'], axis=1)
  whole = [tiny.forward(model, variables, {**batch, 'targets': targets})[0]
           for targets in (batch['targets'], other)]
  cached = tiny.cached_logits(model, variables, batch, np.stack([batch['targets'], other], axis=1))
  np.testing.assert_allclose(cached, np.stack(whole, axis=1), rtol=1e-4, atol=1e-5)


def test_padding_filler_rows_and_left_padding_of_a_prompt_change_nothing():
  variables, batch = tiny.variables_of(FULL), tiny.make_batch()
  logits, _ = tiny.forward(FULL, variables, batch, KEY)
  longer = planned(*RULES_OF_ALL[:-1], ('prompt', 'encoder/embed', Prompt(5)))
  padded, _ = tiny.forward(longer, tiny.left_padded(variables, 2),
                           tiny.pad_batch(batch, 1, 3, 2), KEY)
  np.testing.assert_allclose(padded[:3, :logits.shape[1]], logits, rtol=1e-4, atol=1e-5)
  assert np.abs(tiny.forward(FULL, variables, batch, jax.random.key(6))[0] - logits).max() > 0.01


@pytest.mark.parametrize('compute', [
    Compute(scan_layers=False), Compute(remat='full')], ids=['unrolled', 'remat'])
@pytest.mark.slow
def test_unrolled_and_rematerialised_layers_give_the_same_numbers(compute):
  variables, batch = tiny.variables_of(FULL), tiny.make_batch()
  other = dataclasses.replace(FULL, compute=compute)
  assert tiny.shapes(other) == tiny.shapes(FULL)
  np.testing.assert_allclose(tiny.forward(other, variables, batch, KEY)[0],
                             tiny.forward(FULL, variables, batch, KEY)[0], rtol=1e-4, atol=1e-5)


def test_positions_are_counted_from_row_2_and_go_on_behind_a_prompt():
  model = planned(RULES_OF_ALL[-1], ('see', '*/embed_norm', tiny.Affine()))
  variables = tiny.variables_of(model)
  table = np.zeros((CONFIG.position_rows, CONFIG.embed), np.float32)
  table[:, 0] = np.arange(len(table))
  params = {path: 0 * leaf for path, leaf in flatten(variables['params']).items()}
  params |= {f'{stack}/positions/embedding': table for stack in ('encoder', 'decoder')}
  constants = {'encoder': {'embed': {'prompt': {'mask': np.array([0, 1, 1], np.float32)}}}}
  batch = tiny.make_batch(rows=2, length=5, target_length=4)
  _, aux = tiny.forward(model, {'params': unflatten(params), 'constants': constants}, batch)
  seen = {stack: np.asarray(aux[f'{stack}/embed_norm/see/seen'])[:, :, 0]
          for stack in ('encoder', 'decoder')}
  for row in range(2):  # padding counts
    assert seen['encoder'][row, 1:].tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert seen['decoder'][row].tolist() == [2, 3, 4, 5]


def test_too_many_positions_are_told():
  batch = tiny.make_batch(length=17, target_length=3)
  with pytest.raises(UserError, match='an input has 17 positions, prompt included, but the back'):
    jax.eval_shape(lambda: PLAIN.init(KEY, *batch.values()))
  batch = tiny.make_batch(length=3, target_length=17)
  with pytest.raises(UserError, match='an output has 17 positions, but the backbone only 16; low'):
    jax.eval_shape(lambda: PLAIN.init(KEY, *batch.values()))
  variables = tiny.variables_of(PLAIN)
  encoded = jax.eval_shape(lambda: PLAIN.apply(variables, *list(batch.values())[:2],
                                               method='encode'))
  with pytest.raises(UserError, match='generation.max_length'):
    jax.eval_shape(lambda e: PLAIN.apply(variables, e, 3, 17, method='start_decoding'), encoded)


def test_the_bias_is_added_to_the_logits():
  variables, batch = tiny.variables_of(PLAIN), tiny.make_batch()
  moved = flatten(variables['params'])
  moved['logits_bias'] = moved['logits_bias'] + np.arange(32, dtype=np.float32)
  first = tiny.forward(PLAIN, variables, batch)[0]
  second = tiny.forward(PLAIN, {'params': unflatten(moved), 'constants': {}}, batch)[0]
  np.testing.assert_allclose(second - first, np.broadcast_to(np.arange(32.0), first.shape),
                             atol=1e-4)
