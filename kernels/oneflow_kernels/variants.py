"""Every kernel in every form that is shipped, to be compiled for GPUs that need not be there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from oneflow_kernels import bag_operations_kernels as bag
from oneflow_kernels import fused_logits_kernels as fused
from oneflow_kernels import interval_attention_kernels as attention
from oneflow_kernels.launches import CPU, Launch, Launches

NUM_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
SHAPES = [(dtype, width) for dtype in NUM_BYTES for width in (64, 128)]  # of attention
SHAPES += [("bf16", 32), ("bf16", 96)]  # the last is padded to 128

# Types of arguments, as Triton writes them; a tensor that is not named has the dtype of the form.
ATTENTION = {
    **dict.fromkeys(("num_rows", "num_keys", "num_heads", "group"), "i32"),
    **dict.fromkeys(("logsumexp", "delta", "grad_logsumexp"), "*fp32"),
    **dict.fromkeys(("key_start", "key_end", "query_start", "query_end"), "*i32"),
    "scale": "fp32",
}
VOCABULARY = {
    **dict.fromkeys(("logits", "lse", "base", "shrink", "mass", "target", "bag_weight", "out", "best"), "*fp32"),
    **dict.fromkeys(("bag_tokens", "bag_slot", "row", "starts", "noise_key", "best_token"), "*i64"),
    **dict.fromkeys(("width", "stride", "hidden_stride", "weight_stride"), "i32:16"),
    **dict.fromkeys(("num_rows", "num_pairs", "vocab", "first_token", "limit"), "i32"),
    "inverse_temperature": "fp32",
}


class Variant(NamedTuple):
    """A kernel as it is shipped, with all that its compilation depends on."""

    name: str  # such as "attention forward, bf16, width 128"
    kernel: object  # the triton.jit function
    signature: dict[str, str]  # every argument in order: "*bf16", "i32", "i32:16" (a multiple of 16), "constexpr"
    constants: dict[str, object]  # of the constexpr arguments, tiles among them
    launch: Launch
    targets: tuple[str, ...]  # where it runs


def all_variants() -> list[Variant]:
    """One for each launch of a kernel, for each dtype and form."""
    return [*_attention(), *_bags(), *_fused_logits()]


def _attention() -> Iterator[Variant]:
    """Of widths between powers of two only one."""
    tables = (
        (attention.attention_forward, attention.FORWARD),
        (attention.attention_key_gradient, attention.KEY_GRADIENT),
        (attention.attention_query_gradient, attention.QUERY_GRADIENT),
    )
    for dtype, width in SHAPES:
        rules, form = {"WIDTH": width, "PADDED": attention.padded_width(width)}, f"width {width}"
        for kernel, table in tables:
            launches = attention.launches_of(table, NUM_BYTES[dtype], width)
            yield from describe(kernel, launches, rules, ATTENTION, dtype, form)
        delta = rules | {"HAS_GRAD": True}
        yield from describe(attention.attention_delta, attention.DELTA, delta, ATTENTION, dtype, form)


def _bags() -> Iterator[Variant]:
    """The vocabulary of a part may be odd."""
    for dtype, reach in zip(("fp32", "bf16", "fp16"), bag.REACH.values(), strict=True):
        for size, form in (("i32:16", ""), ("i32", "odd vocabulary")):
            types = VOCABULARY | dict.fromkeys(("vocab", "stride", "probs_stride"), size)
            yield from describe(bag.bag_softmax, bag.SOFTMAX, {"REACH": reach}, types, dtype, form)
            yield from describe(bag.bag_shrink, bag.SHRINK, {}, types, dtype, form)
            yield from describe(bag.bag_one_hot, bag.ONE_HOT, {}, types, dtype, form)
        yield from describe(bag.bag_logits, bag.LOGITS, {}, VOCABULARY, dtype)


def _fused_logits() -> Iterator[Variant]:
    """Widths that are no multiple of a tile's are the same code with a mask."""
    rules = {"IS_EVEN": True, "GROUP": fused.GROUP}
    for dtype, num_bytes in NUM_BYTES.items():
        yield from describe(fused.logsumexp, fused.LOGSUMEXP[num_bytes], rules, VOCABULARY, dtype)
        yield from describe(fused.best_token, fused.BEST_TOKEN[num_bytes], rules, VOCABULARY, dtype)


def describe(
    kernel: Any, launches: Launches, rules: Mapping[str, object], types: Mapping[str, str], dtype: str, form: str = ""
) -> list[Variant]:
    """The variants of a kernel for one dtype, one for each launch.

    Args:
        rules: the constexpr arguments that are no sizes of tiles.
        types: of the arguments that are neither constexpr nor tensors of that dtype.
        dtype: as Triton writes it, such as "bf16".
        form: what else its name tells.
    """
    features = [name.removeprefix("IS_").removeprefix("HAS_").lower() for name, value in rules.items() if value is True]
    name = ", ".join([kernel.__name__.replace("_", " "), dtype, *features, *([form] if form else [])])
    variants: dict[str, Variant] = {}
    for target, ways in launches.ways.items():
        for launch in ways if target != CPU[0] else []:
            constants = {**launch.tiles, **rules}
            signature = {
                arg: "constexpr" if arg in constants else types.get(arg, f"*{dtype}") for arg in kernel.arg_names
            }
            known = variants.get(str(launch))
            targets = (target,) if known is None else (*known.targets, target)
            variants[str(launch)] = Variant(name, kernel, signature, constants, launch, targets)
    return list(variants.values())
