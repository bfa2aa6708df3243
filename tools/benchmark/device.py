"""What the device itself can do: copies, and the products of which the models' steps are made."""

# Shapes: a product is m x k times k x n.

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import torch

from oneflow_dist.config import Config
from oneflow_kernels.bag_cross_entropy import CHUNK_SLOTS
from oneflow_kernels.bag_operations import product_
from tools.benchmark.link import in_a_line
from tools.benchmark.report import LARGE_PRODUCT, Line
from tools.benchmark.timing import milliseconds_of

DTYPES = (torch.bfloat16, torch.float32)
TERA = 1e12
Work = Callable[[], object]


def device_rates(device: torch.device, models: dict[str, Config]) -> Iterator[Line]:
    """A rate each; what the device refuses has its error in place of one.

    Args:
        models: whose products, by name.
    """
    num_bytes = 2**30 if device.type == "cuda" else 2**24
    yield rate("copy", functools.partial(copying, num_bytes), device, "gb_per_second", 2 * num_bytes / 1e9)
    yield from large_products(device)
    for model, config in models.items():
        for (product, (m, k, n)), dtype in itertools.product(products(config).items(), DTYPES):
            make = functools.partial(multiplying, m, k, n, torch.bfloat16, dtype)
            yield rate(f"{model} {product}, {_name(dtype)} out", make, device, "tflops", 2 * m * k * n / TERA)


def large_products(device: torch.device) -> Iterator[Line]:
    """What no product of a step exceeds on this device, in each dtype."""
    size = 8192 if device.type == "cuda" else 1024
    for dtype in DTYPES:
        make = functools.partial(multiplying, size, size, size, dtype, dtype)
        yield rate(f"{LARGE_PRODUCT}, {_name(dtype)}", make, device, "tflops", 2 * size**3 / TERA)


def rate(name: str, make: Callable[[torch.device], Work], device: torch.device, unit: str, amount: float) -> Line:
    """One line; `amount` is what the work takes, in the unit times a second."""
    try:
        ms = milliseconds_of(make(device), device)
    except Exception as error:  # noqa: BLE001  whatever one of them dies of, the others are measured
        return {"name": name, "failed": in_a_line(error)}
    return {"name": name, "ms": ms, unit: 1e3 * amount / ms}


def products(config: Config) -> dict[str, tuple[int, int, int]]:
    """Sizes m, k and n of those of a step's forward pass, and of all three of the bag loss."""
    model, rows = config.model, config.data.rows_per_pack
    width, mlp, vocab = model.width, model.mlp_width, model.vocab_size
    kv = width * model.num_kv_heads // model.num_attention_heads
    chunk, kept = min(CHUNK_SLOTS, rows), min(width, rows)  # slots that the bag loss multiplies at once
    return {
        "query or attention out": (rows, width, width),
        "key or value": (rows, width, kv),
        "query, key and value": (rows, width, width + 2 * kv),
        "gate or up": (rows, width, mlp),
        "gate and up": (rows, width, 2 * mlp),
        "down": (rows, mlp, width),
        "logits": (chunk, width, vocab),
        "gradient of slots": (kept, vocab, width),
        "gradient of the unembedding": (vocab, kept, width),
    }


def copying(num_bytes: int, device: torch.device) -> Work:
    """From memory to memory."""
    source, target = (torch.randint(255, (num_bytes,), dtype=torch.uint8, device=device) for _ in range(2))
    return lambda: target.copy_(source)


def multiplying(m: int, k: int, n: int, dtype: torch.dtype, out_dtype: torch.dtype, device: torch.device) -> Work:
    """Rows by a linear layer's weight, by the call that the bag loss makes."""
    rows, weight = (torch.randn(size, k, device=device, dtype=dtype) for size in (m, n))
    out = torch.empty(m, n, device=device, dtype=out_dtype)
    return lambda: product_(out, rows, weight.T, False)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
