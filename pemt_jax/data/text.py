"""Plain text for pretraining: files -> documents -> one stream of ids -> chunks of equal length.

A text file (`.txt` or `.txt.gz`, UTF-8) has one paragraph per line; a blank line, like the end of
a file, ends a document. The input texts of tasks' train rows can stand before the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
import glob
import hashlib
import itertools
from pathlib import Path
import zlib

import numpy as np

from pemt_jax import guards
from pemt_jax.data.datasets import DataConfig, load_task
from pemt_jax.data.tokenized import Ragged, cached_arrays, digest
from pemt_jax.data.tokenizer import Tokenizer
from pemt_jax.errors import UserError

Document = list[str]
Places = str | Path | Sequence[str | Path]
_FORMAT = 'text-1'
_PARAGRAPHS = 4096  # tokenized at once


def find_text_files(places: Places) -> list[Path]:
  """Lists text files.

  Args:
    places: a file, a folder (all its .txt and .txt.gz files, sorted by name), a glob pattern, or
      a list of these (in the given order).

  Raises:
    UserError: if a place has no text file.
  """
  files: list[Path] = []
  for place in [places] if isinstance(places, (str, Path)) else places:
    path = Path(place).expanduser()
    if path.is_dir():
      found = sorted(p for p in path.iterdir() if p.name.endswith(('.txt', '.txt.gz')))
    elif path.is_file():
      found = [path]
    else:
      found = sorted(Path(p) for p in glob.glob(str(path)))
    if not found:
      raise UserError(f'There is no text file at {str(place)!r}; give a .txt or .txt.gz file, a '
                      'folder of them, or a glob pattern.')
    files += found
  return files


def read_documents(files: Iterable[Path]) -> Iterator[Document]:
  """Yields documents, each a list of its non-blank paragraphs.

  Raises:
    UserError: if a file is damaged or not UTF-8.
  """
  for path in files:
    document: Document = []
    for line in _lines(path):
      if line.strip():
        document.append(line.strip())
      elif document:
        yield document
        document = []
    if document:
      yield document


def task_documents(names: Iterable[str], config: DataConfig) -> list[Document]:
  """Input texts of the train rows of tasks, each a document; no targets, no repeats.

  Rows that the split rule keeps for validation or test give nothing.

  Args:
    names: task names or aliases.
    config: where the rows come from, split rules and row limits.

  Raises:
    UserError: see `datasets.load_task`.
  """
  texts = (' '.join(example.source.split()) for name in names
           for example in load_task(name, 'train', config).examples)
  return [[text] for text in dict.fromkeys(texts) if text]


def _lines(path: Path) -> Iterator[str]:
  number = 0
  try:
    with guards.open_bytes(path) as stream:
      for number, line in enumerate(stream, 1):
        yield line.decode('utf-8-sig' if number == 1 else 'utf-8')
  except UnicodeDecodeError as error:
    raise UserError(f'Line {number} of {str(path)!r} is not UTF-8 text; convert the file.'
                   ) from error
  except (OSError, EOFError, zlib.error) as error:
    raise UserError(f'Cannot read {str(path)!r} after line {number} ({error}); fetch the file '
                    'again.') from error


def token_stream(
    documents: Iterable[Document], tokenizer: Tokenizer, separate: bool = True,
    newlines: bool = False) -> np.ndarray:
  """Joins documents into one row of ids.

  Args:
    documents: lists of paragraphs.
    tokenizer: gives the ids.
    separate: ends every document with eos; False runs documents into each other.
    newlines: ends every paragraph but the last of a document with a line break.

  Returns:
    [total] int32 ids.
  """
  between = '\n' if newlines else ''
  paragraphs = ((text if last else text + between, last) for document in documents
                for place, text in enumerate(document) for last in [place == len(document) - 1])
  pieces = [np.zeros(0, np.int32)]
  while part := list(itertools.islice(paragraphs, _PARAGRAPHS)):
    rows = tokenizer.encode_batch([text for text, _ in part], add_eos=False)
    if separate:
      rows = [row + [tokenizer.eos_id] if last else row for row, (_, last) in zip(rows, part)]
    pieces.append(Ragged.from_lists(rows).tokens)
  return np.concatenate(pieces)


def load_token_stream(
    places: Places, tokenizer: Tokenizer, *, documents: Sequence[Document] = (),
    separate: bool = True, newlines: bool = False,
    cache_dir: str | Path | None = None) -> np.ndarray:
  """Reads text files as one row of ids, from the cache where it can.

  Args:
    places: see `find_text_files`.
    tokenizer: gives the ids.
    documents: stand before those of the files.
    separate: ends every document with eos.
    newlines: see `token_stream`.
    cache_dir: folder of cache files; None does without.

  Returns:
    [total] int32 ids.

  Raises:
    UserError: if there is no file, or one cannot be read.
  """
  files = find_text_files(places)
  contents = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
  if documents:
    contents.append(digest(*itertools.chain.from_iterable(documents)))
  key = digest(_FORMAT, tokenizer.fingerprint, str(separate), *contents,
               *(('newlines',) if newlines else ()))

  def build() -> dict[str, np.ndarray]:
    tokens = token_stream(itertools.chain(documents, read_documents(files)), tokenizer, separate,
                          newlines)
    # Half the file, where ids are small enough.
    return {'tokens': tokens.astype(np.uint16 if tokenizer.vocab_size < 1 << 16 else np.int32)}

  arrays = cached_arrays(cache_dir, key, build, lambda found: found['tokens'].ndim == 1)
  return arrays['tokens'].astype(np.int32)


def chunk_tokens(tokens: np.ndarray, length: int) -> np.ndarray:
  """Cuts a row of ids into chunks; the ids that do not fill the last one are left out.

  Returns:
    [chunk, length] ids.

  Raises:
    UserError: if there are fewer than `length` ids.
  """
  count = len(tokens) // length
  if not count:
    raise UserError(f'The text has {len(tokens)} tokens, but one example takes {length}; give '
                    'more text or a shorter input_length.')
  return tokens[:count * length].reshape(count, length)
