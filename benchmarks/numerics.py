"""How far bfloat16 carries every method from float32, on small backbones with large activations.

The residual streams of published T5 v1.1 hold values beyond the range of float16 in few features,
and the scales of the norms make the other ones count. `backbone` makes random weights of that kind.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pemt_jax.methods import pemt, zoo
from pemt_jax.methods.base import (
    Backbone, Method, as_initialised, backbone_of, boxed_shapes, initialiser, make_loss)
from pemt_jax.methods.classification import make_text_loss, with_head
from pemt_jax.methods.language_modelling import make_language_loss
from pemt_jax.models.bart_config import BartConfig
from pemt_jax.models.blocks import Config
from pemt_jax.models.generation import shift_right
from pemt_jax.models.gpt2_config import GPT2Config
from pemt_jax.models.layers import Compute
from pemt_jax.models.roberta import Roberta
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.models.segments import cut, join
from pemt_jax.models.t5_config import T5Config
from pemt_jax.training.rules import split_params
from pemt_jax.trees import Tree, flatten, merge, unflatten

_VOCAB, _EMBED, _MLP = 96, 32, 64
CONFIGS: dict[str, Config] = {
    't5-v1.1': T5Config(_VOCAB, _EMBED, 8, 4, _MLP, 2, 2, activation='gelu_tanh', gated=True,
                        tied_head=False),
    'bart': BartConfig(_VOCAB, _EMBED, 4, _MLP, 2, 2, positions=64),
    'roberta': RobertaConfig(_VOCAB, _EMBED, 4, _MLP, 2, positions=64),
    'gpt2': GPT2Config(_VOCAB, _EMBED, 4, _MLP, 2, positions=64),
}
_PROMPT, _LABELS = 4, 3
_BANKS = {f'pemt/stage2 {kind}': pemt.BankShape(kind, 3, 4, prompt_lengths=(3, 5, 4))
          for kind in ('lora', 'adapter')}
_SIZES = {'compacter': {'reduction': 4},
          'mixda': {'encoder_layers': None, 'decoder_layers': None, 'hidden': 16},
          'fastfood': {'dimension': 8}, 'maml': {'rows': 2}}
# Of the other backbones; on T5 all.
_FEW = ('lora', 'adapter', 'full')
METHODS = ('pemt/stage1', *_BANKS, *zoo.ZOO)
LARGE = 2**17  # the largest float16 is below 2**16
_LOUD = (3, 11)  # features with large values


@dataclasses.dataclass(frozen=True)
class Case:
  """A method on a backbone.

  Attributes:
    backbone: key of CONFIGS.
    name: of METHODS.
  """

  backbone: str
  name: str

  @property
  def method(self) -> Method:
    """Its recipe with small options."""
    config = CONFIGS[self.backbone]
    if self.name == 'pemt/stage1':
      return pemt.stage1(pemt.Stage1Options(rank=4), config, _PROMPT)
    if self.name in _BANKS:
      return pemt.stage2(pemt.Stage2Options(), config, _PROMPT, _BANKS[self.name])
    options = dataclasses.replace(zoo.ZOO[self.name].default_options(), **_SIZES.get(self.name, {}))
    method = zoo.make(self.name, options, config, _PROMPT)
    return with_head(method) if self.backbone == 'roberta' else method


def cases() -> Iterator[Case]:
  """Every method on T5, some of them on the other backbones."""
  for backbone in CONFIGS:
    for name in METHODS if backbone == 't5-v1.1' else _FEW:
      yield Case(backbone, name)


def model_of(case: Case, dtype: str) -> Backbone:
  """The backbone of a case with the deltas of its method."""
  plan, compute = case.method.plan, Compute(dtype=dtype)
  if case.backbone == 'roberta':
    return Roberta(CONFIGS[case.backbone], plan, compute, labels=_LABELS)
  return backbone_of(CONFIGS[case.backbone], plan, compute)


def _noise(path: str, shape: tuple[int, ...]) -> np.ndarray:
  rng = np.random.default_rng(zlib.crc32(path.encode()))
  return rng.normal(size=shape).astype(np.float32)


def backbone_values(name: str) -> dict[str, np.ndarray]:
  """{path: leaf} of random weights, see the head of this file.

  In pre-norm stacks two features of the embeddings hold about LARGE, to which feed-forwards add;
  the norms scale these down and the others up.
  """
  config = CONFIGS[name]
  plain = Roberta(config, labels=_LABELS) if name == 'roberta' else backbone_of(config)
  shapes = flatten(nn.meta.unbox(boxed_shapes(plain))['params'])
  flat = {}
  for path, leaf in shapes.items():
    value, part = _noise(path, leaf.shape), path.rsplit('/', 1)[-1]
    if part == 'kernel':
      value *= leaf.shape[-2]**-0.5
    elif part in ('bias', 'logits_bias'):
      value *= 0.1
    elif part == 'scale':
      value = 1.0 + 0.1 * value
    flat[path] = value
  return _with_loud_features(flat) if isinstance(config, (T5Config, GPT2Config)) else flat


def _with_loud_features(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Weights of a pre-norm backbone, two of whose features are much larger than the others."""
  others = np.setdiff1d(np.arange(_EMBED), _LOUD)
  for path, value in flat.items():
    if path == 'shared/embedding':
      value[..., _LOUD] = LARGE * (1.0 + 0.1 * value[..., _LOUD])
      value[..., others] *= 16
    elif path.endswith('mlp/wo/kernel'):
      value[..., _LOUD] *= 0.1 * LARGE
      value[..., others] *= 16
    elif path.endswith('attention/o/kernel'):
      value *= 16
    elif path.endswith('norm/scale'):
      value[..., _LOUD] *= 0.1
      value[..., others] *= 1e3
  return flat


def _of_delta(path: str, shape: tuple[int, ...], embedding: np.ndarray) -> np.ndarray:
  """A leaf of a delta: rows of the embedding for prompts, near 1 for factors, small otherwise."""
  if path.startswith('encoder/embed/') and shape[-1] == _EMBED and len(shape) > 1:
    rows = np.random.default_rng(zlib.crc32(path.encode())).integers(_VOCAB, size=shape[:-1])
    return embedding[rows]
  return (path.endswith('scale') + 0.02 * _noise(path, shape)).astype(np.float32)


def values_of(case: Case) -> tuple[Tree, Tree, Tree]:
  """(tuned, frozen, constants) in float32; deltas are random, so that all of them act."""
  method, model = case.method, model_of(case, 'float32')
  loaded = unflatten(backbone_values(case.backbone))
  boxed = boxed_shapes(model)
  shapes = nn.meta.unbox(boxed)['params']
  known = flatten(cut(loaded, shapes))
  rows = known['shared/embedding']
  params = unflatten({path: known[path] if path in known else _of_delta(path, leaf.shape, rows)
                      for path, leaf in flatten(shapes).items()})
  constants = {}
  if boxed.get('constants'):
    constants = initialiser(model)(jax.random.key(0))[1]
  if method.first_values is not as_initialised:
    params = cut(method.first_values(loaded, join(params), jax.random.key(0)), shapes)
  frozen, tuned = split_params(params, method.tuned)
  return tuned, frozen, constants


def batch_of(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
  """Random rows of different lengths, with targets or labels."""
  rng = np.random.default_rng(seed)
  rows, batch = 4, {}
  for name, length in (('inputs', 16), ('targets', 8)):
    real = rng.integers(2, length + 1, size=(rows, 1))
    real[0] = length
    mask = np.arange(length) < real
    batch[name] = (rng.integers(3, _VOCAB, size=(rows, length)) * mask).astype(np.int32)
    batch[f'{name}_mask'] = mask.astype(np.float32)
  if case.backbone == 'roberta':
    batch['labels'] = rng.integers(0, _LABELS, size=rows, dtype=np.int32)
  return batch


def loss_of(case: Case, dtype: str) -> Callable[..., Any]:
  """loss_fn(tuned, frozen, constants, batch, key) of a case, see `methods.base.make_loss`."""
  model = model_of(case, dtype)
  make = {'roberta': make_text_loss, 'gpt2': make_language_loss}.get(case.backbone, make_loss)
  loss_fn, transform = make(model, case.method), case.method.transform_loss
  return transform(loss_fn, False) if transform else loss_fn


def _logits(case: Case, dtype: str, variables: Tree, batch: dict[str, jax.Array]) -> jax.Array:
  model, read = model_of(case, dtype), (batch['inputs'], batch['inputs_mask'])
  if case.backbone == 'gpt2':
    return model.apply(variables, *read, method='read')[0]
  if case.backbone == 'roberta':
    return model.apply(variables, *read)[0]
  targets = shift_right(batch['targets'], model.config.start_id)
  return model.apply(variables, *read, targets, batch['targets_mask'])[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def outcome(case: Case, dtype: str, tuned: Tree, frozen: Tree, constants: Tree,
            batch: dict[str, jax.Array]) -> dict[str, Any]:
  """`loss` [], `logits` and `gradients` of a batch without noise."""
  (loss, _), gradients = jax.value_and_grad(loss_of(case, dtype), has_aux=True)(
      tuned, frozen, constants, batch, None)
  variables = case.method.variables(tuned, frozen, constants)
  return {'loss': loss, 'gradients': gradients, 'logits': _logits(case, dtype, variables, batch)}


def halved(tree: Tree) -> Tree:
  """A tree whose floats are stored in bfloat16."""
  return jax.tree.map(
      lambda leaf: leaf.astype(jnp.bfloat16) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
      tree)


def _joined(tree: Tree) -> np.ndarray:
  return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def deviation(case: Case) -> dict[str, Any]:
  """Compares bfloat16, of activations and of frozen weights, with float32 at full precision.

  Returns:
    `loss` and `loss_bfloat16`; `loss_deviation` relative to the loss. Of logits g and of the
    gradients g of all tuned leaves together, h in bfloat16: `..._mean`, |g - h| / |g| in Euclidean
    norms, and `..._largest`, the largest |g_i - h_i| over the largest |g_i|. `gradient_cosine`, and
    `finite` for all of bfloat16.
  """
  tuned, frozen, constants = values_of(case)
  batch = batch_of(case)
  with jax.default_matmul_precision('highest'):
    exact = outcome(case, 'float32', tuned, frozen, constants, batch)
  rounded = outcome(case, 'bfloat16', tuned, halved(frozen), constants, batch)
  outcome.clear_cache()  # All cases together have more code than a process may map.
  loss, found = float(exact['loss']), float(rounded['loss'])
  result = {'loss': loss, 'loss_bfloat16': found, 'loss_deviation': abs(found - loss) / abs(loss)}
  for name, part in (('logits', 'logits'), ('gradient', 'gradients')):
    g, h = _joined(exact[part]), _joined(rounded[part])
    result |= {f'{name}_mean': np.linalg.norm(g - h) / np.linalg.norm(g),
               f'{name}_largest': np.abs(g - h).max() / np.abs(g).max()}
  cosine = g @ h / (np.linalg.norm(g) * np.linalg.norm(h))
  return result | {'gradient_cosine': cosine, 'finite': bool(np.isfinite(_joined(rounded)).all())}


_COLUMNS = ('loss_deviation', 'logits_mean', 'logits_largest', 'gradient_mean', 'gradient_largest',
            'gradient_cosine')


def table(results: list[dict[str, Any]]) -> str:
  """Results of the suite in Markdown, one row for each method on each backbone."""
  head = ['backbone', 'method', *(name.replace('_', ', ') for name in _COLUMNS)]
  rows = [[found['backbone'], f"`{found['method']}`", *(f'{found[name]:.2g}' if name != _COLUMNS[-1]
                                                    else f'{found[name]:.4f}' for name in _COLUMNS)]
          for found in results]
  line = lambda cells: f"| {' | '.join(cells)} |"
  return '\n'.join([line(head), line(['---'] * len(head)), *map(line, rows)])
