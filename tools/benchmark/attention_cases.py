"""Attention over packed documents: ours, torch's varlen flash attention, FlexAttention and padded SDPA."""

# Shapes: T rows, h query heads, g key and value heads, d head width, I images.

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

from oneflow_dist.containers import PackedBatch
from oneflow_kernels.interval_attention import interval_attention
from oneflow_kernels.key_intervals import KeyIntervals, causal_intervals, document_intervals, transfusion_intervals
from tools.benchmark.contest import Call, Case, Contender, Inputs, Outputs

SEVEN = (677, 1024, 1531, 2048, 3134, 3970, 4000)  # rows of documents, 16,384 together
BLOCK = 2048  # rows whose scores exist at a time in float64
Rule = str  # "document", "causal" or "transfusion"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A packed sequence and its heads."""

    name: str
    documents: tuple[int, ...]  # rows of each
    rule: Rule
    heads: tuple[int, int] = (32, 8)  # of queries; of keys and values
    width: int = 128
    room: int = 0  # documents that cu_seqlens has room for; those that are not there are empty

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
    shapes = (
        Shape(name="7 documents", documents=seven, rule="document"),
        Shape(name="7 documents, Transfusion", documents=seven, rule="transfusion"),
        Shape(name="7 documents, causal", documents=seven, rule="causal"),
        Shape(name="1 document", documents=(16384 // scale,), rule="document"),
    )
    for shape in shapes:
        yield attention_case(shape, device, is_training=True)


def packed_case(batch: PackedBatch, heads: tuple[int, int], width: int, device: torch.device) -> Case:
    """The documents of a pack, as the model attends to them."""
    lengths = batch.cu_seqlens.diff().tolist()
    documents = tuple(rows for rows in lengths if rows)
    shape = Shape(name="real pack", documents=documents, rule="document", heads=heads, width=width, room=len(lengths))
    return attention_case(shape, device, is_training=True)


def attention_case(shape: Shape, device: torch.device, is_training: bool) -> Case:
    """One shape, forward or forward and backward."""

    def contender(name: str, make: Callable[[Shape, Inputs], Call], is_ours: bool = False) -> Contender:
        def prepare(inputs: Inputs) -> Call:
            return _with_backward(make(shape, inputs), inputs) if is_training else make(shape, inputs)

        return Contender(name=name, prepare=prepare, is_ours=is_ours)

    peers = [
        contender("FlexAttention", make_flex),
        contender("FlexAttention and its mask", make_flex_with_mask),
        contender("SDPA, padded", make_padded),
    ]
    if shape.rule != "transfusion":
        peers.insert(0, contender("torch varlen", make_varlen))
    return Case(
        name=f"attention, {shape.name}, forward{' and backward' * is_training}",
        make_inputs=lambda seed: make_inputs(shape, device, seed),
        contenders=(contender("ours", make_ours, is_ours=True), *peers),
        flops=(3.5 if is_training else 1.0) * 4 * shape.width * shape.heads[0] * shape.pairs,
        outputs=("out", "dquery", "dkey", "dvalue") if is_training else ("out",),
        parts=lambda outputs: [output[: shape.documents[0]] for output in outputs],
        truth=lambda inputs: first_document_in_float64(shape, inputs, is_training),
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
    images, number, num_images = [], 0, 2 * len(shape.documents)
    for rows in shape.documents:
        quarter = rows // 4
        for index, size in enumerate((quarter, quarter, quarter, rows - 3 * quarter)):
            images.append(torch.full((size,), number if index % 2 else num_images, device=device))
            number += index % 2
    return torch.cat(images)


def intervals_of(shape: Shape, ends: Int32[Tensor, "S1"]) -> KeyIntervals:
    """What each row sees."""
    rows = sum(shape.documents)
    if shape.rule == "transfusion":
        return transfusion_intervals(ends, image_of_row(shape, ends.device), 2 * len(shape.documents))
    return (causal_intervals if shape.rule == "causal" else document_intervals)(ends, rows)


def make_ours(shape: Shape, inputs: Inputs) -> Call:
    """Triton, from intervals that are made once for all layers."""
    query, key, value, _, ends = inputs
    intervals = intervals_of(shape, ends)
    return lambda: [interval_attention(query, key, value, intervals, shape.longest)]


def make_varlen(shape: Shape, inputs: Inputs) -> Call:
    """FlashAttention in torch; keys and values are repeated where it knows no groups."""
    from torch.nn.attention.varlen import varlen_attn

    query, key, value, _, ends = inputs
    longest, window = shape.longest, (-1, 0) if shape.rule == "causal" else (-1, -1)
    options: dict[str, Any] = {"window_size": window}
    groups = shape.heads[0] // shape.heads[1]
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        options["enable_gqa"], groups = True, 1

    def call() -> Outputs:
        k, v = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
        out = varlen_attn(query, k, v, ends, ends, longest, longest, **options)
        assert isinstance(out, Tensor), "varlen_attn returns a tuple only if asked for auxiliary outputs"
        return [out]

    return call


def make_flex(shape: Shape, inputs: Inputs, builds_mask: bool = False) -> Call:
    """FlexAttention, compiled, from a block mask that is made once or (`builds_mask`) in each call."""
    from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

    query, key, value, _, ends = inputs
    rows = sum(shape.documents)
    intervals = intervals_of(shape, ends)

    attend = torch.compile(flex_attention, dynamic=False)
    make_mask = torch.compile(create_block_mask, dynamic=False)

    def mask_of_rows() -> BlockMask:
        return make_mask(
            lambda batch, head, row, other: (intervals.start[row] <= other) & (other < intervals.end[row]),
            *(None, None, rows, rows),
            device=str(query.device),
        )

    kept = None if builds_mask else mask_of_rows()

    def call() -> Outputs:
        mask = mask_of_rows() if kept is None else kept
        q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
        return [attend(q, k, v, block_mask=mask, enable_gqa=True)[0].transpose(0, 1)]

    return call


def make_flex_with_mask(shape: Shape, inputs: Inputs) -> Call:
    """FlexAttention as a step needs it whose documents change: with the mask."""
    return make_flex(shape, inputs, builds_mask=True)


def make_padded(shape: Shape, inputs: Inputs) -> Call:
    """SDPA on a batch of documents padded to the longest; the padding is timed, as its rows are computed.

    Keys are repeated: no kernel of SDPA takes both a mask and heads in groups.
    """
    query, key, value, _, ends = inputs
    groups = shape.heads[0] // shape.heads[1]
    size = (len(shape.documents), max(shape.documents))
    place = torch.cat([torch.arange(rows) + i * size[1] for i, rows in enumerate(shape.documents)]).to(query.device)
    mask = padded_mask(shape, intervals_of(shape, ends), place, size)

    def call() -> Outputs:
        q, k, v = (
            x.new_zeros(size[0] * size[1], *x.shape[1:]).index_copy(0, place, x).unflatten(0, size).transpose(1, 2)
            for x in (query, *(x.repeat_interleave(groups, dim=1) for x in (key, value)))
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return [out.transpose(1, 2).flatten(0, 1)[place]]

    return call


def padded_mask(
    shape: Shape, intervals: KeyIntervals, place: Int64[Tensor, "T"], size: tuple[int, int]
) -> Bool[Tensor, "S 1 L L"]:
    """Which row of a padded document sees which; padding sees the first row, so that no softmax is empty."""
    mask = torch.zeros(size[0], 1, size[1], size[1], dtype=torch.bool, device=place.device)
    mask[..., 0] = True
    first = 0
    for index, rows in enumerate(shape.documents):
        other = torch.arange(first, first + rows, device=place.device)
        own = slice(first, first + rows)
        mask[index, 0, :rows, :rows] = (intervals.start[own, None] <= other) & (other < intervals.end[own, None])
        first += rows
    return mask


def first_document_in_float64(shape: Shape, inputs: Inputs, is_training: bool) -> list[Tensor]:
    """Its output and gradients, which no other document changes; of scores those of a few rows of a head at a time."""
    query, key, value, grad, ends = inputs
    rows, groups = shape.documents[0], shape.heads[0] // shape.heads[1]
    intervals = intervals_of(shape, ends)
    results = [
        torch.zeros(rows, *x.shape[1:], dtype=torch.float64, device=x.device) for x in (query, query, key, value)
    ]
    for head in range(shape.heads[0]):
        k, v = (x[:rows, head // groups].detach().double() for x in (key, value))
        for block in torch.arange(rows, device=query.device).split(BLOCK):
            q, slope = (x[block, head].detach().double() for x in (query, grad))
            is_seen = _is_seen(intervals, block, rows)
            out, *gradients = _attention_in_float64(q, k, v, slope, is_seen)
            results[0][block, head] = out
            results[1][block, head] = gradients[0]
            for result, gradient in zip(results[2:], gradients[1:], strict=True):
                result[:, head // groups] += gradient
    return results if is_training else results[:1]


def _is_seen(intervals: KeyIntervals, block: Int64[Tensor, "B"], rows: int) -> Bool[Tensor, "B L"]:
    other = torch.arange(rows, device=block.device)
    return (intervals.start[block, None] <= other) & (other < intervals.end[block, None])


def _attention_in_float64(q: Tensor, k: Tensor, v: Tensor, slope: Tensor, is_seen: Tensor) -> list[Tensor]:
    """Output, and gradients of query, key and value for a slope of the output."""
    scale = q.shape[1] ** -0.5
    probs = (q @ k.T * scale).masked_fill_(~is_seen, -torch.inf).softmax(-1)
    out = probs @ v
    change = slope @ v.T
    change = change.sub_((slope * out).sum(-1, keepdim=True)).mul_(probs).mul_(scale)
    return [out, change @ k, change.T @ q, probs.T @ slope]


def _with_backward(call: Call, inputs: Inputs) -> Call:
    """The output and the gradients of query, key and value."""
    query, key, value, grad, _ = inputs

    def both() -> Outputs:
        (out,) = call()
        return [out.detach(), *torch.autograd.grad(out, (query, key, value), grad)]

    return both
