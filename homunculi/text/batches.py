"""Batches as a pure function of (seed, step, rank), the hash that proves them equal, and windows to validate on.

Nothing here has a state: step 10⁹ is as near as step 0, a resumed run asks for the step where it stopped, and the rows
of all ranks together are the batch of one process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from homunculi.errors import InputError
from homunculi.text.order import choose_streams, permute, share_block
from homunculi.text.shards import TokenisedText
from homunculi.text.streams import TokenStream


class Batches:
    """Training batches of a text.

    A stream of n tokens has (n - 1) // seq_len windows of seq_len + 1 tokens, each sharing one token with the next; the
    tokens after the last window are not seen. Sequence g of the run (row r of step s is g = s · n_sequences + r) is
    window π(g mod n_windows) of epoch g // n_windows, π being a permutation keyed by seed and epoch. In a mixture the
    stream of each sequence is drawn first, in exact shares in every 1,000 sequences.

    Args:
        text: tokens to train on.
        seq_len: tokens predicted in each row.
        n_sequences: rows of the batch of all ranks together.
        seed: of the order.

    Raises:
        InputError: a corpus is shorter than one sequence, or a share of a mixture too small.
    """

    def __init__(self, text: TokenisedText, *, seq_len: int, n_sequences: int, seed: int) -> None:
        if seq_len < 1 or n_sequences < 1:
            raise InputError(f"a batch of {n_sequences} sequences of {seq_len} tokens: both must be at least 1")
        self.seq_len = seq_len
        self.n_sequences = n_sequences
        self.seed = seed
        streams = text.streams
        self._n_windows = [_count_windows(named.stream, seq_len, named.name) for named in streams]
        self._counts = share_block([named.weight for named in streams], [named.name for named in streams])
        self._tokens = [named.stream.plain_tokens for named in streams]

    @property
    def n_windows(self) -> int:
        """Different windows of all streams together."""
        return sum(self._n_windows)

    def at(self, step: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """The rows of a rank, tokens and the next token: inputs are ``[:, :-1]``, targets ``[:, 1:]``.

        Args:
            step: from 0 on.
            rank: in [0, world_size); ranks take consecutive rows of the whole batch.
            world_size: divides n_sequences.

        Returns: (n_sequences // world_size, seq_len + 1) int64, a new array.

        Raises:
            InputError: the ranks cannot share the batch evenly.
        """
        if self.n_sequences % world_size:
            raise InputError(
                f"a batch of {self.n_sequences} sequences cannot be shared by {world_size} processes: "
                "make batch_tokens a multiple"
            )
        if step < 0 or not 0 <= rank < world_size:
            raise ValueError(f"step {step}, rank {rank} of {world_size}")
        n_rows = self.n_sequences // world_size
        first = step * self.n_sequences + rank * n_rows
        sequences = np.arange(first, first + n_rows, dtype=np.int64)
        if len(self._tokens) == 1:
            streams = np.zeros(n_rows, dtype=np.int64)
            own = sequences
        else:
            streams, own = choose_streams(sequences, self._counts, self.seed)
        return self._gather(streams, own)

    def _gather(self, streams: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Rows of tokens, each from its stream and that stream's own count of sequences."""
        rows = np.empty((len(own), self.seq_len + 1), dtype=np.int64)
        for number, tokens in enumerate(self._tokens):
            (here,) = np.nonzero(streams == number)
            n_windows = self._n_windows[number]
            epochs, places = np.divmod(own[here], n_windows)
            windows = permute(places, n_windows, self.seed, f"windows of stream {number}", epochs)
            for row, start in zip(here.tolist(), (windows * self.seq_len).tolist(), strict=True):
                rows[row] = tokens[start : start + self.seq_len + 1]
        return rows

    def epoch_of(self, step: int) -> float:
        """Passes over the text before a step; in a mixture over the corpus that is repeated most."""
        shares = self._counts / self._counts.sum()
        n_seen = step * self.n_sequences
        return max(n_seen * float(share) / n for share, n in zip(shares, self._n_windows, strict=True))


def _count_windows(stream: TokenStream, seq_len: int, name: str) -> int:
    n_windows = (stream.n_tokens - 1) // seq_len
    if n_windows < 1:
        raise InputError(
            f"corpus {name!r} has {stream.n_tokens} training tokens and a sequence of {seq_len} needs {seq_len + 1}: "
            "use more text or a smaller sequence length"
        )
    return n_windows


class StreamHash:
    """A chain of hashes over batches: two runs with the same value have seen the same tokens in the same order.

    h₀ is 32 zero bytes, h₍ₙ₊₁₎ = SHA-256(hₙ, batch as little-endian int64 in rows).

    Args:
        hexdigest: where to go on from; default the start.
    """

    def __init__(self, hexdigest: str = "0" * 64) -> None:
        try:
            self._state = bytes.fromhex(hexdigest)
        except ValueError:
            self._state = b""
        if len(self._state) != 32:
            raise InputError(f"the hash of a batch stream is {hexdigest!r}: it must be 64 hexadecimal digits")

    def update(self, batch: np.ndarray) -> None:
        """Append the batch of all ranks together, (n_sequences, seq_len + 1)."""
        data = np.ascontiguousarray(batch, dtype="<i8")
        self._state = hashlib.sha256(self._state + data.tobytes()).digest()

    def hexdigest(self) -> str:
        return self._state.hex()


def validation_windows(stream: TokenStream, seq_len: int, limit_tokens: int | None = None) -> Iterator[np.ndarray]:
    """Windows over the start of a stream that overlap by one token, so that every target is predicted exactly once.

    Args:
        limit_tokens: how many targets at most; None for all.

    Yields: (seq_len + 1,) int64; the last one may be shorter, of at least 2.

    Raises:
        InputError: the stream has no target.
    """
    n_targets = stream.n_tokens - 1
    if n_targets < 1:
        raise InputError(
            f"the validation split has {stream.n_tokens} tokens, and at least 2 are needed: "
            "use more text, a larger text.val_frac, or name text.val_corpus"
        )
    if limit_tokens is not None:
        n_targets = min(n_targets, limit_tokens)
    for start in range(0, n_targets, seq_len):
        stop = min(start + seq_len, n_targets)
        yield stream.tokens[start : stop + 1].astype(np.int64)
