"""Weight files as mappings from name to NumPy array: safetensors and torch, single or sharded."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pemt_jax import guards
from pemt_jax.errors import UserError
from pemt_jax.experts.tree_files import replacing
from pemt_jax.interop import torch_checks

SAFETENSORS = 'model.safetensors'
TORCH = 'pytorch_model.bin'
TORCH_SUFFIXES = ('.bin', '.pt', '.pth')
# Order of preference inside a model folder.
_MODEL_FILES = (SAFETENSORS, f'{SAFETENSORS}.index.json', TORCH, f'{TORCH}.index.json')
# Name of the tensor in a torch file that holds no dict.
BARE = ''


class TensorFiles(Mapping[str, np.ndarray]):
  """Read-only mapping from name to array that reads each safetensors entry when it is asked for.

  Attributes:
    source: the file or folder it stands for, as given by the user.
  """

  def __init__(self, source: str | pathlib.Path, readers: Mapping[str, Mapping[str, Any]]):
    """Collects the entries of several files.

    Args:
      source: file or folder for messages.
      readers: file path -> mapping of its entries.

    Raises:
      UserError: if two files hold the same name.
    """
    self.source = str(source)
    self._readers = readers
    self._places = {}
    for file, reader in readers.items():
      for name in reader:
        if name in self._places:
          raise UserError(f"'{name}' is in '{self._places[name]}' and again in '{file}'; "
                          'remove one of the two files.')
        self._places[name] = file

  def __getitem__(self, name: str) -> np.ndarray:
    return self._readers[self._places[name]][name]

  def __iter__(self) -> Iterator[str]:
    return iter(self._places)

  def __contains__(self, name: object) -> bool:
    return name in self._places  # the inherited form would read the tensor

  def __len__(self) -> int:
    return len(self._places)

  def place_of(self, name: str) -> str:
    """Returns the file that holds `name`, or the source as a whole for an absent name."""
    return self._places.get(name, self.source)


class _SafetensorsFile(Mapping[str, np.ndarray]):
  """Entries of one safetensors file, memory-mapped."""

  def __init__(self, path: pathlib.Path):
    self._file = guards.open_safetensors(path)
    self._names = dict.fromkeys(self._file.keys())

  def __getitem__(self, name: str) -> np.ndarray:
    return self._file.get_tensor(name)

  def __iter__(self) -> Iterator[str]:
    return iter(self._names)

  def __contains__(self, name: object) -> bool:
    return name in self._names

  def __len__(self) -> int:
    return len(self._names)


def read_tensors(path: str | pathlib.Path) -> TensorFiles:
  """Opens a weight file, the index of a sharded one, or a model folder.

  Args:
    path: `*.safetensors`, a torch file (`.bin`, `.pt`, `.pth`), `*.index.json`, or a folder with
      one of model.safetensors, model.safetensors.index.json, pytorch_model.bin,
      pytorch_model.bin.index.json (first match).

  Returns:
    Name -> array. A torch file that holds one bare tensor gives the single name ''.

  Raises:
    UserError: missing or unreadable file, unknown ending, shard without an indexed name, or a torch
      file without torch installed or with anything but tensors in it.
  """
  path = pathlib.Path(path)
  file = _weights_in(path) if path.is_dir() else path
  if not file.is_file():
    raise UserError(f"Weight file '{file}' does not exist; check the path.")
  if file.name.endswith('.index.json'):
    return _read_shards(path, file)
  return TensorFiles(path, {str(file): _open(file)})


def _weights_in(folder: pathlib.Path) -> pathlib.Path:
  for name in _MODEL_FILES:
    if (folder / name).is_file():
      return folder / name
  raise UserError(f"Folder '{folder}' holds no weights; expected one of {', '.join(_MODEL_FILES)}.")


def _open(file: pathlib.Path) -> Mapping[str, np.ndarray]:
  if file.suffix == '.safetensors':
    return _SafetensorsFile(file)
  if file.suffix in TORCH_SUFFIXES:
    return _read_torch(file)
  raise UserError(f"'{file}' has an unknown ending; "
                  f"weight files end with .safetensors, {', '.join(TORCH_SUFFIXES)}.")


def _read_shards(source: pathlib.Path, index: pathlib.Path) -> TensorFiles:
  values = guards.read_json(index, 'copy or download it again')
  places = values.get('weight_map') if isinstance(values, Mapping) else None
  if not isinstance(places, Mapping) or not all(isinstance(own, str) for own in places.values()):
    raise UserError(f"'{index}' is no index of sharded weights (no 'weight_map'); "
                    'copy or download it again.')
  shards = {name: guards.inside(index.parent, name, index)
            for name in dict.fromkeys(places.values())}
  readers = {}
  for _, shard in sorted(shards.items()):
    if not shard.is_file():
      raise UserError(f"Shard '{shard}' named by '{index}' does not exist; "
                      'copy or download it again.')
    readers[str(shard)] = _open(shard)
  tensors = TensorFiles(source, readers)
  for name, file in places.items():
    if name not in readers[str(shards[file])]:
      raise UserError(f"Shard '{shards[file]}' lacks '{name}', which '{index}' promises; "
                      'copy or download it again.')
  return tensors


def import_torch() -> Any:
  """Returns the torch module.

  Raises:
    UserError: if it is not installed.
  """
  try:
    import torch
  except ImportError as error:
    raise UserError('Torch files need the package torch, which is not installed; '
                    'run pip install -r requirements-torch.txt, or use a safetensors file.'
                    ) from error
  return torch


def _read_torch(file: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads with torch's weights-only unpickler, which refuses everything that could execute."""
  torch = import_torch()
  try:
    torch_checks.check_file(file)
    loaded = torch.load(file, map_location='cpu', weights_only=True)
  except guards.WRONG as error:
    raise UserError(f"'{file}' is not a torch file of tensors only ({guards.reason_of(error)});"
                    ' nothing in it was executed; save the bare state_dict again, or use a'
                    ' safetensors file.') from error
  if isinstance(loaded, torch.Tensor):
    loaded = {BARE: loaded}
  if not isinstance(loaded, dict):
    raise UserError(f"'{file}' holds a {type(loaded).__name__} instead of a state_dict; "
                    'save a dict of tensors.')
  tensors = dict(dict.items(loaded))  # a pickle can give an ordered dict methods of its own
  for name, value in tensors.items():
    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
      raise UserError(f"'{file}' holds a {type(value).__name__} under {name!r:.80} where a tensor"
                      ' is needed; save a dict of tensors.')
  try:
    torch_checks.check_tensors(tensors, file.stat().st_size, torch)
    return {name: to_numpy(value, torch) for name, value in tensors.items()}
  except guards.WRONG as error:
    raise UserError(f"'{file}' holds a tensor that cannot be read ({guards.reason_of(error)});"
                    ' save plain tensors of the CPU.') from error


def to_numpy(tensor: Any, torch: Any) -> np.ndarray:
  """Torch tensor -> array; `torch` is the module."""
  tensor = tensor.detach()
  if tensor.dtype == torch.bfloat16:
    import ml_dtypes

    return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
  return tensor.numpy()


def read_metadata(path: str | pathlib.Path) -> dict[str, str]:
  """Returns the text entries in the header of a safetensors file."""
  return dict(guards.open_safetensors(path).metadata() or {})


def write_tensors(
    path: str | pathlib.Path, tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None) -> None:
  """Writes one weight file; the ending chooses the format. Replaces the file at once or not at all.

  Args:
    path: `*.safetensors`, or a torch file (`.bin`, `.pt`, `.pth`; needs torch). The folder is made.
    tensors: name -> array; the single name '' in a torch file writes a bare tensor.
    metadata: text entries for the header of a safetensors file.

  Raises:
    UserError: unknown ending, or a torch file without torch installed.
  """
  path = pathlib.Path(path)
  if path.suffix == '.safetensors':
    from safetensors.numpy import save_file

    with replacing(path) as temporary:
      arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
      # Readers built on torch look for this entry.
      save_file(arrays, temporary, metadata={'format': 'pt', **(metadata or {})})
  elif path.suffix in TORCH_SUFFIXES:
    torch = import_torch()
    # One array under several names stays one storage.
    copies = {id(value): to_torch(value, torch) for value in tensors.values()}
    values = {name: copies[id(value)] for name, value in tensors.items()}
    with replacing(path) as temporary:
      torch.save(values[BARE] if set(values) == {BARE} else values, temporary)
  else:
    raise UserError(f"'{path}' has an unknown ending; "
                    f"weight files end with .safetensors, {', '.join(TORCH_SUFFIXES)}.")


def to_torch(value: Any, torch: Any) -> Any:
  """Array -> torch tensor of its own memory; `torch` is the module."""
  value = np.array(value, order='C')  # a writable copy of its own
  if value.dtype.name == 'bfloat16':
    return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
  return torch.from_numpy(value)


def write_text(path: str | pathlib.Path, text: str) -> None:
  """Writes a text file; replaces it at once or not at all. The folder is made."""
  with replacing(pathlib.Path(path)) as temporary:
    pathlib.Path(temporary).write_text(text, encoding='utf-8')


def shard_names(file: str, count: int) -> list[str]:
  """Returns Hugging Face's names of `count` shards ('model-00001-of-00002.safetensors', ...)."""
  stem, suffix = file.rsplit('.', 1)
  return [f'{stem}-{number:05d}-of-{count:05d}.{suffix}' for number in range(1, count + 1)]


def split_evenly(sizes: Mapping[str, int], count: int) -> list[list[str]]:
  """Cuts an ordered table of names into at most `count` runs of about equal total size.

  Args:
    sizes: name -> bytes.
    count: largest number of runs, at least 1.

  Returns:
    Non-empty runs, in order; together they hold every name once.
  """
  if count < 1:
    raise UserError(f'Cannot write {count} shards; give 1 or more.')
  total = sum(sizes.values())
  runs, done = [], 0
  for name, size in sizes.items():
    number = min(count - 1, done * count // max(total, 1))
    if not runs or number > runs[-1][0]:
      runs.append((number, []))
    runs[-1][1].append(name)
    done += size
  return [names for _, names in runs]


def resolve_model(
    path_or_id: str | pathlib.Path, patterns: Sequence[str] = ('*.json',)) -> pathlib.Path:
  """Returns the local folder of a model, downloading a hub repository where needed.

  Args:
    path_or_id: a local folder, a published short name ('t5-base'), 'playground' or a hub id
      ('owner/name').
    patterns: further files to fetch from the hub, besides the weights.

  Returns:
    A folder with weights.

  Raises:
    UserError: if it is no folder and cannot be fetched.
  """
  from pemt_jax.models.families import family_of, hub_id, place

  folder = pathlib.Path(place(path_or_id))
  if folder.is_dir():
    return folder
  name = hub_id(str(path_or_id))
  if name.count('/') != 1 or name.startswith(('.', '/')):
    # Neither a published name nor the form of a hub id: the close names help most.
    family_of(path_or_id).read(path_or_id)
  fetched = _snapshot(name, [*patterns, '*.safetensors'])
  if not any((fetched / file).is_file() for file in _MODEL_FILES[:2]):
    fetched = _snapshot(name, [*patterns, f'{TORCH}', 'pytorch_model-*.bin'])
  return fetched


def _snapshot(name: str, patterns: list[str]) -> pathlib.Path:
  try:
    import huggingface_hub
  except ImportError as error:
    raise UserError(f"Fetching '{name}' needs the package huggingface_hub, which is not installed; "
                    'install it, or give a local folder.') from error
  try:
    return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
  except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
    raise UserError(f"'{name}' is no local folder and cannot be fetched from the Hugging Face hub "
                    f'({type(error).__name__}); check the name and the connection, or give a local '
                    'folder.') from error
