"""Tokenizers that give back every byte: bytes, byte-level BPE trained here, GPT-2's, or another byte-level one.

Every tokenizer is saved as one ``tokenizer.json`` that the package `tokenizers` loads, the bytes tokenizer too: it is a
BPE without merges whose ids are the bytes. Each token stands for a fixed string of bytes and the tokens of a text
together for exactly its UTF-8, so that bits per byte are exact. Text is text: the end-of-text token comes only from
`eot_id`, never from a text that spells it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tokenizers as hf

from homunculi.errors import InputError
from homunculi.files import write_atomic
from homunculi.text.config import TextConfig

END_OF_TEXT = "<|endoftext|>"
END_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")
FILE = "tokenizer.json"
SAMPLE_BYTES = 20_000_000
SAMPLE_BYTES_PER_TOKEN = 4_000
PIECE_CHARACTERS = 1 << 16


class Tokenizer(Protocol):
    """Text to token ids and back.

    Attributes:
        kind: ``bytes`` or ``bpe``.
        vocab_size: ids lie in [0, vocab_size).
        eot_id: the token that follows every document.
    """

    kind: str
    vocab_size: int
    eot_id: int

    def encode(self, text: str) -> list[int]:
        """Ids of a text; `InputError` where it is no valid Unicode."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on several threads."""
        ...

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode_batch` as arrays of uint32."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; special and unknown ids give nothing, broken UTF-8 gives U+FFFD."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; special and unknown ids stand for none."""
        ...

    def to_json(self) -> str:
        """The content of ``tokenizer.json``."""
        ...

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` into an existing folder."""
        ...


def _byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level vocabularies write for each byte.

    Printable Latin-1 bytes stand for themselves; the others, in order, take the code points from 256 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


ALPHABET = _byte_alphabet()


class BpeTokenizer:
    """A byte-level BPE of the package `tokenizers`."""

    kind = "bpe"

    def __init__(self, inner: hf.Tokenizer, eot_id: int) -> None:
        inner.no_truncation()
        inner.no_padding()
        # Without this, a text that spells a special token would be given its id.
        inner.encode_special_tokens = True
        self._inner = inner
        self._bytes = _vocabulary_bytes(inner)
        self.vocab_size = len(self._bytes)
        self.eot_id = eot_id

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            to_utf8(text)
        return [found.ids for found in self._inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(ids, dtype=np.uint32) for ids in self.encode_batch(texts)]

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes[token_id] if 0 <= token_id < self.vocab_size else b""

    def to_json(self) -> str:
        return self._inner.to_str()

    def save(self, folder: Path) -> None:
        write_atomic(folder / FILE, self.to_json())


class ByteTokenizer:
    """Bytes as tokens: ids 0 to 255, and 256 for the end of text."""

    kind = "bytes"
    vocab_size = 257
    eot_id = 256

    def encode(self, text: str) -> list[int]:
        return list(to_utf8(text))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(to_utf8(text), dtype=np.uint8).astype(np.uint32) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in ids if 0 <= i < 256).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if 0 <= token_id < 256 else b""

    def to_json(self) -> str:
        inner = hf.Tokenizer(hf.models.BPE(vocab=ALPHABET, merges=[]))
        inner.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.decoder = hf.decoders.ByteLevel()
        inner.add_special_tokens([END_OF_TEXT])
        return inner.to_str()

    def save(self, folder: Path) -> None:
        write_atomic(folder / FILE, self.to_json())


def _vocabulary_bytes(inner: hf.Tokenizer) -> list[bytes]:
    """What each id stands for; ids that no token has stand for nothing."""
    added = inner.get_added_tokens_decoder()
    vocabulary = inner.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values()) + 1)
    for token, token_id in vocabulary.items():
        if token_id in added:
            table[token_id] = b"" if added[token_id].special else added[token_id].content.encode("utf-8")
        else:
            table[token_id] = bytes(ALPHABET[character] for character in token if character in ALPHABET)
    return table


def to_utf8(text: str) -> bytes:
    """UTF-8 of a text.

    Raises:
        InputError: the text holds half a surrogate pair, as broken input on a command line does.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"text is not valid Unicode at character {error.start}: give it in UTF-8") from error


def byte_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """(vocab_size,) int64: how many bytes each token stands for; special tokens 0."""
    return np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)], dtype=np.int64)


def tokens_of_span(tokenizer: Tokenizer, text: str, start: int, stop: int) -> tuple[int, int]:
    """The tokens [first, last) of `tokenizer.encode(text)` that touch the characters [start, stop) of `text`."""
    ends = np.cumsum([len(tokenizer.token_bytes(i)) for i in tokenizer.encode(text)])
    low, high = len(to_utf8(text[:start])), len(to_utf8(text[:stop]))
    first = int(np.searchsorted(ends, low, side="right"))
    return first, max(int(np.searchsorted(ends, high, side="left")) + 1, first) if high > low else first


def cut_pieces(text: str, n_characters: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Pieces of a text, one after another, of at most `n_characters` each.

    They are cut, where possible, after a line's end that no other white space touches: the patterns of byte-level
    tokenizers start a new word there, so that the pieces give the tokens of the whole text.
    """
    start = 0
    while len(text) - start > n_characters:
        stop = start + n_characters
        cut = _last_line_start(text, start + n_characters // 2, stop) or stop
        yield text[start:cut]
        start = cut
    yield text[start:]


def _last_line_start(text: str, low: int, high: int) -> int | None:
    end = text.rfind("\n", low, high)
    while end > 0:
        if not text[end - 1].isspace() and not text[end + 1].isspace():
            return end + 1
        end = text.rfind("\n", low, end)
    return None


def make_tokenizer(config: TextConfig, documents: Iterator[str]) -> Tokenizer:
    """The tokenizer that `config.tokenizer` names; only ``bpe`` reads `documents`, on which it is trained.

    Raises:
        InputError: a file is missing, or holds a tokenizer that is not byte-level.
    """
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    if config.tokenizer == "bpe":
        return train_bpe(documents, config.vocab_size)
    if config.tokenizer.startswith("gpt2:"):
        return _load_gpt2(Path(config.tokenizer.removeprefix("gpt2:")).expanduser())
    return load_tokenizer(Path(config.tokenizer).expanduser())


def train_bpe(documents: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """Train a byte-level BPE; the same documents give the same tokenizer.

    It sees an even sample of 4 kB for each token of the vocabulary, at most 20 MB.

    Args:
        vocab_size: at least 257; too little text gives a smaller vocabulary.
    """
    sample = sample_evenly(documents, min(SAMPLE_BYTES, SAMPLE_BYTES_PER_TOKEN * vocab_size))
    inner = hf.Tokenizer(hf.models.BPE())
    inner.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=sorted(ALPHABET), show_progress=False
    )
    inner.train_from_iterator(sample, trainer)
    return _with_end(inner)


def sample_evenly(documents: Iterable[str], n_bytes: int) -> list[str]:
    """Every k-th piece of the documents, k the smallest power of two with which they fit into about `n_bytes`.

    One pass, and never more than `n_bytes` and a piece in memory: when the sample is full, every second piece goes.
    """
    kept: list[str] = []
    sizes: list[int] = []
    total, stride = 0, 1
    pieces = itertools.chain.from_iterable(map(cut_pieces, documents))
    for number, piece in enumerate(pieces):
        if number % stride:
            continue
        kept.append(piece)
        sizes.append(len(to_utf8(piece)))
        total += sizes[-1]
        while total > n_bytes and len(kept) > 1:
            kept, sizes, stride = kept[::2], sizes[::2], stride * 2
            total = sum(sizes)
    return kept


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a folder that holds ``tokenizer.json``, or of such a file.

    Raises:
        InputError: the file is missing, damaged, or no byte-level BPE.
    """
    file = path / FILE if path.is_dir() else path
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(f"tokenizer {file} cannot be read ({reason}): give the path of a tokenizer.json") from error
    try:
        inner = hf.Tokenizer.from_str(content)
    except Exception as error:  # the package raises bare `Exception`
        raise InputError(
            f"tokenizer {file} is damaged or no tokenizer.json: give one that the package tokenizers wrote"
        ) from error
    plan = json.loads(inner.to_str())
    _refuse_foreign(plan, file)
    if _is_bytes(plan):
        return ByteTokenizer()
    inner.model.dropout = None  # the same text gives the same tokens
    return _find_end(inner)


def _refuse_foreign(plan: dict[str, Any], file: Path) -> None:
    model = plan["model"]
    whole = model.get("type") == "BPE" and set(ALPHABET) <= set(model["vocab"])
    if not (whole and '"ByteLevel"' in json.dumps(plan["pre_tokenizer"])):
        raise InputError(
            f"tokenizer {file} is no byte-level BPE (it is {model.get('type', 'unknown')}): bits per byte need "
            "tokens that stand for bytes; use text.tokenizer=bpe or another file"
        )


def _is_bytes(plan: dict[str, Any]) -> bool:
    model, added = plan["model"], [token["id"] for token in plan["added_tokens"]]
    return model["vocab"] == ALPHABET and not model["merges"] and added == [ByteTokenizer.eot_id]


def _find_end(inner: hf.Tokenizer) -> BpeTokenizer:
    """A tokenizer with the end-of-text token that it has; without one, ours is added."""
    added = {token.content: token_id for token_id, token in inner.get_added_tokens_decoder().items() if token.special}
    for name in END_NAMES:
        if name in added:
            return BpeTokenizer(inner, added[name])
    return _with_end(inner)


def _pair(line: str) -> tuple[str, str]:
    left, right = line.rstrip("\r").split(" ")
    return left, right


def _with_end(inner: hf.Tokenizer) -> BpeTokenizer:
    """A byte-level tokenizer whose end of text is ours; the token is added if it is not there."""
    inner.add_special_tokens([END_OF_TEXT])
    return BpeTokenizer(inner, inner.get_vocab(with_added_tokens=True)[END_OF_TEXT])


def _load_gpt2(folder: Path) -> BpeTokenizer:
    for names in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        vocab_file, merges_file = (folder / name for name in names)
        if vocab_file.is_file() and merges_file.is_file():
            break
    else:
        raise InputError(
            f"text.tokenizer=gpt2:{folder}: the folder has neither vocab.json and merges.txt nor encoder.json and "
            "vocab.bpe: give a folder that has them"
        )
    try:
        vocab = json.loads(vocab_file.read_text(encoding="utf-8"))
        lines = merges_file.read_text(encoding="utf-8").split("\n")
        merges = [_pair(line) for line in lines if line and not line.startswith("#version")]
        inner = hf.Tokenizer(hf.models.BPE(vocab=vocab, merges=merges))
    except Exception as error:  # the package raises bare `Exception`
        raise InputError(
            f"text.tokenizer: {vocab_file} and {merges_file} do not belong together or are damaged"
        ) from error
    if not set(ALPHABET) <= set(vocab):
        raise InputError(
            f"text.tokenizer: {vocab_file} lacks some of the 256 bytes: use the files of GPT-2's tokenizer"
        )
    inner.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = hf.decoders.ByteLevel()
    return _with_end(inner)


def hash_tokenizer(tokenizer: Tokenizer) -> str:
    """Hex SHA-256 of its ``tokenizer.json``."""
    return hashlib.sha256(tokenizer.to_json().encode("utf-8")).hexdigest()
