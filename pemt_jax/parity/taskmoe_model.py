"""Routed layers: recorded forward passes, gradients, training, decoding and conversions."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pemt_jax.deltas.base import Values, Weight, Weights
from pemt_jax.experts import routes as routes_lib
from pemt_jax.experts.layer_experts import LayerExperts, copied, squeezed
from pemt_jax.interop import bart_files, files, names, taskmoe_names
from pemt_jax.methods import task_moe
from pemt_jax.methods.base import LossForm, Method, make_loss
from pemt_jax.models import bart_config, beam, generation
from pemt_jax.models.bart import Bart, Stack
from pemt_jax.models.bart_config import FIRST_POSITION, BartConfig
from pemt_jax.models.decoding import GenerationConfig
from pemt_jax.models.layers import Compute
from pemt_jax.models.segments import cut, join
from pemt_jax.models.sites import Plan, SiteContext, StackShape
from pemt_jax.parity import common
from pemt_jax.parity.taskmoe_routers import router_spec
from pemt_jax.training import optimisers, schedules, state as state_lib, step as step_lib
from pemt_jax.training.rules import split_params
from pemt_jax.trees import Tree, flatten, merge, unflatten

SMOOTHING = LossForm(0.1, 'sum')
_PLACE = task_moe.PLACE


@dataclasses.dataclass(frozen=True)
class Recorded(LayerExperts):
  """Routes from recorded noise and replacements, or recorded routes.

  Attributes:
    rows: of the recorded batch.
    given: the routes themselves are recorded; they are trained as a table would be.
  """

  rows: int = 1
  given: bool = False

  def model_weights(self, shapes: Mapping[str, StackShape]) -> Weights:
    """The recorded arrays beside the weights."""
    zeros = lambda *shape: Weight(shape, ('layer', 'act_batch', 'expert')[:len(shape)],
                                  constant=True)
    sizes = self.layers, self.rows, self.copies
    if self.given:
      return {'routes': Weight(sizes, ('layer', 'act_batch', 'expert'))}
    return super().model_weights(shapes) | {
        'noise': zeros(*sizes), 'mask': zeros(*sizes[:2]), 'values': zeros(*sizes)}

  def routes(self, model: Values, task_ids: jax.Array, key: jax.Array | None) -> jax.Array:
    """Recorded routes, or those of logits and recorded noise."""
    if self.given:
      return model['routes']
    found = routes_lib.select(self.logits(model, task_ids), self.mode, model['temperature'],
                              model['noise'])
    return routes_lib.replace_routes(found, model['mask'], model['values'])


class _PublishedStack(Stack):
  """The decoder's position of the published sparse decoding: a head's width behind the first."""

  def begin(self, x: jax.Array, positions: jax.Array, context: SiteContext) -> Any:
    """Steps behind the first one read the row of one fixed position."""
    if context.position is not None:
      positions = jnp.where(positions > 0, self.spec.config.kv, 0)
    return super().begin(x, positions, context)


class _PublishedBart(Bart):
  stack_class = _PublishedStack


@dataclasses.dataclass(frozen=True)
class Setup:
  """What a case describes.

  Attributes:
    config: of the backbone.
    options: of the method.
    chosen: for each stack, its layers with experts.
    table: names of the tensors.
    delta: of the layers.
  """

  config: BartConfig
  options: task_moe.TaskMoEOptions
  chosen: dict[str, tuple[int, ...]]
  table: names.Table
  delta: LayerExperts

  def method(self, delta: LayerExperts | None = None) -> Method:
    """The method with a delta in place of its own."""
    own = task_moe.task_moe(self.options, self.config, 0)
    rule = dataclasses.replace(own.plan.rules[0], delta=delta or self.delta)
    return dataclasses.replace(own, plan=Plan((rule,)))


def read_setup(case: Mapping[str, Any], state: Mapping[str, Any]) -> Setup:
  """The model of a case; routes are fixed where the case has no task vectors."""
  flags, config = case['method_config'], bart_config.from_hf(case['model_config'])
  spec, vectors = router_spec(case), state.get('task_model.embed.weight')
  kind = {'average': 'average', 'instance_random': 'average',
          'task_level_random': 'task_random'}.get(flags.get('routing'), 'router')
  options = task_moe.TaskMoEOptions(
      experts=flags['router_block_num'], routes=kind, router=spec.kind, hidden=spec.hidden,
      mode=flags['router_mode'],
      initial_temperature=flags.get('initial_tau', flags.get('tau') or 1.0),
      minimum_temperature=flags.get('minimum_tau', 0.1),
      anneal_rate=flags.get('anneal_rate', 0.0), vector_size=spec.inputs,
      plain_encoder_layers=tuple(flags['encoder_vanilla_layers']),
      plain_decoder_layers=tuple(flags['decoder_vanilla_layers']),
      regularization=flags.get('expert_regularization', 0.0),
      random_experts=flags.get('top_n', 1), random_seed=flags.get('numpy_seed', 0),
      alternate_every=flags.get('alternate_every', 0),
      tasks=1 if vectors is None else len(vectors))
  chosen = task_moe.layers_with_experts(options, config)
  inside = config.encoder_layers if any('.routers.' in name for name in state) else None
  start = 'router.model.' if inside is None else 'model.'
  router = (taskmoe_names.router_table(spec, f'{_PLACE}/router_', start, inside)
            if any('router' in name for name in state) else None)
  table = taskmoe_names.model_table(config, chosen, options.experts, router)
  if vectors is not None:
    own = taskmoe_names.vectors_weight(vectors.shape)
    table = dataclasses.replace(table, weights=(*table.weights, own))
  return Setup(config, options, chosen, table, task_moe.delta_of(options, config, spec.inputs))


def _open(case_dir):
  case, inputs = common.read_case(case_dir)
  state = files.read_tensors(case_dir / 'state.safetensors')
  return case, inputs, state, read_setup(case, state)


def _batch(inputs: Mapping[str, np.ndarray], suffix: str = '') -> dict[str, jax.Array]:
  names_of = {'inputs': 'input_ids', 'inputs_mask': 'attention_mask', 'targets': 'labels',
              'targets_mask': 'decoder_attention_mask', 'task_ids': 'task_ids'}
  batch = {name: jnp.asarray(inputs[own + suffix]) for name, own in names_of.items()
           if own + suffix in inputs}
  if 'task_ids' not in batch:
    batch['task_ids'] = jnp.zeros(len(batch['inputs']), jnp.int32)
  masks = {name: value.astype(jnp.float32) for name, value in batch.items() if 'mask' in name}
  return {name: value.astype(jnp.int32) for name, value in batch.items()} | masks


def _recorded(setup: Setup, inputs: Mapping[str, np.ndarray],
              rows: int) -> tuple[Recorded, dict[str, Any], dict[str, Any]]:
  """(delta, its parameters, its constants) for the routes of a case."""
  both = lambda first, second: np.concatenate([inputs[first], inputs[second]])
  delta = Recorded(**{field.name: getattr(setup.delta, field.name)
                      for field in dataclasses.fields(setup.delta)}, rows=rows)
  if 'block_distribution' in inputs:
    routes = both('block_distribution', 'decoder_block_distribution')
    return dataclasses.replace(delta, given=True), {'routes': routes}, {}
  size = delta.layers, rows, delta.copies
  constants = {'noise': np.zeros(size), 'mask': np.zeros(size[:2]), 'values': np.zeros(size),
               'temperature': np.float32(setup.options.initial_temperature),
               'closed': np.zeros((size[0], size[2]))}
  if 'gumbel_enc' in inputs:
    constants['noise'] = both('gumbel_enc', 'gumbel_dec')
  if 'explore_mask_enc' in inputs:
    constants['mask'] = both('explore_mask_enc', 'explore_mask_dec').reshape(size[:2])
    constants['values'] = both('explore_values_enc', 'explore_values_dec')
  return delta, {}, {name: jnp.asarray(value, jnp.float32) for name, value in constants.items()}


def full(case_dir: pathlib.Path, run: Compute) -> dict[str, Any]:
  """Loss, logits, routes and every gradient."""
  case, inputs, state, setup = _open(case_dir)
  batch, params = _batch(inputs), names.load(state, setup.table)
  rows = batch['inputs'].shape[0]
  delta, extra, constants = _recorded(setup, inputs, rows)
  tabled = case['method_config'].get('routing') == 'task_level_random'
  if tabled:
    routes = routes_lib.rows_of_table(jnp.asarray(routes_lib.task_random_table(
        setup.options.tasks, delta.layers, delta.copies, delta.random_experts,
        delta.random_seed)), batch['task_ids'])
    delta, extra, constants = dataclasses.replace(delta, given=True), {'routes': routes}, {}
  if 'task_embed' in inputs:  # The older form reads vectors and no ids.
    extra, batch['task_ids'] = {'vectors': inputs['task_embed']}, jnp.arange(rows)
    delta = dataclasses.replace(delta, tasks=rows)
  params = jax.tree.map(jnp.asarray, merge(params, {'deltas': {task_moe.NAME: extra}}))
  constants = {'deltas': {task_moe.NAME: constants}}
  loss, logits, grads = _run(setup, delta, run, (params, constants), batch)
  found = {'loss': loss, 'logits': logits}
  values = flatten(params['deltas'][task_moe.NAME]) | constants['deltas'][task_moe.NAME]
  found['routes'] = delta.routes(values, batch['task_ids'], None)
  if not delta.given:
    found |= _by_stack(setup, 'router_logits', delta.logits(values, batch['task_ids']))
    found |= _by_stack(setup, 'routes', found['routes'])
  flat = flatten(grads)
  if 'task_embed' in inputs:
    found['grad/task_embed'] = flat.pop(f'{_PLACE}/vectors')
  if tabled:  # What reaches the routes of rows belongs to those of their tasks.
    own = flat[f'{_PLACE}/routes'].swapaxes(0, 1)
    table = jnp.zeros((setup.options.tasks, *own.shape[1:])).at[batch['task_ids']].add(own)
    flat[f'{_PLACE}/vectors'] = table.reshape(table.shape[0], -1)
  flat.pop(f'{_PLACE}/routes', None)
  own = names.dump(unflatten(flat), setup.table, partial=True)
  found |= {f'grad/{name}': value for name, value in own.items()}
  return common.named_results(found, case, case_dir, task_moe.NAME)


def _run(setup: Setup, delta: LayerExperts, run: Compute, variables: tuple[Tree, Tree],
         batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, Tree]:
  """(loss [], logits [batch, length, vocab], gradients); targets at padding are not read."""
  model = Bart(setup.config, setup.method(delta).plan,
               dataclasses.replace(run, mask_targets=True))
  loss_fn = make_loss(model, setup.method(delta), SMOOTHING)
  params, constants = variables
  shapes = jax.eval_shape(model.init, jax.random.key(0),
                          *model.example_batch(batch['inputs'].shape[0]))
  params = cut(params, nn.meta.unbox(shapes['params']))

  @jax.jit
  def both(params, constants):
    (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        params, {}, constants, batch, None)
    decoder = generation.shift_right(batch['targets'], setup.config.start_id)
    logits, _ = model.apply({'params': params, 'constants': constants}, batch['inputs'],
                            batch['inputs_mask'], decoder, batch['targets_mask'],
                            batch['task_ids'])
    return loss, logits, grads

  loss, logits, grads = both(params, constants)
  return loss, logits, join(grads)


def _by_stack(setup: Setup, name: str, rows: jax.Array) -> dict[str, jax.Array]:
  encoder, decoder = routes_lib.split_stacks(rows, setup.config.encoder_layers)
  return {f'{name}_enc': encoder, f'{name}_dec': decoder}


def copies(case_dir: pathlib.Path) -> dict[str, Any]:
  """A mixture that starts from a BART: copies plus recorded noise."""
  case, inputs, state, setup = _open(case_dir)
  backbone = bart_files.from_state(state, setup.config)
  shapes = setup.table.leaf_shapes()
  empty = unflatten({path: np.zeros(shape, np.float32) for path, shape in shapes.items()})
  noise = {name.removeprefix('noise/'): value for name, value in inputs.items()}
  expert_names = {name for path, own in setup.table.names_of_paths().items()
                  if '/experts/' in path for name in own.values()}
  zeros = {name: noise.get(name) for name in expert_names}
  drawn = names.load(zeros, names.Table(tuple(
      weight for weight in setup.table.weights if weight.name in expert_names)))
  scale = case['method_config']['eps']
  made = copied(backbone, merge(empty, backbone_only(backbone, shapes)), jax.random.key(0),
                setup.chosen, 0.0)
  flat = flatten(made) | {path: np.asarray(flatten(made)[path]) + scale * leaf
                          for path, leaf in flatten(drawn).items()}
  own = names.dump(unflatten(flat), setup.table)
  return common.named_results({f'state/{name}': value for name, value in own.items()}, case,
                              case_dir, task_moe.NAME)


def backbone_only(backbone: Tree, shapes: Mapping[str, Any]) -> Tree:
  """The leaves of a backbone that a mixture has too."""
  return unflatten({path: leaf for path, leaf in flatten(backbone).items() if path in shapes})


def squeeze(case_dir: pathlib.Path) -> dict[str, Any]:
  """The BART of one route."""
  case, inputs, state, setup = _open(case_dir)
  plain = squeezed(names.load(state, setup.table),
                   {'encoder': inputs['enc_routes'], 'decoder': inputs['dec_routes']},
                   setup.chosen)
  own = names.dump(plain, bart_files.bart_table(setup.config), aliases=True)
  return common.named_results({f'state/{name}': value for name, value in own.items()}, case,
                              case_dir, task_moe.NAME)


def steps(case_dir: pathlib.Path, run: Compute) -> dict[str, Any]:
  """Parameters, gradient norms and rates of several updates."""
  case, inputs, state, setup = _open(case_dir)
  flags, method = case['method_config'], setup.method()
  model = Bart(setup.config, method.plan, dataclasses.replace(run, mask_targets=True))
  peak, parts = flags['learning_rate'], flags['gradient_accumulation_steps']
  factors = {'model': 1.0, 'router': flags['router_lr'] / peak,
             'task_vectors': flags['task_model_lr'] / peak}
  tx = optimisers.adamw(optimisers.AdamWOptions(
      epsilon=flags['adam_epsilon'], weight_decay=flags['weight_decay'],
      no_decay=task_moe.NO_DECAY, multipliers=tuple(factors.items())), method.tuned)
  step = step_lib.make_train_step(
      make_loss(model, method, SMOOTHING), tx, schedules.linear_schedule, step_lib.StepOptions(
          flags['max_grad_norm'], parts, True, None, method.transform_clipped,
          method.next_constants))
  frozen, tuned = split_params(names.load(state, setup.table), method.tuned)
  constants = {'deltas': {task_moe.NAME: {
      'temperature': np.float32(setup.options.initial_temperature),
      'closed': np.zeros((setup.delta.layers, setup.options.experts), np.float32)}}}
  current = state_lib.init_state(*(jax.tree.map(lambda leaf: leaf[None], tree)
                                   for tree in (tuned, constants)),
                                 state_lib.replica_key('case', 0)[None], tx)
  rates = state_lib.Rates(jnp.array([peak]), jnp.array([flags['warmup_steps']]),
                          jnp.array([flags['total_steps']]))
  norms, used = [], []
  for number in range(flags['total_steps']):
    # Rows of a batch go to microbatches in turn.
    micro = [_batch(inputs, f'_{number * parts + part}') for part in range(parts)]
    batch = {name: jnp.stack([own[name] for own in micro], 1).reshape(1, -1, *value.shape[1:])
             for name, value in micro[0].items()}
    current, metrics = step(current, frozen, batch, rates)
    norms.append(float(metrics['grad_norm'][0]))
    rate = float(metrics['learning_rate'][0])
    used.append([rate * factors[name] for name in ('model', 'model', 'router', 'router',
                                                   'task_vectors')])
  after = names.dump(merge(frozen, jax.tree.map(lambda leaf: leaf[0], current.tuned)),
                     setup.table)
  found = {f'after/{name}': value for name, value in after.items()}
  return common.named_results(found | {'grad_norms': norms, 'learning_rates': used}, case,
                              case_dir, task_moe.NAME)


def _decoder(setup: Setup, run: Compute, inputs: Mapping[str, np.ndarray], kind: str,
             params: Tree, published: bool = False) -> Any:
  """(start, step) of a decoder under given routes, 'soft' or 'hard'.

  start(rows, length) gives the memory and an empty cache, step(memory) what decoding takes.
  """
  routes = jnp.concatenate([jnp.asarray(inputs[f'{kind}_{stack}']) for stack in ('enc', 'dec')])
  delta = Recorded(**{field.name: getattr(setup.delta, field.name)
                      for field in dataclasses.fields(setup.delta)},
                   rows=routes.shape[1], given=True)
  model = (_PublishedBart if published else Bart)(setup.config, setup.method(delta).plan, run)
  params = merge(params, {'deltas': {task_moe.NAME: {'routes': routes}}})
  apply = lambda *args, **kwargs: model.apply({'params': params}, *args, **kwargs)
  batch = _batch(inputs | {'labels': inputs['input_ids'],
                           'decoder_attention_mask': inputs['attention_mask']})
  encoded = apply(batch['inputs'], batch['inputs_mask'], None, method='encode')
  begin = lambda rows, length: apply(encoded, rows, length, None, method='start_decoding')
  step = lambda memory: lambda tokens, position, cache: apply(
      tokens, position, cache, memory, method='decode_step')
  return begin, step


def decoding(case_dir: pathlib.Path, run: Compute) -> dict[str, Any]:
  """Logits of cached steps under soft and one-hot routes, and those of the published fast path."""
  case, inputs, state, setup = _open(case_dir)
  params = jax.tree.map(jnp.asarray, names.load(state, setup.table))
  found = {}
  for name, kind, published in (('dense_soft', 'soft', False), ('dense_hard', 'hard', False),
                                ('sparse_hard_original_bug', 'hard', True)):

    @jax.jit
    def every(tokens, kind=kind, published=published):
      begin, step = _decoder(setup, run, inputs, kind, params, published)
      memory, cache = begin(*tokens.shape)
      advance = step(memory)

      def body(cache, column):
        logits, cache = advance(column[1], column[0], cache)
        return cache, logits

      _, logits = jax.lax.scan(body, cache, (jnp.arange(tokens.shape[1]), tokens.T))
      return logits.swapaxes(0, 1)

    found[name] = every(jnp.asarray(inputs['decoder_tokens'], jnp.int32))
  return common.named_results(found, case, case_dir, task_moe.NAME)


def search(case_dir: pathlib.Path, run: Compute) -> dict[str, Any]:
  """Outputs of greedy decoding and beam search under soft routes."""
  case, inputs, state, setup = _open(case_dir)
  flags, found = case['method_config'], {}
  params = jax.tree.map(jnp.asarray, names.load(state, setup.table))
  rows = inputs['input_ids'].shape[0]
  for name, beams, grams in (('beams', flags['num_beams'], 0),
                             ('beams_no_repeat3', flags['num_beams'], 3), ('greedy', 1, 0)):
    options = GenerationConfig(
        max_length=flags['max_length'], num_beams=beams, no_repeat_ngram_size=grams,
        early_stopping=flags['early_stopping'] or 'candidates',
        length_penalty=flags['length_penalty'], start_id=flags['decoder_start_token_id'],
        forced_eos_token_id=flags['forced_eos_token_id'], eos_id=setup.config.eos_id,
        pad_id=setup.config.pad_id)

    @jax.jit
    def run_search(options=options):
      begin, step = _decoder(setup, run, inputs, 'soft', params)
      memory, cache = begin(rows, options.max_length)
      if options.num_beams == 1:
        return generation.greedy(step(memory), cache, rows, options), None
      cache = beam.expand_to_beams(cache, options.num_beams)
      return beam.beam_search(step(memory), cache, rows, options)

    tokens, scores = run_search()
    length = case['arrays'][f'{name}_sequences']['shape'][1]
    found[f'{name}_sequences'] = tokens[:, :length]
    if scores is not None:
      found[f'{name}_scores'] = scores
  return common.named_results(found, case, case_dir, task_moe.NAME)
