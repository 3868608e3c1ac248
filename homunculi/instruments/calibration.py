"""Whether a model's probabilities for the next token mean what they say.

A model that says what is true of its text is right in a share c of the cases in which its confidence is c, and loses
on average what its entropy says.

Legend: B rows, T positions, V vocabulary, N tokens.
"""

from __future__ import annotations

import numpy as np
import torch

from homunculi.instruments.observation import Observation
from homunculi.instruments.registry import instrument
from homunculi.instruments.tokenwise import DRAWS, Numbers, correlate, equal_mass_bins, mean_by, numbers
from homunculi.runs.measures import Measurement


@instrument(
    "calibration",
    view="line",
    title="Calibration",
    question="Is the model right as often as it is confident, and does it lose what its entropy says?",
)
def measure(seen: Observation) -> Measurement | None:
    if seen.ids_BT.shape[1] < 2:
        return None
    said = {name: np.stack(rows) for name, rows in _said(seen).items()}
    confidence_N, right_N = said["confidence"].ravel(), said["right"].ravel()
    bins, n_bins = equal_mass_bins(confidence_N)
    confidence, accuracy = mean_by(bins, confidence_N, n_bins), mean_by(bins, right_N, n_bins)
    loss, entropy = said["surprisal"].mean(), said["entropy"].mean()
    luck = _errors_of_luck(confidence_N)
    values = {
        "reliability": np.stack([confidence, accuracy]),
        "calibration error": np.array(calibration_error(confidence_N, right_N)),
        "calibration error by luck": np.array(luck.mean()),
        "calibration error null sd": np.array(luck.std()),
        "overconfidence": np.array(confidence_N.mean() - right_N.mean()),
        "brier": np.array(said["brier"].mean()),
        "loss": np.array(loss),
        "entropy": np.array(entropy),
        "loss beyond entropy": np.array(loss - entropy),
        **correlate(said["entropy"], said["surprisal"]).scalars("entropy rho"),
    }
    return Measurement(
        values,
        {"reliability": ("series", "decile")},
        {"series": ("confidence", "accuracy"), "decile": tuple(str(i + 1) for i in range(n_bins))},
        {"loss": "nats", "entropy": "nats", "loss beyond entropy": "nats"},
        (
            "confidence: probability of the likeliest next token; calibration error: mean distance of confidence and "
            "accuracy over ten bins of equal mass; by luck: what a perfectly calibrated model with these confidences "
            "would show on as many tokens",
            "brier: squared distance of all probabilities from what came, 0 to 2",
        ),
    )


def calibration_error(confidence_N: Numbers, right_N: Numbers) -> float:
    """Expected calibration error of the likeliest token over bins of equal mass, in [0, 1] (Naeini et al. 2015, with
    the bins of Nguyen and O'Connor 2015)."""
    bins, n_bins = equal_mass_bins(confidence_N)
    gap = np.bincount(bins, confidence_N - right_N, n_bins)
    return float(np.abs(gap).sum() / len(confidence_N))


def _errors_of_luck(confidence_N: Numbers) -> Numbers:
    """Errors of worlds in which each token is right with exactly its confidence."""
    draw = np.random.default_rng(0)
    bins, n_bins = equal_mass_bins(confidence_N)
    right_SN = draw.random((DRAWS, len(confidence_N))) < confidence_N
    gaps = [np.abs(np.bincount(bins, confidence_N - right_N, n_bins)).sum() for right_N in right_SN]
    return np.array(gaps) / len(confidence_N)


def _said(seen: Observation) -> dict[str, list[Numbers]]:
    """Of each row what its predictions were like; a row at a time, as all at once would double a large logit tensor."""
    found: dict[str, list[Numbers]] = {name: [] for name in ("confidence", "right", "surprisal", "entropy", "brier")}
    for logits_TV, ids_T in zip(seen.logits_BTV[:, :-1], seen.ids_BT[:, 1:], strict=True):
        log_TV = torch.log_softmax(logits_TV.float(), -1)
        p_TV = log_TV.exp()
        highest = p_TV.max(-1)
        own_T = log_TV.gather(1, ids_T[:, None])[:, 0]
        row = {
            "confidence": highest.values,
            "right": highest.indices == ids_T,
            "surprisal": -own_T,
            "entropy": -(p_TV * log_TV.clamp(min=-1e4)).sum(-1),  # a probability of 0 counts nothing
            "brier": p_TV.square().sum(-1) - 2 * own_T.exp() + 1,
        }
        for name, value in row.items():
            found[name].append(numbers(value))
    return found
