"""CKA and RSA of states whose likeness is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from homunculi.instruments.observing import look
from homunculi.instruments.similarity import cka, rsa, without_largest
from homunculi.models import build


def gaussian(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def rotated(x_ND: torch.Tensor, seed: int) -> torch.Tensor:
    return x_ND @ torch.linalg.qr(gaussian(x_ND.shape[1], x_ND.shape[1], seed))[0]


def biased_cka(x_ND: torch.Tensor, y_ND: torch.Tensor) -> float:
    x_ND, y_ND = x_ND - x_ND.mean(0), y_ND - y_ND.mean(0)
    return float((x_ND.mT @ y_ND).norm() ** 2 / ((x_ND.mT @ x_ND).norm() * (y_ND.mT @ y_ND).norm()))


def test_rotated_scaled_and_shifted_copies_are_the_same() -> None:
    x_ND = gaussian(300, 24, 0) * torch.linspace(0.2, 3, 24)
    copies = [x_ND, 7 * rotated(x_ND, 1) + 5, 0.01 * rotated(x_ND, 2) - 1]
    np.testing.assert_allclose(cka(copies).numpy(), np.ones((3, 3)), atol=1e-4)
    centred = [x - x.mean(0) for x in copies]
    np.testing.assert_allclose(cka([without_largest(x, 3) for x in centred]).numpy(), np.ones((3, 3)), atol=1e-3)


def test_distances_by_rank_do_not_change_under_scale_and_offset_of_a_token() -> None:
    x_ND = gaussian(90, 24, 0)
    scales = 1 + gaussian(90, 1, 4).abs()
    np.testing.assert_allclose(rsa([x_ND, x_ND * scales + 3]).numpy(), np.ones((2, 2)), atol=1e-4)


def test_independent_states_have_no_cka_in_the_mean_though_the_biased_one_is_large() -> None:
    pairs = [(gaussian(80, 40, 2 * k), gaussian(80, 40, 2 * k + 1)) for k in range(40)]
    unbiased = np.array([float(cka([x, y])[0, 1]) for x, y in pairs])
    spread = unbiased.std() / np.sqrt(len(unbiased))
    assert abs(unbiased.mean()) < 4 * spread and spread < 0.01
    # Of centred Gaussians |XᵀY|² has the mean (n − 1) d², and |XᵀX|² the mean (n − 1) d (n + d).
    expected = 79 * 40**2 / (79 * 40 * (80 + 40))
    assert np.mean([biased_cka(x, y) for x, y in pairs]) == pytest.approx(expected, rel=0.05)
    assert abs(np.mean([float(rsa([x, y])[0, 1]) for x, y in pairs])) < 0.02


def test_mixed_states_lie_between() -> None:
    x_ND, noise_ND = gaussian(2000, 8, 0), gaussian(2000, 8, 1)
    # For y = a x + b z with equal variances, HSIC(x, y) = a² HSIC(x, x), so CKA = a² / (a² + b²).
    assert float(cka([x_ND, 0.8 * x_ND + 0.6 * noise_ND])[0, 1]) == pytest.approx(0.64, abs=0.03)


def test_a_few_large_directions_hide_what_differs_until_they_are_left_out() -> None:
    common_ND = torch.zeros(500, 20)
    common_ND[:, :3] = 100 * gaussian(500, 3, 0)
    states = [common_ND + gaussian(500, 20, seed) for seed in (1, 2)]
    assert float(cka(states)[0, 1]) > 0.99
    rest = [without_largest(x - x.mean(0), 3) for x in states]
    assert abs(float(cka(rest)[0, 1])) < 0.05


def test_equal_distances_share_a_rank() -> None:
    x_ND = torch.eye(6)
    assert torch.isnan(rsa([x_ND, gaussian(6, 6, 0)])[0, 1])


def test_neighbours_are_most_alike_in_an_untrained_model() -> None:
    torch.manual_seed(0)
    model = build("gpt", vocab_size=50, d_model=32, n_blocks=4, n_heads=2, max_seq_len=24)
    found = look(model, torch.randint(0, 50, (4, 24)), ["similarity"])["similarity"]
    for name, matrix in found.values.items():
        np.testing.assert_allclose(np.diag(matrix), 1.0, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-5, err_msg=name)
        assert matrix[0, 1] > matrix[0, 2] > matrix[0, 3], name
