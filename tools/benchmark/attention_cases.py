"""Attention over packed documents: ours, torch's varlen, FlexAttention, and FlashAttention 4 and 3 where installed."""

# Shapes: T rows, h query heads, g key and value heads, d head width, S documents.

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from oneflow_dist.containers import PackedBatch
from oneflow_kernels import reference_attention
from oneflow_kernels.flash_attention import INTERFACES, flash_attention, functions_of
from oneflow_kernels.interval_attention import interval_attention
from oneflow_kernels.key_intervals import KeyIntervals, causal_intervals, document_intervals, transfusion_intervals
from tools.benchmark.contest import Call, Case, Inputs, Outputs

SEVEN = (677, 1024, 1531, 2048, 3134, 3970, 4000)  # rows of documents, 16,384 together


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A packed sequence and its heads."""

    name: str
    documents: tuple[int, ...]  # rows of each
    rule: str = "document"  # or "causal", or "transfusion"
    heads: tuple[int, int] = (32, 8)  # of queries; of keys and values
    width: int = 128
    room: int = 0  # documents that cu_seqlens has room for; those beyond `documents` are empty

    @property
    def longest(self) -> int:
        """At least the longest document, as the packer rounds it where there is room for more."""
        longest = max(self.documents)
        return 1 << (longest - 1).bit_length() if self.room else longest

    @property
    def pairs(self) -> int:
        """Of a row and a row that it sees; a Transfusion's image blocks count as causal, which they nearly are."""
        whole = sum(rows * rows for rows in self.documents)
        return whole if self.rule == "document" else (whole + sum(self.documents)) // 2


def attention_cases(device: torch.device, scale: int) -> Iterator[Case]:
    """All of them; on a CPU documents are `scale` times shorter."""
    seven = tuple(rows // scale for rows in SEVEN)
    for shape in (
        Shape(name="7 documents", documents=seven),
        Shape(name="7 documents, Transfusion", documents=seven, rule="transfusion"),
        Shape(name="7 documents, causal", documents=seven, rule="causal"),
        Shape(name="1 document", documents=(16384 // scale,)),
    ):
        yield attention_case(shape, device)


def packed_case(batch: PackedBatch, heads: tuple[int, int], width: int, device: torch.device) -> Case:
    """The documents of a pack, as the model attends to them."""
    lengths = batch.cu_seqlens.diff().tolist()
    documents = tuple(rows for rows in lengths if rows)
    shape = Shape(name="real pack", documents=documents, heads=heads, width=width, room=len(lengths))
    return attention_case(shape, device)


def attention_case(shape: Shape, device: torch.device) -> Case:
    """One shape, with gradients."""
    makers: dict[str, Callable[[Shape, Inputs], Call]] = {
        "ours": make_ours,
        "torch varlen": make_varlen,
        "FlexAttention": make_flex,
    }
    makers |= {name: functools.partial(make_flash, interface=name) for name in INTERFACES if functions_of(name)}
    if shape.rule == "transfusion":  # the others know whole documents and causal ones
        makers = {name: makers[name] for name in ("ours", "FlexAttention")}

    def prepare(make: Callable[[Shape, Inputs], Call], inputs: Inputs) -> Call:
        return with_backward(make(shape, inputs), inputs)

    return Case(
        name=f"attention, {shape.name}, forward and backward",
        make_inputs=lambda seed: make_inputs(shape, device, seed),
        contenders={name: functools.partial(prepare, make) for name, make in makers.items()},
        flops=3.5 * 4 * shape.width * shape.heads[0] * shape.pairs,
        outputs=("out", "dquery", "dkey", "dvalue"),
        parts=lambda outputs: [output[: shape.documents[0]] for output in outputs],
        truth=lambda inputs: first_document_in_float64(shape, inputs),
    )


def make_inputs(shape: Shape, device: torch.device, seed: int) -> Inputs:
    """Query, key, value, the gradient of the output, and the ends of documents."""
    generator = torch.Generator(device).manual_seed(seed)
    rows, (h, g) = sum(shape.documents), shape.heads
    query, key, value, grad = (
        torch.randn(rows, heads, shape.width, device=device, dtype=torch.bfloat16, generator=generator)
        for heads in (h, g, g, h)
    )
    empty = [0] * (shape.room - len(shape.documents))
    ends = torch.tensor([0, *shape.documents, *empty], device=device).cumsum(0, dtype=torch.int32)
    return *(x.requires_grad_() for x in (query, key, value)), grad, ends


def image_of_row(shape: Shape, device: torch.device) -> Int64[Tensor, "T"]:
    """Every other quarter of a document is an image."""
    num_images, images = 2 * len(shape.documents), []
    for number, rows in enumerate(shape.documents):
        quarter = rows // 4
        sizes = torch.tensor([quarter, quarter, quarter, rows - 3 * quarter])
        images.append(torch.tensor([num_images, 2 * number, num_images, 2 * number + 1]).repeat_interleave(sizes))
    return torch.cat(images).to(device)


def intervals_of(shape: Shape, ends: Int32[Tensor, "S1"]) -> KeyIntervals:
    """What each row sees."""
    if shape.rule == "transfusion":
        return transfusion_intervals(ends, image_of_row(shape, ends.device), 2 * len(shape.documents))
    return (causal_intervals if shape.rule == "causal" else document_intervals)(ends, sum(shape.documents))


def make_ours(shape: Shape, inputs: Inputs) -> Call:
    """Triton, from intervals that are made once for all layers."""
    query, key, value, _, ends = inputs
    intervals = intervals_of(shape, ends)
    return lambda: [interval_attention(query, key, value, intervals, shape.longest)]


def make_varlen(shape: Shape, inputs: Inputs) -> Call:
    """FlashAttention in torch, which shares keys between the heads of a group; later than 2.11 it is to be told."""
    from torch.nn.attention.varlen import varlen_attn

    query, key, value, _, ends = inputs
    longest = shape.longest
    options: dict[str, Any] = {"window_size": (-1, 0) if shape.rule == "causal" else (-1, -1)}
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        options["enable_gqa"] = True

    def call() -> Outputs:
        out = varlen_attn(query, key, value, ends, ends, longest, longest, **options)
        assert isinstance(out, Tensor), "varlen_attn returns a tuple only if asked for auxiliary outputs"
        return [out]

    return call


def make_flash(shape: Shape, inputs: Inputs, interface: str) -> Call:
    """FlashAttention 4 or 3, as the model calls it."""
    query, key, value, _, ends = inputs
    settings = ends, shape.longest, shape.rule == "causal", interface
    return lambda: [flash_attention(query, key, value, *settings)]


def make_flex(shape: Shape, inputs: Inputs) -> Call:
    """FlexAttention, compiled, with a block mask made before, once for all layers of a batch, as intervals are."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    query, key, value, _, ends = inputs
    rows, intervals = sum(shape.documents), intervals_of(shape, ends)
    attend = torch.compile(flex_attention, dynamic=False)
    mask = torch.compile(create_block_mask, dynamic=False)(
        lambda batch, head, row, other: (intervals.start[row] <= other) & (other < intervals.end[row]),
        *(None, None, rows, rows),
        device=str(query.device),
    )

    def call() -> Outputs:
        q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
        return [attend(q, k, v, block_mask=mask, enable_gqa=True)[0].transpose(0, 1)]

    return call


def first_document_in_float64(shape: Shape, inputs: Inputs) -> list[Tensor]:
    """Its output and gradients, which no other document changes, a head at a time."""
    rows, (num_heads, num_groups) = shape.documents[0], shape.heads
    query, key, value, grad = (x[:rows].detach() for x in inputs[:4])
    intervals = KeyIntervals(*(x[:rows] for x in intervals_of(shape, inputs[4])))
    out, *gradients = (torch.zeros_like(x, dtype=torch.float64) for x in (query, query, key, value))
    for head in range(num_heads):
        group = head * num_groups // num_heads
        q, slope = (x[:, head, None].double() for x in (query, grad))
        k, v = (x[:, group, None].double() for x in (key, value))
        result, logsumexp = reference_attention.interval_attention(q, k, v, intervals)
        out[:, head, None] = result
        parts = reference_attention.interval_attention_backward(slope, None, result, logsumexp, q, k, v, intervals)
        for gradient, part, index in zip(gradients, parts, (head, group, group), strict=True):
            gradient[:, index, None] += part
    return [out, *gradients]


def with_backward(call: Call, inputs: Inputs) -> Call:
    """The output and the gradients of query, key and value."""
    query, key, value, grad, _ = inputs

    def both() -> Outputs:
        (out,) = call()
        return [out.detach(), *torch.autograd.grad(out, (query, key, value), grad)]

    return both
