"""Attention to intervals of keys: the kernels, and their plain definition, against dense attention in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from oneflow_kernels.interval_attention import interval_attention, interval_attention_with_sums
from oneflow_kernels.key_intervals import (
    KeyIntervals,
    block_intervals,
    cached_intervals,
    document_intervals,
    key_intervals,
    transfusion_intervals,
)
from oneflow_kernels.launches import Launch, chosen
from tests.launching import Launcher
from tests.messages import Message


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory holds NaN, so that what a kernel leaves unwritten shows."""

    def poisoned(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate(*args: Any, **options: Any) -> Tensor:
            memory = original(*args, **options)
            return memory.fill_(torch.nan) if memory.is_floating_point() else memory

        return allocate

    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEFLOW_KERNELS", "triton")


@pytest.fixture(params=["triton", "reference"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ONEFLOW_KERNELS", request.param)
    return request.param


RULES = ("document", "causal", "prefix", "window", "nothing")


def intervals_of(documents: list[tuple[str, int]]) -> KeyIntervals:
    """A rule and a number of rows for each document; "nothing" are rows that see no row."""
    starts, ends, first = [], [], 0
    for rule, rows in documents:
        row, last = torch.arange(first, first + rows), first + rows
        start = {"window": (row - 7).clamp(min=first), "nothing": row}.get(rule, torch.full((rows,), first))
        end = {"document": torch.full((rows,), last), "window": (row + 5).clamp(max=last), "nothing": row}
        starts.append(start)
        ends.append(end.get(rule, (row + 1).clamp(min=first + rows // 3 if rule == "prefix" else 0)))
        first = last
    return key_intervals(torch.cat(starts).int(), torch.cat(ends).int(), first)


def inputs_of(
    num_rows: int,
    heads: int = 2,
    kv_heads: int = 1,
    width: int = 16,
    dtype: torch.dtype = torch.float32,
    num_keys: int | None = None,
) -> list[Tensor]:
    """Query, key, value, and the gradients of the output and of the log-sum-exp; as many keys as rows if not said."""
    generator = torch.Generator().manual_seed(num_rows)
    num_keys = num_rows if num_keys is None else num_keys
    shapes = ((num_rows, heads, width), *((num_keys, kv_heads, width),) * 2, (num_rows, heads, width))
    rows = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return [*rows, torch.randn(heads, num_rows, generator=generator)]


Attention = Callable[[Tensor, Tensor, Tensor, KeyIntervals], tuple[Tensor, Tensor]]


def dense_attention(query: Tensor, key: Tensor, value: Tensor, intervals: KeyIntervals) -> tuple[Tensor, Tensor]:
    """All pairs of rows under a mask, in the dtype of its arguments; rows that see nothing are cut out by hand."""
    index, group = torch.arange(len(key)), query.shape[1] // key.shape[1]
    is_seen = (intervals.start[:, None] <= index) & (index < intervals.end[:, None])
    is_empty = ~is_seen.any(1)
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = torch.einsum("thd,uhd->htu", query, key) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(~(is_seen | is_empty[:, None]), -torch.inf)
    out = torch.einsum("htu,uhd->thd", scores.softmax(-1), value).masked_fill(is_empty[:, None, None], 0.0)
    return out, scores.logsumexp(-1).masked_fill(is_empty, -torch.inf)


def results(function: Callable[..., tuple[Tensor, Tensor]], inputs: list[Tensor], intervals: Any) -> list[Tensor]:
    """Output, log-sum-exp, and the gradients of query, key and value."""
    *rows, grad, grad_logsumexp = inputs
    rows = [row.detach().requires_grad_() for row in rows]
    out, logsumexp = function(*rows, intervals)
    ups = (grad.to(out.dtype), grad_logsumexp.to(logsumexp.dtype))
    return [out.detach(), logsumexp.detach(), *torch.autograd.grad((out, logsumexp), rows, ups)]


def attention(*arguments: Any) -> tuple[Tensor, Tensor]:
    return interval_attention_with_sums(*arguments, max_keys=len(arguments[0]))


def dense_attention_of_documents(lengths: list[int]) -> Attention:
    """Whole documents, one after the other: the pairs of rows of different ones take no memory."""

    def attend(query: Tensor, key: Tensor, value: Tensor, _: KeyIntervals) -> tuple[Tensor, Tensor]:
        documents = zip(lengths, *(x.split(lengths) for x in (query, key, value)), strict=True)
        parts = [dense_attention(q, k, v, intervals_of([("document", rows)])) for rows, q, k, v in documents]
        return torch.cat([out for out, _ in parts]), torch.cat([sums for _, sums in parts], dim=1)

    return attend


def check(inputs: list[Tensor], intervals: KeyIntervals, dense: Attention = dense_attention) -> None:
    """No result is off by more than twice the error of the same formula in the same dtype, and a little."""
    found = results(attention, inputs, intervals)
    plain = results(dense, inputs, intervals)
    exact = results(dense, [x.double() for x in inputs], intervals)
    for name, ours, same, truth in zip(("out", "sums", "dq", "dk", "dv"), found, plain, exact, strict=True):
        is_empty = truth.isneginf()
        assert torch.equal(ours.isneginf(), is_empty), name
        ours, same, truth = (x.masked_fill(is_empty, 0.0).double() for x in (ours, same, truth))
        allowed = 2 * (same - truth).abs().max() + 2e-6 * truth.abs().max().clamp(min=1.0)
        assert (ours - truth).abs().max() <= allowed, f"{name}: {(ours - truth).abs().max():.1e} > {allowed:.1e}"


documents = st.lists(st.tuples(st.sampled_from(RULES), st.integers(0, 50)), min_size=1, max_size=6)
documents = documents.filter(lambda parts: 0 < sum(rows for _, rows in parts) <= 80)


@given(documents)
@settings(max_examples=10)
def test_kernels_compute_attention_of_any_documents(parts: list[tuple[str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONEFLOW_KERNELS", "triton")
        check(inputs_of(sum(rows for _, rows in parts)), intervals_of(parts))


@given(documents)
@settings(max_examples=30)
def test_the_definition_is_attention_of_any_documents(parts: list[tuple[str, int]]) -> None:
    """In float64, where only a wrong formula is off."""
    intervals = intervals_of(parts)
    inputs = [x.double() for x in inputs_of(sum(rows for _, rows in parts), 4, 2, 5)]
    found, exact = results(attention, inputs, intervals), results(dense_attention, inputs, intervals)
    torch.testing.assert_close(found, exact, rtol=0.0, atol=1e-12)


def cumulate(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


@given(st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70)), min_size=1, max_size=50), st.integers(1, 70))
@settings(max_examples=10)
def test_keys_may_be_of_other_rows(ends: list[tuple[int, int]], num_keys: int) -> None:
    """Any intervals, in which there are rows without keys and keys without rows."""
    pairs = torch.tensor(ends, dtype=torch.int32).clamp(max=num_keys).sort(dim=1).values.sort(dim=0).values
    intervals = key_intervals(*(bound.contiguous() for bound in pairs.unbind(1)), num_keys)
    inputs = inputs_of(len(ends), num_keys=num_keys)
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("triton", "reference"):
            patch.setenv("ONEFLOW_KERNELS", variable)
            check(inputs, intervals)


@pytest.mark.parametrize(
    ("rows", "keys"),
    [((20, 0, 1, 30, 5), (50, 9, 40, 30, 0)), ((1, 1, 1), (70, 3, 33)), ((60, 7), (10, 7)), ((3, 4, 0), (80, 0, 0))],
)
def test_rows_attend_to_the_kept_keys_of_their_sequence(
    rows: tuple[int, ...], keys: tuple[int, ...], backend: str
) -> None:
    """Of many tiles, or few; also where a sequence has no row or no key."""
    intervals = cached_intervals(cumulate(rows), cumulate(keys), sum(rows), sum(keys))
    check(inputs_of(sum(rows), 4, 2, 16, torch.bfloat16, sum(keys)), intervals)


def test_rows_attend_to_what_is_before_the_end_of_their_block(backend: str) -> None:
    blocks, of_sequence = (20, 1, 33, 2, 7, 30), (54, 39)
    row_end = cumulate(blocks)[1:].repeat_interleave(torch.tensor(blocks))
    check(inputs_of(93, 4, 2), block_intervals(cumulate(of_sequence), row_end))


MIXED = [("document", 37), ("causal", 30), ("prefix", 13)]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dtype"),
    [(2, 2, torch.bfloat16), (4, 2, torch.float16), (4, 1, torch.float32), (8, 1, torch.bfloat16)],
)
def test_any_number_of_query_heads_shares_a_key_head(
    heads: int, kv_heads: int, dtype: torch.dtype, backend: str
) -> None:
    parts = MIXED if heads < 8 else MIXED[:1]
    check(inputs_of(sum(rows for _, rows in parts), heads, kv_heads, 16, dtype), intervals_of(parts))


@pytest.mark.parametrize("width", [1, 6, 32, 64, 80, 128])
def test_heads_of_any_width(width: int, triton: None) -> None:
    check(inputs_of(40, 1, 1, width, torch.bfloat16), intervals_of([("causal", 25), ("document", 15)]))


def test_one_document_of_many_tiles(triton: None) -> None:
    check(inputs_of(160, 1, 1), intervals_of([("document", 160)]))
    check(inputs_of(129, 1, 1), intervals_of([("causal", 129)]))


def test_many_documents_of_1_to_64_rows(triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In tiles of a size that is shipped."""
    for kernel in ("forward", "key gradient", "query gradient"):
        place = f"attention {kernel}, 4 bytes, narrow heads", -1
        monkeypatch.setitem(chosen, place, Launch({"BLOCK_M": 64, "BLOCK_N": 64}, 4, 1))
    lengths = torch.randint(1, 65, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    intervals = intervals_of([("document", rows) for rows in lengths])
    check(inputs_of(sum(lengths), 1, 1), intervals, dense_attention_of_documents(lengths))


@pytest.mark.parametrize("image", [8, 33])
def test_images_at_both_ends_of_a_document(image: int, triton: None) -> None:
    """Text between them, and a document of nothing but an image."""
    row_image = torch.tensor([0] * image + [3] * 10 + [1] * image + [2] * 5)
    cu_seqlens = torch.tensor([0, 2 * image + 10, len(row_image)], dtype=torch.int32)
    check(inputs_of(len(row_image)), transfusion_intervals(cu_seqlens, row_image, 3))


@pytest.mark.parametrize("num_keys", [40, 3, 0])
def test_rows_without_keys_have_zeros_no_sum_and_no_gradient(num_keys: int, backend: str) -> None:
    nothing = torch.zeros(40, dtype=torch.int32)
    intervals = intervals_of([("nothing", 40)]) if num_keys == 40 else key_intervals(nothing, nothing, num_keys)
    out, sums, *gradients = results(attention, inputs_of(40, num_keys=num_keys), intervals)
    assert (out == 0.0).all()
    assert sums.isneginf().all()
    assert all((gradient == 0.0).all() for gradient in gradients)


def test_two_runs_give_the_same_bits(backend: str) -> None:
    inputs, intervals = inputs_of(50, 2, 1, 16, torch.bfloat16), intervals_of([("causal", 20), ("document", 30)])
    runs = [results(attention, inputs, intervals) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_no_row_sees_another_document(triton: None) -> None:
    """The others' outputs and gradients are the same to the bit, though they share tiles."""
    inputs, intervals = inputs_of(80), intervals_of(MIXED)
    changed = [x.clone() for x in inputs]
    for x in changed[:3]:
        x[37:67] += 1.0
    before, after = (results(attention, x, intervals) for x in (inputs, changed))
    others = torch.tensor([*range(37), *range(67, 80)])
    for name, a, b in zip(("out", "sums", "dq", "dk", "dv"), before, after, strict=True):
        rows = (a.T, b.T) if name == "sums" else (a, b)
        assert torch.equal(rows[0][others], rows[1][others]), name
        assert not torch.equal(*rows), name


def test_views_give_what_their_copies_give(triton: None) -> None:
    """As of one projection for query, key and value, and as a sum's backward hands a gradient of stride 0."""
    both, intervals = torch.randn(20, 2, 48), intervals_of([("document", 20)])
    views = [x.requires_grad_() for x in both.split(16, dim=-1)]
    copies = [x.detach().clone().requires_grad_() for x in views]
    outs = [interval_attention(*rows, intervals, 20) for rows in (views, copies)]
    assert torch.equal(*outs)
    gradients = [torch.autograd.grad(out.sum(), rows) for out, rows in zip(outs, (views, copies), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_gradients_of_the_output_and_of_the_sums_add_up(backend: str) -> None:
    *rows, grad, grad_sums = inputs_of(20)
    rows, intervals = [row.requires_grad_() for row in rows], intervals_of([("causal", 20)])
    out, sums = attention(*rows, intervals)
    parts = [torch.autograd.grad(x, rows[:2], up, retain_graph=True) for x, up in ((out, grad), (sums, grad_sums))]
    both = torch.autograd.grad((out, sums), rows[:2], (grad, grad_sums))
    torch.testing.assert_close([a + b for a, b in zip(*parts, strict=True)], list(both), rtol=0.0, atol=1e-5)


def test_large_scores_neither_overflow_nor_vanish(triton: None) -> None:
    inputs = inputs_of(40, dtype=torch.bfloat16)
    inputs[0] *= 300.0
    check(inputs, intervals_of([("causal", 40)]))


@pytest.mark.parametrize("num_keys", [8, 11])
def test_operators_keep_what_torch_asks_of_an_operator(num_keys: int, backend: str) -> None:
    """Among it: inputs are not changed, fake results have the shapes, dtypes and strides of real ones."""
    dtype = torch.float32 if backend == "triton" else torch.float64
    *rows, grad, grad_sums = (x.to(dtype) for x in inputs_of(8, 2, 1, 16, num_keys=num_keys))
    start, end, *_ = intervals_of([("causal", 5), ("document", 3)])
    intervals = key_intervals(start, end, num_keys)
    operators = torch.ops.oneflow
    out, sums = operators.interval_attention(*rows, *intervals, 5)
    for of_sums in (grad_sums, None):
        saved = (grad, of_sums, out, sums, *rows, *intervals, 5)
        torch.library.opcheck(operators.interval_attention_backward.default, saved)
    torch.library.opcheck(
        operators.interval_attention.default, (*(row.requires_grad_() for row in rows), *intervals, 5)
    )


def compiled_and_eager(backend: str, rows: list[Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Both ways, with one, two and three documents; on a rank of its own, whose shapes nothing checks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONEFLOW_KERNELS", backend)
        patch.setattr(torch._dynamo.config, "error_on_recompile", True)

        def step(*arguments: Tensor) -> tuple[Tensor, Tensor]:
            *rows, cu_seqlens = arguments
            return attention(*rows, document_intervals(cu_seqlens, 8))

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")  # the graph, without its code
        layouts = [torch.tensor(ends, dtype=torch.int32) for ends in ([0, 8, 8, 8], [0, 5, 8, 8], [0, 1, 2, 8])]
        return [(results(compiled, rows, ends), results(step, rows, ends)) for ends in layouts]


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_one_compiled_graph_serves_any_number_of_documents(backend: str, launcher: Launcher) -> None:
    (found,) = launcher.call(1, compiled_and_eager, backend, inputs_of(8))
    assert len(found) == 3
    for compiled, eager in found:
        torch.testing.assert_close(compiled, eager, rtol=0.0, atol=1e-6)


def test_flops_are_those_of_rows_that_all_see_as_many_keys() -> None:
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        rows = [torch.zeros(8, heads, 6, requires_grad=True) for heads in (4, 2, 2)]
        out = interval_attention(*rows, KeyIntervals(*torch.zeros(4, 8, dtype=torch.int32)), 5)
        forward = counter.get_total_flops()
        torch.autograd.grad(out.sum(), rows)
    assert forward == 4 * 8 * 5 * 4 * 6
    assert counter.get_total_flops() == 3.5 * forward


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, "query has 4 heads, not a multiple of key's 3"),
        (
            {"dtype": torch.float16},
            "query is torch.float16, key torch.float32 and value torch.float32; cast them to one",
        ),
        ({"num_rows": 9}, "intervals are of 8 rows, but query has 9"),
        ({"num_keys": 9}, "intervals are of 8 keys, but key has 9"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    query, key, value, *_ = inputs_of(**({"num_rows": 8, "heads": 4, "kv_heads": 2} | change))
    key, value = key.float(), value.float()
    with pytest.raises(ValueError) as error:
        interval_attention(query, key, value, intervals_of([("document", 8)]), 8)
    assert Message(error.value) == message
