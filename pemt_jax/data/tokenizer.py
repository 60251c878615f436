"""Tokenizers behind one small interface: text -> ids ending with eos, ids -> text.

A tokenizer comes from a folder (`tokenizer.json`, `spiece.model`, or other files that
`transformers` understands), from the Hugging Face hub, or from `train_word_tokenizer`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
import functools
import hashlib
import json
from pathlib import Path
import re
from typing import Any

from pemt_jax import guards
from pemt_jax.data.tokenizer_backends import (
    EOS, PAD, UNK, Backend, FastBackend, SentencePieceBackend, library, sentinel_name)
from pemt_jax.errors import UserError

MASKS = ('<mask>', '[MASK]')
_MOST_SENTINELS = 10_000
_HUB_PREFIXES = (
    (re.compile(r't5-v1_1-'), 'google/'),
    (re.compile(r't5-.*-lm-adapt$'), 'google/'),
    (re.compile(r't5-'), 'google-t5/'),
    (re.compile(r'(flan-t5|mt5|byt5)-'), 'google/'),
    (re.compile(r'bart-'), 'facebook/'),
    (re.compile(r'roberta-'), 'FacebookAI/'),
    (re.compile(r'bert-'), 'google-bert/'),
    (re.compile(r'gpt2'), 'openai-community/'),
)


class Tokenizer:
  """Text to ids and back.

  Attributes:
    pad_id: id that fills rows.
    eos_id: id that ends every encoded text.
    vocab_size: number of ids, sentinels included; embeddings may have more rows.
    ends_sources: whether source texts end with eos.
    fingerprint: hex digest of everything that decides ids; equal digests mean equal ids.
  """

  def __init__(self, backend: Backend, pad_token: str, eos_token: str, origin: str,
               ends_sources: bool = True):
    """Wraps a backend.

    Raises:
      UserError: if the vocabulary lacks `pad_token` or `eos_token`.
    """
    self._backend = backend
    self._tokens = {'pad_token': pad_token, 'eos_token': eos_token}
    self._origin, self.ends_sources = origin, ends_sources
    self.pad_id = self._required(pad_token, 'pad_token')
    self.eos_id = self._required(eos_token, 'eos_token')
    self.vocab_size = backend.size()
    digest = hashlib.sha256(backend.identity())
    digest.update(f'_{type(backend).__name__} {self.pad_id} {self.eos_id}'.encode())
    if not ends_sources:
      digest.update(b'open sources')
    self.fingerprint = digest.hexdigest()

  def plain(self) -> Tokenizer:
    """The same for texts that are continued: no special ids in front, no eos behind sources."""
    return Tokenizer(self._backend.plain(), self._tokens['pad_token'], self._tokens['eos_token'],
                     self._origin, ends_sources=False)

  def _required(self, token: str, role: str) -> int:
    found = self._backend.token_id(token)
    if found is None:
      raise UserError(
          f'The vocabulary of tokenizer {self._origin!r} has no {role} {token!r}; name the right '
          'token in tokenizer_config.json.')
    return found

  def encode_batch(
      self, texts: Sequence[str], max_length: int | None = None, add_eos: bool = True
  ) -> list[list[int]]:
    """Encodes texts in parallel.

    Args:
      texts: any number of texts.
      max_length: greatest number of ids of a row, eos included; the end of a longer text is cut
        and eos kept. None keeps everything.
      add_eos: False leaves the final eos out.

    Returns:
      One list of ids per text, not padded.

    Raises:
      UserError: if `max_length` is below 1.
    """
    if max_length is not None and max_length < 1:
      raise UserError(f'max_length={max_length} leaves no room for eos; give at least 1.')
    rows = self._backend.encode(list(texts)) if len(texts) else []
    return [self._finish(row, max_length, add_eos) for row in rows]

  def _finish(self, row: list[int], max_length: int | None, add_eos: bool) -> list[int]:
    if row and row[-1] == self.eos_id:
      row = row[:-1]
    if not add_eos:
      return row[:max_length]
    if max_length is not None:
      row = row[:max_length - 1]
    return row + [self.eos_id]

  def decode_batch(self, ids: Iterable[Iterable[int]]) -> list[str]:
    """Decodes rows of ids (lists or an int array [batch, length]).

    Special tokens, negative ids and ids beyond the vocabulary are skipped; white space at both
    ends is removed.
    """
    rows = [[int(i) for i in row if 0 <= i < self.vocab_size] for row in ids]
    return [text.strip() for text in self._backend.decode(rows)] if rows else []

  def save(self, folder: str | Path) -> None:
    """Writes the files from which `load_tokenizer` makes this tokenizer again."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = self._tokens | self._backend.save(folder)
    (folder / 'tokenizer_config.json').write_text(json.dumps(config, indent=2) + '\n')

  def sentinel_id(self, index: int) -> int:
    """Id of sentinel `index`; in T5 vocabularies sentinel 0 has the highest id.

    Raises:
      UserError: if the vocabulary has no such sentinel.
    """
    found = self._backend.token_id(sentinel_name(index))
    if found is None:
      raise UserError(
          f'Tokenizer {self._origin!r} has no sentinel {sentinel_name(index)!r}; span corruption '
          'needs a tokenizer with one sentinel per span, or shorter inputs.')
    return found

  @functools.cached_property
  def mask_id(self) -> int:
    """Id that stands for hidden ids; the first sentinel where there is no mask.

    Raises:
      UserError: if the vocabulary has neither.
    """
    found = self.known_ids((*MASKS, sentinel_name(0)))
    if not found:
      raise UserError(f'Tokenizer {self._origin!r} has none of the tokens {", ".join(MASKS)} and'
                      ' no sentinel; text infilling needs one of them.')
    return found[0]

  @functools.cached_property
  def front_ids(self) -> tuple[int, ...]:
    """Ids that stand in front of every encoded text."""
    return tuple(self.encode_batch([''], add_eos=False)[0])

  def known_ids(self, tokens: Iterable[str]) -> tuple[int, ...]:
    """Ids of those tokens that the vocabulary has."""
    found = (self._backend.token_id(token) for token in tokens)
    return tuple(index for index in found if index is not None)


def load_tokenizer(name_or_folder: str | Path) -> Tokenizer:
  """Loads a tokenizer.

  Args:
    name_or_folder: a folder with `tokenizer.json` (preferred) or `spiece.model`; another folder
      or a Hugging Face id such as `google/flan-t5-small` or its short form `flan-t5-small` is
      read through `transformers`.

  Raises:
    UserError: if the path does not exist, a file cannot be read, or the hub does not answer.
  """
  name = str(name_or_folder)
  folder = Path(name).expanduser()
  if folder.is_file():
    folder = folder.parent
  if not folder.is_dir():
    looks_local = isinstance(name_or_folder, Path) or name.count('/') > 1 or name[:1] in '/.~'
    if looks_local or not name:
      raise UserError(
          f'Tokenizer folder {name!r} does not exist; give a folder with tokenizer.json or '
          'spiece.model, or a Hugging Face id.')
    return _from_transformers(_hub_id(name), name)
  config = _read_config(folder)
  pad, eos = _special_names(config)
  if (folder / 'tokenizer.json').is_file():
    return Tokenizer(_read_fast(folder / 'tokenizer.json'), pad, eos, name)
  if (folder / 'spiece.model').is_file():
    sentinels = config.get('extra_ids', 100)
    if type(sentinels) is not int or not 0 <= sentinels <= _MOST_SENTINELS:
      raise UserError(f'extra_ids of tokenizer {name!r} is {sentinels!r}; give a number from 0 to '
                      f'{_MOST_SENTINELS} in tokenizer_config.json.')
    return Tokenizer(_read_spiece(folder / 'spiece.model', sentinels), pad, eos, name)
  if not config and not (folder / 'vocab.json').is_file():
    raise UserError(
        f'Tokenizer folder {name!r} holds neither tokenizer.json nor spiece.model; copy one of '
        'them there.')
  return _from_transformers(str(folder), name)


def _read_fast(path: Path) -> FastBackend:
  import tokenizers
  with library(f'Cannot read tokenizer file {str(path)!r}'):
    return FastBackend(tokenizers.Tokenizer.from_file(str(path)))


def _read_spiece(path: Path, sentinels: int) -> SentencePieceBackend:
  try:
    return SentencePieceBackend(path, sentinels)
  except (RuntimeError, OSError) as error:
    raise UserError(f'Cannot read tokenizer file {str(path)!r} ({_short(error)}); fetch it again.'
                   ) from error


def _short(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip('.')[:120]


def _read_config(folder: Path) -> dict[str, Any]:
  merged: dict[str, Any] = {}
  for name in ('special_tokens_map.json', 'tokenizer_config.json'):
    path = folder / name
    if not path.is_file():
      continue
    values = guards.read_json(path, 'repair or remove it')
    if not isinstance(values, dict):
      raise UserError(f'{str(path)!r} is not a JSON object; repair or remove it.')
    merged.update(values)
  return merged


def _special_names(config: dict[str, Any]) -> tuple[str, str]:
  """Names of the pad and eos tokens; a vocabulary that names eos but no pad (GPT-2) pads with eos.
  """
  def content(key: str, default: str) -> str:
    value = config.get(key) or default
    value = value.get('content') if isinstance(value, dict) else value
    if not isinstance(value, str):
      raise UserError(f'{key} of a tokenizer is {value!r}; give a text in tokenizer_config.json.')
    return value
  eos = content('eos_token', content('sep_token', EOS))
  return content('pad_token', eos if 'eos_token' in config else PAD), eos


def _hub_id(name: str) -> str:
  if '/' in name:
    return name
  for pattern, owner in _HUB_PREFIXES:
    if pattern.match(name):
      return owner + name
  return name


def _from_transformers(source: str, name: str) -> Tokenizer:
  try:
    import transformers
    loaded = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    backend = FastBackend(loaded.backend_tokenizer)
  except Exception as error:  # Hub, network and file errors of many types mean the same here.
    raise UserError(
        f'Tokenizer {name!r} is neither a local folder nor available from the Hugging Face hub as '
        f'{source!r} ({_short(error)}); give a folder with tokenizer.json or spiece.model.'
    ) from error
  eos = loaded.eos_token or loaded.sep_token or EOS
  return Tokenizer(backend, loaded.pad_token or eos, eos, name)


def train_word_tokenizer(
    texts: Iterable[str], folder: str | Path, sentinels: int = 100, max_words: int | None = None
) -> Tokenizer:
  """Makes a tokenizer with one id per white-space separated word and writes it to a folder.

  Ids: pad 0, eos 1, unknown 2, words by falling count (ties in code point order), then the
  sentinels, the first one with the highest id. The result depends on the texts alone.

  Args:
    texts: the texts whose words are taken.
    folder: receives tokenizer.json and tokenizer_config.json; made if absent.
    sentinels: number of sentinels.
    max_words: keeps the most frequent words only.

  Raises:
    UserError: if the texts hold no word.
  """
  import tokenizers
  from tokenizers import models, pre_tokenizers, processors
  special = {PAD, EOS, UNK, *(sentinel_name(i) for i in range(sentinels))}
  counts = Counter(word for text in texts for word in text.split() if word not in special)
  if not counts:
    raise UserError(f'No word to make the tokenizer of {str(folder)!r} from; give some texts.')
  words = sorted(counts, key=lambda word: (-counts[word], word))[:max_words]
  tail = [sentinel_name(i) for i in reversed(range(sentinels))]
  vocabulary = {token: index for index, token in enumerate([PAD, EOS, UNK, *words, *tail])}
  tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  tokenizer.post_processor = processors.TemplateProcessing(
      single=f'$A {EOS}', special_tokens=[(EOS, vocabulary[EOS])])
  tokenizer.add_special_tokens([PAD, EOS, UNK, *tail])
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(folder / 'tokenizer.json'))
  config = {'pad_token': PAD, 'eos_token': EOS, 'unk_token': UNK, 'extra_ids': sentinels,
            'tokenizer_class': 'PreTrainedTokenizerFast'}
  (folder / 'tokenizer_config.json').write_text(json.dumps(config, indent=2) + '\n')
  return load_tokenizer(folder)
