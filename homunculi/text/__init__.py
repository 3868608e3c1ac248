"""Text: corpora, tokenizers, token shards, and batch order as a pure function of (seed, step, rank)."""

from homunculi.text.batches import Batches, StreamHash, validation_windows
from homunculi.text.config import TextConfig
from homunculi.text.corpora import open_corpus, parse_mixture
from homunculi.text.shards import TokenisedText, default_cache, prepare
from homunculi.text.streams import TokenStream, open_shards
from homunculi.text.tokenizers import Tokenizer, byte_lengths, load_tokenizer, make_tokenizer, tokens_of_span

__all__ = [
    "Batches",
    "StreamHash",
    "TextConfig",
    "TokenStream",
    "TokenisedText",
    "Tokenizer",
    "byte_lengths",
    "default_cache",
    "load_tokenizer",
    "make_tokenizer",
    "open_corpus",
    "open_shards",
    "parse_mixture",
    "prepare",
    "tokens_of_span",
    "validation_windows",
]
