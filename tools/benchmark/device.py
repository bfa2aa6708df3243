"""What the device itself can do: copies, and the products of which the models' steps are made."""

# Shapes: a product is m x k times k x n.

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from oneflow_dist.config import Config
from oneflow_kernels.bag_operations import product_
from tools.benchmark.link import in_a_line
from tools.benchmark.report import LARGE_PRODUCT
from tools.benchmark.schedule import Line
from tools.benchmark.timing import milliseconds_of

DTYPES = (torch.bfloat16, torch.float32)
Work = Callable[[], object]
SLOTS = 2048  # whose logits exist at a time in the bag loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """Sizes, and how the operands lie: "n" as they are written, "t" as the transpose of what is in memory."""

    name: str
    m: int
    k: int
    n: int
    layout: str = "nt"  # of rows and a linear layer's weight

    def operands(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Random ones in bfloat16."""
        return _lying(self.layout[0], self.m, self.k, device), _lying(self.layout[1], self.k, self.n, device)


def device_rates(device: torch.device, models: dict[str, Config]) -> Iterator[Line]:
    """A rate each; what the device refuses has its error in place of one.

    Args:
        models: whose products, by name.
    """
    is_gpu = device.type == "cuda"
    copied, size = (2**30, 8192) if is_gpu else (2**24, 1024)
    yield rate("copy", functools.partial(copying, copied, device), device, num_bytes=2 * copied)
    for dtype in DTYPES:
        make = functools.partial(multiplying, size, dtype, device)
        yield rate(f"{LARGE_PRODUCT}, {_name(dtype)}", make, device, flops=2 * size**3)
    for model, config in models.items():
        for product, dtype, is_added in itertools.product(products(config), DTYPES, (False, True)):
            name = f"{model} {product.name}, {_name(dtype)} out{', added' * is_added}"
            make = functools.partial(summing, product, dtype, is_added, device)
            yield rate(name, make, device, flops=2 * product.m * product.k * product.n)


def rate(name: str, make: Callable[[], Work], device: torch.device, flops: int = 0, num_bytes: int = 0) -> Line:
    """One line."""
    try:
        ms = milliseconds_of(make(), device)
    except Exception as error:  # noqa: BLE001  whatever one of them dies of, the others are measured
        return {"name": name, "failed": in_a_line(error)}
    rates = {"tflops": flops / ms / 1e9} if flops else {"gb_per_second": num_bytes / ms / 1e6}
    return {"name": name, "ms": ms, **rates}


def products(config: Config) -> Iterator[Product]:
    """Those of a step's forward pass, and all three of the bag loss."""
    model, rows = config.model, config.data.rows_per_pack
    width, mlp, vocab = model.width, model.mlp_width, model.vocab_size
    kv = width * model.num_kv_heads // model.num_attention_heads
    layers = {
        "query or attention out": (width, width),
        "key or value": (width, kv),
        "query, key and value": (width, width + 2 * kv),
        "gate or up": (width, mlp),
        "gate and up": (width, 2 * mlp),
        "down": (mlp, width),
    }
    for name, (k, n) in layers.items():
        yield Product(name=name, m=rows, k=k, n=n)
    slots = min(SLOTS, rows)
    yield Product(name="logits", m=slots, k=width, n=vocab)
    yield Product(name="gradient of slots", m=slots, k=vocab, n=width, layout="nn")
    yield Product(name="gradient of the unembedding", m=vocab, k=slots, n=width, layout="tn")


def copying(num_bytes: int, device: torch.device) -> Work:
    """From memory to memory."""
    source, target = (torch.randint(255, (num_bytes,), dtype=torch.uint8, device=device) for _ in range(2))
    return lambda: target.copy_(source)


def multiplying(size: int, dtype: torch.dtype, device: torch.device) -> Work:
    """A large product: what no step of a model exceeds on this device."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return lambda: a @ b


def summing(product: Product, dtype: torch.dtype, is_added: bool, device: torch.device) -> Work:
    """A product written into memory of a dtype, or added to what is there, by the call that the bag loss makes."""
    a, b = product.operands(device)
    out = torch.zeros(product.m, product.n, device=device, dtype=dtype)
    return lambda: product_(out, a, b, is_added)


def _lying(way: str, rows: int, columns: int, device: torch.device) -> Tensor:
    size = (rows, columns) if way == "n" else (columns, rows)
    values = torch.randn(size, device=device, dtype=torch.bfloat16)
    return values if way == "n" else values.T


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
