"""How alike the states after two steps are: linear CKA and the correlation of their distances (RSA).

CKA (Kornblith et al. 2019) is taken with the unbiased estimate of HSIC (Song et al. 2012), because a probe has few
tokens for the width of a state. For features X, Y with centred rows x, y it needs no matrix of tokens by tokens:

    tr(K̃L̃) = |XᵀY|² − Σ |x|²|y|²,   (K̃1)_i = x_i · Σx − |x_i|²        (K̃ = XXᵀ without its diagonal)

RSA (Kriegeskorte et al. 2008) compares by rank the correlation distances of the same pairs of tokens.

Legend: L steps, N tokens, D width, P pairs of tokens, K directions left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
    plain_LND = _scaled(_side_by_side(list(kept.values())))
    values = {
        "cka": _cka(plain_LND),
        "cka_rest": _cka(_scaled(without_largest(plain_LND, N_LEFT_OUT))),
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
    return _cka(_scaled(_side_by_side(states)))


def _side_by_side(states: list[Tensor]) -> Tensor:
    """States as one tensor, (L, N, D); narrower ones get zeros, which change no product of tokens."""
    width = max(x_ND.shape[1] for x_ND in states)
    return torch.stack([F.pad(x_ND.float(), (0, width - x_ND.shape[1])) for x_ND in states])


def _scaled(x_LND: Tensor) -> Tensor:
    """Centred, with a mean square of its rows of 1, so that sums of fourth powers stay exact enough."""
    centred_LND = x_LND - x_LND.mean(1, keepdim=True)
    size_L11 = centred_LND.square().sum(2, keepdim=True).mean(1, keepdim=True).sqrt()
    return centred_LND / torch.where(size_L11 > 1e-12, size_L11, 1.0)


def _cka(x_LND: Tensor) -> Tensor:
    hsic_LL = _hsic(x_LND)
    own_L = hsic_LL.diagonal()
    own_L = torch.where(own_L > 1e-9, own_L, torch.nan)
    return (hsic_LL / (own_L[:, None] * own_L).sqrt()).float()


def _hsic(x_LND: Tensor) -> Tensor:
    """Unbiased HSIC of linear kernels of each pair; summed in float64, since terms nearly cancel."""
    n = x_LND.shape[1]
    own_LN = x_LND.square().sum(2).double()
    rows_LN = (x_LND @ x_LND.sum(1)[..., None])[..., 0].double() - own_LN
    products = [(x_ND.mT @ x_LND).square().sum((1, 2), dtype=torch.float64) for x_ND in x_LND]
    total_L = rows_LN.sum(1)
    corner_LL = total_L[:, None] * total_L / ((n - 1) * (n - 2))
    terms_LL = torch.stack(products) - own_LN @ own_LN.mT + corner_LL - 2 * (rows_LN @ rows_LN.mT) / (n - 2)
    return terms_LL / (n * (n - 3))


def without_largest(x_LND: Tensor, n_directions: int) -> Tensor:
    """Centred states, (…, N, D), without their largest principal directions."""
    n_directions = min(n_directions, x_LND.shape[-1])
    axes_LDD = torch.linalg.eigh(x_LND.mT @ x_LND)[1]  # ascending
    axes_LDK = axes_LDD[..., x_LND.shape[-1] - n_directions :]
    return x_LND - x_LND @ axes_LDK @ axes_LDK.mT


def rsa(states: list[Tensor]) -> Tensor:
    """Spearman's correlation of the correlation distances of the same tokens, (L, L); NaN where they do not vary."""
    ranks_LP = _ranks(torch.stack([_distances(x_ND) for x_ND in states]))
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


def _ranks(values_LP: Tensor) -> Tensor:
    """Ranks from 0 in each row; equal values share the mean of theirs."""
    sorted_LP = values_LP.sort(1).values
    first_LP = torch.searchsorted(sorted_LP, values_LP)
    last_LP = torch.searchsorted(sorted_LP, values_LP, right=True) - 1
    return (first_LP + last_LP).float() / 2
