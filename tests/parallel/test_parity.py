"""Every layout of ranks computes what one process computes: losses, gradient norms and every gradient."""

from __future__ import annotations

import fcntl
import functools
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch._functorch.config as functorch_config
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.fx import GraphModule

from oneflow_dist.config import Config, load_config, write_config
from oneflow_dist.containers import Losses, PackedBatch
from oneflow_dist.data.packing import silence
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.muon import make_optimizer
from oneflow_dist.optim import MovingAverage
from oneflow_dist.parallel.mesh import data_rank, make_mesh
from oneflow_dist.training import agree, build_model, compute_gradients, update_weights
from tests.launching import Launcher, shared_folder
from tests.modalities import SOUND, UNET, VISION
from tests.parallel.packs import SOUNDS_ALONE, add_noise, make_packs, make_samples


class Variant(NamedTuple):
    """How a rank computes a step."""

    packs: int  # microbatches
    checkpointing: str
    compile: bool = False
    steps: int = 2


LONG = Variant(1, "none", steps=8)
EAGER = [*(Variant(packs, mode) for packs in (1, 4) for mode in ("selective", "full")), Variant(4, "none")]
COMPILED = {mode: Variant(4, mode, compile=True) for mode in ("selective", "full", "none")}


class Layout(NamedTuple):
    """Ranks, what [parallel] says of them, and what they compute.

    One process computes every variant, and every axis both modes of checkpointing. What is compiled for shards and
    replicas is what one process has compiled; for tensor ranks it is selective checkpointing, which of all modes leaves
    the most to the compiler. Compiled steps come first: what a process has computed before changes some graphs, which
    others then cannot load. A graph costs 16 s, a rank that loads it 3 s.
    """

    num_ranks: int
    overrides: list[str]
    variants: list[Variant]


SELECTIVE, FULL = Variant(4, "selective"), Variant(4, "full")
LAYOUTS = {
    "one process": Layout(1, [], [*COMPILED.values(), *EAGER]),
    "tensor 2": Layout(2, ["parallel.tensor=2"], [COMPILED["selective"], LONG, FULL]),
    "replicate 2, shard 2": Layout(4, ["parallel.replicate=2"], [COMPILED["selective"], LONG, SELECTIVE]),
    "shard 2, tensor 2": Layout(4, ["parallel.tensor=2"], [LONG, SELECTIVE]),
    "replicate 2, tensor 2": Layout(4, ["parallel.replicate=2", "parallel.tensor=2"], [LONG, FULL]),
    "tensor 4": Layout(4, ["parallel.tensor=4"], [LONG, SELECTIVE]),
    "shard 4": Layout(4, [], [LONG, FULL]),
    "shard 2": Layout(2, [], [COMPILED["full"], COMPILED["none"], LONG, SELECTIVE]),
    "shard 3, uneven": Layout(3, [], [Variant(2, "none"), Variant(2, "full")]),
    "context 2": Layout(2, ["parallel.context=2"], [COMPILED["selective"], LONG, FULL]),
    "context 4": Layout(4, ["parallel.context=4"], [LONG, SELECTIVE]),
    "shard 2, context 2": Layout(4, ["parallel.context=2"], [LONG, SELECTIVE]),
    "replicate 2, context 2": Layout(4, ["parallel.replicate=2", "parallel.context=2"], [LONG, FULL]),
    "context 2, tensor 2": Layout(
        4, ["parallel.context=2", "parallel.tensor=2"], [COMPILED["selective"], LONG, SELECTIVE]
    ),
}


# Prompts that see themselves alone, finished blocks among them; some products with a Lora and some moved by Muon,
# queries and keys normed, frozen parts, a part that learns slowly.
FROZEN = '{names = ["embed*", "adapters.sound.*", "blocks.1.mlp.gate_up*"], frozen = true}'
SLOW = '{names = ["heads.*"], lr_factor = 0.5, decay_factor = 0.0}'
ADAPTED = [
    *("lora.rank=4", 'lora.products=["attention.qkv", "mlp.down"]', "model.qk_norm=true", "optim.matrices=muon"),
    *(f"optim.group=[{FROZEN}, {SLOW}]", "model.prompt_sees=prompt"),
]
ADAPTED_LAYOUTS = [
    "tensor 2",
    "replicate 2, shard 2",
    "shard 2, tensor 2",
    "shard 4",
    "context 4",
    "context 2, tensor 2",
]

# The same trunk with other objectives: rows that see their past and the rest of their piece; no zero and rate heads.
# Two key heads, so that four ranks of a context group share each with another.
BASELINES = [
    [f"objective.kind={kind}", "heads.time_conditioning=none", "model.num_kv_heads=2"]
    for kind in ("autoregressive", "masked")
]

NUM_SAMPLES = {"mixed": 4, "text alone": 4, "images alone": 4, SOUNDS_ALONE: 2, "nothing to learn": 2}

# What a few steps have computed: losses and norms of every step, gradients of the first, weights after the last and how
# far those have moved. It is no class of this file, since the ranks that send it do not import this file.
Steps = SimpleNamespace


def deal_packs(config: Config, mesh: DeviceMesh, model: OneFlow, num_packs: int) -> list[PackedBatch]:
    """Sixteen samples of all kinds, dealt out to the data ranks in order, and those of a rank to its packs.

    Three ranks have four packs of two each that they compute, as the loader deals them out: the rest are silent. They
    go kind by kind, so that packs of neighbours lack what a kind lacks. One graph serves packs of any number of
    samples: all are padded to the same sizes, and all name the same bound of their sequences.
    """
    samples = [sample for kind, count in NUM_SAMPLES.items() for sample in make_samples(kind, count, config)]
    rank, size = data_rank(mesh, config.parallel.context)
    num_parts = max(n for n in range(1, size * num_packs + 1) if len(samples) % n == 0)
    own = len(samples) // num_parts
    numbers = range(rank * num_packs, (rank + 1) * num_packs) if num_parts % size == 0 else range(rank, num_parts, size)
    batches = make_packs([samples[number * own : (number + 1) * own] for number in numbers], config, model)
    batches += [silence(batches[0])] * (num_packs - len(batches))
    return [replace(batch, max_seqlen=config.data.rows_per_pack) for batch in batches]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def run_steps(config: Config, mesh: DeviceMesh, num_packs: int, num_steps: int) -> Steps:
    """Steps as `train_step` makes them."""
    model = build_model(config, mesh, torch.device("cpu"))
    add_noise(model)
    optimizer, ema = make_optimizer(model, config), MovingAverage(model, config.optim.ema_decay)
    batches = deal_packs(config, mesh, model, num_packs)
    losses, norms, gradients, before = [], [], {}, {}
    are_compared = num_steps == LONG.steps  # the weights, when they have gone a long way
    if are_compared:
        before = {name: whole(parameter) for name, parameter in model.named_parameters()}
    for step in range(1, num_steps + 1):
        _, sums = compute_gradients(model, batches, agree(batches)[0], config)
        if step == 1:
            gradients = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
        *totals, norm = sums
        losses.append(torch.stack(totals))
        norms.append(float(norm))
        update_weights(model, optimizer, ema, sums, torch.zeros(()), step, config)
    weights, moved = {}, {}
    if are_compared:
        weights = {name: whole(parameter) for name, parameter in model.named_parameters()}
        moved = {name: (weight - before[name]).norm() for name, weight in weights.items()}
    return Steps(losses=losses, norms=norms, gradients=gradients, weights=weights, moved=moved)


def run_variants(config_path: str, overrides: list[str], variants: list[Variant], compiled: str) -> list[Steps]:
    """The steps of every variant, one after the other on the same ranks; what they compile is shared in `compiled`."""
    config = load_config(config_path, overrides)
    mesh = make_mesh(config, dist.get_world_size(), "cpu")
    share_compiled(Path(compiled), config)
    found = []
    for variant in variants:
        own = [
            f"train.activation_checkpointing={variant.checkpointing}",
            f"train.compile={str(variant.compile).lower()}",
        ]
        found.append(run_steps(load_config(config_path, [*overrides, *own]), mesh, variant.packs, variant.steps))
    return found


def share_compiled(folder: Path, config: Config) -> None:
    """Let one rank compile a graph, forward and backward, and all others, of other layouts too, load it from `folder`.

    Whoever asks inductor for a graph waits while another compiles for axes of the same sizes. By then the graph
    is there, if it was the same.
    """
    from torch._inductor.compile_fx import compile_fx  # takes a second that pytest itself need not spend

    def compile_alone(graph: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        with (folder / f"{config.parallel.context}-{config.parallel.tensor}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return compile_fx(graph, inputs)

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    functorch_config.autograd_cache_allow_custom_autograd_functions = True  # those of the tensor axis
    functorch_config.force_non_lazy_backward_lowering = True  # a graph is kept when its backward is compiled too
    nn.Module.compile = functools.partialmethod(nn.Module.compile, backend=compile_alone)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An empty folder for compiled graphs."""
    folder = shared_folder(tmp_path_factory) / "compiled"
    folder.mkdir(exist_ok=True)
    return str(folder)


@pytest.fixture(scope="module")
def config_path(make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Heads and pieces that know the time, through all that there is between patches and rows: images by a U-Net and in
    modulated blocks, sounds by two layers with their time added, features. Packs of all samples, that four tensor ranks
    can share.

    AdamW divides a gradient by its own size: one that is nothing but the rounding of large sums becomes a step of size
    lr, to the one side on one machine and to the other on another. With eps near the size of the gradients (clipped,
    they are 4e-3) and 1e4 times their rounding, a step is as exact as they are, and every machine makes the same.
    """
    sizes = {"rows_per_pack": 256, "tokens_per_pack": 160, "bag_tokens_per_pack": 64}
    sizes |= {"sequences_per_pack": 24, "max_sample_rows": 64}
    sounds = (*SOUND, "modality.sound.adapter=two_layer", "modality.sound.adapter_width=20")
    path = tmp_path_factory.mktemp("parity") / "config.toml"
    config = make_config(
        *("modality.image.per_pack=16", *UNET, *sounds, *VISION),
        *("heads.time_conditioning=adaln", "optim.warmup_steps=1"),
        *("model.num_attention_heads=8", "model.num_kv_heads=4", "optim.lr=1e-3", "optim.eps=1e-3"),
        *(f"data.{key}={size}" for key, size in sizes.items()),
    )
    path.write_text(write_config(config))
    return str(path)


@pytest.fixture(scope="module")
def alone(launcher: Launcher, config_path: str, compiled: str) -> Steps:
    """Eight steps of one process on one pack that holds all samples."""
    ((found,),) = launcher.call(1, run_variants, config_path, [], [LONG], compiled)
    return found


def assert_same(found: Steps, expected: Steps, rtol: float = 1e-5) -> None:
    """Losses and norms to `rtol`, gradients to `rtol` of what they are sums of, weights to what follows for them."""
    for step, (losses, norm) in enumerate(zip(found.losses, found.norms, strict=True)):
        torch.testing.assert_close(losses, expected.losses[step], rtol=rtol, atol=0.0)
        assert norm == pytest.approx(expected.norms[step], rel=rtol)
    assert found.gradients.keys() == expected.gradients.keys()
    # A gradient that is the small rest of large sums, as that of a bias, cannot be more exact than those.
    sizes = {name: float(gradient.norm()) for name, gradient in expected.gradients.items()}
    relative = {name: max(rtol, 1e-2 * rtol * math.hypot(*sizes.values()) / size) for name, size in sizes.items()}
    for name, gradient in found.gradients.items():
        error = (gradient - expected.gradients[name]).norm()
        assert error <= relative[name] * sizes[name], f"{name}: error {error:.2e} of {sizes[name]:.2e}"
    for name, weight in found.weights.items():
        # Each step is as exact as its gradient, and rounds the weight that it has moved.
        rounding = len(found.losses) * torch.finfo(torch.float32).eps / 2 * expected.weights[name].norm()
        bound = relative.get(name, 0.0) * expected.moved[name] + rounding  # what is frozen has no gradient
        error = (weight - expected.weights[name]).norm()
        assert error <= bound, f"{name}: off by {error:.2e} after a way of {expected.moved[name]:.2e}"


def test_every_parameter_has_a_gradient_in_one_process(alone: Steps) -> None:
    assert alone.gradients.keys() == alone.weights.keys()
    assert all(gradient.norm() > 0.0 for gradient in alone.gradients.values())
    first = Losses.unstack(alone.losses[0]).named(("image", "sound", "vision"))
    assert first.pop("velocity_vision") == 0.0
    assert all(0.01 < loss < 20.0 for loss in first.values())
    assert alone.losses[-1][-1] < 0.95 * alone.losses[0][-1]  # eight steps that learn


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_computes_what_one_process_does_in_one_pack(
    launcher: Launcher, config_path: str, compiled: str, alone: Steps, layout: str
) -> None:
    num_ranks, overrides, variants = LAYOUTS[layout]
    for found in launcher.call(num_ranks, run_variants, config_path, overrides, variants, compiled):
        for steps in found:
            assert_same(steps, alone)


@pytest.fixture(scope="module")
def adapted_alone(launcher: Launcher, config_path: str, compiled: str) -> Steps:
    """As `alone`, of a model that is partly frozen."""
    ((found,),) = launcher.call(1, run_variants, config_path, ADAPTED, [LONG], compiled)
    return found


def test_what_is_frozen_has_no_gradient_and_stays(adapted_alone: Steps) -> None:
    frozen = adapted_alone.weights.keys() - adapted_alone.gradients.keys()
    assert {name for name, way in adapted_alone.moved.items() if way == 0.0} == frozen
    assert "blocks.1.mlp.gate_up.weight" in frozen
    assert "blocks.0.mlp.gate_up.weight" not in frozen
    assert {name.rpartition(".lora.")[0] for name in adapted_alone.gradients if ".lora." in name} == {
        name.removesuffix(".weight") for name in frozen if name.endswith(("qkv.weight", "down.weight"))
    }


@pytest.mark.parametrize("layout", ADAPTED_LAYOUTS)
def test_every_layout_trains_a_part_as_one_process_does(
    launcher: Launcher, config_path: str, compiled: str, adapted_alone: Steps, layout: str
) -> None:
    num_ranks, overrides, _ = LAYOUTS[layout]
    variants = [LONG, Variant(4, "selective")] if num_ranks == 4 else [LONG]
    for found in launcher.call(num_ranks, run_variants, config_path, [*overrides, *ADAPTED], variants, compiled):
        for steps in found:
            assert_same(steps, adapted_alone)


@pytest.mark.parametrize("objective", BASELINES, ids=lambda objective: objective[0].rpartition("=")[2])
def test_every_layout_trains_the_baselines_as_one_process_does(
    launcher: Launcher, config_path: str, compiled: str, objective: list[str]
) -> None:
    ((alone,),) = launcher.call(1, run_variants, config_path, objective, [LONG], compiled)
    assert not any(name.startswith(("heads.zero", "heads.rate")) for name in alone.gradients)
    for layout in ("shard 2", "tensor 2", "shard 2, tensor 2", "context 2", "context 4"):
        num_ranks, overrides, _ = LAYOUTS[layout]
        own = [*overrides, *objective]
        for found in launcher.call(num_ranks, run_variants, config_path, own, [LONG, FULL], compiled):
            for steps in found:
                assert_same(steps, alone)
