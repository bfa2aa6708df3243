from __future__ import annotations

from typing import Any

import pytest

from oneflow_kernels import bag_operations_kernels, fused_logits_kernels, interval_attention_kernels
from oneflow_kernels.launches import ALL, NEW, OLD, Launch, Launches, on
from oneflow_kernels.variants import all_variants, describe

FIRST, SECOND = Launch({"BLOCK": 64}, 4, 2), Launch({"BLOCK": 128}, 8, 3)


def test_every_kernel_is_listed_in_every_dtype_with_all_its_arguments() -> None:
    variants = all_variants()
    listed = {(variant.kernel.__name__, variant.name.split(", ")[1]) for variant in variants}
    modules = (interval_attention_kernels, bag_operations_kernels, fused_logits_kernels)
    kernels = {
        name
        for module in modules
        for name, value in vars(module).items()
        if hasattr(value, "arg_names") and value.fn.__module__ == module.__name__ and name[0] != "_"
    }
    assert listed == {(name, dtype) for name in kernels for dtype in ("bf16", "fp16", "fp32")}
    for variant in variants:
        assert list(variant.signature) == variant.kernel.arg_names
        constants = {name for name, kind in variant.signature.items() if kind == "constexpr"}
        assert constants == set(variant.constants) == {name for name in variant.kernel.arg_names if name.isupper()}


@pytest.mark.parametrize("target", ALL)
def test_every_form_is_listed_once_for_a_target(target: str) -> None:
    names = [(variant.name, str(variant.launch)) for variant in all_variants() if target in variant.targets]
    assert len(set(names)) == len(names) > 0


def test_one_form_of_a_kernel_is_compiled_once_for_each_launch() -> None:
    def total(x: Any, y: Any, n: Any, IS_MEAN: Any, BLOCK: Any) -> None: ...  # noqa: N803

    total.arg_names = ["x", "y", "n", "IS_MEAN", "BLOCK"]  # type: ignore[attr-defined]
    types = {"y": "*fp32", "n": "i32"}
    launches = Launches("sum", on(NEW, FIRST, SECOND) | on(OLD, SECOND))
    first, second = describe(total, launches, {"IS_MEAN": True}, types, "bf16", "odd")
    assert first.name == second.name == "total, bf16, mean, odd"
    assert (first.launch, first.targets) == (FIRST, NEW)
    assert (second.launch, second.targets) == (SECOND, NEW + OLD)
    assert second.constants == {"IS_MEAN": True, "BLOCK": 128}
    assert second.signature == {"x": "*bf16", "y": "*fp32", "n": "i32", "IS_MEAN": "constexpr", "BLOCK": "constexpr"}
