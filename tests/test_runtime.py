from __future__ import annotations

import gc
import socket
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from oneflow_dist.runtime import GLOO, collect_garbage, gather_objects, is_main, log, node_name
from tests.launching import THREADS, TORCHRUN, Launcher, only_error, run_python
from tests.messages import names

PROGRAM = """
import os, sys
import torch
import torch.distributed as dist
from oneflow_dist.runtime import any_algorithms, end_process, is_main, log, run_program, start_process

def main():
    {body}

run_program(main)
"""


Program = Callable[..., Path]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Writes a program whose `main` is the given lines."""

    def write(*body: str) -> Path:
        path = tmp_path / "program.py"
        path.write_text(PROGRAM.format(body="\n    ".join(body)))
        return path

    return write


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ('ValueError("x: 1 is too small; raise it")', 2),
        ('OSError("x: 1 is too small; raise it")', 2),
        ('FloatingPointError("x: 1 is too small; raise it")', 1),
    ],
)
def test_what_a_user_can_mend_ends_a_program_with_one_line(
    error: str, code: int, program: Program, launcher: Launcher
) -> None:
    end = launcher.run(program("start_process()", f"raise {error}"))
    assert (end.code, end.stdout, end.stderr) == (code, "", "error: x: 1 is too small; raise it\n")


def test_ctrl_c_ends_a_program_with_one_line(program: Program, launcher: Launcher) -> None:
    end = launcher.run(program("raise KeyboardInterrupt"))
    assert end.code == 130
    assert end.stderr.count("\n") == 1
    assert only_error(end)


def test_torchrun_ends_its_report_with_what_a_rank_said(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(body='raise ValueError("x: 1 is too small; raise it")'))
    end = run_python(*TORCHRUN, "--nproc-per-node", "1", program)
    assert end.code == 1
    *_, last = [line for line in end.stderr.splitlines() if "traceback" in line]
    assert last.strip() == "traceback : x: 1 is too small; raise it"


@pytest.mark.parametrize("error", ['RuntimeError("ours")', 'AssertionError("ours")', 'KeyError("ours")'])
def test_our_own_mistakes_keep_their_traceback(error: str, program: Program, launcher: Launcher) -> None:
    end = launcher.run(program(f"raise {error}"))
    assert end.code == 1
    assert "Traceback" in end.stderr
    assert not any(line.startswith("error: ") for line in end.stderr.splitlines())


def test_a_missing_file_is_a_users_error(program: Program, launcher: Launcher) -> None:
    end = launcher.run(program('open("/no/such/file")'))
    assert end.code == 2
    assert only_error(end) == "error: [Errno 2] No such file or directory: '/no/such/file'"


def test_a_checkpoint_that_fails_on_one_rank_is_one_line_which_for_a_write_is_not_that_of_a_read(
    program: Program, launcher: Launcher
) -> None:
    body, said = "from torch.distributed.checkpoint.api import CheckpointException", {}
    for step in ("write", "plan", "read"):
        end = launcher.run(program(body, f'raise CheckpointException("{step}", {{1: (OSError("no room"), None)}})'))
        assert end.code == 2
        said[step] = only_error(end)
        assert names(said[step], "rank 1", "no room")
    assert said["write"] == said["plan"] != said["read"]  # what to do is another matter


def test_a_file_that_torch_could_not_write_to_its_end_is_told_in_plain_words(
    program: Program, launcher: Launcher
) -> None:
    short = 'RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")'
    body = "from torch.distributed.checkpoint.api import CheckpointException"
    said = only_error(launcher.run(program(body, f'raise CheckpointException("write", {{1: ({short}, None)}})')))
    assert names(said, "rank 1", "disk", "quota")
    assert "inline_container" not in said


def test_a_program_that_ends_well_ends_with_code_0(program: Program, launcher: Launcher) -> None:
    end = launcher.run(program("start_process()", 'log("done")', "end_process()"))
    assert (end.code, end.stdout, end.stderr) == (0, "done\n", "")


def test_an_error_ends_a_rank_that_others_wait_for(program: Program, launcher: Launcher) -> None:
    body = ["start_process()", 'if dist.get_rank() == 1: raise ValueError("here")', "dist.barrier()"]
    first, second = launcher.run_ranks(2, program(*body))
    assert (second.code, second.stderr) == (2, "error (rank 1): here\n")
    assert first.code == 1  # it learns that the other is gone, and does not wait for ever
    assert "GLHF" not in only_error(first)  # of gloo's own advice


def test_rank_0_prints_and_all_ranks_end_with_code_0(program: Program, launcher: Launcher) -> None:
    body = [
        "start_process()",
        'log(f"{dist.get_world_size()} ranks")',
        'print(is_main(), "")',
        "end_process()",
        "log(1)",
    ]
    ends = launcher.run_ranks(3, program(*body))
    assert [(end.code, end.stdout) for end in ends] == [(0, "3 ranks\nTrue \n"), (0, "False \n"), (0, "False \n")]


def count_workers() -> list[int]:
    """How many threads gloo has for the collectives of each group: of all ranks, like it, and of messages."""
    groups = [dist.group.WORLD, dist.new_group(), dist.new_group(backend=GLOO)]
    return [group._get_backend(torch.device("cpu")).options._threads for group in groups]


def test_collectives_of_a_group_are_done_one_after_the_other(launcher: Launcher) -> None:
    """By one thread: several of torch's race."""
    assert launcher.call(2, count_workers) == [[1, 1, 1]] * 2


def test_gloo_uses_the_network_interface_that_the_environment_names(program: Program, launcher: Launcher) -> None:
    body = ["start_process()", "dist.barrier()", 'log("done")', "end_process()"]
    ends = launcher.run_ranks(2, program(*body), env={"GLOO_SOCKET_IFNAME": "lo"})
    assert [(end.code, end.stdout) for end in ends] == [(0, "done\n"), (0, "")]
    end = launcher.run(program(*body), env={"GLOO_SOCKET_IFNAME": "nowhere"})
    assert end.code == 2
    assert names(only_error(end), "GLOO_SOCKET_IFNAME", "nowhere", "lo")


def test_a_rank_that_was_told_half_of_its_place_says_what_it_lacks(program: Program, launcher: Launcher) -> None:
    end = launcher.run(program("start_process()"), env={"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"})
    assert end.code == 2
    assert names(only_error(end), "RANK", "MASTER_PORT", "WORLD_SIZE", "torchrun")


def test_without_torchrun_a_process_is_a_group_of_one(program: Program, launcher: Launcher) -> None:
    body = ["device = start_process()", "print(device, dist.get_rank(), dist.get_world_size())", "end_process()"]
    end = launcher.run(program(*body, 'print("goes on")'))
    assert (end.code, end.stderr) == (0, "")
    assert end.stdout.endswith(" 0 1\ngoes on\n")


@pytest.mark.parametrize(
    ("env", "data_workers", "expected"),
    [
        ({}, 0, "8"),  # all cores of the machine
        ({}, 3, "5"),  # one for each data worker
        ({}, 20, "1"),
        ({"LOCAL_WORLD_SIZE": "4"}, 0, "2"),  # the ranks of one machine share its cores
        ({"OMP_NUM_THREADS": THREADS}, 0, THREADS),  # with which the launcher has loaded torch
    ],
)
def test_threads_are_the_cores_that_other_processes_leave(
    env: dict[str, str], data_workers: int, expected: str, program: Program, launcher: Launcher
) -> None:
    body = [
        "os.sched_getaffinity = lambda pid: set(range(8))",
        'if "KEEP" not in os.environ: os.environ.pop("OMP_NUM_THREADS")',
        f"start_process({data_workers})",
        "print(torch.get_num_threads())",
    ]
    keep = {"KEEP": "1"} if "OMP_NUM_THREADS" in env else {}
    end = launcher.run(program(*body), env={**env, **keep})
    assert (end.code, end.stdout) == (0, f"{expected}\n"), end.stderr


def test_a_deterministic_process_refuses_what_is_not_but_for_stretches_that_say_so(
    program: Program, launcher: Launcher
) -> None:
    is_on = "print(torch.are_deterministic_algorithms_enabled())"
    body = ["start_process(deterministic=True)", is_on, 'print(os.environ["CUBLAS_WORKSPACE_CONFIG"])']
    end = launcher.run(program(*body, f"with any_algorithms(): {is_on}", is_on))
    assert (end.code, end.stdout) == (0, "True\n:4096:8\nFalse\nTrue\n"), end.stderr
    end = launcher.run(program("start_process()", f"with any_algorithms(): {is_on}", is_on))
    assert (end.code, end.stdout) == (0, "False\nFalse\n"), end.stderr


def test_a_process_without_a_group_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert is_main()
    log("hello")
    assert capsys.readouterr().out == "hello\n"


class Cycle:
    """What only a collector finds, once nothing else refers to it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def collector() -> Iterator[None]:
    """Python's collector as it is in a new process, before and after."""
    gc.enable()
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.usefixtures("collector")
def test_garbage_is_collected_after_the_first_step_and_every_so_many_and_at_no_other_time() -> None:
    cycles, alive = [], []
    for step in range(1, 8):
        cycles.append(weakref.ref(Cycle()))
        collect_garbage(step, 3)
        assert not gc.isenabled()
        alive.append(sum(cycle() is not None for cycle in cycles))
    assert alive == [0, 1, 0, 1, 2, 0, 1]


@pytest.mark.usefixtures("collector")
def test_what_outlives_a_collection_and_becomes_garbage_later_is_found_by_another() -> None:
    collect_garbage(1, 1)
    cycle = Cycle()
    gone = weakref.ref(cycle)
    collect_garbage(2, 1)
    del cycle
    assert gone() is not None
    collect_garbage(3, 1)
    assert gone() is None


@pytest.mark.usefixtures("collector")
def test_without_gc_every_steps_python_collects_as_it_likes() -> None:
    collect_garbage(1, 0)
    assert gc.isenabled()


def ranks_and_names(group: bool) -> list[tuple[int, str]]:
    rank = dist.get_rank()
    return gather_objects((rank, "x" * 100 * rank), dist.new_group(backend=GLOO) if group else None)


@pytest.mark.parametrize("group", [False, True])
def test_what_ranks_have_is_gathered_by_rank_of_any_size(launcher: Launcher, group: bool) -> None:
    assert launcher.call(2, ranks_and_names, group) == [[(0, ""), (1, "x" * 100)]] * 2


def test_a_node_is_called_as_its_launcher_or_slurm_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEFLOW_NODE", raising=False)
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    assert node_name() == socket.gethostname()
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    assert node_name() == "node7"
    monkeypatch.setenv("ONEFLOW_NODE", "10.0.0.7")
    assert node_name() == "10.0.0.7"
