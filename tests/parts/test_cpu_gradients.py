"""Gradients written by hand for training on a CPU equal those of the definitions, however they are asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, func

from homunculi.parts.norm import RMSNorm
from homunculi.parts.rope import RotaryEmbedding, rotate


def relative(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want).norm() / want.norm()).item()


def norm_by_definition(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


def rotation_by_definition(x_BTHK: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    a, b = x_BTHK.chunk(2, -1)
    cos, sin = (table.chunk(2, -1)[1] for table in rotation)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 8), (2, 3, 4, 2)])
def test_rmsnorm_and_its_gradients_equal_the_definition_in_float64(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm = RMSNorm(shape[-1])
    torch.nn.init.normal_(norm.weight)
    x, g = torch.randn(shape, requires_grad=True), torch.randn(shape)
    y = norm(x)
    y.backward(g)
    x64, weight64 = (t.detach().double().requires_grad_() for t in (x, norm.weight))
    want = norm_by_definition(x64, weight64)
    dx, dweight = torch.autograd.grad(want, (x64, weight64), g.double())
    assert x.grad is not None and norm.weight.grad is not None
    assert max(relative(y, want), relative(x.grad, dx), relative(norm.weight.grad, dweight)) < 1e-6


def test_rmsnorm_of_a_strided_input_has_the_same_gradient() -> None:
    torch.manual_seed(0)
    norm, wide = RMSNorm(8), torch.randn(2, 3, 3, 8, requires_grad=True)
    norm(wide[:, :, 1]).square().sum().backward()
    want = torch.autograd.grad(norm_by_definition(wide[:, :, 1], norm.weight).square().sum(), wide)[0]
    torch.testing.assert_close(wide.grad, want)


def test_a_forward_gives_the_same_bits_with_and_without_a_gradient_to_come() -> None:
    norm, x = RMSNorm(24), torch.randn(5, 7, 24, requires_grad=True)
    with torch.no_grad():
        free = norm(x)
    assert torch.equal(free, norm(x))


@pytest.mark.parametrize(("d_head", "n_heads"), [(2, 1), (4, 3), (32, 2)])
@pytest.mark.parametrize("positions", [slice(3, 12), torch.tensor([[0, 5, 1], [7, 2, 2]])], ids=["slice", "rows"])
def test_rotation_and_its_gradient_equal_the_definition_in_float64(
    d_head: int, n_heads: int, positions: Tensor | slice
) -> None:
    torch.manual_seed(0)
    rotation = RotaryEmbedding(d_head, 16).at(positions, torch.float32)
    shape = (2, rotation[0].shape[-3], 3 * n_heads, d_head)
    joined = torch.randn(shape, requires_grad=True)
    x = joined[:, :, n_heads : 2 * n_heads]  # as a slice of one product
    y = rotate(x, rotation)
    g = torch.randn_like(y)
    y.backward(g)
    x64 = x.detach().double().requires_grad_()
    want = rotation_by_definition(x64, (rotation[0].double(), rotation[1].double()))
    (dx,) = torch.autograd.grad(want, x64, g.double())
    assert joined.grad is not None
    assert max(relative(y, want), relative(joined.grad[:, :, n_heads : 2 * n_heads], dx)) < 1e-6
    with torch.no_grad():
        assert torch.equal(rotate(x, rotation), y)  # the same bits with and without a gradient to come


def test_gradients_of_gradients_are_right() -> None:
    torch.manual_seed(0)
    norm, rotation = RMSNorm(4).double(), RotaryEmbedding(4, 8).at(slice(0, 3), torch.float64)
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,)) and torch.autograd.gradgradcheck(norm, (x,))
    assert torch.autograd.gradgradcheck(lambda z: rotate(z, rotation), (x,))


def test_functional_transforms_go_through() -> None:
    torch.manual_seed(0)
    norm, rotation = RMSNorm(4), RotaryEmbedding(4, 8).at(slice(0, 3), torch.float32)
    x, tangent = torch.randn(2, 3, 2, 4), torch.randn(2, 3, 2, 4)

    def both(z: Tensor) -> Tensor:
        return rotate(norm(z), rotation)

    _, pushed = func.jvp(both, (x,), (tangent,))
    jacobian = func.jacrev(both)(x)
    torch.testing.assert_close(pushed, torch.einsum("abcdefgh,efgh->abcd", jacobian, tangent), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(func.vmap(norm)(x), norm(x))
