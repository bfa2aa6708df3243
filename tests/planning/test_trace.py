"""A plan against what real ranks hold, send and compute."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from oneflow_dist.config import Config, load_config, write_config
from oneflow_dist.data.loader import packs_of_rank
from oneflow_dist.guard.guard import Guard
from oneflow_dist.muon import make_optimizer
from oneflow_dist.optim import AdamW, MovingAverage
from oneflow_dist.parallel.dealing import deal_pack
from oneflow_dist.parallel.mesh import data_rank, group_names, make_mesh
from oneflow_dist.planning.estimate import model_flops
from oneflow_dist.planning.events import GATHER, REDUCE, SCATTER, UPDATE, Await, Send
from oneflow_dist.planning.recorder import Recorder
from oneflow_dist.planning.trace import Trace, full_pack, trace_step
from oneflow_dist.stored_tensors import named_leaves
from oneflow_dist.training import build_model, train_step
from tests.launching import Launcher
from tests.messages import naming
from tests.modalities import SOUND, UNET, VISION

CPU = torch.device("cpu")
ADAPTED = [
    "lora.rank=8",
    'lora.products=["attention.qkv", "mlp.gate_up"]',
    'optim.group=[{names=["embed*"], frozen=true}]',
]
Measured = tuple[dict[str, int], dict[tuple[str, str, int], int], int]


@pytest.fixture(scope="module")
def debug(root: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[str, Config]]:
    """configs/debug.toml on the test's digits, as a file and loaded."""

    def make(*overrides: str) -> tuple[str, Config]:
        folder = tmp_path_factory.mktemp("debug")
        data = [f"data.mixture={digits / 'mixture.yaml'}", f"data.tokenizer={digits / 'words.tiktoken'}"]
        own = ["data.workers=0", f"run.folder={folder}", *overrides]
        config = load_config(root / "configs" / "debug.toml", [*data, *own])
        path = folder / "config.toml"
        path.write_text(write_config(config))
        return str(path), config

    return make


def measure(config_path: str) -> Measured:
    """Bytes held, collectives by (kind, axis, bytes), and the groups' own count of them, of a second real step."""
    config = load_config(config_path)
    mesh = make_mesh(config, dist.get_world_size(), "cpu")
    model = build_model(config, mesh, CPU)
    optimizer, ema = make_optimizer(model, config), MovingAverage(model, config.optim.ema_decay)
    num_packs = packs_of_rank(config, data_rank(mesh, config.parallel.context)[1])
    batches = [deal_pack(full_pack(config), model)] * num_packs
    for step in (1, 2):
        before = collectives_so_far()
        with Recorder() as recorder:
            train_step(model, optimizer, ema, batches, step, config, Guard(config))
    held = {
        "parameters": recorder.name("parameters", model.parameters()),
        "optimizer": recorder.name("optimizer", [value for _, value in named_leaves(optimizer.tensors)]),
        "average": recorder.name("average", ema.tensors.values()),
    }
    names = group_names(mesh, model.context)
    collectives = {(c.kind, names[c.group], c.num_bytes): count for c, count in recorder.collectives.items()}
    return held, collectives, collectives_so_far() - before


def collectives_so_far() -> int:
    """As the process groups themselves count them."""
    groups = [group._get_backend(torch.device("cpu")) for group in dist.distributed_c10d._world.pg_map]
    return sum(group._get_sequence_number_for_group() for group in groups)


def by_name(trace: Trace) -> dict[tuple[str, str, int], int]:
    return {(c.kind, c.group, c.num_bytes): count for c, count in trace.collectives.items()}


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param((), id="shard 4"),
        pytest.param(
            ("parallel.replicate=2", "train.activation_checkpointing='full'"),
            id="replicate 2 shard 2, full checkpointing",
        ),
        pytest.param(("parallel.tensor=2", "train.precision='bf16'"), id="shard 2 tensor 2, bf16"),
        pytest.param(
            ("parallel.tensor=2", "parallel.replicate=2", "data.packs_per_step=8"),
            id="replicate 2 tensor 2, four microbatches",
        ),
        pytest.param(("parallel.context=2",), id="shard 2 context 2"),
        pytest.param(
            (*SOUND, *VISION, *UNET, "parallel.replicate=2", "data.rows_per_pack=512"),
            id="replicate 2 shard 2, a U-Net of images, sounds, features",
        ),
        pytest.param((*ADAPTED, "optim.matrices=muon", "parallel.tensor=2"), id="shard 2 tensor 2, a part is trained"),
    ],
)
def test_four_real_ranks_hold_and_send_exactly_what_is_planned(
    launcher: Launcher, debug: Callable[..., tuple[str, Config]], overrides: tuple[str, ...]
) -> None:
    path, config = debug(*overrides)
    trace = trace_step(config, 4)
    held, collectives, counted = launcher.call(4, measure, path)[0]
    assert trace.held == held
    assert by_name(trace) == collectives
    assert counted == sum(collectives.values())  # none has been overlooked
    assert sum(count for (kind, axis, _), count in collectives.items() if kind == "all_gather") > 0


def test_the_device_waits_for_all_that_fsdp_sends(debug: Callable[..., tuple[str, Config]]) -> None:
    _, config = debug("parallel.replicate=2", "data.packs_per_step=16")
    trace = trace_step(config, 4)
    assert [(stretch.name, stretch.times) for stretch in trace.stretches] == [
        *(("microbatch", times) for times in (1, 2, 1)),
        (UPDATE, 1),
    ]
    for stretch in trace.stretches[:-1]:
        sent = [event.collective.kind for event in stretch.events if isinstance(event, Send) and event.is_fsdp]
        waits = Counter(event.what for event in stretch.events if isinstance(event, Await))
        assert waits["gather"] == sent.count(GATHER) > 0
        assert waits["scatter"] == sent.count(SCATTER) > 0
        assert waits["all"] == 1
        assert isinstance(stretch.events[-1], Await)
    assert REDUCE in sent  # over copies, in the last microbatch alone
    first = {event.collective for event in trace.stretches[0].events if isinstance(event, Send) and event.is_fsdp}
    assert REDUCE not in {collective.kind for collective in first}


def peak_of_steps(small_path: str, config_path: str) -> int:
    """Bytes by which this process grows at most over three steps of one config, after one of another, small one.

    The small one loads what any step loads: libraries, compiled kernels, threads.
    """
    mmap_threshold, trim_threshold = -3, -1
    libc = ctypes.CDLL(None)
    assert libc.mallopt(mmap_threshold, 65536) == 1  # what is freed goes back at once
    assert libc.mallopt(trim_threshold, 0) == 1
    make_steps(load_config(small_path), 1)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    make_steps(load_config(config_path), 2)  # the first makes the optimizer's state, the second has all
    return _status("VmHWM") - before


def make_steps(config: Config, num_steps: int) -> None:
    model = build_model(config, make_mesh(config, 1, "cpu"), CPU)
    optimizer, ema = AdamW(model, config.optim), MovingAverage(model, config.optim.ema_decay)
    for step in range(1, num_steps + 1):
        train_step(model, optimizer, ema, [full_pack(config)], step, config, Guard(config))


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


@pytest.mark.parametrize(
    ("precision", "checkpointing", "adapted"),
    [("fp32", "none", []), ("fp32", "selective", ADAPTED), ("bf16", "full", [])],
    ids=["all is kept", "a part is trained", "bf16, all is computed again"],
)
def test_the_planned_peak_is_what_a_process_grows_by(
    launcher: Launcher,
    debug: Callable[..., tuple[str, Config]],
    precision: str,
    checkpointing: str,
    adapted: list[str],
) -> None:
    sizes = {"width": 256, "num_layers": 8, "mlp_width": 1024, "vocab_size": 4096}
    room = {"rows_per_pack": 4096, "tokens_per_pack": 4096, "bag_tokens_per_pack": 1024, "sequences_per_pack": 65}
    room |= {"max_sample_rows": 64}
    way = [
        "data.packs_per_step=1",
        "modality.image.per_pack=16",
        f"train.precision='{precision}'",
        f"train.activation_checkpointing={checkpointing}",
        *adapted,
    ]
    small, _ = debug(*way)
    path, config = debug(
        *way, *(f"model.{k}={v}" for k, v in sizes.items()), *(f"data.{k}={v}" for k, v in room.items())
    )
    (grown,) = launcher.call(1, peak_of_steps, small, path)
    planned = sum(trace_step(config, 1).peak.values())
    assert planned == pytest.approx(grown, rel=0.1)


FEW = ("model.num_layers=2", "data.packs_per_step=1", "data.bag_tokens_per_pack=2048")  # in one chunk of the head


@pytest.fixture(scope="module")
def alone(root: Path) -> tuple[Trace, Config]:
    """A rank alone with two layers of the 1B model."""
    config = load_config(root / "configs" / "oneflow_1b.toml", list(FEW))
    return trace_step(config, 1), config


def test_computed_flops_are_those_of_the_closed_form(alone: tuple[Trace, Config]) -> None:
    trace, config = alone
    assert trace.flops == pytest.approx(model_flops(trace, config), rel=0.01)


@pytest.mark.parametrize("name", ["transfusion_1b", "masked_1b"])
def test_baselines_are_planned_on_the_same_trunk(name: str, alone: tuple[Trace, Config], root: Path) -> None:
    """They lack the zero and the rate head. Of texts alone what looks back meets half of the pairs."""
    config = load_config(root / "configs" / f"{name}.toml", list(FEW))
    trace, insertion = trace_step(config, 1), alone[1]
    assert trace.num_parameters == alone[0].num_parameters - 2 * (insertion.model.width + 1)
    assert trace.flops == pytest.approx(alone[0].flops, rel=0.01)
    assert sum(trace.peak.values()) == pytest.approx(sum(alone[0].peak.values()), rel=0.05)
    texts = dataclasses.replace(config, modality={})
    assert trace_step(texts, 1).flops == pytest.approx(model_flops(trace_step(texts, 1), texts), rel=0.01)


def test_tensor_ranks_share_the_flops(alone: tuple[Trace, Config], root: Path) -> None:
    config = load_config(root / "configs" / "oneflow_1b.toml", [*FEW, "parallel.tensor=4"])
    shared = trace_step(config, 4)
    assert shared.flops == pytest.approx(alone[0].flops / 4, rel=0.01)
    assert model_flops(shared, config) == pytest.approx(model_flops(*alone) / 4)


def test_more_microbatches_cost_what_one_more_costs(debug: Callable[..., tuple[str, Config]]) -> None:
    two, four, seven = (trace_step(debug(f"data.packs_per_step={n}")[1], 1) for n in (2, 4, 7))
    assert [t.microbatches for t in (two, four, seven)] == [2, 4, 7]
    assert four.peak == seven.peak
    assert sum(two.peak.values()) == pytest.approx(sum(four.peak.values()), rel=1e-3)  # its losses are fewer
    assert (seven.flops - four.flops) * 2 == (four.flops - two.flops) * 3


def test_a_step_has_the_packs_of_the_rank_that_has_most(debug: Callable[..., tuple[str, Config]]) -> None:
    _, config = debug("data.packs_per_step=6")
    assert trace_step(config, 4).microbatches == 2
    _, config = debug("data.packs_per_step=3")
    with pytest.raises(ValueError, match=naming("data.packs_per_step", 3, 4, "data.packs_per_step=4")):
        trace_step(config, 4)
