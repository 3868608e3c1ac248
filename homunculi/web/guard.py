"""Who may ask: this machine's own page alone. Foreign hosts and origins are refused, acting needs the printed token.

A page of another site can make a browser send requests to this machine, and a name that it owns can point here; neither
carries our Host, our Origin and the token.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping

HOST = "127.0.0.1"
TOKEN_HEADER = "x-homunculi-token"
BODY_LIMIT = 65_536
TEXT_LIMIT = 8_000

# Only files of this page are loaded, styles too, and only this page is spoken to.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# A file of a run is shown without any right: no script, no origin, nothing loaded.
FILE_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def new_token() -> str:
    return secrets.token_urlsafe(24)


def hosts(port: int) -> frozenset[str]:
    """Values of the Host header that are ours."""
    named = {f"{name}:{port}" for name in (HOST, "localhost")}
    return frozenset(named | {HOST, "localhost"} if port == 80 else named)


def refusal(headers: Mapping[str, str], port: int) -> str | None:
    """Why a request is not answered at all, or None. Names of `headers` are in small letters."""
    ours = hosts(port)
    if headers.get("host", "").lower() not in ours:
        return "this host name is not the page's: open the address that was printed"
    origin = headers.get("origin")
    if origin is not None and origin.lower() not in {f"http://{host}" for host in ours}:
        return "requests from other sites are refused"
    if headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
        return "requests from other sites are refused"
    return None


def may_act(headers: Mapping[str, str], token: str) -> bool:
    """Whether a request carries the token; compared in constant time."""
    given = headers.get(TOKEN_HEADER, "")
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())
