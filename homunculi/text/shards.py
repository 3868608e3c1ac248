"""From a corpus to token streams: prepare once, keep in the cache under a name made of the content, map from disk.

The folder's name is a hash of the corpus's content, the tokenizer and the part of the configuration that matters, so
that nothing stale is ever read and the same text is tokenised once. A mixture is one folder a corpus, all with one
tokenizer, so that other shares of the same corpora cost nothing.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from homunculi.errors import InputError
from homunculi.files import write_atomic
from homunculi.text.config import TextConfig
from homunculi.text.corpora import Corpus, Split, open_corpus, parse_mixture
from homunculi.text.streams import FORMAT, INDEX, VERSION, Shards, TokenStream, hash_json, join_streams, open_shards
from homunculi.text.tokenizers import Tokenizer, hash_tokenizer, load_tokenizer, make_tokenizer
from homunculi.text.writing import SplitWriter, token_dtype, whole_folder

Progress = Callable[[str], None]
GENERATED_SAMPLE = 4000
COUNTS = ("n_documents", "n_bytes", "n_tokens")


def quiet(message: str) -> None:
    """Progress that nobody hears."""


@dataclass(frozen=True, eq=False)
class WeightedStream:
    """One corpus of a mixture: its name, its share of the training sequences (shares sum to 1) and its tokens."""

    name: str
    weight: float
    stream: TokenStream


@dataclass(frozen=True, eq=False)
class Component:
    """One corpus of a text: as the person wrote it, its share of the training sequences, and its shards."""

    spec: str
    weight: float
    shards: Shards


@dataclass(frozen=True, eq=False)
class TokenisedText:
    """Tokens to train and to validate on, mapped from disk.

    Attributes:
        spec: the corpus as the person wrote it.
        components: what is trained on, at least one.
        val_components: what is validated on, one after another.
    """

    spec: str
    components: tuple[Component, ...]
    val_components: tuple[Component, ...]

    @property
    def folder(self) -> Path:
        """Of the (first) corpus's shards; it holds ``tokenizer.json``."""
        return self.components[0].shards.folder

    @property
    def tokenizer(self) -> Tokenizer:
        return self.components[0].shards.tokenizer

    @cached_property
    def streams(self) -> tuple[WeightedStream, ...]:
        """What is trained on, with shares that sum to 1."""
        return tuple(WeightedStream(c.spec, c.weight, c.shards.stream("train")) for c in self.components)

    @property
    def train(self) -> TokenStream | tuple[WeightedStream, ...]:
        """The training tokens; for a mixture, `streams`."""
        return self.streams[0].stream if len(self.streams) == 1 else self.streams

    @cached_property
    def val(self) -> TokenStream:
        """The validation tokens; for a mixture, those of its corpora one after another."""
        return join_streams([component.shards.stream("val") for component in self.val_components])

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What a run records of its text, as JSON: counts for each split, the tokenizer and hashes of the content."""
        splits = {"train": self.components, "val": self.val_components}
        parts = {name: [_facts_of(component, name) for component in found] for name, found in splits.items()}
        hashes = [component.shards.fingerprint for component in self.components]
        return {
            "spec": self.spec,
            "fingerprint": hashes[0] if len(hashes) == 1 else hash_json(hashes),
            **{count: {name: sum(part[count] for part in found) for name, found in parts.items()} for count in COUNTS},
            "tokenizer": dict(self.components[0].shards.index["tokenizer"]),
            "data_hash": hash_json({name: _hashes(found) for name, found in splits.items()}),
            "components": parts,
        }

    def verify(self) -> None:
        """Hash every shard file.

        Raises:
            InputError: a file is not what was written.
        """
        for component in {id(c.shards): c for c in (*self.components, *self.val_components)}.values():
            component.shards.verify()


def _facts_of(component: Component, split: str) -> dict[str, Any]:
    entry = component.shards.index["splits"][split]
    return {"spec": component.spec, "weight": component.weight} | {count: entry[count] for count in COUNTS}


def _hashes(components: tuple[Component, ...]) -> list[list[Any]]:
    return [[component.weight, component.shards.data_hash] for component in components]


@dataclass(frozen=True, eq=False)
class _Job:
    """A corpus, its share, and the splits that are wanted of it."""

    corpus: Corpus
    weight: float
    splits: tuple[str, ...]

    def source(self, split: str) -> Split:
        """The corpus's documents that become `split`: all of them where nothing has to be held out."""
        if len(self.splits) == 1 and not self.corpus.has_val:
            return "all"
        return "train" if split == "train" else "val"


def prepare(corpus: str, config: TextConfig, *, cache: Path | None = None, progress: Progress = quiet) -> TokenisedText:
    """Tokenise a corpus, or find it tokenised in the cache.

    Args:
        corpus: a corpus or a mixture (`homunculi.text.corpora`).
        config: tokenizer, validation text, how files are read.
        cache: folder that keeps the shards; default ``$XDG_CACHE_HOME/homunculi``, else ``~/.cache/homunculi``.
        progress: told in one line what is being done.

    Raises:
        InputError: the corpus, the tokenizer or the cache cannot be used; the message says which and what to do.
    """
    home = (cache or default_cache()) / "text"
    both = ("train",) if config.val_corpus else ("train", "val")
    jobs = [_Job(open_corpus(share.spec, config), share.weight, both) for share in parse_mixture(corpus)]
    val_jobs = []
    if config.val_corpus:
        shares = parse_mixture(config.val_corpus)
        val_jobs = [_Job(open_corpus(share.spec, config), share.weight, ("val",)) for share in shares]
        _refuse_same(jobs, val_jobs)
    try:
        tokenizer = _find_tokenizer(jobs, val_jobs, config, home, progress)
        components = tuple(_prepare_one(job, tokenizer, config, home, progress) for job in jobs)
        val_components = tuple(_prepare_one(job, tokenizer, config, home, progress) for job in val_jobs)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cache {home} cannot be written ({reason}): free space or set XDG_CACHE_HOME") from error
    return TokenisedText(corpus, components, val_components or components)


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/homunculi``, else ``~/.cache/homunculi``."""
    named = os.environ.get("XDG_CACHE_HOME")
    return (Path(named) if named else Path.home() / ".cache") / "homunculi"


def _refuse_same(jobs: list[_Job], val_jobs: list[_Job]) -> None:
    """A corpus without a validation split of its own cannot train and validate at once."""
    trained = {job.corpus.fingerprint for job in jobs}
    for job in val_jobs:
        if job.corpus.fingerprint in trained and not job.corpus.has_val:
            raise InputError(
                f"text.val_corpus {job.corpus.name!r} is what is trained on: leave it empty to hold out documents"
            )


def _find_tokenizer(jobs: list[_Job], val_jobs: list[_Job], config: TextConfig, home: Path, say: Progress) -> Tokenizer:
    """That of shards which are used as they are; else the one that the configuration names, trained once."""
    ready = [open_shards(job.corpus.folder) for job in (*jobs, *val_jobs) if job.corpus.folder is not None]
    for shards in ready[1:]:
        if shards.tokenizer_hash != ready[0].tokenizer_hash:
            raise InputError(
                f"corpus: {ready[0].folder} and {shards.folder} are tokenised differently: prepare both with one "
                "tokenizer (text.tokenizer=FOLDER/tokenizer.json)"
            )
    if ready:
        return ready[0].tokenizer
    if config.tokenizer != "bpe":
        return make_tokenizer(config, iter(()))
    return _train_tokenizer(jobs, config, home, say)


def _train_tokenizer(jobs: list[_Job], config: TextConfig, home: Path, say: Progress) -> Tokenizer:
    hashes = [job.corpus.fingerprint for job in jobs]
    key = {"corpora": hashes, "vocab_size": config.vocab_size, "splits": jobs[0].splits, **_reading(config)}
    folder = home / f"bpe-{_short(key)}"
    if not folder.is_dir():
        names = ", ".join(job.corpus.name for job in jobs)
        say(f"training a tokenizer of {config.vocab_size} tokens on {names}")
        with whole_folder(folder) as unfinished:
            make_tokenizer(config, _training_documents(jobs)).save(unfinished)
    return load_tokenizer(folder)


def _training_documents(jobs: list[_Job]) -> Iterator[str]:
    for job in jobs:
        # Every story of a generated world is a draw from the same grammar: the first ones are an even sample.
        limit = GENERATED_SAMPLE if job.corpus.has_events else None
        yield from itertools.islice(job.corpus.documents(job.source("train")), limit)


def _prepare_one(job: _Job, tokenizer: Tokenizer, config: TextConfig, home: Path, say: Progress) -> Component:
    """The shards of one corpus: its own, from the cache, or written now."""
    folder = job.corpus.folder
    if folder is None:
        key = {
            "version": VERSION,
            "corpus": job.corpus.fingerprint,
            "tokenizer": hash_tokenizer(tokenizer),
            "splits": job.splits,
            **_reading(config),
        }
        folder = home / _short(key)
        if not folder.is_dir():
            with whole_folder(folder) as unfinished:
                _write_shards(unfinished, job, tokenizer, key, say)
    shards = open_shards(folder)
    for split in job.splits:
        if split not in shards.splits:
            fix = "name text.val_corpus" if split == "val" else "name another corpus"
            raise InputError(f"corpus {folder} holds no {split} tokens: {fix}")
    return Component(job.corpus.name, job.weight, shards)


def _write_shards(folder: Path, job: _Job, tokenizer: Tokenizer, key: dict[str, Any], say: Progress) -> None:
    """Tokenise each split into `folder`, and write the index last."""
    corpus = job.corpus
    splits = {}
    for split in job.splits:
        say(f"tokenising {corpus.name}: {split}")
        entries = corpus.entries(job.source(split))
        splits[split] = SplitWriter(folder, split, tokenizer, say).write(entries, has_events=corpus.has_events)
        if not splits[split]["n_documents"]:
            raise InputError(_no_documents(corpus, split))
        counts = splits[split]
        say(f"{split}: {counts['n_documents']:,} documents, {counts['n_bytes']:,} bytes, {counts['n_tokens']:,} tokens")
    tokenizer.save(folder)
    index = {
        "format": FORMAT,
        "version": VERSION,
        "corpus": corpus.name,
        "fingerprint": corpus.fingerprint,
        "key": key,
        "dtype": token_dtype(tokenizer.vocab_size),
        "tokenizer": describe_tokenizer(tokenizer),
        "splits": splits,
    }
    write_atomic(folder / INDEX, json.dumps(index, indent=1))


def _no_documents(corpus: Corpus, split: str) -> str:
    if split == "val":
        return f"the validation split of corpus {corpus.name} is empty: add documents to it or name text.val_corpus"
    return f"corpus {corpus.name} has no training documents: name one that has"


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """What is recorded of a tokenizer."""
    return {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "eot_id": tokenizer.eot_id,
        "sha256": hash_tokenizer(tokenizer),
    }


def _reading(config: TextConfig) -> dict[str, Any]:
    """The part of the configuration that decides what the documents are."""
    return {
        "encoding": config.encoding,
        "field": config.field,
        "separator": config.separator,
        "val_frac": config.val_frac,
    }


def _short(key: dict[str, Any]) -> str:
    return hash_json(key)[:32]
