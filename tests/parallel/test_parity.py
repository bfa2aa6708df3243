"""Every layout of ranks computes what one process computes: losses, gradient norms and every gradient."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor

from oneflow_dist.config import Config, load_config, write_config
from oneflow_dist.containers import Capacity, Losses, NoisySample, PackedBatch
from oneflow_dist.data.lanes import capacity_of
from oneflow_dist.data.packing import pack
from oneflow_dist.optim import clip_gradients, make_optimizer
from oneflow_dist.parallel.mesh import data_place, make_mesh, tensor_axis
from oneflow_dist.parallel.sharding import share_batch
from oneflow_dist.train import build_model, forward_backward, global_counts, sum_over_ranks
from tests.launching import Launcher

KINDS = ("mixed", "text alone", "images alone", "nothing to learn")
# Ranks, overrides, and what compiles: "aot_eager" is all of torch.compile but its C++, which takes four ranks a minute.
LAYOUTS = {
    "shard 2": (2, (), "inductor"),
    "shard 4": (4, (), "aot_eager"),
    "replicate 2, shard 2": (4, ("parallel.replicate=2",), "aot_eager"),
    "tensor 2": (2, ("parallel.tensor=2",), "inductor"),
    "tensor 4": (4, ("parallel.tensor=4",), "aot_eager"),
    "shard 2, tensor 2": (4, ("parallel.tensor=2",), "inductor"),
    "replicate 2, tensor 2": (4, ("parallel.replicate=2", "parallel.tensor=2"), "aot_eager"),
}


class Way(NamedTuple):
    """How a rank computes a step."""

    packs: int  # microbatches
    checkpointing: str
    compile: bool = False
    steps: int = 2


TWENTY_STEPS = Way(1, "none", steps=20)
MORE = [(1, "selective"), (1, "full"), (4, "none"), (4, "selective"), (4, "full")]
EAGER = [TWENTY_STEPS, *(Way(packs, mode) for packs, mode in MORE)]
COMPILED = [Way(1, "none", compile=True), Way(4, "none", compile=True), Way(4, "full", compile=True)]


# What a few steps have computed: losses and norms of every step, gradients of the first, weights after the last. It is
# no class of this file, since the ranks that send it do not import this file.
Steps = SimpleNamespace


def make_samples(config: Config) -> list[NoisySample]:
    """Sixteen noisy samples, four of each kind, kind by kind, so that packs of neighbours lack what a kind lacks."""
    return [make_sample(kind, number, config) for kind in KINDS for number in range(4)]


def make_sample(kind: str, number: int, config: Config) -> NoisySample:
    """ "text alone" has no images, "images alone" no bag tokens and no open slots."""
    rng = np.random.default_rng([KINDS.index(kind), number])
    num_images = {"text alone": 0, "images alone": 2}.get(kind, 1)
    num_bag_tokens = {"images alone": 0, "nothing to learn": 0}.get(kind, 4 + number)
    tokens = rng.integers(256, size=6 + num_images)
    grid = np.array([(1, 3), (2, 2)])[:num_images]
    shape = (grid.prod(axis=1).sum(), config.image.patch_elements)
    return NoisySample(
        key=f"{kind} {number}",
        tokens=tokens,
        is_open=np.full(len(tokens), kind in ("mixed", "text alone")),
        image_at=np.arange(num_images, dtype=np.int64) * 2 + 1,
        bag_tokens=rng.integers(256, size=num_bag_tokens),
        bag_slot=np.sort(rng.integers(len(tokens), size=num_bag_tokens)),
        patches=rng.standard_normal(shape, dtype=np.float32),
        velocity=rng.standard_normal(shape, dtype=np.float32),
        grid=grid,
        image_time=rng.random(num_images),
        image_is_scored=np.full(num_images, kind != "nothing to learn"),
        text_time=float(rng.random()),
    )


def make_packs(config: Config, mesh: DeviceMesh, num_packs: int) -> list[PackedBatch]:
    """The samples dealt out to the data ranks in order, and those of a rank to its packs."""
    samples, (rank, size) = make_samples(config), data_place(mesh)
    own = len(samples) // (size * num_packs)
    capacity = capacity_of(config)
    room = Capacity(**{f.name: getattr(capacity, f.name) * own for f in dataclasses.fields(capacity)})
    first = rank * num_packs * own
    parts = [samples[first + number * own : first + (number + 1) * own] for number in range(num_packs)]
    return [share_batch(pack(part, room), tensor_axis(mesh)) for part in parts]


@torch.no_grad()
def add_noise(model: nn.Module) -> None:
    """The same on all layouts; without it the heads are silent, and some parameters have no gradient."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = 0.1 * torch.randn(parameter.shape, generator=generator)
        if isinstance(parameter, DTensor):
            noise = distribute_tensor(noise, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter += noise


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def run_steps(config: Config, num_packs: int, num_steps: int) -> Steps:
    """Steps as `train_step` makes them."""
    torch._dynamo.reset()
    mesh = make_mesh(config, dist.get_world_size(), "cpu")
    model = build_model(config, mesh, torch.device("cpu"))
    add_noise(model)
    optimizer = make_optimizer(model, config.optim)
    batches = make_packs(config, mesh, num_packs)
    losses, norms, gradients = [], [], {}
    for step in range(num_steps):
        sums = forward_backward(model, batches, global_counts(batches), config)
        if step == 0:
            gradients = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
        values = sum_over_ranks(sums, clip_gradients(model, config.optim.max_grad_norm))
        losses.append(values[:5])
        norms.append(float(values[5]))
        optimizer.step()
        optimizer.zero_grad()
    weights = {name: whole(parameter) for name, parameter in model.named_parameters()}
    return Steps(losses=losses, norms=norms, gradients=gradients, weights=weights)


def run_ways(config_path: str, overrides: list[str], ways: list[Way], backend: str) -> list[Steps]:
    """The steps of every way, one after the other on the same ranks; what is compiled is so by `backend`."""
    nn.Module.compile = functools.partialmethod(nn.Module.compile, backend=backend)
    found = []
    for way in ways:
        own = [f"train.activation_checkpointing={way.checkpointing}", f"train.compile={str(way.compile).lower()}"]
        found.append(run_steps(load_config(config_path, [*overrides, *own]), way.packs, way.steps))
    return found


@pytest.fixture(scope="module")
def config_path(make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Heads and images that know the time in every way; sizes that four tensor ranks can share."""
    sizes = {"rows_per_pack": 128, "tokens_per_pack": 64, "bag_tokens_per_pack": 64, "images_per_pack": 8}
    sizes |= {"sequences_per_pack": 8, "max_sample_rows": 64}
    path = tmp_path_factory.mktemp("parity") / "config.toml"
    config = make_config(
        *("heads.time_conditioning=adaln", "image.time_conditioning=adaln", "optim.warmup_steps=1"),
        *("model.num_attention_heads=8", "model.num_kv_heads=4", "optim.lr=1e-3"),
        *(f"data.{key}={size}" for key, size in sizes.items()),
    )
    path.write_text(write_config(config))
    return str(path)


@pytest.fixture(scope="module")
def alone(launcher: Launcher, config_path: str) -> Steps:
    """Twenty steps of one process on one pack that holds all samples."""
    ((found,),) = launcher.call(1, run_ways, config_path, [], [TWENTY_STEPS], "inductor")
    return found


def assert_same(found: Steps, expected: Steps, rtol: float = 1e-5) -> None:
    for step, (losses, norm) in enumerate(zip(found.losses, found.norms, strict=True)):
        torch.testing.assert_close(losses, expected.losses[step], rtol=rtol, atol=0.0)
        assert norm == pytest.approx(expected.norms[step], rel=rtol)
    assert found.gradients.keys() == expected.gradients.keys()
    for name, gradient in found.gradients.items():
        reference = expected.gradients[name]
        # A gradient that is the small rest of large sums, as that of a bias, cannot be more exact than those.
        bound = max(rtol * reference.norm(), 1e-2 * rtol * expected.norms[0])
        error = (gradient - reference).norm()
        assert error <= bound, f"{name}: error {error:.2e} of {reference.norm():.2e}"
    if len(found.losses) == len(expected.losses):
        for name, weight in found.weights.items():
            error = (weight - expected.weights[name]).norm() / expected.weights[name].norm()
            assert error <= rtol, f"{name}, after {len(found.losses)} steps: relative error {error:.2e}"


def test_every_parameter_has_a_gradient_in_one_process(alone: Steps) -> None:
    assert alone.gradients.keys() == alone.weights.keys()
    assert all(gradient.norm() > 0.0 for gradient in alone.gradients.values())
    assert all(0.01 < loss < 20.0 for loss in Losses.unstack(alone.losses[0]).stack())
    assert alone.losses[-1][-1] < 0.9 * alone.losses[0][-1]  # twenty steps that learn


@pytest.mark.parametrize("ways", [EAGER, COMPILED], ids=["eager", "compiled"])
def test_one_process_computes_the_same_in_every_way(
    launcher: Launcher, config_path: str, alone: Steps, ways: list[Way]
) -> None:
    (found,) = launcher.call(1, run_ways, config_path, [], ways, "inductor")
    for steps in found:
        assert_same(steps, alone)


@pytest.mark.parametrize("ways", [EAGER, COMPILED], ids=["eager", "compiled"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_computes_what_one_process_does(
    launcher: Launcher, config_path: str, alone: Steps, layout: str, ways: list[Way]
) -> None:
    num_ranks, overrides, backend = LAYOUTS[layout]
    for found in launcher.call(num_ranks, run_ways, config_path, list(overrides), ways, backend):
        for steps in found:
            assert_same(steps, alone)
