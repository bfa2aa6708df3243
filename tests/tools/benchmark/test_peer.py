"""torchtitan's real Llama on a CPU, small."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable

import pytest
import torch

from oneflow_dist.config import Config
from tests.launching import Launcher
from tools.benchmark.peer import UNREACHED, Titan, without_data_packages

CPU = torch.device("cpu")
SMALL = ("data.rows_per_pack=256", "data.tokens_per_pack=256", "model.vocab_size=384", "train.compile=false")


def shapes_of_peer(config: Config) -> tuple[dict[str, tuple[int, ...]], float]:
    titan = Titan(config, 64, True, CPU)
    return {name: tuple(p.shape) for name, p in titan.model.named_parameters()}, titan.flops_per_token


def test_the_peer_has_our_shape_in_its_own_terms(launcher: Launcher, make_config: Callable[..., Config]) -> None:
    ((shapes, flops_per_token),) = launcher.call(1, shapes_of_peer, make_config(*SMALL))
    # width 32, 2 layers, 4 heads of 8, 2 of keys and values, mlp 48
    assert shapes["tok_embeddings.weight"] == shapes["output.weight"] == (384, 32)
    assert shapes["layers.1.attention.wq.weight"] == (32, 32)
    assert shapes["layers.1.attention.wk.weight"] == (16, 32)
    assert shapes["layers.1.feed_forward.w1.weight"] == (48, 32)
    assert not any(name.startswith("layers.2.") for name in shapes)
    weights = sum(torch.Size(shape).numel() for name, shape in shapes.items() if name != "tok_embeddings.weight")
    assert flops_per_token == 6 * weights + 12 * 2 * 32 * 64


def losses_of_peer(config: Config, uses_fsdp: bool) -> list[float]:
    titan = Titan(config, 64, uses_fsdp, CPU)
    tokens = torch.randint(config.model.vocab_size, (4, 65), generator=torch.Generator().manual_seed(0))
    return [titan.step(tokens).item() for _ in range(4)]


@pytest.mark.parametrize("uses_fsdp", [True, False])
@pytest.mark.parametrize("checkpointing", ["none", "selective"])
def test_a_step_of_the_peer_trains_it(
    launcher: Launcher, make_config: Callable[..., Config], checkpointing: str, uses_fsdp: bool
) -> None:
    config = make_config(*SMALL, f"train.activation_checkpointing='{checkpointing}'")
    (losses,) = launcher.call(1, losses_of_peer, config, uses_fsdp)
    assert losses[0] == pytest.approx(torch.tensor(384.0).log().item(), abs=1.0)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.01


def test_packages_that_are_missing_are_stood_in_for_only_while_the_peer_is_imported() -> None:
    missing = [name for name in UNREACHED if importlib.util.find_spec(name) is None]
    with without_data_packages():
        for name in missing:
            assert isinstance(sys.modules[name].anything, type)
    assert not any(name in sys.modules for name in missing)
    assert [name for name in UNREACHED if importlib.util.find_spec(name) is None] == missing
