"""HTML in which text from files stays text: whatever is not `Html` already is escaped when it enters an element."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any

_VOID = frozenset({"input", "meta", "link", "br"})
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)


class Html(str):
    """Markup made by this file's functions. Joined with ordinary text it is ordinary text, and is escaped again."""

    __slots__ = ()


def inert(value: Any) -> str:
    """`value` as text without characters that act on a page: controls and direction marks become visible."""
    return _CONTROLS.sub(_visible, value if isinstance(value, str) else str(value))


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    return "\ufffd" if code >= 0xD800 else f"⟨{code:02x}⟩"


def escaped(value: Any) -> Html:
    """Markup as it is, anything else as escaped inert text."""
    return value if isinstance(value, Html) else Html(html.escape(inert(value), quote=True))


def element(tag: str, /, *children: Any, **attributes: Any) -> Html:
    """One element. Children that are None vanish. `class_` is class, `a_b` is a-b, True is bare, None vanishes."""
    head = tag
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        head += f" {name}" if value is True else f' {name}="{escaped(value)}"'
    if tag in _VOID:
        return Html(f"<{head}>")
    return Html(f"<{head}>{join(children)}</{tag}>")


def join(parts: Iterable[Any]) -> Html:
    """Several pieces one after the other, each escaped unless it is markup."""
    return Html("".join(escaped(part) for part in parts if part is not None))


def section(key: str, title: str, *children: Any) -> Html:
    """A part of the page that a link can name."""
    return element("section", element("h2", title), *children, id=key)


def folded(summary: Any, *children: Any) -> Html:
    """Content that opens on request, without a script."""
    return element("details", element("summary", summary), *children)


def table(head: Iterable[Any], rows: Iterable[Iterable[Any]], **attributes: Any) -> Html:
    """A table whose first column names the row; wide ones scroll inside their own frame."""
    titles = element("tr", *(element("th", title, scope="col") for title in head))
    body = []
    for first, *others in rows:
        cells = [element("th", first, scope="row"), *(element("td", cell) for cell in others)]
        body.append(element("tr", *cells))
    whole = element("table", element("thead", titles), element("tbody", *body), **attributes)
    return element("div", whole, class_="scroll")


def pairs(rows: Iterable[tuple[Any, Any]]) -> Html:
    """Names with their values."""
    return element(
        "dl", *(element("div", element("dt", name), element("dd", value)) for name, value in rows), class_="facts"
    )
