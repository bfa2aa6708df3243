from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from oneflow_dist.config import Config, load_config, write_config
from oneflow_dist.containers import Capacity, Losses, NoisySample, PackedBatch
from oneflow_dist.data.lanes import capacity_of
from oneflow_dist.data.packing import pack
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.optim import clip_gradients
from oneflow_dist.parallel.mesh import data_place, make_mesh, tensor_axis
from oneflow_dist.parallel.sharding import share_batch, use_float8
from oneflow_dist.train import build_model, forward_backward, global_counts, sum_over_ranks
from oneflow_kernels.float8 import float8_linear
from tests.launching import Launcher

Gradients = dict[str, torch.Tensor]
KINDS = ("mixed", "text alone", "images alone", "nothing to learn")  # of the four packs of a step


def make_samples(kind: str, config: Config) -> list[NoisySample]:
    """Three noisy samples of one kind. "text alone" has no images, "images alone" no bag tokens and no open slots."""
    samples = []
    for number in range(3):
        rng = np.random.default_rng([KINDS.index(kind), number])
        num_images = {"text alone": 0, "images alone": 2}.get(kind, 1)
        num_bag_tokens = {"images alone": 0, "nothing to learn": 0}.get(kind, 4 + number)
        image_at = np.arange(num_images, dtype=np.int64) * 2 + 1
        tokens = rng.integers(256, size=6 + num_images)
        grid = np.array([(1, 3), (2, 2)])[:num_images]
        shape = (grid.prod(axis=1).sum(), config.image.patch_elements)
        samples.append(
            NoisySample(
                key=f"{kind} {number}",
                tokens=tokens,
                is_open=np.full(len(tokens), kind in ("mixed", "text alone")),
                image_at=image_at,
                bag_tokens=rng.integers(256, size=num_bag_tokens),
                bag_slot=np.sort(rng.integers(len(tokens), size=num_bag_tokens)),
                patches=rng.standard_normal(shape, dtype=np.float32),
                velocity=rng.standard_normal(shape, dtype=np.float32),
                grid=grid,
                image_time=rng.random(num_images),
                image_is_scored=np.full(num_images, kind != "nothing to learn"),
                text_time=float(rng.random()),
            )
        )
    return samples


def make_packs(config: Config, mesh: DeviceMesh, merge: bool) -> list[PackedBatch]:
    """The packs of this rank: the four kinds dealt out to the ranks, or (`merge`) all samples in one pack."""
    capacity = capacity_of(config)
    kinds = [make_samples(kind, config) for kind in KINDS]
    if merge:
        larger = Capacity(**{f.name: 4 * getattr(capacity, f.name) for f in dataclasses.fields(capacity)})
        return [pack([sample for samples in kinds for sample in samples], larger)]
    rank, size = data_place(mesh)
    return [share_batch(pack(samples, capacity), tensor_axis(mesh)) for samples in kinds[rank::size]]


@torch.no_grad()
def add_noise(model: nn.Module) -> None:
    """The same on all layouts; without it the heads are silent, and some parameters have no gradient."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = 0.1 * torch.randn(parameter.shape, generator=generator)
        if isinstance(parameter, DTensor):
            noise = distribute_tensor(noise, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter += noise


def step_on_ranks(config_path: str, overrides: list[str], merge: bool = False) -> tuple[Gradients, torch.Tensor, float]:
    """Gradients as whole tensors, losses and gradient norm of one step as `train_step` makes it."""
    config = load_config(config_path, overrides)
    mesh = make_mesh(config, dist.get_world_size(), "cpu")
    model = build_model(config, mesh, torch.device("cpu"))
    add_noise(model)
    batches = make_packs(config, mesh, merge)
    counts = global_counts(batches)
    losses = forward_backward(model, batches, counts, config)
    gradients = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        gradients[name] = (gradient.full_tensor() if isinstance(gradient, DTensor) else gradient).clone()
    *total, grad_norm, _ = sum_over_ranks(losses, clip_gradients(model, 1.0))
    return gradients, torch.stack(total), float(grad_norm)


@pytest.fixture(scope="module")
def config_path(make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("sharding") / "config.toml"
    path.write_text(write_config(make_config("heads.time_conditioning=adaln", "image.time_conditioning=adaln")))
    return str(path)


@pytest.fixture(scope="module")
def expected(launcher: Launcher, config_path: str) -> tuple[Gradients, torch.Tensor, float]:
    """One process that accumulates the four packs."""
    (found,) = launcher.call(1, step_on_ranks, config_path, [])
    return found


def assert_same_step(
    found: tuple[Gradients, torch.Tensor, float], expected: tuple[Gradients, torch.Tensor, float], rtol: float = 1e-5
) -> None:
    assert found[0].keys() == expected[0].keys()
    for name, gradient in found[0].items():
        reference = expected[0][name]
        error = (gradient - reference).norm() / reference.norm()
        assert error <= rtol, f"{name}: relative error {error:.2e}"
    torch.testing.assert_close(found[1], expected[1], rtol=rtol, atol=0.0)
    assert found[2] == pytest.approx(expected[2], rel=rtol)


def test_every_parameter_has_a_gradient(expected: tuple[Gradients, torch.Tensor, float]) -> None:
    assert all(gradient.norm() > 0.0 for gradient in expected[0].values())
    assert all(0.01 < loss < 20.0 for loss in Losses.unstack(expected[1]).stack())


@pytest.mark.parametrize(
    ("num_ranks", "overrides"),
    [
        pytest.param(2, [], id="two shards, which accumulate two packs each"),
        pytest.param(4, [], id="four shards"),
        pytest.param(4, ["parallel.replicate=2"], id="two replicas of two shards"),
        pytest.param(2, ["parallel.replicate=2"], id="two replicas"),
        pytest.param(2, ["parallel.tensor=2"], id="tensor 2"),
        pytest.param(4, ["parallel.tensor=2"], id="shard 2 tensor 2"),
        pytest.param(1, ["train.compile=true"], id="compiled 1"),
        pytest.param(2, ["parallel.tensor=2", "train.compile=true"], id="compiled tensor 2"),
        pytest.param(4, ["parallel.tensor=2", "train.compile=true"], id="compiled shard 2 tensor 2"),
    ],
)
def test_gradients_and_losses_are_those_of_one_process(
    num_ranks: int,
    overrides: list[str],
    launcher: Launcher,
    config_path: str,
    expected: tuple[Gradients, torch.Tensor, float],
) -> None:
    """Some ranks have no images, some no bag tokens, one nothing to learn at all."""
    for found in launcher.call(num_ranks, step_on_ranks, config_path, overrides):
        assert_same_step(found, expected)


def test_accumulated_gradients_are_those_of_one_pack(
    launcher: Launcher, config_path: str, expected: tuple[Gradients, torch.Tensor, float]
) -> None:
    (found,) = launcher.call(1, step_on_ranks, config_path, [], True)
    assert_same_step(found, expected)


def test_bf16_gradients_are_near_those_of_fp32_on_any_layout(
    launcher: Launcher, config_path: str, expected: tuple[Gradients, torch.Tensor, float]
) -> None:
    (alone,) = launcher.call(1, step_on_ranks, config_path, ["train.precision=bf16"])
    sharded = launcher.call(2, step_on_ranks, config_path, ["train.precision=bf16"])[0]
    for found in (alone, sharded):
        assert all(gradient.dtype == torch.float32 for gradient in found[0].values())
        errors = [float((g - expected[0][name]).norm() / expected[0][name].norm()) for name, g in found[0].items()]
        assert 1e-3 < float(np.median(errors)) <= max(errors) < 0.06  # half precision, but the same gradients
        torch.testing.assert_close(found[1], expected[1], rtol=0.02, atol=0.0)
    assert_same_step(sharded, alone, rtol=5e-3)  # only rounding differs


def kinds_of_parameters(config_path: str, overrides: list[str]) -> tuple[bool, bool, set[torch.dtype], int]:
    config = load_config(config_path, overrides)
    model = build_model(config, make_mesh(config, dist.get_world_size(), "cpu"), torch.device("cpu"))
    parameters = list(model.parameters())
    own = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters)
    return (
        isinstance(model, FSDPModule),
        all(isinstance(parameter, DTensor) for parameter in parameters),
        {parameter.dtype for parameter in parameters},
        own,
    )


def test_each_of_four_ranks_holds_a_quarter_of_the_weights_in_fp32(
    launcher: Launcher, config_path: str, make_config: Callable[..., Config]
) -> None:
    ((is_sharded, is_cut, dtypes, total),) = launcher.call(1, kinds_of_parameters, config_path, [])
    assert (is_sharded, is_cut, dtypes) == (False, False, {torch.float32})  # nothing to shard, nothing to cast
    ranks = launcher.call(4, kinds_of_parameters, config_path, ["train.precision=bf16"])
    assert all(found[:3] == (True, True, {torch.float32}) for found in ranks)
    assert sum(own for *_, own in ranks) == total
    assert max(own for *_, own in ranks) < 0.27 * total


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_activation_checkpointing_changes_no_bit_of_a_sharded_step(
    mode: str, launcher: Launcher, config_path: str, sharded_bf16: tuple[Gradients, torch.Tensor, float]
) -> None:
    overrides = ["train.precision=bf16", f"train.activation_checkpointing={mode}"]
    assert_same_step(launcher.call(2, step_on_ranks, config_path, overrides)[0], sharded_bf16, rtol=0.0)


@pytest.fixture(scope="module")
def sharded_bf16(launcher: Launcher, config_path: str) -> tuple[Gradients, torch.Tensor, float]:
    """Two ranks in bf16, with no option set."""
    return launcher.call(2, step_on_ranks, config_path, ["train.precision=bf16"])[0]


def test_shards_in_host_memory_change_no_bit_of_a_step(
    launcher: Launcher, config_path: str, sharded_bf16: tuple[Gradients, torch.Tensor, float]
) -> None:
    found = launcher.call(2, step_on_ranks, config_path, ["train.precision=bf16", "optim.offload=true"])[0]
    assert_same_step(found, sharded_bf16, rtol=0.0)


def test_one_rank_in_fp32_computes_the_same_when_its_weights_are_in_host_memory(
    launcher: Launcher, config_path: str, expected: tuple[Gradients, torch.Tensor, float]
) -> None:
    (found,) = launcher.call(1, step_on_ranks, config_path, ["optim.offload=true"])
    assert_same_step(found, expected, rtol=0.0)


def offload_policies(config_path: str, overrides: list[str]) -> list[str]:
    """How each sharded module keeps its shards; on the CPU nothing else shows it."""
    config = load_config(config_path, overrides)
    model = build_model(config, make_mesh(config, dist.get_world_size(), "cpu"), torch.device("cpu"))
    states = [module._get_fsdp_state() for module in model.modules() if isinstance(module, FSDPModule)]
    return [type(state._fsdp_param_group.offload_policy).__name__ for state in states]


def test_offload_is_fsdps_own_for_the_blocks_and_the_rest(launcher: Launcher, config_path: str) -> None:
    for overrides, policy in (["optim.offload=true"], "CPUOffloadPolicy"), ([], "OffloadPolicy"):
        (found,) = launcher.call(1, offload_policies, config_path, ["train.precision=bf16", *overrides])
        assert found == [policy] * 3  # two blocks and the root


def test_float8_gradients_are_near_those_of_bf16_on_any_layout(
    launcher: Launcher, config_path: str, sharded_bf16: tuple[Gradients, torch.Tensor, float]
) -> None:
    (alone,) = launcher.call(1, step_on_ranks, config_path, ["train.precision=float8"])
    sharded = launcher.call(2, step_on_ranks, config_path, ["train.precision=float8"])[0]
    reference = sharded_bf16[0]
    for found in (alone, sharded):
        errors = [float((g - reference[name]).norm() / reference[name].norm()) for name, g in found[0].items()]
        assert 0.05 < float(np.median(errors)) < 0.3
        assert max(errors) < 0.5  # of a trunk 32 wide, whose sums have few terms
        torch.testing.assert_close(found[1], sharded_bf16[1], rtol=0.02, atol=0.0)
    assert_same_step(sharded, alone, rtol=0.1)


def test_float8_takes_the_products_of_the_blocks_and_no_others(config: Config) -> None:
    model = OneFlow(config)
    use_float8(model, "cpu")
    changed = {name for name, module in model.named_modules() if getattr(module, "product", None) is float8_linear}
    layers = {"attention": ("query", "key", "value", "out"), "mlp": ("gate", "up", "down")}
    assert changed == {f"blocks.{n}.{part}.{name}" for n in range(2) for part in layers for name in layers[part]}


def test_float8_names_the_layer_whose_sizes_do_not_suit_it(make_config: Callable[..., Config]) -> None:
    model = OneFlow(make_config("model.mlp_width=40"))
    with pytest.raises(ValueError) as error:
        use_float8(model, "cpu")
    assert str(error.value).startswith("blocks.0.mlp.gate: a weight of 40 x 32 cannot be multiplied in float8, ")
