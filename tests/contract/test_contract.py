"""Every registered architecture, in every variant that it declares, passes every check or is exempt by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from contract_checks import CHECKS, Case, applies, cases, stale

from homunculi import models

EXEMPTIONS = {name: models.get(name).exemptions for name in models.names()}
PLANNED = [
    pytest.param(check, case, id=f"{case.id}-{check}")
    for name in models.names()
    for case in cases(name)
    for check in CHECKS
    if applies(check, case) and check not in EXEMPTIONS[name]
]


@pytest.mark.parametrize(("check", "case"), PLANNED)
def test_architecture(check: str, case: Case, tmp_path: Path) -> None:
    CHECKS[check](case, tmp_path)


def test_exemptions_name_checks_and_give_reasons() -> None:
    for name, exemptions in EXEMPTIONS.items():
        assert not exemptions.keys() - CHECKS.keys(), f"{name} is exempt from something that is no check"
        assert all(reason.strip() for reason in exemptions.values()), f"{name} gives no reason for an exemption"


def test_every_exemption_is_needed(tmp_path: Path) -> None:
    found = [f"{name}: {check}" for name, e in EXEMPTIONS.items() for check in e if stale(check, cases(name), tmp_path)]
    assert not found, f"passed although exempt: {found}"


def test_every_architecture_is_tested() -> None:
    tested = {parameters.values[1].id.rsplit("-", 1)[0] for parameters in PLANNED}
    assert tested == set(models.names())
