"""What a run says about its text: tokenizer, validation text and how files are read."""

from __future__ import annotations

from dataclasses import dataclass

from homunculi.errors import InputError

SMALLEST_BPE = 257  # 256 bytes and the end-of-text token


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """How a corpus becomes tokens.

    Attributes:
        tokenizer: ``bytes``; ``bpe``, trained on the corpus; ``gpt2:FOLDER`` with ``vocab.json`` and ``merges.txt``
            (or ``encoder.json`` and ``vocab.bpe``); or the path of a ``tokenizer.json`` or of a folder that has one.
        vocab_size: tokens of a ``bpe`` tokenizer, at least 257; a small corpus may give fewer.
        val_corpus: corpus to validate on; empty: the corpus's own validation split, or else held-out documents.
        val_frac: fraction held out for validation where the corpus has no validation split, in (0, 1).
        encoding: of the corpus files, a codec of Python.
        field: of .jsonl and .parquet records, the one that holds the text.
        separator: a line of a .txt file that ends a document.
        document_mask: attention stays inside a document (read by the trainer).

    Raises:
        InputError: a value is out of range; the message names ``text.<field>``.
    """

    tokenizer: str = "bpe"
    vocab_size: int = 1024
    val_corpus: str = ""
    val_frac: float = 0.02
    encoding: str = "utf-8"
    field: str = "text"
    separator: str = "<|endoftext|>"
    document_mask: bool = False

    def __post_init__(self) -> None:
        if not self.tokenizer or self.tokenizer == "gpt2:":
            raise InputError(
                f"text.tokenizer is {self.tokenizer!r}: use bytes, bpe, gpt2:FOLDER or the path of a tokenizer.json"
            )
        if self.tokenizer == "bpe" and self.vocab_size < SMALLEST_BPE:
            raise InputError(
                f"text.vocab_size is {self.vocab_size}: a bpe tokenizer needs at least {SMALLEST_BPE} "
                "(256 bytes and the end of text)"
            )
        if not 0.0 < self.val_frac < 1.0:
            raise InputError(f"text.val_frac is {self.val_frac}: use a fraction between 0 and 1, such as 0.02")
        try:
            "".encode(self.encoding)
        except LookupError as error:
            raise InputError(
                f"text.encoding is {self.encoding!r}, which Python does not know: use utf-8, latin-1 or another codec"
            ) from error
        if not self.field:
            raise InputError("text.field is empty: name the field that holds the text, such as text")
        if not self.separator or "\n" in self.separator or "\r" in self.separator:
            raise InputError(f"text.separator is {self.separator!r}: use one line of text, such as <|endoftext|>")
