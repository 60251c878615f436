"""Libraries behind `data.tokenizer`: what each does for texts and ids."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
from pathlib import Path
import re
from typing import Any, Protocol

from pemt_jax.errors import UserError

PAD, EOS, UNK = '<pad>', '</s>', '<unk>'
_CHUNK = 8192  # texts handed to the parallel encoder at once; bounds the memory of its records


def sentinel_name(index: int) -> str:
  """Text form of sentinel `index` (0 is the first one used in a corrupted input)."""
  return f'<extra_id_{index}>'


class Backend(Protocol):
  """What a tokenizer library must offer to `Tokenizer`."""

  def encode(self, texts: list[str]) -> list[list[int]]:
    """Ids of each text, eos included."""

  def plain(self) -> Backend:
    """The same without special ids around texts, but for an end mark."""

  def decode(self, ids: list[list[int]]) -> list[str]:
    """Texts without special tokens."""

  def token_id(self, token: str) -> int | None:
    """Id of a token, or None."""

  def size(self) -> int:
    """Number of ids."""

  def identity(self) -> bytes:
    """Everything that decides ids."""

  def save(self, folder: Path) -> dict[str, int]:
    """Writes the vocabulary; returns what tokenizer_config.json must say besides its tokens."""


@contextlib.contextmanager
def library(doing: str) -> Iterator[None]:
  """Around calls of `tokenizers`, which raises bare exceptions and, where it panics, worse.

  Args:
    doing: start of the sentence, such as "Cannot read tokenizer file 'x'".

  Raises:
    UserError: the library failed.
  """
  try:
    yield
  except (KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip('.')[:120]
    raise UserError(f'{doing} ({reason}); fetch it again.') from error


class FastBackend:
  """The `tokenizers` library; encodes a list of texts on all cores."""

  def __init__(self, tokenizer: Any, specials: bool = True):
    tokenizer.no_truncation()
    tokenizer.no_padding()
    self._tokenizer, self._specials = tokenizer, specials

  def plain(self) -> FastBackend:
    """The same without special ids around texts."""
    return FastBackend(self._tokenizer, specials=False)

  def encode(self, texts: list[str]) -> list[list[int]]:
    """Ids of each text, eos included."""
    rows: list[list[int]] = []
    for start in range(0, len(texts), _CHUNK):
      with library('The vocabulary of the tokenizer fails on a text'):
        found = self._tokenizer.encode_batch_fast(
            texts[start:start + _CHUNK], add_special_tokens=self._specials)
      rows += [encoding.ids for encoding in found]
    return rows

  def decode(self, ids: list[list[int]]) -> list[str]:
    """Texts without special tokens."""
    with library('The vocabulary of the tokenizer fails on ids'):
      return self._tokenizer.decode_batch(ids, skip_special_tokens=True)

  def token_id(self, token: str) -> int | None:
    """Id of a token, or None."""
    return self._tokenizer.token_to_id(token)

  def size(self) -> int:
    """Number of ids."""
    return self._tokenizer.get_vocab_size(with_added_tokens=True)

  def identity(self) -> bytes:
    """Everything that decides ids."""
    return self._tokenizer.to_str().encode() + (b'' if self._specials else b'plain')

  def save(self, folder: Path) -> dict[str, int]:
    """Writes tokenizer.json."""
    self._tokenizer.save(str(folder / 'tokenizer.json'))
    return {}


class SentencePieceBackend:
  """A T5 `spiece.model`, to which the sentinels are appended, the first one with the highest id."""

  def __init__(self, path: Path, sentinels: int):
    import sentencepiece
    self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    self._base, self._sentinels = self._pieces.get_piece_size(), sentinels
    self._model = path.read_bytes()
    named = [PAD, EOS, UNK] + [sentinel_name(i) for i in range(sentinels)]
    self._special = {name: self.token_id(name) for name in named if self.token_id(name) is not None}
    self._splitter = re.compile('(' + '|'.join(map(re.escape, self._special)) + ')')

  def plain(self) -> SentencePieceBackend:
    """The same: there are none but an end mark."""
    return self

  def encode(self, texts: list[str]) -> list[list[int]]:
    """Ids of each text, eos included."""
    rows = self._pieces.encode(texts, num_threads=-1)
    eos = self._special[EOS]
    for index, text in enumerate(texts):
      if '<' in text and self._splitter.search(text):
        rows[index] = self._encode_with_specials(text)
      rows[index].append(eos)
    return rows

  def _encode_with_specials(self, text: str) -> list[int]:
    """Ids of a text that spells special tokens: sentencepiece alone would take them for letters."""
    ids: list[int] = []
    for part in self._splitter.split(text):
      ids += [self._special[part]] if part in self._special else self._pieces.encode(part)
    return ids

  def decode(self, ids: list[list[int]]) -> list[str]:
    """Texts without special tokens."""
    special = set(self._special.values())
    kept = [[i for i in row if 0 <= i < self._base and i not in special] for row in ids]
    return self._pieces.decode(kept)

  def token_id(self, token: str) -> int | None:
    """Id of a token, or None."""
    match = re.fullmatch(r'<extra_id_(\d+)>', token)
    if match and int(match[1]) < self._sentinels:
      return self._base + self._sentinels - 1 - int(match[1])
    piece = self._pieces.piece_to_id(token)
    return piece if self._pieces.id_to_piece(piece) == token else None

  def size(self) -> int:
    """Number of ids."""
    return self._base + self._sentinels

  def identity(self) -> bytes:
    """Everything that decides ids."""
    return self._model + str(self._sentinels).encode()

  def save(self, folder: Path) -> dict[str, int]:
    """Writes spiece.model; the number of sentinels is not in it."""
    (folder / 'spiece.model').write_bytes(self._model)
    return {'extra_ids': self._sentinels}
