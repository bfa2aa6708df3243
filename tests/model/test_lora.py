from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from oneflow_dist.config import PRODUCTS, Config, LoraConfig, load_config, write_config
from oneflow_dist.data.packing import pack
from oneflow_dist.model.initialization import initialize
from oneflow_dist.model.lora import Lora, draws_of_blocks
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.parallel.mesh import make_mesh
from oneflow_dist.training import agree, build_model, compute_gradients
from tests.launching import Launcher
from tests.parallel.packs import add_noise, make_packs, make_samples

CONFIG = LoraConfig(rank=4, alpha=8.0)
DRAW = torch.tensor(123456789012345)


def make_lora(**changes: float) -> Lora:
    torch.manual_seed(0)
    lora = Lora(24, 16, dataclasses.replace(CONFIG, **changes))
    for parameter in lora.parameters():
        torch.nn.init.normal_(parameter)
    return lora


def test_it_adds_two_thin_products_at_alpha_over_rank() -> None:
    lora, x = make_lora(), torch.randn(10, 24)
    expected = x @ lora.down.T @ lora.up.T * 2.0
    torch.testing.assert_close(lora(x, DRAW), expected)
    torch.testing.assert_close(x @ lora.added(lora.down, lora.up).T, expected)


def test_dropout_keeps_its_share_and_its_mean_and_is_the_same_for_a_draw() -> None:
    lora, x = make_lora(dropout=0.25), torch.randn(5000, 24)
    kept = lora._keep(torch.ones(5000, 4), DRAW)
    assert kept.unique().tolist() == pytest.approx([0.0, 4.0 / 3.0])
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.02)
    assert torch.equal(lora(x, DRAW), lora(x, DRAW))
    assert not torch.equal(lora(x, DRAW), lora(x, DRAW + 1))
    rows = kept.bool()
    together = (rows[:-1] & rows[1:]).float().mean()  # neighbours know nothing of each other
    assert float(together) == pytest.approx(0.75**2, abs=0.02)


def test_nothing_is_dropped_where_no_gradient_is_taken() -> None:
    lora, x = make_lora(dropout=0.25), torch.randn(10, 24)
    with torch.no_grad():
        torch.testing.assert_close(lora(x, DRAW), make_lora()(x, DRAW))


def test_every_product_of_every_block_has_its_own_draw() -> None:
    draws = draws_of_blocks(DRAW, 3)
    assert draws.shape == (3, len(PRODUCTS))
    assert len(draws.unique()) == draws.numel()


@pytest.fixture
def adapted(make_config: Callable[..., Config]) -> Config:
    return make_config("lora.rank=3", "lora.dropout=0.5", 'lora.products=["attention.out", "mlp.gate_up"]')


def test_a_model_starts_as_without_it_and_its_products_stay(
    adapted: Config, make_config: Callable[..., Config]
) -> None:
    batch = pack(make_samples("mixed", 4, adapted), None)
    with torch.no_grad():
        model, plain = OneFlow(adapted), OneFlow(make_config())
        for each in (model, plain):
            initialize(each, 0, adapted.model.num_layers)
        found, expected = model(batch), plain(batch)
    assert torch.equal(found.slot_hidden, expected.slot_hidden)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"blocks.{n}.{product}.weight" for n in (0, 1) for product in ("attention.out", "mlp.gate_up")}
    learnt = {name.rpartition(".lora.")[0] for name, _ in model.named_parameters() if ".lora." in name}
    assert learnt == {name.removesuffix(".weight") for name in frozen}


def gradients(config_path: str, overrides: list[str]) -> dict[str, Tensor]:
    """Of one pack with dropout, on any layout."""
    config = load_config(config_path, overrides)
    mesh = make_mesh(config, dist.get_world_size(), "cpu")
    model = build_model(config, mesh, torch.device("cpu"))
    add_noise(model)
    batches = make_packs([make_samples("mixed", 4, config)], config, model)
    compute_gradients(model, batches, agree(batches)[0], config)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in found.items()}


def test_dropout_is_the_same_where_ranks_share_a_pack_and_when_blocks_are_computed_again(
    launcher: Launcher, make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lora") / "config.toml"
    path.write_text(write_config(make_config("lora.rank=3", "lora.dropout=0.5")))
    (expected,) = launcher.call(1, gradients, str(path), [])
    (again,) = launcher.call(1, gradients, str(path), ["train.activation_checkpointing=full"])
    assert all(torch.equal(again[name], gradient) for name, gradient in expected.items())
    (other,) = launcher.call(1, gradients, str(path), ["lora.dropout=0.0"])
    assert any((other[name] - gradient).norm() > 0.1 * gradient.norm() for name, gradient in expected.items())
    for axis in ("tensor", "context"):
        for found in launcher.call(2, gradients, str(path), [f"parallel.{axis}=2"]):
            for name, gradient in expected.items():
                assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), f"{axis}: {name}"
