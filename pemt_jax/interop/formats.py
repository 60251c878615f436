"""The table of checkpoint formats that `launch/convert.py` translates between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import pathlib

from pemt_jax import guards
from pemt_jax import trees
from pemt_jax.errors import UserError
from pemt_jax.experts import packed
from pemt_jax.interop import expert_format
from pemt_jax.interop import files
from pemt_jax.interop import folded
from pemt_jax.interop import huggingface
from pemt_jax.interop import hyperformer_experts
from pemt_jax.interop import mpoe_experts
from pemt_jax.interop import peft_experts
from pemt_jax.interop import pemt_baselines
from pemt_jax.interop import pemt_files
from pemt_jax.interop import pemt_layout
from pemt_jax.interop import pemt_original
from pemt_jax.interop import pemt_prompts
from pemt_jax.interop import propetl_experts
from pemt_jax.interop import propetl_roberta_experts
from pemt_jax.interop import taskmoe_experts
from pemt_jax.interop.pemt_layout import PemtLayout
from pemt_jax.models import t5_config
from pemt_jax.models.t5_config import T5Config
from pemt_jax.trees import Tree

_LAYOUT_KEY = 'layout'
PACKED = 'packed'


@dataclasses.dataclass(frozen=True)
class Artefact:
  """What every format can be read into.

  Attributes:
    params: backbone and deltas, or one of them.
    constants: masks of padded prompts.
    layout: which parts `params` has.
  """

  params: Tree
  constants: Tree
  layout: PemtLayout


@dataclasses.dataclass(frozen=True)
class Options:
  """What a file does not say, and how to write.

  Attributes:
    sources: 'task' or 'task=folder' of each expert in the order of the bank.
    target: task of the target adapter.
    backbone: T5 (folder, name or hub id) that deltas stand on; put under an input without one, and
      named in the card of an expert.
    weights: 'torch' or 'safetensors' files, where a format has both; '' means the format's own
      habit (torch for the PEMT code's, safetensors for `hf_t5`).
    shards: number of weight files, for `hf_t5`.
  """

  sources: tuple[str, ...] = ()
  target: str | None = None
  backbone: str | None = None
  weights: str = ''
  shards: int = 1

  @property
  def source_names(self) -> tuple[str, ...]:
    """Tasks of the sources."""
    return tuple(source.partition('=')[0] for source in self.sources)

  def source_folders(self) -> dict[str, str]:
    """Task -> folder.

    Raises:
      UserError: a source without a folder.
    """
    folders = {}
    for source in self.sources:
      name, _, folder = source.partition('=')
      if not folder:
        raise UserError(f"Source '{source}' names no folder; give --sources=TASK=FOLDER,...")
      folders[name] = folder
    return folders


@dataclasses.dataclass(frozen=True)
class Format:
  """One kind of checkpoint.

  Attributes:
    about: one line for the help text.
    read: (path, options) -> artefact.
    write: (path, artefact, options) -> paths of the leaves that it has written.
  """

  about: str
  read: Callable[[pathlib.Path, Options], Artefact]
  write: Callable[[pathlib.Path, Artefact, Options], set[str]]


def convert(
    source_kind: str, target_kind: str, source: str, target: str, options: Options) -> list[str]:
  """Translates one checkpoint.

  Args:
    source_kind: key of `ABOUT`.
    target_kind: key of `ABOUT`.
    source: file or folder to read (for `hf_t5` also a name or hub id).
    target: file or folder to write.
    options: what the files do not say.

  Returns:
    Paths of arrays that the target format has no place for, in order.

  Raises:
    UserError: unknown kind, or whatever reader and writer find wrong.
  """
  for kind in (source_kind, target_kind):
    if kind not in ABOUT:
      raise UserError(f"Unknown format '{kind}'; known are {', '.join(ABOUT)}.")
  with guards.reading(source):
    return _convert(source_kind, target_kind, source, target, options)


def _convert(
    source_kind: str, target_kind: str, source: str, target: str, options: Options) -> list[str]:
  if not {source_kind, target_kind} <= set(FORMATS):
    return _convert_folder(source_kind, target_kind, source, target, options)
  artefact = FORMATS[source_kind].read(pathlib.Path(source), options)
  if options.backbone is not None and artefact.layout.backbone is None:
    artefact = _on_backbone(artefact, options.backbone)
  elif options.backbone is not None and target_kind != 'expert':
    raise UserError(f"Input '{source}' has a backbone of its own; leave --backbone out.")
  written = FORMATS[target_kind].write(pathlib.Path(target), artefact, options)
  return [path for path in trees.flatten(artefact.params) if path not in written]


def _convert_folder(
    source_kind: str, target_kind: str, source: str, target: str, options: Options) -> list[str]:
  """Adapter folders of other programs, which become experts and back."""
  if target_kind == PACKED and source_kind == 'expert':
    packed.pack_expert(source, target)
    return []
  if source_kind == propetl_experts.KIND and target_kind == 'expert':
    return propetl_experts.to_expert(source, target, options.backbone)
  if target_kind == propetl_experts.KIND and source_kind == 'expert':
    return propetl_experts.from_expert(source, target, options.weights)
  if source_kind == hyperformer_experts.KIND and target_kind == 'expert':
    return hyperformer_experts.to_expert(source, target, options.backbone)
  if target_kind == hyperformer_experts.KIND and source_kind == 'expert':
    return hyperformer_experts.from_expert(source, target, options.weights)
  if source_kind == folded.KIND:
    raise UserError(f"'{folded.KIND}' is only written; name the folder as config.model.name, or"
                    ' read a T5 with --from=hf_t5.')
  if target_kind == folded.KIND and source_kind == 'expert':
    return folded.from_expert(source, target, options.backbone)
  if source_kind == mpoe_experts.KIND and target_kind == 'expert':
    return mpoe_experts.to_expert(source, target, options.backbone,
                                  next(iter(options.source_names), None))
  if target_kind == mpoe_experts.KIND and source_kind == 'expert':
    return mpoe_experts.from_expert(source, target, options.weights, options.backbone)
  if source_kind == taskmoe_experts.KIND and target_kind == 'expert':
    return taskmoe_experts.to_expert(source, target, options.backbone)
  if target_kind == taskmoe_experts.KIND and source_kind == 'expert':
    return taskmoe_experts.from_expert(source, target)
  if source_kind == pemt_prompts.KIND and target_kind == 'expert':
    tasks = options.target.split(',') if options.target else ()
    return pemt_prompts.to_expert(source, target, options.backbone, options.source_folders(), tasks)
  if target_kind == pemt_prompts.KIND and source_kind == 'expert':
    return pemt_prompts.from_expert(source, target, options.weights)
  if propetl_roberta_experts.KIND in (source_kind, target_kind) and 'expert' in (
      source_kind, target_kind):
    return _propetl_roberta(source_kind, source, target, options)
  if target_kind == 'expert':
    task = next(iter(options.source_names), None)
    return peft_experts.to_expert(source_kind, source, target, options.backbone, task)
  if source_kind == 'expert':
    return peft_experts.from_expert(
        target_kind, source, target, options.backbone, options.weights)
  raise UserError(f'There is no way from {source_kind} to {target_kind}; convert to an expert '
                  'first.')


def _propetl_roberta(source_kind: str, source: str, target: str, options: Options) -> list[str]:
  if source_kind == 'expert':
    return propetl_roberta_experts.from_expert(source, target, options.backbone, options.weights)
  return propetl_roberta_experts.to_expert(source, target, options.backbone,
                                           next(iter(options.source_names), None))


def _on_backbone(artefact: Artefact, name: str) -> Artefact:
  """Puts a T5 under deltas; norms that a stage has tuned win."""
  config, params = huggingface.load_t5(name)
  layout = artefact.layout
  if layout.embed and (config.embed, config.encoder_layers) != (
      layout.embed, layout.encoder_layers):
    raise UserError(f"Backbone '{name}' has width {config.embed} and {config.encoder_layers} "
                    f'encoder layers, the deltas {layout.embed} and {layout.encoder_layers}; '
                    'give the backbone they were trained on.')
  params = trees.merge(params, artefact.params)
  return dataclasses.replace(
      artefact, params=params,
      layout=dataclasses.replace(layout, backbone=config, embed=config.embed, mlp=config.mlp,
                                 encoder_layers=config.encoder_layers,
                                 decoder_layers=config.decoder_layers))


def _paths(layout: PemtLayout, parts: Sequence[str] | None = None) -> set[str]:
  return set(pemt_original.table_of(layout, parts).leaf_shapes())


def _plain_layout(config: T5Config) -> PemtLayout:
  return PemtLayout(embed=config.embed, mlp=config.mlp, encoder_layers=config.encoder_layers,
                    decoder_layers=config.decoder_layers, backbone=config)


def _read_hf_t5(path: pathlib.Path, options: Options) -> Artefact:
  del options
  config, params = huggingface.load_t5(path)
  return Artefact(params, {}, _plain_layout(config))


def _write_hf_t5(path: pathlib.Path, artefact: Artefact, options: Options) -> set[str]:
  config = artefact.layout.backbone
  if config is None:
    raise UserError('The input has no backbone, so it cannot be written as hf_t5; give --backbone.')
  wanted = set(huggingface.t5_table(config).leaf_shapes())
  leaves = {path: leaf for path, leaf in trees.flatten(artefact.params).items() if path in wanted}
  huggingface.save_t5(path, config, trees.unflatten(leaves), shards=options.shards,
                      torch_format=options.weights == 'torch')
  return wanted


def _ending(options: Options) -> str:
  return '.safetensors' if options.weights == 'safetensors' else '.pt'


def _imported(imported: pemt_files.Imported) -> Artefact:
  layout, tree = imported
  return Artefact(tree['params'], tree['constants'], layout)


def _read_stage1(path: pathlib.Path, options: Options) -> Artefact:
  return _imported(pemt_files.import_stage1(path, source=next(iter(options.source_names), None)))


def _write_stage1(path: pathlib.Path, artefact: Artefact, options: Options) -> set[str]:
  pemt_files.export_stage1(path, artefact.params, artefact.layout, ending=_ending(options))
  return _paths(artefact.layout, pemt_files.STAGE1_PARTS)


def _read_stage2(path: pathlib.Path, options: Options) -> Artefact:
  return _imported(
      pemt_files.import_stage2(path, options.source_folders(), target=options.target))


def _write_stage2(path: pathlib.Path, artefact: Artefact, options: Options) -> set[str]:
  pemt_files.export_stage2(path, artefact.params, artefact.layout, ending=_ending(options))
  return _paths(artefact.layout, pemt_files.STAGE2_PARTS)


def _read_checkpoint(path: pathlib.Path, options: Options) -> Artefact:
  return _imported(pemt_files.import_checkpoint(
      path, sources=options.source_names, target=options.target))


def _write_checkpoint(path: pathlib.Path, artefact: Artefact, options: Options) -> set[str]:
  gates = [path for path in _paths(artefact.layout, ['gates'])
           if path not in trees.flatten(artefact.params)]
  if gates:
    raise UserError('The input has no gates (the small files of stage 2 do not keep them), so it '
                    'cannot be written as pemt_checkpoint; convert a full checkpoint or an expert.')
  pemt_files.export_checkpoint(
      path, artefact.params, artefact.layout, torch_format=options.weights != 'safetensors')
  return _paths(artefact.layout)


def _read_tree(path: pathlib.Path, options: Options) -> Artefact:
  state = files.read_tensors(path)
  tree = trees.unflatten({name: state[name] for name in state})
  unknown = set(tree) - {'params', 'constants'}
  text = files.read_metadata(path).get(_LAYOUT_KEY)
  if unknown or text is None:
    raise UserError(f"'{path}' was not written by this converter (it has no layout in its header); "
                    'name its kind with --from.')
  layout = layout_from_json(text)
  del options
  return Artefact(tree.get('params', {}), tree.get('constants', {}), layout)


def _write_tree(path: pathlib.Path, artefact: Artefact, options: Options) -> set[str]:
  del options
  if path.suffix != '.safetensors':
    raise UserError(f"--output '{path}' must end with .safetensors for this format.")
  leaves = trees.flatten({'params': artefact.params, 'constants': artefact.constants})
  files.write_tensors(path, leaves, {_LAYOUT_KEY: layout_to_json(artefact.layout)})
  return set(trees.flatten(artefact.params))


def _read_expert(path: pathlib.Path, options: Options) -> Artefact:
  folders = options.source_folders() if options.sources else None
  found = expert_format.read(path, folders, options.target)
  return Artefact(found.params, found.constants, found.layout)


def _write_expert(path: pathlib.Path, artefact: Artefact, options: Options) -> set[str]:
  written = expert_format.write(
      path, artefact.params, artefact.constants, artefact.layout, options.backbone)
  # What equals the backbone is not lost: the card names it.
  return written | set(huggingface.t5_table(artefact.layout.backbone).leaf_shapes())


def layout_to_json(layout: PemtLayout) -> str:
  """Returns a layout as JSON, the backbone's config in Hugging Face's form."""
  values = dataclasses.asdict(layout)
  values['backbone'] = None if layout.backbone is None else t5_config.to_hf(layout.backbone)
  return json.dumps(values, sort_keys=True)


def layout_from_json(text: str) -> PemtLayout:
  """Inverse of `layout_to_json`."""
  values = guards.parse_json(text)
  values = {key: tuple(value) if isinstance(value, list) else value
            for key, value in values.items()}
  if values['backbone'] is not None:
    values['backbone'] = t5_config.from_hf(values['backbone'], 'layout')
  values = pemt_baselines.shapes_from_json(values)
  return pemt_layout.PemtLayout(**values)


# Name of --from and --to -> format.
FORMATS: Mapping[str, Format] = {
    'hf_t5': Format('Hugging Face T5: folder, name or hub id', _read_hf_t5, _write_hf_t5),
    'pemt_stage1': Format("folder with the PEMT code's lora or adapter file and task_embedding",
                          _read_stage1, _write_stage1),
    'pemt_stage2': Format("folder with the PEMT code's stage-2 adapter and task_embedding",
                          _read_stage2, _write_stage2),
    'pemt_checkpoint': Format('full checkpoint of the PEMT code: pytorch_model.bin or safetensors',
                              _read_checkpoint, _write_checkpoint),
    'expert': Format('folder of the expert library', _read_expert, _write_expert),
    'safetensors': Format('one file with the tree under its own names', _read_tree, _write_tree),
}

# Name of --from and --to -> one line for the help text.
ABOUT: Mapping[str, str] = {
    **{kind: form.about for kind, form in FORMATS.items()}, **peft_experts.FOLDERS,
    pemt_prompts.KIND: pemt_prompts.ABOUT, propetl_experts.KIND: propetl_experts.ABOUT,
    propetl_roberta_experts.KIND: propetl_roberta_experts.ABOUT,
    hyperformer_experts.KIND: hyperformer_experts.ABOUT,
    taskmoe_experts.KIND: taskmoe_experts.ABOUT, mpoe_experts.KIND: mpoe_experts.ABOUT,
    folded.KIND: folded.ABOUT,
    PACKED: 'expert of ProPETL with one bit for each entry of its masks; it is read as an expert'}
