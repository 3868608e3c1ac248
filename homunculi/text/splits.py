"""Which documents train and which validate: by the names of files, by what records say, or held out.

Held-out documents are chosen by the SHA-256 of their text, so that the choice depends on nothing else: not on order,
not on the other documents, and a document that occurs twice never lands on both sides. Where the corpus has too few
documents for that, the tail of every document is held out instead.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from homunculi.text.reading import SPLIT_NAMES

_NAMES = "|".join(sorted(SPLIT_NAMES, key=len, reverse=True))
_AT_START = re.compile(rf"^({_NAMES})(?![a-z])")
_AT_END = re.compile(rf"(?<![a-z])({_NAMES})$")
_PARAGRAPH = ("\n\n", "\n", " ")


def label_files(names: Sequence[PurePath]) -> dict[PurePath, str | None]:
    """The split of each file by its name, for a folder in which some file is called valid, val, dev or test.

    A part of the path counts (a folder, or the file's name before its first dot) that starts or ends with the name of a
    split, standing alone: ``train.txt``, ``stories-valid.txt``, ``test/a.txt``, not ``trains.txt`` or ``valley.txt``.
    Where files are called train, those without a split's name are left out; otherwise these train.
    """
    labels = {name: _label(name) for name in names}
    found = set(labels.values())
    if not found & {"val", "test"}:
        return dict.fromkeys(names, None)
    if "train" in found:
        return {name: label for name, label in labels.items() if label is not None}
    return {name: label or "train" for name, label in labels.items()}


def _label(name: PurePath) -> str | None:
    for part in reversed(name.parts):
        stem = part.split(".")[0].lower()
        match = _AT_START.search(stem) or _AT_END.search(stem)
        if match:
            return SPLIT_NAMES[match.group(1)]
    return None


def is_held_out(text: str, val_frac: float) -> bool:
    """Whether a document belongs to the validation split when documents are held out."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < val_frac * 2.0**64


def cut_tail(text: str, val_frac: float) -> tuple[str, str]:
    """Split a document into what trains and the last `val_frac`, at the boundary nearest to there.

    A paragraph's end within half the tail's length is preferred to a line's end, that to a space. The parts together
    are the document, except for line breaks at the cut; either may be empty.
    """
    target = round(len(text) * (1.0 - val_frac))
    reach = max((len(text) - target) // 2, 1)
    for boundary in _PARAGRAPH:
        after = text.find(boundary, target, target + reach)
        before = text.rfind(boundary, max(target - reach, 0), target)
        places = [place + len(boundary) for place in (before, after) if place >= 0]
        if places:
            target = min(places, key=lambda place: abs(place - target))
            break
    return text[:target].rstrip("\r\n"), text[target:].lstrip("\r\n")


@dataclass(frozen=True, slots=True)
class Survey:
    """What one pass over a corpus tells about its splits."""

    labels: frozenset[str | None]
    n_documents: int
    n_held_out: int
    val_frac: float

    @property
    def has_val(self) -> bool:
        return bool(self.labels & {"val", "test"})

    @property
    def train_labels(self) -> frozenset[str | None]:
        return frozenset({"train", None})

    @property
    def val_labels(self) -> frozenset[str | None]:
        """Test documents validate only where nothing else does; otherwise nobody sees them."""
        return frozenset({"val"} if "val" in self.labels else {"test"})

    @property
    def holds_out_tails(self) -> bool:
        """Whether whole documents cannot be held out: fewer than one is expected, or the choice left a side empty."""
        too_few = self.n_documents * self.val_frac < 1.0
        return too_few or self.n_held_out in (0, self.n_documents)


def survey(documents: Iterable[tuple[str | None, str]], val_frac: float) -> Survey:
    """Read a corpus once: the splits that its documents state, and how many of them would be held out."""
    labels: set[str | None] = set()
    n_documents = n_held_out = 0
    for label, text in documents:
        labels.add(label)
        n_documents += 1
        n_held_out += is_held_out(text, val_frac)
    return Survey(frozenset(labels), n_documents, n_held_out, val_frac)
