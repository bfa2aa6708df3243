"""The loss and its gradients against autograd in float64, on both backends."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from oneflow_dist.planning.recorder import Recorder
from oneflow_kernels import bag_cross_entropy as module
from oneflow_kernels.bag_cross_entropy import bag_cross_entropy
from tests.kernels.bags import (
    SHAPES,
    Case,
    Result,
    assert_exact,
    error,
    every_shape,
    make_case,
    make_small,
    poison,
    run,
    run_alone,
    same_formula,
    truth,
)
from tests.launching import Launcher
from tests.messages import Message

LOW = [torch.float32, torch.bfloat16, torch.float16]
every_backend = pytest.mark.parametrize("backend", ["reference", "triton"])


# In float64 the algorithm is the definition.


@every_shape
def test_loss_and_gradients_are_those_of_autograd(bag_slot: list[int]) -> None:
    case = make_case(bag_slot)
    expected = truth(case)
    assert_exact(run(case), expected)
    assert_exact([run_alone(case)], [expected.loss])


@every_shape
@pytest.mark.parametrize(("chunk", "kept"), [(2, 9.0), (1, 0.25), (2, 0.17)], ids=["chunks", "groups", "both"])
def test_chunks_and_groups_change_nothing(
    bag_slot: list[int], chunk: int, kept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_small(monkeypatch, chunk, kept)
    case = make_case(bag_slot)
    assert_exact(run(case), truth(case))


@given(st.lists(st.integers(0, 12), max_size=40).map(sorted), st.integers(1, 70), st.integers(0, 9))
@settings(max_examples=40)
def test_any_bags(bag_slot: list[int], vocab: int, extra: int) -> None:
    case = make_case(bag_slot, num_slots=13, vocab=vocab, seed=len(bag_slot))
    case = case._replace(num_filled=case.num_filled + extra)
    assert_exact(run(case), truth(case))


def test_gradients_are_those_of_finite_differences() -> None:
    case = make_case(SHAPES["usual"], width=3, vocab=5)
    assert torch.autograd.gradcheck(lambda hidden, weight: bag_cross_entropy(hidden, weight, *case[2:]), case[:2])


def test_chunks_and_groups_are_as_few_as_memory_allows_and_of_like_size() -> None:
    for total, limit in itertools.product([0, 1, 511, 512, 513, 1350, 8192, 16384], [128, 512, 3072, 6144]):
        sizes = [stretch.stop - stretch.start for stretch in module._equal(total, limit)]
        assert sum(sizes) == total
        assert len(sizes) == math.ceil(total / limit)
        assert all(size <= limit and size % 128 == 0 for size in sizes[:-1])
        assert not sizes or max(sizes) - min(sizes) < 128 * len(sizes)


@pytest.mark.parametrize(
    ("num_filled", "width", "vocab", "expected"),
    [
        (1350, 2048, 128256, (768, [1350])),
        (8192, 4096, 128256, (768, [4096, 4096])),
        (16384, 4096, 128256, (768, [4096, 4096, 4096, 4096])),
        (9000, 64, 1000, (67072, [9000])),  # a chunk may be more than what is kept otherwise
    ],
)
def test_what_is_kept_is_as_large_as_some_gradient(
    num_filled: int, width: int, vocab: int, expected: tuple[int, list[int]]
) -> None:
    chunk_slots, groups = module._sizes(num_filled, vocab, width)
    assert (chunk_slots, [group.stop - group.start for group in groups]) == expected


# Bounds in lower precision: error(ours) <= 2 error(same formula, same dtype) + a little, both against float64.


def assert_within_bounds(case: Case) -> None:
    expected, plain = truth(case), same_formula(case)
    dtype = case.hidden.dtype
    for name, own, same, exact in zip(Result._fields, run(case), plain, expected, strict=True):
        rounding = max(4.0 * torch.finfo(torch.float32).eps, torch.finfo(dtype).eps * name.startswith("d_"))
        bound = 2.0 * error(same, exact) + rounding * (exact.norm().item() + case.bag_weight.sum().item() + 1.0)
        assert error(own, exact) <= bound, name
        assert own.dtype == (dtype if name.startswith("d_") else torch.float32)
    assert error(run_alone(case), expected.loss) <= 4e-7 * (expected.loss.norm().item() + len(case.bag_slot) + 1.0)


@every_shape
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("kept", [9.0, 0.17])
def test_errors_are_bounded(
    bag_slot: list[int], dtype: torch.dtype, kept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory full of NaN, in one group and in several."""
    poison(monkeypatch)
    make_small(monkeypatch, 2, kept)
    assert_within_bounds(make_case(bag_slot, dtype))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *(("usual", dtype) for dtype in LOW),
        ("every slot", torch.bfloat16),
        ("one token", torch.float32),
        ("bag of 500 and others", torch.bfloat16),
        ("none", torch.bfloat16),
    ],
)
def test_errors_of_kernels_are_bounded(shape: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory full of NaN, in groups of two slots, with rows and a vocabulary that fill no block."""
    monkeypatch.setenv("ONEFLOW_KERNELS", "triton")
    poison(monkeypatch)
    make_small(monkeypatch, 2, 0.17)
    assert_within_bounds(make_case(SHAPES[shape], dtype))


@given(
    st.lists(st.integers(0, 30), max_size=20).map(sorted),
    st.sampled_from([1, 3, 4095, 4096, 4098, 9000]),
    st.sampled_from([1, 15, 512, 530]),
    st.sampled_from(LOW),
    st.sampled_from([0.3, 30.0]),
)
@settings(max_examples=5)
def test_errors_of_kernels_are_bounded_for_any_bags(
    bag_slot: list[int], vocab: int, width: int, dtype: torch.dtype, spread: float
) -> None:
    """Logits of a wide spread rise far above those of the first block, to which the others are measured at first."""
    case = make_case(bag_slot, dtype, num_slots=31, vocab=vocab, width=width, scale=spread / width**0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONEFLOW_KERNELS", "triton")
        assert_within_bounds(case)


@every_backend
@pytest.mark.parametrize(("kept", "times"), [(9.0, 1.7), (0.17, 2.0)], ids=["one group", "four groups"])
def test_gradients_in_bfloat16_lose_little_more_than_their_own_rounding(
    backend: str, kept: float, times: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding them to bfloat16 costs 1.7e-3 of their norm. With rows that are rounded before, the unembedding's loses
    2.6e-3, with four groups 3.0e-3; all in bfloat16 loses 2.2e-2.
    """
    monkeypatch.setenv("ONEFLOW_KERNELS", backend)
    make_small(monkeypatch, 16, kept)
    bag_slot = torch.randint(64, (90,), generator=torch.Generator().manual_seed(0)).sort().values.tolist()
    case = make_case(bag_slot, torch.bfloat16, num_slots=64, width=96, vocab=1500, scale=0.5)
    case = case._replace(bag_weight=torch.ones(90))
    expected, plain, own = truth(case), same_formula(case), run(case)
    for name, bound in (("d_hidden", 1.4), ("d_weight", times)):
        exact = getattr(expected, name)
        assert error(getattr(own, name), exact) < bound * error(exact.bfloat16(), exact)
        assert error(getattr(plain, name), exact) > 6.0 * error(getattr(own, name), exact)


@every_backend
def test_gradients_of_what_is_nearly_certain_keep_their_precision(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 - p of a bag's token is 1e-5 or so; p in bfloat16 would be 1, and its gradient nothing or all wrong."""
    monkeypatch.setenv("ONEFLOW_KERNELS", backend)
    case = make_case([0, 2, 3, 3], torch.bfloat16, width=16, vocab=40)
    hidden = case.hidden.detach()
    hidden[case.bag_slot] = (0.9 * case.weight.detach().float()[case.bag_tokens]).bfloat16()
    tokens = case.bag_tokens.clone()
    tokens[3] = tokens[2]  # the same twice
    hidden[3] = (0.9 * case.weight.detach().float()[tokens[2]]).bfloat16()
    case = case._replace(hidden=hidden.requires_grad_(), bag_tokens=tokens, bag_weight=torch.ones(4))
    expected, own = truth(case), run(case)
    probs = (case.hidden.double() @ case.weight.double().T).softmax(-1)[case.bag_slot, tokens]
    assert 1e-7 < -probs.max().log() < 1e-3
    for slot in (0, 2, 3):
        exact = expected.d_hidden[slot]
        assert error(own.d_hidden[slot], exact) < 5e-3 * exact.norm() + 1e-6


@every_backend
@pytest.mark.parametrize("dtype", LOW)
def test_two_runs_give_the_same_bits(backend: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEFLOW_KERNELS", backend)
    case = make_case([0, *[2] * 40, 3, 5, 5], dtype, vocab=9)
    for first, second in zip(run(case), run(case), strict=True):
        assert torch.equal(first, second)


@every_backend
def test_large_logits_stay_finite(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEFLOW_KERNELS", backend)
    case = make_case(SHAPES["usual"], torch.float32, scale=1e4)
    assert all(torch.isfinite(x).all() for x in run(case))


# What the arguments mean.


def test_dtypes_must_agree() -> None:
    case = make_case([1], torch.float32)
    with pytest.raises(ValueError) as error:
        run(case._replace(weight=case.weight.bfloat16()))
    assert Message(error.value) == "hidden is torch.float32 but weight is torch.bfloat16; cast one of them"


def test_bags_need_slots() -> None:
    with pytest.raises(ValueError) as error:
        run(make_case([1, 1])._replace(num_filled=0))
    assert Message(error.value) == "num_filled: 0 slots cannot hold 2 bag tokens"


@pytest.mark.parametrize("given_number", [3, 4, 7, 1000])
def test_more_filled_slots_than_there_are_change_nothing(given_number: int) -> None:
    case = make_case([0, 2, 2, 5])
    for exact, own in zip(run(case), run(case._replace(num_filled=given_number)), strict=True):
        torch.testing.assert_close(own, exact, rtol=0.0, atol=1e-14)


def test_fewer_filled_slots_than_there_are_make_the_loss_nan() -> None:
    case = make_case([0, 2, 2, 5])._replace(num_filled=2, bag_weight=torch.ones(4))
    assert run_alone(case).isnan()
    assert run(case).loss.isnan()


def test_weightless_tokens_change_nothing() -> None:
    """As padding: in a slot of its own, and in the slot of others."""
    case = make_case([1, 1, 6, 6])
    case = case._replace(bag_weight=torch.tensor([1.0, 0.0, 0.0, 0.0]))
    alone = make_case([1])._replace(
        **{name: getattr(case, name) for name in ("hidden", "weight")},
        **{name: getattr(case, name)[:1] for name in ("bag_tokens", "bag_weight")},
    )
    for padded, plain in zip(run(case), run(alone), strict=True):
        torch.testing.assert_close(padded, plain, rtol=0.0, atol=1e-14)


def test_slots_without_a_bag_get_no_gradient() -> None:
    case = make_case([1, 1, 5])._replace(bag_weight=torch.ones(3))
    assert (run(case).d_hidden != 0.0).any(dim=1).tolist() == [False, True, False, False, False, True, False]


def test_zero_weights_mean_a_uniform_distribution() -> None:
    case = make_case([0, 2], vocab=7)._replace(bag_weight=torch.ones(2))
    loss = run_alone(case._replace(weight=torch.zeros_like(case.weight)))
    assert loss.item() == pytest.approx(2.0 * math.log(7.0))


@pytest.mark.parametrize("wanted", ["hidden", "weight"])
@pytest.mark.parametrize("kept", [9.0, 0.17])
def test_a_gradient_that_nobody_wants_costs_no_product(
    wanted: str, kept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(SHAPES["usual"])
    expected = run(case)
    make_small(monkeypatch, 1, kept)
    one = case._replace(**{name: getattr(case, name).detach() for name in ("hidden", "weight") if name != wanted})
    with FlopCounterMode(display=False) as counter:
        (grad,) = torch.autograd.grad(3.0 * bag_cross_entropy(*one), getattr(one, wanted))
    torch.testing.assert_close(grad, getattr(expected, f"d_{wanted}"))
    assert counter.get_total_flops() == 4 * case.num_filled * 12 * 45


def test_one_group_can_be_differentiated_again_and_several_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(SHAPES["usual"], torch.bfloat16)
    loss = bag_cross_entropy(*case)
    first, second = (torch.autograd.grad(loss, case[:2], retain_graph=True) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    make_small(monkeypatch, 1, 0.17)
    loss = bag_cross_entropy(*case)
    torch.autograd.grad(loss, case[:2], retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, case[:2])


# What a plan and a compiler see.


@pytest.mark.parametrize("num_filled", [1, 700, 5000])
def test_without_values_shapes_and_flops_are_known(num_filled: int) -> None:
    """Three products with gradients, one without; chunks too."""
    width, vocab = 5, 2**17
    with FakeTensorMode():
        hidden, weight = torch.zeros(9000, width, requires_grad=True), torch.zeros(vocab, width, requires_grad=True)
        bag = torch.zeros(6000, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            loss = bag_cross_entropy(hidden, weight, bag, bag, torch.zeros(6000), num_filled)
            gradients = torch.autograd.grad(loss, (hidden, weight))
        with FlopCounterMode(display=False) as alone, torch.no_grad():
            bag_cross_entropy(hidden, weight, bag, bag, torch.zeros(6000), num_filled)
    assert loss.shape == ()
    assert [gradient.shape for gradient in gradients] == [(9000, width), (vocab, width)]
    assert counter.get_total_flops() == 6 * num_filled * width * vocab
    assert alone.get_total_flops() == 2 * num_filled * width * vocab


@pytest.mark.parametrize(("num_filled", "width", "limit"), [(8192, 4096, 2.46), (16384, 4096, 2.85), (1350, 2048, 0.9)])
def test_memory_is_an_eighth_of_all_logits(num_filled: int, width: int, limit: float) -> None:
    """Of 16,384 slots and 128,256 tokens, with the gradient of the logits and their softmax: 2.95 GiB of 23.5."""
    num_slots, vocab = 16384, 128256
    with FakeTensorMode(), Recorder() as recorder:
        hidden = torch.zeros(num_slots, width, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.zeros(vocab, width, dtype=torch.bfloat16, requires_grad=True)
        bags = torch.zeros(num_filled, dtype=torch.int64)
        inputs = [hidden, weight, bags, torch.zeros(num_filled)]
        recorder.name("inputs", inputs)
        torch.autograd.grad(bag_cross_entropy(hidden, weight, bags, *inputs[2:], num_filled), (hidden, weight))
    peak = sum(size for kind, size in recorder.peak().items() if kind != "inputs")
    assert peak <= limit * 2**30 < 3 * 4 * num_slots * vocab / 8


def compile_step(dtype: torch.dtype) -> None:
    """In a process whose functions do not check shapes, which Dynamo cannot follow."""
    case = make_case(SHAPES["usual"], dtype)

    def step(hidden: Tensor, weight: Tensor, *bags: Tensor) -> Tensor:
        return 3.0 * bag_cross_entropy(hidden * 2.0, weight, *bags, 4)

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        loss = function(*case[:-1])
        gradients = torch.autograd.grad(loss, case[:2])
        with torch.no_grad():
            alone = function(*case[:-1])
        results.append([loss.detach(), *gradients, alone])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=torch.finfo(dtype).eps * 4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_compiles_as_one_graph(launcher: Launcher, dtype: torch.dtype) -> None:
    launcher.call(1, compile_step, dtype)
