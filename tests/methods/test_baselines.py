"""The methods of the baselines: numbers of trained parameters, refused options, second passes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.methods import adamix, adapters, attempt, baselines, bitfit, mixda, spot
from pemt_jax.methods.base import boxed_shapes, disagreement, make_loss
from pemt_jax.models.t5 import T5
from pemt_jax.models.t5_config import T5Config
from pemt_jax.training.rules import split_params
from pemt_jax.trees import flatten
from tests import tiny

BASE = T5Config(vocab_size=32100, embed=768, kv=64, heads=12, mlp=3072, encoder_layers=12,
                decoder_layers=12, relative_buckets=32)
# Trained parameters of a T5-base in the published code.
COUNTS = {
    'adapter': (lambda: adapters.houlsby(adapters.FamilyOptions(), BASE, 0), 3_625_728),
    'lora': (lambda: baselines.lora(baselines.LoRAOptions(), BASE, 0), 1_769_472),
    'bitfit': (lambda: bitfit.bitfit(bitfit.BitFitOptions(), BASE, 0), 280_932),
    'prompt': (lambda: baselines.prompt(baselines.PromptOptions(), BASE, 100), 76_800),
    'attempt': (lambda: attempt.attempt(attempt.AttemptOptions(), BASE, 100), 230_400),
    'adamix': (lambda: adamix.adamix(adamix.AdaMixOptions(), BASE, 0), 8_285_184),
    'mixda': (lambda: mixda.mixda(mixda.MixDAOptions(), BASE, 0), 14_469_320),
    'full': (lambda: baselines.full(baselines.FullOptions(), BASE, 0), 222_882_048),
    'ensembling': (lambda: adapters.houlsby_ensembling(
        dataclasses.replace(adapters.FamilyOptions(), **dict(adapters.ENSEMBLING)), BASE, 0),
                   1_105_920),
}


@pytest.mark.parametrize('name', COUNTS)
def test_as_many_parameters_are_trained_as_published(name):
  make, expected = COUNTS[name]
  method = make()
  shapes = boxed_shapes(T5(BASE, method.plan))['params']
  plain = jax.tree.map(lambda leaf: leaf.value, shapes, is_leaf=lambda leaf: hasattr(leaf, 'names'))
  tuned = flatten(split_params(plain, method.tuned)[1])
  assert sum(int(np.prod(leaf.shape)) for leaf in tuned.values()) == expected


@pytest.mark.parametrize('make, words', [
    (lambda: attempt.AttemptOptions(attention='token'), "method.attention is 'token', which the"),
    (lambda: attempt.AttemptOptions(attention='concat'), "method.attention is 'concat', which the"),
    (lambda: attempt.AttemptOptions(attention='constant', ignore_target=True),
     'method.ignore_target leaves nothing to train'),
    (lambda: attempt.AttemptOptions(temperature=0.0), 'method.temperature is 0.0'),
    (lambda: bitfit.BitFitOptions(head='all'), "method.head is 'all'"),
    (lambda: adamix.AdaMixOptions(inference='2'), "method.inference is '2'"),
    (lambda: mixda.MixDAOptions(gate_reads='first'), "method.gate_reads is 'first'"),
    (lambda: adapters.FamilyOptions(reads='input_tensor'), "method.reads is 'input_tensor'"),
    (lambda: adapters.FamilyOptions(after_self_attention=False, after_mlp=False),
     'no sub-layer has an adapter'),
    (lambda: mixda.mixda(mixda.MixDAOptions(), tiny.CONFIG, 0),
     'method names layer 7 of the encoder, which has the layers 0 to 1'),
    (lambda: mixda.mixda(mixda.MixDAOptions(encoder_layers=(), decoder_layers=()), tiny.CONFIG, 0),
     'method names no layer'),
])
def test_options_that_cannot_be_are_one_sentence(make, words):
  with pytest.raises(UserError) as error:
    make()
  assert str(error.value).startswith(words)


@pytest.mark.parametrize('head, tuned', [
    ('bias', {'lm_head/bias/bias'}), ('weight_and_bias', {'lm_head/bias/bias', 'shared/embedding'}),
    ('none', set())])
@pytest.mark.parametrize('tied', [True, False])
def test_bitfit_trains_of_the_head_what_it_is_told(head, tuned, tied):
  config = tiny.replace(tiny.CONFIG, tied_head=tied)
  method = bitfit.bitfit(bitfit.BitFitOptions(head), config, 0)
  shapes = tiny.shapes(T5(config, method.plan))['params']
  found = split_params(dict(shapes), method.tuned)[1]
  outside = {path for path in flatten(found) if '/layers/' not in path}
  assert outside == {path if tied else path.replace('shared/embedding', 'lm_head/kernel')
                     for path in tuned}


@pytest.mark.slow
def test_two_passes_of_adamix_are_drawn_to_each_other():
  config = tiny.replace(tiny.CONFIG, dropout=0.0)
  make = lambda weight: adamix.adamix(
      adamix.AdaMixOptions(4, 4, consistency=weight, share_up=False), config, 0)
  plain, method = make(0.0), make(0.5)
  model = T5(config, method.plan)
  variables, batch = tiny.variables_of(model), tiny.make_batch()
  frozen, tuned = tiny.split(method, variables)
  losses = [jax.jit(make_loss(model, m))(tuned, frozen, {}, batch, jax.random.key(3))
            for m in (plain, method)]
  distance = losses[1][1]['disagreement_nats']
  assert distance > 1e-4 and 'disagreement_nats' not in losses[0][1]
  np.testing.assert_allclose(losses[1][0], losses[0][0] + 0.5 * distance, rtol=1e-5)
  evaluated = make_loss(model, method)(tuned, frozen, {}, batch, None)[1]
  assert 'disagreement_nats' not in evaluated


def test_disagreement_is_the_mean_of_both_divergences_over_real_tokens():
  rng = np.random.default_rng(0)
  first, second = rng.normal(size=(2, 2, 3, 5))
  mask = np.array([[1, 1, 0], [1, 0, 0]], np.float32)
  soft = lambda a: np.exp(a) / np.exp(a).sum(-1, keepdims=True)
  p, q = soft(first), soft(second)
  each = 0.5 * (p * np.log(p / q) + q * np.log(q / p)).sum(-1)
  np.testing.assert_allclose(disagreement(first, second, mask), (each * mask).sum() / 3, rtol=1e-5)
  np.testing.assert_allclose(disagreement(first, first, mask), 0.0, atol=1e-7)


def test_weights_of_spot_are_those_of_one_source_where_the_others_are_far():
  target = jnp.ones((2, 4))
  sources = jnp.stack([target, 1e-6 * target, jnp.array([1.0, -1, 1, -1]) * target])
  weights = spot.similarity_weights(sources, target)
  np.testing.assert_allclose(weights, [0.5, 0.5, 0.0], atol=1e-3)
  np.testing.assert_allclose(spot.mix(sources, jnp.array([2.0, 0.0, 0.0])), 2 * target)
