from __future__ import annotations

import pytest
import torch

from oneflow_kernels import fused_logits_kernels as kernels
from oneflow_kernels.fused_logits import logsumexp_of_logits
from tests.kernels.bags import poison

TARGETS = {"cuda:80", "cuda:90", "cuda:100", "hip:gfx942"}


@pytest.mark.parametrize("launches", [kernels.LOGSUMEXP, kernels.BEST_TOKEN], ids=["logsumexp", "best token"])
def test_every_gpu_has_one_launch_for_each_size_of_element(launches: kernels.Launches) -> None:
    for num_bytes in (2, 4):
        targets = [target for own in launches[num_bytes] for target in own]
        assert sorted(targets) == sorted(TARGETS)


def test_tiles_of_noise_hold_whole_counters() -> None:
    for launches in kernels.BEST_TOKEN.values():
        assert all(launch.tiles["BLOCK_N"] % 4 == 0 for launch in launches.values())


def test_every_tile_is_computed_whatever_tiles_share_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tiles of rows, in groups of which the last is smaller."""
    monkeypatch.setenv("ONEFLOW_KERNELS", "triton")
    poison(monkeypatch)
    hidden, weight = torch.randn(300, 8), torch.randn(150, 8)
    expected = (hidden @ weight.T).logsumexp(-1)
    for group in (1, 2, 3, 16):
        monkeypatch.setattr(kernels, "GROUP", group)
        torch.testing.assert_close(logsumexp_of_logits(hidden, weight, 0.0), expected)
