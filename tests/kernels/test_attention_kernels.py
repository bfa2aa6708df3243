"""What is listed to be compiled for every GPU; the numbers are those of `test_interval_attention`."""

from __future__ import annotations

from oneflow_kernels import attention_kernels


def test_every_kernel_is_listed_with_all_its_arguments() -> None:
    variants = list(attention_kernels.variants())
    kernels = {name for name, value in vars(attention_kernels).items() if name.endswith("_kernel")}
    assert {variant.kernel.__name__ for variant in variants} == kernels
    assert len(kernels) == 4
    for variant in variants:
        assert list(variant.signature) == variant.kernel.arg_names, variant.name
        constants = {name for name, kind in variant.signature.items() if kind == "constexpr"}
        assert constants == {*variant.constants, *variant.launch.tiles}, variant.name
