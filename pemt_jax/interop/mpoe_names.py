"""Names of factorised matrices in state dicts of the original MPOE program, in both directions.

| tensors | shape |
|---|---|
| `<module>_mpo.tensor_set.<k>` | core [r, out, in, r'] of `<module>.weight` |
| `<module>_mpo.bias` | that of `<module>` |
| `shared_mpo.tensor_set.<k>`, also as `*.embed_tokens.tensor_set.<k>` | [r, vocab, embed, r'] |
| `lm_head_mpo.tensor_set.<k>` | the same, of the head or that of the token table again |

`mpoe_moe_names` has routed feed-forwards, and reads and writes the states of both tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pemt_jax.experts.mpo_linear import MPO
from pemt_jax.interop import huggingface, names, roberta_files
from pemt_jax.models.roberta_config import RobertaConfig
from pemt_jax.models.sites import Plan
from pemt_jax.models.t5_config import T5Config

_LAYERS = re.compile(r'/layers(?=/)')


def t5_table(config: T5Config, plan: Plan) -> names.Table:
  """Every tensor of a T5 some of whose matrices are factorised."""
  return with_cores(huggingface.t5_table(config), plan)


def bert_table(config: RobertaConfig, labels: int, plan: Plan) -> names.Table:
  """Every tensor of a BERT with a head for whole texts, some of its matrices factorised."""
  weights = (*roberta_files.encoder_weights(config, 'bert.'),
             *roberta_files.head_weights(config, labels, ('bert.pooler.dense', 'classifier')))
  return with_cores(names.Table(weights), plan)


def with_cores(table: names.Table, plan: Plan) -> names.Table:
  """The table with cores in the place of the matrices that the plan's `MPO` rules replace."""
  weights, renamed = [], {}
  for weight in table.weights:
    place, _, leaf = weight.path.rpartition('/')
    rule = _rule_at(plan, _LAYERS.sub('', place))
    if rule is None:
      weights.append(weight)
      continue
    module = weight.name.rpartition('.')[0] + '_mpo'
    inside = f'{place}/{rule.name}'
    if leaf == 'bias':
      weights.append(names.Weight(f'{module}.bias', f'{inside}/bias', weight.index, weight.shape))
      continue
    cores = list(_cores(rule.delta, module, inside, weight.index))
    weights += cores
    renamed[weight.name] = [core.name for core in cores]
  aliases = {}
  head = _rule_at(plan, 'lm_head')
  for alias, name in table.aliases.items():
    if alias == 'lm_head.weight' and head is not None:
      weights += _cores(head.delta, 'lm_head_mpo', f'lm_head/{head.name}', ())
    elif name in renamed:
      module = alias.removesuffix('.weight')
      module += '' if module.endswith('embed_tokens') else '_mpo'
      aliases |= {f'{module}.tensor_set.{k}': core for k, core in enumerate(renamed[name])}
    else:
      aliases[alias] = name
  return names.Table(tuple(weights), aliases, table.ignored)


def _rule_at(plan, site):
  found = [rule for rule in plan.at(site) if isinstance(rule.delta, MPO)]
  return found[0] if found else None


def _cores(delta: MPO, module: str, path: str, index: tuple[int, ...]) -> Iterator[names.Weight]:
  for k, shape in enumerate(delta.factors.core_shapes(delta.ranks)):
    yield names.Weight(f'{module}.tensor_set.{k}', f'{path}/core_{k}', index, shape)
