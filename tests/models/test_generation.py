from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pemt_jax.errors import UserError
from pemt_jax.interop import huggingface
from pemt_jax.models import generation
from pemt_jax.models.generation import GenerationConfig
from pemt_jax.models.t5 import T5

EOS = 1
VOCAB = 11
EXAMPLES = 5


def random_table(seed, examples=EXAMPLES, vocab=VOCAB):
  """Logits [example, token before last, last token, next token]; some seeds like short outputs."""
  rng = np.random.default_rng(seed)
  table = rng.normal(size=(examples, vocab, vocab, vocab), scale=1.5).astype(np.float32)
  table[..., EOS] += 1.5 * (seed % 3)
  return table


def table_step(table, tokens, position, cache):
  """Its cache matters: the token before last is known only to the row's own past."""
  del position
  logits = table[cache['example'][0], cache['previous'][0], tokens]
  return logits, dict(cache, previous=tokens[None])


def table_cache(examples=EXAMPLES):
  return {'example': jnp.arange(examples)[None], 'previous': jnp.zeros((1, examples), jnp.int32)}


@functools.partial(jax.jit, static_argnums=1)
def decode_table(table, config):
  step = functools.partial(table_step, table)
  if config.num_beams == 1 or config.labels:
    return generation.generate(step, table_cache(len(table)), len(table), config)
  cache = generation.expand_to_beams(table_cache(len(table)), config.num_beams)
  return generation.beam_search(step, cache, len(table), config)


@pytest.mark.parametrize('seed', range(3))
def test_a_label_is_the_most_probable_of_all(seed):
  labels = ((4, EOS), (7, 2, EOS), (3, EOS), (7, EOS))
  config = GenerationConfig(max_length=5, labels=labels, num_beams=2)
  table = random_table(seed)
  found = decode_table(table, config)
  log = jax.nn.log_softmax(table)
  for example, row in enumerate(np.asarray(found)):
    scores = [sum(float(log[example][tuple(pair)]) for pair in zip(
        (0, 0, *label), (0, *label), label)) for label in labels]
    best = labels[int(np.argmax(scores))]
    assert row.tolist() == [0, *best, *[0] * (4 - len(best))]


def attention_weights(seed, vocab=VOCAB, width=8, length=12):
  rng = np.random.default_rng(seed)
  shapes = {'embed': (vocab, width), 'place': (length, width), 'key': (width, width),
            'head': (width, vocab)}
  return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def attention_step(weights, bias, tokens, position, cache):
  """One causal attention layer over a cache of states; `bias` [rows, vocab] tells rows apart."""
  state = weights['embed'][tokens] + weights['place'][position]
  states = jax.lax.dynamic_update_index_in_dim(cache['states'][0], state, position, axis=1)
  weight = jnp.einsum('rd,de,rle->rl', state, weights['key'], states)
  weight = jnp.where(jnp.arange(states.shape[1]) <= position, weight, -jnp.inf)
  mixed = jnp.einsum('rl,rld->rd', jax.nn.softmax(weight), states)
  return mixed @ weights['head'] + bias, {'states': states[None]}


def attention_cache(rows, length=12, width=8):
  return {'states': jnp.zeros((1, rows, length, width))}


def attention_logits(weights, bias, tokens):
  """The same layer without a cache, all positions at once: [rows, length, vocab]."""
  length = tokens.shape[1]
  states = weights['embed'][tokens] + weights['place'][:length]
  weight = jnp.einsum('rqd,de,rke->rqk', states, weights['key'], states)
  weight = jnp.where(np.tril(np.ones((length, length), bool)), weight, -jnp.inf)
  return jax.nn.softmax(weight) @ states @ weights['head'] + bias[:, None]


def log_softmax(logits):
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def best_sequence(table, max_length, length_penalty):
  """The best finished sequence of one example by exhaustive search: (tokens, score)."""
  vocab = table.shape[-1]
  best = (None, -np.inf)
  for length in range(1, max_length):
    for tail in itertools.product(range(vocab), repeat=length):
      ended = tail[-1] == EOS or length == max_length - 1
      if EOS in tail[:-1] or not ended:
        continue
      path = (0, 0, *tail)
      steps = (log_softmax(table[path[i], path[i + 1]])[path[i + 2]] for i in range(length))
      score = sum(steps) / length**length_penalty
      if score > best[1]:
        best = ((0, *tail) + (0,) * (max_length - 1 - length), score)
  return best


@pytest.mark.parametrize('length_penalty', [0.0, 1.0])
def test_beam_wide_enough_for_all_prefixes_finds_the_best_sequence(length_penalty):
  table = random_table(0, examples=4, vocab=4)
  config = GenerationConfig(
      max_length=5, num_beams=64, length_penalty=length_penalty, early_stopping='never')
  tokens, scores = decode_table(jnp.asarray(table), config)
  for row in range(len(table)):
    expected_tokens, expected_score = best_sequence(table[row], 5, length_penalty)
    np.testing.assert_array_equal(tokens[row], expected_tokens)
    np.testing.assert_allclose(scores[row], expected_score, rtol=1e-5)


def test_cached_greedy_equals_full_recomputation():
  weights, bias = attention_weights(0), jnp.asarray(random_table(1)[:, 0, 0])
  config = GenerationConfig(max_length=12)
  step = functools.partial(attention_step, weights, bias)
  tokens = jax.jit(lambda: generation.greedy(step, attention_cache(EXAMPLES), EXAMPLES, config))()

  recompute = jax.jit(attention_logits)
  expected = np.zeros((EXAMPLES, 12), np.int32)
  ended = np.zeros(EXAMPLES, bool)
  for position in range(11):
    chosen = np.argmax(recompute(weights, bias, expected)[:, position], axis=-1)
    expected[:, position + 1] = np.where(ended, 0, chosen)
    ended |= chosen == EOS
  np.testing.assert_array_equal(tokens, expected)


def test_greedy_pads_ended_rows_and_stops_with_the_last_one():
  # Row r predicts token 5 r times, then eos.
  visited = []

  def step(tokens, position, cache):
    jax.debug.callback(lambda p: visited.append(int(p)), position)
    ended = position >= cache[0]
    return jnp.where(ended[:, None], jnp.eye(VOCAB)[EOS], jnp.eye(VOCAB)[5]), cache

  config = GenerationConfig(max_length=10, pad_id=7)
  tokens = generation.greedy(step, jnp.array([[0, 2, 1]]), 3, config)
  jax.effects_barrier()
  assert tokens[:, :5].tolist() == [[0, 1, 7, 7, 7], [0, 5, 5, 1, 7], [0, 5, 1, 7, 7]]
  assert (tokens[:, 5:] == 7).all()
  assert sorted(visited) == [0, 1, 2]


def test_label_scores_are_sums_of_teacher_forced_log_probabilities():
  weights, bias = attention_weights(3), jnp.asarray(random_table(2)[:, 0, 0])
  labels = np.array([[4, 6, EOS], [9, EOS, 0]])
  mask = (labels != 0).astype(np.float32)
  cached = jax.jit(lambda: generation.label_scores(
      functools.partial(attention_step, weights, jnp.repeat(bias, 2, axis=0)),
      attention_cache(2 * EXAMPLES), EXAMPLES, labels, mask))()
  parallel = jax.jit(lambda: generation.label_scores_from_logits(
      functools.partial(attention_logits, weights, bias), EXAMPLES, labels, mask))()

  expected = np.zeros((EXAMPLES, 2))
  for row, (index, label) in itertools.product(range(EXAMPLES), enumerate(([4, 6, 1], [9, 1]))):
    inputs = np.array([[0, *label[:-1]]])
    steps = log_softmax(np.asarray(attention_logits(weights, bias[row:row + 1], inputs))[0])
    expected[row, index] = sum(steps[i, token] for i, token in enumerate(label))
  np.testing.assert_allclose(cached, expected, rtol=1e-5)
  np.testing.assert_allclose(parallel, expected, rtol=1e-5)


def test_labels_of_each_example_score_like_shared_labels():
  weights, bias = attention_weights(3), jnp.asarray(random_table(2)[:, 0, 0])
  labels = np.random.default_rng(0).integers(2, VOCAB, size=(EXAMPLES, 2, 3))
  logits_fn = functools.partial(attention_logits, weights, bias)
  own = generation.label_scores_from_logits(logits_fn, EXAMPLES, labels, np.ones_like(labels))
  for row in range(EXAMPLES):
    shared = generation.label_scores_from_logits(
        logits_fn, EXAMPLES, labels[row], np.ones_like(labels[row]))
    np.testing.assert_allclose(own[row], shared[row], rtol=1e-5)


@pytest.mark.parametrize('num_beams', [1, 3])
def test_replicas_decode_as_they_do_alone(num_beams):
  config = GenerationConfig(max_length=9, num_beams=num_beams)
  tables = jnp.stack([random_table(seed) for seed in range(3)])

  def decode(table, axis_name):
    step = functools.partial(table_step, table)
    return generation.generate(step, table_cache(), EXAMPLES, config, axis_name)

  alone = [decode_table(table, config) for table in tables]
  alone = jnp.stack([result if num_beams == 1 else result[0] for result in alone])
  for name in (None, 'replica'):
    together = jax.jit(jax.vmap(functools.partial(decode, axis_name=name), axis_name='replica'))
    np.testing.assert_array_equal(together(tables), alone)


@pytest.mark.parametrize('num_beams', [1, 2])
def test_one_program_serves_all_batches_of_a_shape(num_beams):
  traced = []

  @functools.partial(jax.jit, static_argnums=1)
  def decode(table, config):
    traced.append(config)
    step = functools.partial(table_step, table)
    return generation.generate(step, table_cache(len(table)), len(table), config)

  for seed in range(3):
    decode(random_table(seed), GenerationConfig(max_length=6, num_beams=num_beams))
  assert len(traced) == 1
  decode(random_table(0, examples=2), GenerationConfig(max_length=6, num_beams=num_beams))
  assert len(traced) == 2


@pytest.mark.parametrize('option, sentence', [
    ({'max_length': 1},
     'Generation option max_length=1 is too small; set max_length to at least 2.'),
    ({'num_beams': 0},
     'Generation option num_beams=0 is too small; set num_beams to at least 1.'),
    ({'early_stopping': 'always'},
     "Generation option early_stopping='always' is not known; set it to True, False, 'never' or"
     " 'candidates'."),
])
def test_options_out_of_range_are_refused(option, sentence):
  with pytest.raises(UserError) as error:
    GenerationConfig(**option)
  assert str(error.value) == sentence


# Options of Hugging Face's `generate`, each compared on several models.
OPTIONS = (
    {},
    {'no_repeat_ngram_size': 2},
    {'no_repeat_ngram_size': 1, 'max_length': 6},
    {'min_length': 5, 'forced_bos_token_id': 4, 'forced_eos_token_id': 1},
    {'num_beams': 2},
    {'num_beams': 4, 'early_stopping': True},
    {'num_beams': 4, 'early_stopping': False, 'length_penalty': 2.0},
    {'num_beams': 4, 'early_stopping': 'never', 'length_penalty': 2.0},
    {'num_beams': 3, 'early_stopping': 'never', 'length_penalty': -0.7},
    {'num_beams': 3, 'length_penalty': 0.0},
    {'num_beams': 3, 'length_penalty': -1.0, 'early_stopping': True},
    {'num_beams': 4, 'length_penalty': 0.6, 'no_repeat_ngram_size': 2},
    {'num_beams': 4, 'no_repeat_ngram_size': 3, 'early_stopping': True},
    {'num_beams': 3, 'forced_bos_token_id': 4, 'forced_eos_token_id': 1, 'length_penalty': 1.3},
    {'num_beams': 2, 'min_length': 6, 'length_penalty': 0.3},
    {'num_beams': 4, 'max_length': 3},
)


def option_name(options):
  return ','.join(f'{name}={value}' for name, value in options.items()) or 'default'


def padded(tokens, max_length):
  """Hugging Face's output in full length, padding after eos (it repeats eos if padding is 0)."""
  tokens = np.asarray(tokens)
  tokens = np.pad(tokens, ((0, 0), (0, max_length - tokens.shape[1])))
  ended = np.cumsum(tokens == EOS, axis=1) - (tokens == EOS) > 0
  return np.where(ended, 0, tokens)


@pytest.fixture(scope='module')
def huggingface_table_model():
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  from transformers.modeling_outputs import CausalLMOutput

  class TableModel(transformers.PreTrainedModel, transformers.GenerationMixin):
    """The table as a decoder without a cache."""

    config_class = transformers.PretrainedConfig
    main_input_name = 'input_ids'

    def __init__(self, config):
      super().__init__(config)
      self.table = torch.nn.Parameter(torch.zeros(EXAMPLES, VOCAB, VOCAB, VOCAB))
      self.post_init()

    def forward(self, input_ids, example=None, **unused):
      previous = input_ids[:, -2] if input_ids.shape[1] > 1 else torch.zeros_like(example)
      return CausalLMOutput(logits=self.table[example, previous, input_ids[:, -1]][:, None])

  config = transformers.PretrainedConfig(
      vocab_size=VOCAB, pad_token_id=0, eos_token_id=EOS, bos_token_id=0, use_cache=False)
  return TableModel(config).eval()


@pytest.mark.parametrize('options', OPTIONS, ids=option_name)
def test_decoding_equals_huggingface(options, huggingface_table_model):
  import torch
  model = huggingface_table_model
  config = GenerationConfig(**{'max_length': 10, **options})
  for seed in range(4):
    table = random_table(seed)
    model.table.data = torch.from_numpy(table)
    expected = model.generate(
        torch.zeros((EXAMPLES, 1), dtype=torch.long), example=torch.arange(EXAMPLES),
        do_sample=False, use_cache=False, return_dict_in_generate=True, output_scores=True,
        **{'max_length': 10, **options})
    result = decode_table(table, config)
    tokens, scores = (result, None) if config.num_beams == 1 else result
    np.testing.assert_array_equal(tokens, padded(expected.sequences, config.max_length))
    if scores is not None:
      np.testing.assert_allclose(scores, expected.sequences_scores, rtol=1e-5)


@pytest.fixture(scope='module', params=['tied', 'gated'])
def t5_pair(request, tmp_path_factory):
  """A tiny random T5 in Hugging Face's form, and the folder of its weights."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  family = {
      'tied': {'feed_forward_proj': 'relu', 'tie_word_embeddings': True},
      'gated': {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False}}[request.param]
  config = transformers.T5Config(
      vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4,
      decoder_start_token_id=0, **family)
  torch.manual_seed(5)
  model = transformers.T5ForConditionalGeneration(config).eval()
  for weight in model.parameters():
    # Larger than at initialisation: outputs that depend on the past and on the example.
    weight.data = torch.randn_like(weight) * (1.0 if weight.ndim == 1 else 0.4)
  folder = tmp_path_factory.mktemp(request.param)
  model.save_pretrained(folder)
  return model, folder


@pytest.mark.parametrize('options', [
    {'max_length': 9},
    {'num_beams': 3, 'length_penalty': 1.4, 'no_repeat_ngram_size': 2},
    {'num_beams': 4, 'early_stopping': True, 'forced_eos_token_id': 1, 'min_length': 4},
], ids=option_name)
def test_t5_decoding_equals_huggingface(options, t5_pair):
  import torch
  model, folder = t5_pair
  config, params = huggingface.load_t5(folder)
  options = {'max_length': 12, **options}
  rng = np.random.default_rng(0)
  inputs = rng.integers(2, 40, size=(6, 7)).astype(np.int32)
  mask = (np.arange(7) < rng.integers(2, 8, size=(6, 1))).astype(np.int32)
  expected = model.generate(
      torch.from_numpy(inputs * mask).long(), attention_mask=torch.from_numpy(mask).long(),
      do_sample=False, **options)

  @jax.jit
  def decode(params):
    t5, generation_config = T5(config), GenerationConfig(**options)
    apply = functools.partial(t5.apply, {'params': params})
    encoded = apply(inputs * mask, mask.astype(np.float32), method='encode')
    memory, cache = apply(encoded, 6, generation_config.max_length, method='start_decoding')
    step = functools.partial(apply, memory=memory, method='decode_step')
    return generation.generate(step, cache, 6, generation_config)

  expected = padded(expected, options['max_length'])
  assert len(np.unique(expected, axis=0)) >= 4  # else the comparison says little
  np.testing.assert_array_equal(decode(params), expected)
