from __future__ import annotations

import pytest
import torch

from oneflow_kernels import fused_logits_kernels as kernels
from oneflow_kernels.fused_logits import logsumexp_of_logits
from oneflow_kernels.launches import ALL
from tests.kernels.bags import poison
from tests.kernels.kernel_checks import assert_variants_are_whole


def test_every_kernel_is_listed_with_all_its_arguments() -> None:
    assert_variants_are_whole(kernels)


def test_tiles_of_noise_hold_whole_counters() -> None:
    for launches in kernels.BEST_TOKEN.values():
        for target in ALL:
            assert all(launch.tiles["BLOCK_N"] % 4 == 0 for launch in launches.on_target(target))


def test_every_tile_is_computed_whatever_tiles_share_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tiles of rows, in groups of which the last is smaller."""
    monkeypatch.setenv("ONEFLOW_KERNELS", "triton")
    poison(monkeypatch)
    hidden, weight = torch.randn(300, 8), torch.randn(150, 8)
    expected = (hidden @ weight.T).logsumexp(-1)
    for group in (1, 2, 3, 16):
        monkeypatch.setattr(kernels, "GROUP", group)
        torch.testing.assert_close(logsumexp_of_logits(hidden, weight), expected)
