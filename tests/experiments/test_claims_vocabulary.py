"""The claim that readable states match opaque ones: what supports it, what refutes it, and what shows no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from homunculi.experiments.claims.catalogue import find
from homunculi.experiments.claims.evidence import INCONCLUSIVE, REFUTED, SUPPORTED, Evidence, Finding, Part
from tests.experiments.planted import around, part

PLAIN = around(1.0)


def judged(parameters: Sequence[float], flops: Sequence[float], **more: Any) -> Finding:
    """Ends of the readable side at equal parameters and at equal FLOPs, beside those of the plain transformer."""
    parts = {
        name: Part(part({"gpt": PLAIN, "shared-maps": list(ends)}, **(more if name == "main" else {})))
        for name, ends in (("main", parameters), ("flops", flops))
    }
    rule = find("vocab-match").rule
    assert rule is not None
    return rule(Evidence(parts))


def moved(by: float, spread: float = 0.0) -> list[float]:
    return [end + by + spread * (i - 2) for i, end in enumerate(PLAIN)]


def test_no_worse_at_equal_parameters_and_at_equal_flops_is_a_match() -> None:
    found = judged(moved(-0.1, 0.001), moved(-0.01, 0.001))
    assert found.verdict == SUPPORTED and found.n == 5 and found.difference == pytest.approx(-0.1)
    assert found.figures["at equal FLOPs"][0] == pytest.approx(-0.01)


def test_worse_in_one_of_the_two_is_no_match() -> None:
    found = judged(moved(-0.1, 0.001), moved(0.01, 0.001))
    assert found.verdict == REFUTED and found.reason == "shared-maps ends above gpt at equal FLOPs"


def test_better_in_one_and_level_in_the_other_says_which() -> None:
    found = judged(moved(-0.1, 0.001), moved(-0.001, 0.01))
    assert found.verdict == INCONCLUSIVE
    assert found.reason == "shared-maps ends below gpt at equal parameters alone; it may be worse at equal FLOPs"
    assert judged(moved(0.001, 0.01), moved(-0.001, 0.01)).reason.startswith("no difference shown; it may be worse")


def test_two_looks_need_more_than_one() -> None:
    """At p = 0.03 one look alone would refute."""
    above = moved(0.011, 0.0047)
    found = judged(above, moved(0.0, 0.01))
    interval = Part(part({"gpt": PLAIN, "shared-maps": above})).interval("shared-maps", "gpt")
    assert interval is not None and interval.low > 0 and 0.025 < interval.p < 0.05
    assert found.verdict == INCONCLUSIVE


def test_runs_that_diverged_leave_a_match_open() -> None:
    failed = [{"side": "shared-maps", "seed": 5, "state": "diverged", "reason": ""}]
    found = judged(moved(-0.1, 0.001), moved(-0.01, 0.001), failed=failed)
    assert found.verdict == INCONCLUSIVE and "diverged" in found.reason


def test_one_of_the_two_comparisons_alone_decides_nothing() -> None:
    assert judged(moved(-0.1, 0.001), [PLAIN[0]]).verdict == INCONCLUSIVE
