from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.launching import Launcher, Run, oneflow, only_error

DEBUG = (*oneflow("plan"), "configs/debug.toml", "--world-size", "4")


def test_a_plan_is_a_page(launcher: Launcher) -> None:
    end = launcher.run(*DEBUG, "--mesh", "1,2,1,2")
    assert end.code == 0, end.stderr
    assert end.stdout.startswith("4 x h100-80gb: replicate 1 x shard 2 x context 1 x tensor 2\n")
    assert "DOES NOT FIT" not in end.stdout


def test_a_plan_can_be_drawn(launcher: Launcher, tmp_path: Path) -> None:
    end = launcher.run(*DEBUG, "--draw", str(tmp_path / "lanes.png"))
    assert end.code == 0, end.stderr
    assert (tmp_path / "lanes.png").read_bytes().startswith(b"\x89PNG")


def test_a_plan_is_json_and_overrides_count(launcher: Launcher) -> None:
    own = ("--format", "json", "--gpu", "h200-141gb", "--attention", "583")
    end = launcher.run(*DEBUG, *own, "train.activation_checkpointing=full")
    assert end.code == 0, end.stderr
    table = json.loads(end.stdout)
    assert table["mesh"] == {"replicate": 1, "shard": 4, "context": 1, "tensor": 1}
    assert table["activation_checkpointing"] == "full"
    assert table["cluster"]["gpu"]["name"] == "h200-141gb"
    assert table["cluster"]["attention_flops_per_second"] == 583e12


def test_a_checkpoint_is_as_large_as_planned(launcher: Launcher, unbroken: Run) -> None:
    end = launcher.run(*oneflow("plan"), "configs/debug.toml", "--world-size", "1", "--format", "json")
    assert end.code == 0, end.stderr
    written = sum(path.stat().st_size for path in (unbroken.folder / "checkpoints/step-00000020").glob("*.distcp"))
    assert json.loads(end.stdout)["checkpoint_bytes"] == pytest.approx(
        written, rel=0.2
    )  # kilobytes around each small tensor


def test_a_search_shows_all_layouts_and_plans_the_best(launcher: Launcher) -> None:
    end = launcher.run(*DEBUG, "--search", "--format", "json")
    assert end.code == 0, end.stderr
    rows = [line.split() for line in end.stderr.splitlines() if line.strip()[:1].isdigit() and "layout" not in line]
    assert len(rows) == 2  # shard 4, and shard 2 x tensor 2
    best = json.loads(end.stdout)
    assert [str(size) for size in best["mesh"].values()] == rows[0][:4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpus-per-node", "0"), "--gpus-per-node: 0 must lie in [1, inf)"),
        (("--attention", "0"), "--attention: 0.0 must lie in (0, inf)"),
        (
            ("--search", "data.packs_per_step=3"),
            (
                "--world-size: no layout of 4 ranks suits the model and data.packs_per_step (3); "
                "name a divisor of data.packs_per_step"
            ),
        ),
        (
            ("--mesh", "2,2"),
            "--mesh: '2,2' is not replicate,shard,context,tensor; write four whole numbers, as 1,64,1,8",
        ),
        (
            ("--mesh", "2,4,1,2"),
            (
                "parallel: replicate (2) x shard (4) x context (1) x tensor (2) is 16 ranks, but WORLD_SIZE is 4; "
                "set parallel.shard = 1"
            ),
        ),
        (
            ("--mesh", "1,1,1,4"),
            "parallel.tensor: 4 does not divide model.num_kv_heads (2); set parallel.tensor = 2",
        ),
        (
            ("data.packs_per_step=3",),
            (
                "data.packs_per_step (3) is less than the 4 data-parallel ranks, which need one each; "
                "set data.packs_per_step=4, or let ranks share packs (parallel.context, parallel.tensor)"
            ),
        ),
    ],
)
def test_what_cannot_be_run_is_refused(launcher: Launcher, arguments: tuple[str, ...], message: str) -> None:
    end = launcher.run(*DEBUG, *arguments)
    assert end.code == 2
    assert only_error(end) == f"error: {message}"


def test_a_plan_of_8b_on_512_ranks_is_found_without_their_memory(launcher: Launcher, root: Path) -> None:
    end = launcher.run(
        *(*oneflow("plan"), "configs/oneflow_8b.toml", "--world-size", "512", "--format", "json"),
        *("model.num_layers=2", "data.packs_per_step=512"),  # fewer layers of the same width: seconds
    )
    assert end.code == 0, end.stderr
    table = json.loads(end.stdout)
    assert table["mesh"]["shard"] * table["mesh"]["replicate"] * table["mesh"]["tensor"] == 512
    assert table["held_bytes"]["parameters"] < 4.1 * table["parameters"] / 512 + 2**20
