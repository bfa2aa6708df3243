"""float8_linear against its formula in float64, with the error that rounding to float8 allows and no more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from oneflow_kernels.float8 import check_device, check_sizes, float8_linear
from tests.messages import Message

SHAPES = [(16, 16, 16), (48, 64, 32), (128, 32, 256)]  # rows, inputs, outputs


def operands(rows: int, inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and dy; x has an outlier and rows of very different size, as activations do."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, inputs, generator=generator) * torch.logspace(-3, 0, rows)[:, None]
    x[1, 2] = 20.0
    weight = torch.randn(outputs, inputs, generator=generator) * inputs**-0.5
    grad = 1e-7 * torch.randn(rows, outputs, generator=generator)  # losses are divided by millions of tokens
    return x.to(dtype), weight.to(dtype), grad.to(dtype)


def forward_and_backward(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = float8_linear(x, weight)
    y.backward(grad)
    return y.detach(), x.grad, weight.grad


def rounding(tensor: Tensor, mantissa_bits: int, largest: float, least_exponent: int) -> Tensor:
    """How far rounding to float8 can move each value: half a unit in the last place, of the smallest numbers at least.

    A hundredth more is left for the float32 arithmetic of the scale.
    """
    scale = tensor.abs().max() / largest
    return 1.01 * torch.maximum(tensor.abs() * 2.0 ** -(mantissa_bits + 1), scale * 2.0 ** (least_exponent - 1))


def allowed(left: Tensor, right: Tensor, is_gradient: bool, dtype: torch.dtype) -> Tensor:
    """The largest error of left @ right: the rounding of both, then that of the sum and of the result."""
    e4m3, e5m2 = (3, 448.0, -9), (2, 57344.0, -16)
    left_error = rounding(left, *(e5m2 if is_gradient else e4m3))
    right_error = rounding(right, *e4m3)
    of_operands = left_error @ right.abs() + left.abs() @ right_error + left_error @ right_error
    magnitude = (left.abs() + left_error) @ (right.abs() + right_error)
    return of_operands + magnitude * (left.shape[1] * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_off_by_the_rounding_of_their_operands_and_no_more(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    x, weight, grad = operands(*shape, dtype)
    found = forward_and_backward(x, weight, grad)
    x, weight, grad = x.double(), weight.double(), grad.double()
    products = ((x, weight.t(), False), (grad, weight, True), (grad.t(), x, True))
    for name, result, (left, right, is_gradient) in zip(("y", "dx", "dweight"), found, products, strict=True):
        assert result.dtype == dtype
        error = (result.double() - left @ right).abs()
        worst = (error / allowed(left, right, is_gradient, dtype)).max()
        assert 0.01 < worst <= 1.0, f"{name}: {worst:.3f} of what rounding allows"  # float8, and correct


def test_of_normal_operands_results_are_off_by_four_percent_and_gradients_by_six() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, grad = (torch.randn(256, 256, generator=generator) for _ in range(3))
    found = forward_and_backward(x, weight, grad)
    expected = (x @ weight.t(), grad @ weight, grad.t() @ x)
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]
    assert 0.03 < errors[0] < 0.04
    assert all(0.05 < error < 0.06 for error in errors[1:])


def test_powers_of_two_with_few_bits_are_exact() -> None:
    x = torch.tensor([1.0, -2.0, 0.5, 448.0]).repeat(16, 4)
    weight = torch.tensor([448.0, 1.0, 0.0, -0.25]).repeat(16, 4)
    assert torch.equal(float8_linear(x, weight), x @ weight.t())


def test_zeros_give_zeros_and_any_size_of_values_the_same_relative_error() -> None:
    x, weight, _ = operands(*SHAPES[1])
    assert torch.equal(float8_linear(torch.zeros_like(x), weight), torch.zeros(48, 32))
    results = [float8_linear(x * scale, weight) / scale for scale in (2.0**-80, 1.0, 2.0**80)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[2], results[1])


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_not_finite_stays_visible(broken: float, place: int) -> None:
    pair = list(operands(*SHAPES[0])[:2])
    pair[place][3, 5] = broken
    assert not torch.isfinite(float8_linear(*pair)).all()


def test_the_operands_are_kept_for_the_backward_pass_as_they_are() -> None:
    """A gathered weight is not copied, nor the input that several layers share."""
    kept: list[Tensor] = []
    x, weight, _ = operands(*SHAPES[0])
    x, weight = x.requires_grad_(), weight.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        float8_linear(x, weight)
    assert [t.data_ptr() for t in kept] == [x.data_ptr(), weight.data_ptr()]


def test_an_input_that_needs_no_gradient_gets_none() -> None:
    x, weight, grad = operands(*SHAPES[1])
    expected = forward_and_backward(x, weight, grad)
    weight = weight.requires_grad_()
    float8_linear(x, weight).backward(grad)
    assert x.grad is None
    assert torch.equal(weight.grad, expected[2])


def test_rows_are_a_multiple_of_16_where_a_weight_is_to_have_a_gradient() -> None:
    x, weight, _ = operands(*SHAPES[0])
    with pytest.raises(ValueError) as error:
        float8_linear(x[:7], weight)
    assert Message(error.value) == (
        "float8_linear: 7 rows are not a multiple of 16, as float8 products need; make data.rows_per_pack one"
    )
    with torch.no_grad():
        whole = float8_linear(x, weight)
        some = float8_linear(x[:7], weight)  # the outlier, so the scale, is in row 1
    rounding = x.shape[1] * torch.finfo(torch.float32).eps * (x[:7].abs() @ weight.abs().t())  # of sums in any order
    assert ((some - whole[:7]).abs() <= rounding).all()


@pytest.mark.parametrize("shape", [(16, 24), (40, 32)])
def test_sizes_of_weights_are_multiples_of_16(shape: tuple[int, int]) -> None:
    check_sizes("layer", torch.Size([48, 16]))
    with pytest.raises(ValueError) as error:
        check_sizes("layer", torch.Size(shape))
    assert Message(error.value) == (
        f"layer: a weight of {shape[0]} x {shape[1]} cannot be multiplied in float8, which needs multiples of 16; "
        'change the sizes of [model], or set train.precision = "bf16"'
    )


def test_a_gpu_before_8_9_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    for capability in ((8, 9), (9, 0), (10, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        check_device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    check_device("cpu")
    with pytest.raises(ValueError) as error:
        check_device("cuda")
    assert Message(error.value) == (
        "train.precision: float8 needs a GPU of compute capability 8.9 or later; this is NVIDIA A100 with 8.0; "
        'set train.precision = "bf16"'
    )
