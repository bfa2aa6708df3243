from __future__ import annotations

import pytest
import torch

from oneflow_dist.config import load_config
from oneflow_kernels import tune
from tests.kernels.kernel_checks import interpreted_kernels
from tools.benchmark.jobs import SMALL_MODEL, TUNED, jobs_of
from tools.benchmark.kernel_checks import run_checks
from tools.benchmark.kernels import all_cases

CPU = torch.device("cpu")
FIRST, SECOND = (jobs_of(part, 16384, 512) for part in ("first", "second"))


def test_the_most_worthy_comes_first() -> None:
    assert [job.name for job in FIRST[:4]] == [
        "device",
        "ours bf16 compiled none",
        "bag loss, real pack, forward and backward",
        "attention, real pack, forward and backward",
    ]
    assert (FIRST[1].packs, FIRST[1].is_profiled) == ((1, 4), True)
    assert [job.kind for job in SECOND[:4]] == ["launches"] * 4


def test_every_contest_has_one_job_and_the_real_ones_come_again_with_the_fastest_launches() -> None:
    names = [case.name for case in all_cases(load_config("configs/oneflow_1b.toml", []), CPU)]
    assert len(names) == len(set(names))
    jobs = [job for job in (*FIRST, *SECOND) if job.kind == "case" and not job.name.endswith(TUNED)]
    for name in names:
        assert sum(name in job.what for job in jobs) == 1, name
    assert {job.what for job in SECOND if job.name.endswith(TUNED)} == {
        job.what for job in FIRST if job.kind in ("case", "checks")
    }


def test_every_check_and_every_kernel_with_several_launches_has_one_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.benchmark.kernel_checks.compare", lambda *_: {})
    checks = {line["name"] for line in run_checks(CPU, 20)}
    for name in checks:
        assert sum(name.startswith(job.what) for job in FIRST if job.kind == "checks") == 1, name
    with interpreted_kernels():
        kernels = [contest.launches.kernel for contest in tune.contests(CPU, 512)]
    for name in kernels:
        assert sum(name.startswith(job.what) for job in SECOND if job.kind == "launches") == 1, name


def test_what_is_compiled_ahead_is_the_same_step_on_a_small_model() -> None:
    jobs = {job.name: job for job in (*FIRST, *SECOND)}
    warming = [job for job in jobs.values() if job.is_warming]
    assert len(warming) == 7
    for job in warming:
        timed = jobs[job.name.removeprefix("compiling ")]
        assert timed.after == (job.name,)
        assert job.overrides == (*timed.overrides, *SMALL_MODEL)
        assert job.gib < timed.gib


def test_ours_and_the_peer_take_turns_on_the_same_number_of_rows() -> None:
    timed = [job.name for job in FIRST if job.kind in ("ours", "peer") and not job.is_warming]
    ours, peer = "ours bf16 compiled none", "torchtitan 32 x 512 none"
    assert timed[:5] == [ours, peer, f"{ours}, again", f"{peer}, again", "torchtitan 2 x 8192 none"]


def test_kernels_and_checks_are_parts_of_their_own() -> None:
    assert {job.kind for job in jobs_of("kernels", 16384, 512)} == {"launches", "checks", "case"}
    assert {job.kind for job in jobs_of("check", 16384, 512)} == {"checks"}
