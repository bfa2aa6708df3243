"""Numbers and speed of the kernels, and what the device itself can do."""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np
import torch

from oneflow_dist.measuring.timing import peak_gib, reset_peak, time_calls
from oneflow_dist.model.philox import normal_values
from oneflow_kernels import reference, reference_bag
from oneflow_kernels.bag_cross_entropy import bag_cross_entropy
from oneflow_kernels.packed_attention import packed_attention

DOCUMENTS = (677, 1024, 1531, 2048, 3134, 3970, 4000)  # rows of the documents of the attention measurement


def measure_kernels(device: torch.device) -> dict[str, Any]:
    """All of this file; on a CPU the same program runs on small shapes."""
    scale = 1 if device.type == "cuda" else 64
    return {
        "matmul_tflops": matmul_rate(device, 8192 if device.type == "cuda" else 1024),
        "attention_error": attention_error(device),
        "bag_error": bag_error(device),
        "first_values": measure_first_values(device, 8192 // scale),
        "attention_ms": time_attention(device, [rows // scale for rows in DOCUMENTS]),
        "bag_ms": time_bag(device, slots=16384 // scale, width=4096 // scale, vocab=128256 // scale),
    }


def attention_error(device: torch.device) -> dict[str, float]:
    """Largest error against float64, of the function that runs here and of the same formula in the same dtype."""
    generator = torch.Generator().manual_seed(0)
    cu_seqlens = torch.tensor([0, 1, 64, 64, 165, 400], dtype=torch.int32, device=device)
    shapes = ((400, 8, 64), (400, 2, 64), (400, 2, 64))
    q, k, v = (torch.randn(shape, generator=generator).bfloat16().to(device) for shape in shapes)
    errors: dict[str, float] = {}
    for is_causal, suffix in ((False, ""), (True, "_causal")):
        truth = reference.packed_attention(q.double(), k.double(), v.double(), cu_seqlens, is_causal)
        ours = packed_attention(q, k, v, cu_seqlens, 235, is_causal)
        same = reference.packed_attention(q, k, v, cu_seqlens, is_causal)
        errors |= {f"ours{suffix}": _max_error(ours, truth), f"reference_bf16{suffix}": _max_error(same, truth)}
    return errors


def bag_error(device: torch.device) -> dict[str, float]:
    """Largest error of the bag loss against float64."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 128, generator=generator).to(device)
    weight = torch.randn(1000, 128, generator=generator).to(device) * 0.1
    tokens = torch.randint(0, 1000, (700,), generator=generator).to(device)
    slots = torch.randint(0, 300, (700,), generator=generator).sort().values.to(device)
    truth, _ = reference_bag.bag_cross_entropy(hidden.double(), weight.double(), tokens, slots)
    _, nll = bag_cross_entropy(hidden, weight, tokens, slots, torch.ones(700, device=device), 300)
    return {"ours": _max_error(nll, truth)}


def measure_first_values(device: torch.device, size: int) -> dict[str, Any]:
    """Milliseconds to draw size x size first weights, and whether a corner of them has the bits of a CPU."""
    places = torch.arange(size, device=device)
    corner = torch.arange(size - 64, size)
    drawn = normal_values(0, "first values", places, places)
    is_same = torch.equal(drawn[-64:, -64:].cpu(), normal_values(0, "first values", corner, corner))
    milliseconds = median(time_calls(lambda: normal_values(0, "first values", places, places), device))
    return {"milliseconds": milliseconds, "is_same_as_on_cpu": is_same}


def matmul_rate(device: torch.device, size: int) -> float:
    """TFLOP/s of a large product: what no step of a model exceeds on this device.

    So it is the best of all calls, as others that use the device too may slow most of them, and of the two dtypes that
    a step has: CPUs often multiply float32 faster than bfloat16. A small product would tell how long a call takes.
    """
    times = []
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        times += time_calls(lambda a=a, b=b: a @ b, device)  # type: ignore[misc]
    return 2 * size**3 / min(times) / 1e9


def time_attention(device: torch.device, documents: list[int]) -> dict[str, float]:
    """Milliseconds of attention over packed documents, 32 heads of 128, and its rate with the backward pass."""
    rows = sum(documents)
    cu_seqlens = torch.tensor([0, *np.cumsum(documents)], dtype=torch.int32, device=device)
    q, k, v = (
        torch.randn(rows, heads, 128, device=device, dtype=torch.bfloat16, requires_grad=True) for heads in (32, 8, 8)
    )
    grad = torch.randn(rows, 32, 128, device=device, dtype=torch.bfloat16)

    def forward() -> torch.Tensor:
        return packed_attention(q, k, v, cu_seqlens, max(documents))

    both = median(time_calls(lambda: torch.autograd.grad(forward(), (q, k, v), grad), device))
    flops = 3.5 * 4 * 128 * 32 * sum(n * n for n in documents)
    return {"forward": median(time_calls(forward, device)), "forward_backward": both, "tflops": flops / both / 1e9}


def time_bag(device: torch.device, slots: int, width: int, vocab: int) -> dict[str, float | None]:
    """Milliseconds and peak memory of the bag loss with its gradients; half the slots have one missing token."""
    hidden = torch.randn(slots, width, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(vocab, width, device=device) * 0.02).bfloat16().requires_grad_()
    bag_slot = torch.arange(0, slots, 2, device=device)
    bag_tokens = torch.randint(0, vocab, (len(bag_slot),), device=device)
    bags = bag_tokens, bag_slot, torch.ones(len(bag_slot), device=device), len(bag_slot)

    def both() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(bag_cross_entropy(hidden, weight, *bags)[0], (hidden, weight))

    before = reset_peak(device)
    both()
    peak = peak_gib(device)
    own = None if peak is None else peak - before
    return {"forward_backward": median(time_calls(both, device)), "peak_gib": own}


def _max_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    return float((value.double() - truth).abs().max())
