"""The schedule against a clock that lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from tests.tools.benchmark.rehearsal import FalseProcess, FalseWorld
from tools.benchmark.jobs import Job, jobs_of
from tools.benchmark.schedule import BIG_GIB, LIMITS, ROOM_GIB, Schedule

PARTS = {part: jobs_of(part, 16384, 512) for part in ("first", "second")}
SECONDS = 510.0  # what `measure_gpu` gives a part


@dataclass
class Told:
    """What a schedule said, with the time of the false clock."""

    world: FalseWorld
    lines: list[tuple[float, dict[str, Any]]]

    def ends(self) -> dict[str, dict[str, Any]]:
        return {line["job"]: line for _, line in self.lines if line["kind"] == "end"}

    def numbers(self, job: str) -> list[float]:
        return [at for at, line in self.lines if line["kind"] != "end" and line["job"] == job]


def rehearse(jobs: list[Job], world: FalseWorld | None = None, processes: int = 8, seconds: float = SECONDS) -> Told:
    told = Told(world or FalseWorld(), [])
    Schedule(jobs, told.world, lambda line: told.lines.append((told.world.now(), line)), processes, seconds).run()
    return told


def job(name: str, compiles: float = 1.0, measures: float = 1.0, gib: float = 1.0, **options: Any) -> Job:
    return Job(name=name, kind="ours", compiles=compiles, measures=measures, gib=gib, **options)


@pytest.mark.parametrize("part", PARTS)
def test_every_job_comes_to_its_end_within_its_part(part: str) -> None:
    told = rehearse(PARTS[part])
    assert [end for end in told.ends().values() if end["status"] != "measured"] == []
    assert len(told.ends()) == len(PARTS[part])
    assert told.world.now() < SECONDS


def test_the_first_training_number_is_there_after_130_seconds_and_real_packs_are_after_200() -> None:
    told = rehearse(PARTS["first"])
    assert told.numbers("ours bf16 compiled none")[0] < 130.0
    assert told.numbers("device")[-1] < 30.0
    for contest in ("bag loss", "attention"):
        assert told.numbers(f"{contest}, real pack, forward and backward")[-1] < 200.0


def test_jobs_have_names_of_their_own_and_nothing_is_planned() -> None:
    names = [job.name for part in PARTS.values() for job in part]
    assert len(names) == len(set(names))
    assert not any("plan" in job.kind for part in PARTS.values() for job in part)


def test_the_device_goes_to_the_most_worthy_that_is_ready_and_the_others_stop() -> None:
    first, quick, slow = job("first", 10.0, 5.0), job("quick", 2.0, 4.0), job("slow", 14.0, 1.0)
    told = rehearse([first, quick, slow])
    assert told.numbers("quick")[-1] == pytest.approx(6.0, abs=0.5)
    assert told.numbers("first")[-1] == pytest.approx(19.0, abs=0.5)  # stopped for 4 s
    assert told.numbers("slow")[-1] == pytest.approx(24.0, abs=0.5)  # stopped for 4 s and for 5 s


def test_what_compiles_has_no_limit_and_what_measures_has() -> None:
    stuck = job("stuck", compiles=1e9)

    class Hanging(FalseProcess):
        def work(self, seconds: float) -> None:
            if self.phase != "measuring":
                super().work(seconds)

    class World(FalseWorld):
        def start(self, job: Any) -> FalseProcess:
            process = super().start(job)
            process.__class__ = Hanging if job.name == "hangs" else FalseProcess
            return process

    told = rehearse([stuck, job("hangs"), job("works")], World())
    ends = told.ends()
    assert ends["hangs"]["reason"] == f"stopped after {LIMITS[0]:.0f} s with the device"
    assert ends["works"]["status"] == "measured"
    assert ends["stuck"]["reason"] == "stopped at the end of the time"
    assert told.world.now() == pytest.approx(SECONDS)


def test_a_job_goes_on_when_its_number_is_written() -> None:
    happened: list[str] = []

    class Asking(FalseProcess):
        def answer(self) -> None:
            happened.append("answer")
            super().answer()

    class World(FalseWorld):
        def start(self, job: Any) -> FalseProcess:
            process = super().start(job)
            process.__class__ = Asking
            return process

    tell = lambda line: happened.append(line["kind"])  # noqa: E731
    Schedule([job("one", measures=0.0)], World(), tell, 1, 60.0).run()
    assert happened == ["rate", "answer", "end"]


def test_memory_is_shared_and_a_big_job_does_not_wait_for_ever() -> None:
    big = job("big", 20.0, gib=60.0)
    jobs = [big, job("bigger", gib=70.0), *(job(f"small {n}", gib=5.0) for n in range(8))]
    world = FalseWorld()
    told = rehearse(jobs, world)
    assert all(end["status"] == "measured" for end in told.ends().values())
    assert world.started["small 0"] == 0.0
    assert [name for name, at in world.started.items() if at == 0.0] == ["big", "small 0"]  # 70 + 5 <= 77 < 70 + 10
    assert ROOM_GIB - BIG_GIB < 70.0


def test_a_job_that_has_to_be_after_others_is() -> None:
    told = rehearse([job("late", after=("early",)), job("early 1"), job("early 2", 7.0)])
    assert told.world.started["late"] >= max(told.numbers("early 2"))


def test_what_there_is_no_time_for_is_said() -> None:
    told = rehearse([job("one"), job("two", 50.0), job("three")], processes=1, seconds=4.0)
    reasons = {name: end["reason"] for name, end in told.ends().items()}
    assert reasons == {"one": "", "two": "stopped at the end of the time", "three": "no time left"}


def test_no_more_processes_than_allowed_run_at_a_time() -> None:
    world = FalseWorld()
    rehearse([job(f"{n}", 5.0) for n in range(6)], world, processes=2)
    assert [at for at in world.started.values() if at == 0.0] == [0.0, 0.0]
