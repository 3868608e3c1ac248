"""How alike the states after two steps are: linear CKA and the correlation of their distances (RSA).

CKA (Kornblith et al. 2019) is taken with the unbiased estimate of HSIC (Song et al. 2012), because a probe has few
tokens for the width of a state. For features X, Y with centred rows x, y it needs no matrix of tokens by tokens:

    tr(K̃L̃) = |XᵀY|² − Σ |x|²|y|²,   (K̃1)_i = x_i · Σx − |x_i|²        (K̃ = XXᵀ without its diagonal)

RSA (Kriegeskorte et al. 2008) compares by rank the correlation distances of the same pairs of tokens.

Legend: N tokens, D width, L steps, P pairs of tokens, K directions left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homunculi.instruments.observation import Observation
from homunculi.instruments.registry import instrument
from homunculi.instruments.stream import NEEDS, TAPS, after_steps
from homunculi.runs.measures import Measurement

N_LEFT_OUT = 3  # principal directions, which a few tokens or a common offset may fill
N_STIMULI = 128  # tokens that RSA compares, spread over the probe


@instrument(
    "similarity",
    view="heatmap",
    title="Similarity of steps",
    question="Which steps hold alike arrangements of the tokens?",
    taps=TAPS,
    needs=NEEDS,
)
def measure(seen: Observation) -> Measurement | None:
    states = after_steps(seen)
    kept = {site: after.state_BTD.flatten(0, 1) for site, after in states.items()}
    if not kept or seen.ids_BT.numel() < 4:
        return None
    plain = [_scaled(x_ND) for x_ND in kept.values()]
    values = {
        "cka": cka(plain),
        "cka_rest": cka([without_largest(x_ND, N_LEFT_OUT) for x_ND in plain]),
        "rsa": rsa(list(kept.values())),
    }
    steps = tuple(site.label for site in kept)
    notes: tuple[str, ...] = (
        f"cka_rest: without the {N_LEFT_OUT} largest principal directions of each step; all may fall under 0 by chance",
        f"rsa: of {min(N_STIMULI, seen.ids_BT.numel())} tokens spread over the probe",
    )
    if not all(bool(after.present_BT.all()) for after in states.values()):
        notes = (*notes, "tokens that a step skips count with the state they kept, which makes neighbours alike")
    return Measurement(
        {name: value.cpu().numpy() for name, value in values.items()},
        dict.fromkeys(values, ("step", "other step")),
        {"step": steps, "other step": steps},
        notes=notes,
    )


def cka(states: list[Tensor]) -> Tensor:
    """Unbiased linear CKA of each pair of states, (L, L), each (N, D) with rows of the same tokens; 1 for states that
    are rotations of each other, 0 in the mean for independent ones. NaN where a state does not vary."""
    centred = [_scaled(x_ND) for x_ND in states]
    hsic_LL = torch.stack([torch.stack([_hsic(x, y) for y in centred]) for x in centred])
    own_L = hsic_LL.diagonal()
    own_L = torch.where(own_L > 1e-9, own_L, torch.nan)
    return (hsic_LL / (own_L[:, None] * own_L).sqrt()).float()


def _scaled(x_ND: Tensor) -> Tensor:
    """Centred, with a mean square of its rows of 1, so that sums of fourth powers stay exact enough."""
    centred = (x_ND.float() - x_ND.float().mean(0)) if len(x_ND) else x_ND.float()
    size = centred.square().sum(1).mean().sqrt()
    return centred / torch.where(size > 1e-12, size, 1.0)


def _hsic(x_ND: Tensor, y_NE: Tensor) -> Tensor:
    """Unbiased HSIC of linear kernels of centred features; summed in float64, since terms nearly cancel."""
    n = len(x_ND)
    own_x, own_y = x_ND.square().sum(1).double(), y_NE.square().sum(1).double()
    cross = (x_ND.mT @ y_NE).double().square().sum() - (own_x * own_y).sum()
    rows_x = (x_ND @ x_ND.sum(0)).double() - own_x
    rows_y = (y_NE @ y_NE.sum(0)).double() - own_y
    corner = rows_x.sum() * rows_y.sum() / ((n - 1) * (n - 2))
    return (cross + corner - 2 * (rows_x * rows_y).sum() / (n - 2)) / (n * (n - 3))


def without_largest(x_ND: Tensor, n_directions: int) -> Tensor:
    """A centred state without its largest principal directions."""
    n_directions = min(n_directions, x_ND.shape[1])
    axes_DD = torch.linalg.eigh(x_ND.mT @ x_ND)[1]  # ascending
    axes_DK = axes_DD[:, x_ND.shape[1] - n_directions :]
    return x_ND - x_ND @ axes_DK @ axes_DK.mT


def rsa(states: list[Tensor]) -> Tensor:
    """Spearman's correlation of the correlation distances of the same tokens, (L, L); NaN where they do not vary."""
    ranks_LP = torch.stack([_ranks(_distances(x_ND)) for x_ND in states])
    centred_LP = ranks_LP - ranks_LP.mean(1, keepdim=True)
    size_L = centred_LP.norm(dim=1)
    size_L = torch.where(size_L > 0, size_L, torch.nan)
    return (centred_LP @ centred_LP.mT) / (size_L[:, None] * size_L)


def _distances(x_ND: Tensor) -> Tensor:
    """1 − the correlation of the numbers of two tokens, for each pair of at most `N_STIMULI` tokens, (P)."""
    n = min(len(x_ND), N_STIMULI)
    some_ND = x_ND[torch.linspace(0, len(x_ND) - 1, n, device=x_ND.device).long()].float()
    some_ND = some_ND - some_ND.mean(1, keepdim=True)
    some_ND = some_ND / some_ND.norm(dim=1, keepdim=True).clamp(min=1e-12)
    first_P, second_P = torch.triu_indices(n, n, 1, device=x_ND.device)
    return 1 - (some_ND @ some_ND.mT)[first_P, second_P]


def _ranks(values_P: Tensor) -> Tensor:
    """Ranks from 0; equal values share the mean of theirs."""
    _, which_P, counts = values_P.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    return (last - (counts + 1) / 2)[which_P].float()
