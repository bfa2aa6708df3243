from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.debug import CommDebugMode

from oneflow_dist.config import Config, load_config, write_config
from oneflow_dist.containers import PackedBatch
from oneflow_dist.data.packing import pack
from oneflow_dist.data.streams import capacity_of
from oneflow_dist.flow.losses import compute_losses
from oneflow_dist.model.axis import local_part
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.parallel.mesh import data_rank, make_mesh, tensor_axis
from oneflow_dist.parallel.sharding import cut_weights, freeze, sync_gradients, use_float8
from oneflow_dist.training import agree, build_model, compute_gradients
from oneflow_kernels.float8 import float8_linear
from tests.launching import Launcher
from tests.messages import names, naming
from tests.parallel.packs import KINDS, add_noise, make_packs, make_samples

Step = tuple[dict[str, torch.Tensor], torch.Tensor, float]  # gradients, losses, gradient norm


def deal_packs(config: Config, mesh: DeviceMesh, model: OneFlow) -> list[PackedBatch]:
    """The packs of this rank: six samples of each of the four kinds, dealt out to the ranks."""
    rank, size = data_rank(mesh, config.parallel.context)
    return make_packs([make_samples(kind, 6, config) for kind in KINDS[rank::size]], config, model)


def step_on_ranks(config_path: str, overrides: list[str]) -> Step:
    """One step as `train_step` makes it; gradients as whole tensors."""
    config = load_config(config_path, overrides)
    mesh = make_mesh(config, dist.get_world_size(), "cpu")
    model = build_model(config, mesh, torch.device("cpu"))
    add_noise(model)
    batches = deal_packs(config, mesh, model)
    _, sums = compute_gradients(model, batches, agree(batches)[0], config)
    gradients = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        gradients[name] = (gradient.full_tensor() if isinstance(gradient, DTensor) else gradient).clone()
    *total, grad_norm = sums
    return gradients, torch.stack(total), float(grad_norm)


@pytest.fixture(scope="module")
def config_path(make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("sharding") / "config.toml"
    sizes = ("model.width=64", "model.mlp_width=64")  # whose halves have float8 products
    unclipped = "optim.max_grad_norm=1e9"
    path.write_text(write_config(make_config("modality.image.time_conditioning=adaln", unclipped, *sizes)))
    return str(path)


@pytest.fixture(scope="module")
def expected(launcher: Launcher, config_path: str) -> Step:
    """One process that accumulates the four packs."""
    (found,) = launcher.call(1, step_on_ranks, config_path, [])
    return found


@pytest.fixture(scope="module")
def sharded_bf16(launcher: Launcher, config_path: str) -> Step:
    """Two ranks in bf16, with no option set."""
    return launcher.call(2, step_on_ranks, config_path, ["train.precision=bf16"])[0]


def errors_of(found: Step, expected: Step) -> dict[str, float]:
    """Of each gradient, relative to its norm; one that is the small rest of large sums, as a bias's, to theirs."""
    assert found[0].keys() == expected[0].keys()
    errors = {}
    for name, reference in expected[0].items():
        scale = max(float(reference.norm()), 0.01 * expected[2])
        errors[name] = float((found[0][name] - reference).norm()) / scale
    return errors


def assert_same_step(found: Step, expected: Step, rtol: float) -> None:
    for name, error in errors_of(found, expected).items():
        assert error <= rtol, f"{name}: relative error {error:.2e}"
    torch.testing.assert_close(found[1], expected[1], rtol=rtol, atol=0.0)
    assert found[2] == pytest.approx(expected[2], rel=rtol)


def test_bf16_gradients_are_near_those_of_fp32_on_any_layout(
    launcher: Launcher,
    config_path: str,
    expected: Step,
    sharded_bf16: Step,
) -> None:
    (alone,) = launcher.call(1, step_on_ranks, config_path, ["train.precision=bf16"])
    cut = launcher.call(2, step_on_ranks, config_path, ["train.precision=bf16", "parallel.tensor=2"])[0]
    for found in (alone, sharded_bf16, cut):
        assert all(gradient.dtype == torch.float32 for gradient in found[0].values())
        errors = errors_of(found, expected)
        assert 1e-3 < float(np.median([*errors.values()])) <= max(errors.values()) < 0.1  # half precision, no more
        torch.testing.assert_close(found[1], expected[1], rtol=0.02, atol=0.0)
    assert_same_step(sharded_bf16, alone, rtol=5e-3)  # only rounding differs


def held(config_path: str, overrides: list[str]) -> tuple[bool, bool, set[torch.dtype], dict[str, int]]:
    """Of the model of a rank: is it sharded, are its parameters, their dtypes, and how much of each is here."""
    config = load_config(config_path, overrides)
    model = build_model(config, make_mesh(config, dist.get_world_size(), "cpu"), torch.device("cpu"))
    parameters = dict(model.named_parameters())
    return (
        isinstance(model, FSDPModule),
        all(isinstance(parameter, DTensor) for parameter in parameters.values()),
        {parameter.dtype for parameter in parameters.values()},
        {name: local_part(parameter).numel() for name, parameter in parameters.items()},
    )


def test_each_of_four_ranks_holds_a_quarter_of_the_weights_in_fp32(launcher: Launcher, config_path: str) -> None:
    ((is_sharded, is_cut, dtypes, whole),) = launcher.call(1, held, config_path, [])
    assert (is_sharded, is_cut, dtypes) == (False, False, {torch.float32})  # nothing to shard, nothing to cast
    total = sum(whole.values())
    for overrides in ([], ["parallel.tensor=2"]):
        ranks = launcher.call(4, held, config_path, ["train.precision=bf16", *overrides])
        assert all(found[:3] == (True, True, {torch.float32}) for found in ranks)
        for name, size in whole.items():
            copies = 2 if overrides and name in uncut() else 1
            assert sum(own[name] for *_, own in ranks) == copies * size, name
        twice = sum(whole[name] for name in uncut()) if overrides else 0
        assert max(sum(own.values()) for *_, own in ranks) < 0.27 * (total + twice)


# What the tensor axis cuts: all that grows with the trunk's products or the vocabulary. The rest is whole on each of
# its ranks; a new weight has to be named here or in sharding.py.
CUT = {"embed.weight": 0, "unembed.weight": 0}
CUT |= {f"blocks.{n}.attention.qkv.weight": 0 for n in range(2)}
CUT |= {f"blocks.{n}.mlp.gate_up.weight": 0 for n in range(2)}
CUT |= {f"blocks.{n}.{name}.weight": 1 for n in range(2) for name in ("attention.out", "mlp.down")}
NORMS = ("adapters.image.norm", "heads.norm")
NORMS += tuple(f"blocks.{n}.{part}_norm" for n in range(2) for part in ("attention", "mlp"))
LAYERS = (
    *(f"adapters.image.{part}" for part in ("embed.last", "velocity.last", "time.hidden", "time.out")),
    *("adapters.image.text_modulation.linear", "text_time.hidden", "text_time.out"),
    *(f"{part}.modulation.linear" for part in ("adapters.image", "heads", "blocks.0", "blocks.1")),
    *("heads.zero", "heads.rate"),
)


def uncut() -> set[str]:
    return {f"{name}.weight" for name in NORMS} | {f"{name}.{kind}" for name in LAYERS for kind in ("weight", "bias")}


def placements(
    config_path: str, overrides: list[str]
) -> dict[str, tuple[int | None, tuple[int, ...], tuple[int, ...]]]:
    """For each parameter the dim that the tensor axis cuts, its whole shape and that of this rank's part."""
    config = load_config(config_path, overrides)
    mesh = make_mesh(config, dist.get_world_size(), "cpu")
    with torch.device("meta"):
        model = OneFlow(config, tensor_axis(mesh))
    cut_weights(model, mesh["tensor"])
    found = {}
    for name, parameter in model.named_parameters():
        (placement,) = parameter.placements
        dim = placement.dim if isinstance(placement, Shard) else None
        found[name] = (dim, tuple(parameter.shape), tuple(local_part(parameter).shape))
    return found


@pytest.mark.parametrize("tied", [False, True])
def test_the_tensor_axis_cuts_products_and_vocabulary_and_no_other_weight(
    tied: bool, launcher: Launcher, config_path: str
) -> None:
    overrides = ["parallel.tensor=2", f"model.tie_embeddings={str(tied).lower()}"]
    for found in launcher.call(2, placements, config_path, overrides):
        expected = dict.fromkeys(uncut()) | {
            name: dim for name, dim in CUT.items() if not tied or name != "unembed.weight"
        }
        assert {name: dim for name, (dim, *_) in found.items()} == expected
        for name, (dim, whole, own) in found.items():
            assert own == tuple(size // 2 if number == dim else size for number, size in enumerate(whole)), name


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_activation_checkpointing_changes_no_bit_of_a_sharded_step(
    mode: str, launcher: Launcher, config_path: str, sharded_bf16: Step
) -> None:
    overrides = ["train.precision=bf16", f"train.activation_checkpointing={mode}"]
    assert_same_step(launcher.call(2, step_on_ranks, config_path, overrides)[0], sharded_bf16, rtol=0.0)


def test_shards_in_host_memory_change_no_bit_of_a_step(
    launcher: Launcher, config_path: str, sharded_bf16: Step
) -> None:
    found = launcher.call(2, step_on_ranks, config_path, ["train.precision=bf16", "optim.offload=true"])[0]
    assert_same_step(found, sharded_bf16, rtol=0.0)


def test_one_rank_in_fp32_computes_the_same_when_its_weights_are_in_host_memory(
    launcher: Launcher, config_path: str, expected: Step
) -> None:
    (found,) = launcher.call(1, step_on_ranks, config_path, ["optim.offload=true"])
    assert_same_step(found, expected, rtol=0.0)


def offload_policies(config_path: str, overrides: list[str]) -> list[str]:
    """How each sharded module keeps its shards, and what is gathered; on the CPU nothing else shows it."""
    config = load_config(config_path, overrides)
    model = build_model(config, make_mesh(config, dist.get_world_size(), "cpu"), torch.device("cpu"))
    states = [module._get_fsdp_state() for module in model.modules() if isinstance(module, FSDPModule)]
    policies = [type(state._fsdp_param_group.offload_policy).__name__ for state in states]
    return [*policies, "whole" if model.is_whole else "freed between uses"]


def test_offload_is_fsdps_own_for_the_blocks_and_the_rest(launcher: Launcher, config_path: str) -> None:
    kept = "freed between uses", "whole"
    for overrides, policy, how in (["optim.offload=true"], "CPUOffloadPolicy", kept[0]), ([], "OffloadPolicy", kept[1]):
        (found,) = launcher.call(1, offload_policies, config_path, ["train.precision=bf16", *overrides])
        assert found == [*[policy] * 3, how]  # two blocks and the root


def test_float8_gradients_are_near_those_of_bf16_on_any_layout(
    launcher: Launcher, config_path: str, sharded_bf16: Step
) -> None:
    (alone,) = launcher.call(1, step_on_ranks, config_path, ["train.precision=float8"])
    sharded = launcher.call(2, step_on_ranks, config_path, ["train.precision=float8"])[0]
    cut = launcher.call(2, step_on_ranks, config_path, ["train.precision=float8", "parallel.tensor=2"])[0]
    for found in (alone, sharded, cut):
        errors = errors_of(found, sharded_bf16)
        assert 0.05 < float(np.median([*errors.values()])) < 0.3
        assert max(errors.values()) < 0.6  # of a trunk 64 wide, whose sums have few terms
        torch.testing.assert_close(found[1], sharded_bf16[1], rtol=2.0**-4, atol=0.0)  # one rounding to float8
    assert_same_step(sharded, alone, rtol=0.1)


def test_float8_takes_the_products_of_the_blocks_and_no_others(config: Config) -> None:
    model = OneFlow(config)
    use_float8(model, "cpu")
    changed = {name for name, module in model.named_modules() if getattr(module, "product", None) is float8_linear}
    layers = {"attention": ("qkv", "out"), "mlp": ("gate_up", "down")}
    assert changed == {f"blocks.{n}.{part}.{name}" for n in range(2) for part in layers for name in layers[part]}


def refusal(config_path: str, overrides: list[str]) -> str:
    config = load_config(config_path, overrides)
    mesh = make_mesh(config, dist.get_world_size(), "cpu")
    with pytest.raises(ValueError) as error:
        build_model(config, mesh, torch.device("cpu"))
    return str(error.value)


def test_float8_asks_its_sizes_of_what_a_rank_has_of_a_layer(launcher: Launcher, config_path: str) -> None:
    overrides = ["train.precision=float8", "parallel.tensor=2", "model.mlp_width=48"]
    for message in launcher.call(2, refusal, config_path, overrides):
        assert names(message, "blocks.0.mlp.down", "64 x 24", "float8")


def test_float8_names_the_layer_whose_sizes_do_not_suit_it(make_config: Callable[..., Config]) -> None:
    model = OneFlow(make_config("model.mlp_width=40"))
    with pytest.raises(ValueError, match=naming("blocks.0.mlp.down", "32 x 40", "float8")):
        use_float8(model, "cpu")


def collectives_of_microbatches(config_path: str, overrides: list[str]) -> list[tuple[int, int]]:
    """How often each of two microbatches reduces gradients over shards, and over replicas."""
    config = load_config(config_path, overrides)
    mesh = make_mesh(config, dist.get_world_size(), "cpu")
    model = build_model(config, mesh, torch.device("cpu"))
    add_noise(model)
    batch = pack(make_samples("mixed", 3, config), capacity_of(config))
    found = []
    for is_last in (False, True):
        with CommDebugMode() as mode:
            sync_gradients(model, is_last)
            compute_losses(model(batch), batch, batch.counts, config).total.backward()
        counts = {str(op): number for op, number in mode.get_comm_counts().items()}
        scattered = sum(number for op, number in counts.items() if "reduce_scatter" in op)
        reduced = sum(number for op, number in counts.items() if "allreduce" in op or "all_reduce" in op)
        found.append((scattered, reduced))
    return found


def test_gradients_are_reduced_over_shards_in_every_microbatch_and_over_replicas_in_the_last(
    launcher: Launcher, config_path: str
) -> None:
    """Two blocks and the rest of the model, each at once."""
    for found in launcher.call(4, collectives_of_microbatches, config_path, ["parallel.replicate=2"]):
        assert found == [(3, 0), (3, 3)]
    for found in launcher.call(2, collectives_of_microbatches, config_path, []):
        assert found == [(3, 0), (3, 0)]


def test_a_model_that_is_not_sharded_has_no_gradients_to_reduce(config: Config) -> None:
    sync_gradients(OneFlow(config), is_last=True)


@pytest.mark.parametrize(
    ("pattern", "named"), [("block.*", ("optim.group", "'block.*'")), ("*", ("optim.group", "frozen"))]
)
def test_groups_that_name_nothing_or_leave_nothing_are_refused(
    make_config: Callable[..., Config], pattern: str, named: tuple[str, ...]
) -> None:
    config = make_config(f'optim.group=[{{names=["{pattern}"], frozen=true}}]')
    with pytest.raises(ValueError, match=naming(*named)):
        freeze(OneFlow(config), config)
