"""Figures for papers: the same scan gives the same bytes, and words in it are drawn as they are."""

from __future__ import annotations

import struct
from importlib.util import find_spec

import numpy as np
import pytest

from homunculi.interop.figures import WIDTH, draw_lines, draw_scan
from homunculi.runs.scans import Attention, Panel, Scan, Token
from tests.conftest import SKIPS

if find_spec("matplotlib") is None:
    pytest.skip(SKIPS["matplotlib"], allow_module_level=True)


def made(n_tokens: int = 6) -> Scan:
    values = np.linspace(0.5, 1.5, 2 * n_tokens).reshape(2, n_tokens)
    values[0, 1:2] = np.nan
    attention = np.tril(np.ones((2, n_tokens, n_tokens))) / n_tokens
    return Scan(
        "a run",
        60,
        "text",
        tuple(Token(i, ("$x_{" if i else "␣<b>"), None if i == 0 else i / 3) for i in range(n_tokens)),
        (Panel("gain", "Gain", "factor", ("pass 1", "pass 2"), values, 0.5, 1.5, 1.0),),
        (Attention("steps.0.attn.pattern", "layer 1", attention),),
    )


@pytest.mark.parametrize("n_tokens", [1, 6, 300])
def test_a_scan_is_drawn_the_same_each_time(n_tokens: int) -> None:
    found = draw_scan(made(n_tokens))
    assert found == draw_scan(made(n_tokens))
    assert found["png"][:4] == b"\x89PNG" and struct.unpack(">I", found["png"][16:20]) == (WIDTH,)
    svg = found["svg"].decode()
    assert "Gain" in svg and ("$x_{" in svg) == (1 < n_tokens < 100)


def test_event_averages_are_drawn_with_what_chance_does() -> None:
    lags = range(-2, 3)
    lines = {"difference": ([0.0, 1, 2, 1, float("nan")], [-1.0] * 5, [1.0] * 5)}
    found = draw_lines("Around but", lags, {"salience": lines, "gain": lines})
    assert found["png"][:4] == b"\x89PNG" and b"salience" in found["svg"]
