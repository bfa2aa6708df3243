"""Whole programs in tests: started as a user starts them, but forked from one process that has torch loaded already.

Importing torch takes 3 s, diffusers 2 s. A forked program differs from a fresh one in nothing else: it has its own
session, its own standard streams, its own arguments, environment and limits, and it ends as the interpreter ends.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import pickle
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.processes import wait_until

ROOT = Path(__file__).parents[1]
TIMEOUT = 240.0  # seconds; a run takes 3, on a busy machine 30
# Of tests and of every program: one, since two processes of two threads run 30 times slower; tests/torture/machines.py
# sets another number.
THREADS = os.environ.get("ONEFLOW_TEST_THREADS", "1")
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
ENVIRONMENT["OMP_NUM_THREADS"] = THREADS
TORCHRUN = ("-m", "torch.distributed.run", "--standalone")
Made = TypeVar("Made")
TIMINGS = {
    "seconds",
    "data_wait",
    "tokens_per_second",
    "images_per_second",
    "tflops_per_second",
    "validation/seconds",
}  # fields of metrics.jsonl that no two runs share


def oneflow(command: str) -> tuple[str, str]:
    """How a program of the command `oneflow` is started."""
    return "-m", f"oneflow_dist.commands.{command}"


@dataclass(frozen=True)
class Finished:
    """How a process ended."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Job:
    """A program under way: one process for each rank."""

    launcher: Launcher
    pids: list[int]
    streams: list[tuple[Path, Path]]

    def kill(self) -> None:
        """SIGKILL to every rank and to what it has started."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def wait(self) -> list[Finished]:
        """Each rank's end; killed, and a failure, after a while."""
        deadline = time.monotonic() + TIMEOUT
        codes: list[int | None] = [None] * len(self.pids)
        while None in codes:
            codes = [
                self.launcher.ask({"poll": pid}) if c is None else c for pid, c in zip(self.pids, codes, strict=True)
            ]
            if time.monotonic() > deadline:
                self.kill()
                stderr = "\n".join(error.read_text() for _, error in self.streams)
                pytest.fail(f"ranks ended with {codes} after {TIMEOUT:.0f} s (None: not at all)\n{stderr}")
            time.sleep(0.01)
        return [
            Finished(code=int(code or 0), stdout=out.read_text(), stderr=error.read_text())
            for code, (out, error) in zip(codes, self.streams, strict=True)
        ]


class Launcher:
    """Forks programs from a process that has imported what they import."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=ENVIRONMENT,
        )

    def ask(self, request: dict[str, Any]) -> Any:
        """One line to the server, one line back."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def close(self) -> None:
        """End the server."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()

    def start(
        self,
        *arguments: str | Path,
        num_ranks: int = 0,
        num_nodes: int = 1,
        env: dict[str, str] | None = None,
        file_limit: int | None = None,
        folder: Path = ROOT,
        stdin: str = "",
    ) -> Job:
        """Start `python *arguments` (`-m module` or a script), on `num_ranks` ranks as torchrun starts them (0: alone).

        Args:
            num_nodes: node0, node1, ... with as many of the ranks on each, in a row.
            env: added to the environment.
            file_limit: bytes that no file can outgrow: a write beyond fails, as on a full disk.
            folder: where it runs; a script is this checkout's in any case.
            stdin: what is typed.
        """
        own = Path(tempfile.mkdtemp(dir=self.folder))
        (own / "in").write_text(stdin)
        port = str(free_port())
        per_node = max(1, num_ranks // num_nodes)
        pids, streams = [], []
        for rank in range(max(1, num_ranks)):
            places = {"RANK": str(rank), "LOCAL_RANK": str(rank % per_node), "ONEFLOW_NODE": f"node{rank // per_node}"}
            sizes = {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(per_node)}
            group = {**places, **sizes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if num_ranks else {}
            paths = own / f"{rank}.out", own / f"{rank}.err"
            request = {
                "arguments": [str(argument) for argument in arguments],
                "env": {**group, **(env or {})},
                "file_limit": file_limit,
                "folder": str(folder),
                "stdin": str(own / "in"),
                "stdout": str(paths[0]),
                "stderr": str(paths[1]),
            }
            pids.append(self.ask(request))
            streams.append(paths)
        return Job(self, pids, streams)

    def run(self, *arguments: str | Path, **options: Any) -> Finished:
        """`python *arguments`, to its end."""
        return self.start(*arguments, **options).wait()[0]

    def run_ranks(self, num_ranks: int, *arguments: str | Path, **options: Any) -> list[Finished]:
        """`torchrun --nproc-per-node num_ranks *arguments`, without torchrun, to the end of all ranks."""
        return self.start(*arguments, num_ranks=num_ranks, **options).wait()

    def call(self, num_ranks: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What a function of a test file returns on each rank of a process group."""
        task = Path(tempfile.mkdtemp(dir=self.folder)) / "task"
        task.write_bytes(pickle.dumps(arguments))
        ends = self.run_ranks(num_ranks, __file__, function.__code__.co_filename, function.__name__, task)
        for rank, end in enumerate(ends):
            assert end.code == 0, f"rank {rank}:\n{end.stderr}"
        return [pickle.loads(task.with_name(f"{rank}.result").read_bytes()) for rank in range(num_ranks)]


@dataclass(frozen=True)
class Run:
    """A training run that went to its end."""

    folder: Path
    end: Finished


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Starts programs."""
    launcher = Launcher(tmp_path_factory.mktemp("programs"))
    yield launcher
    launcher.close()


@pytest.fixture
def group_of_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as a process group, as a run without torchrun is one."""
    from oneflow_dist.runtime import start_process

    monkeypatch.setenv("OMP_NUM_THREADS", THREADS)
    start_process()
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def train_command(digits: Path) -> Callable[..., list[str]]:
    """The arguments of python for a run of configs/debug.toml on the test's digits."""

    def command(folder: Path, *overrides: str) -> list[str]:
        data = [f"data.mixture={digits / 'mixture.yaml'}", f"data.tokenizer={digits / 'words.tiktoken'}"]
        return ["-m", "oneflow_dist.train", "configs/debug.toml", f"run.folder={folder}", *data, *overrides]

    return command


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory, train_command: Callable[..., list[str]]) -> Run:
    """configs/debug.toml as it is, in one process, from its start to its end."""

    def train(folder: Path) -> Run:
        return Run(folder / "run", run_python(*train_command(folder / "run")))

    return made_once("unbroken", train, tmp_path_factory)


@pytest.fixture(scope="session")
def torchrun_of_two(tmp_path_factory: pytest.TempPathFactory, train_command: Callable[..., list[str]]) -> Run:
    """configs/debug.toml as it is, on two ranks that torchrun started."""

    def train(folder: Path) -> Run:
        return Run(folder / "run", run_python(*TORCHRUN, "--nproc-per-node", "2", *train_command(folder / "run")))

    return made_once("torchrun", train, tmp_path_factory)


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this run of the tests, one for all workers of pytest-xdist."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def made_once(name: str, make: Callable[[Path], Made], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """What `make` has made in a new folder: by the worker that first asks for `name`, and read by all.

    Nobody writes to the folder afterwards.
    """
    base = shared_folder(tmp_path_factory)
    result = base / f"{name}.pickle"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            result.write_bytes(pickle.dumps(make(Path(tempfile.mkdtemp(prefix=name, dir=base)))))
    return pickle.loads(result.read_bytes())


def run_main(program: ModuleType, *arguments: str | Path) -> None:
    """Runs a program of ours in this process, with these arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [str(program.__file__), *map(str, arguments)])
        program.main()


def run_python(*arguments: str | Path) -> Finished:
    """A program in a fresh interpreter, from the repository's root."""
    end = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    return Finished(end.returncode, end.stdout, end.stderr)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def wait_for_step(folder: Path, step: int) -> None:
    """Until metrics.jsonl has the line of `step`."""
    path = folder / "metrics.jsonl"
    wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") >= step, f"step {step} in {path}", pause=0.005)


def without_timings(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What of metrics.jsonl is the same whenever a run is repeated."""
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def assert_same_losses(own: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """Of two runs that sum in different orders: a mean over the thousand rows of a step, in float32.

    The absolute part is of terms of size 1: the rate loss crosses 0, which makes it no more exact.
    """
    rounding = torch.finfo(torch.float32).eps * 1000**0.5
    assert [line["step"] for line in own] == [line["step"] for line in theirs]
    for key in (name for name in own[0] if name.startswith("loss")):
        values = [[line[key] for line in lines] for lines in (own, theirs)]
        np.testing.assert_allclose(*values, rtol=rounding, atol=rounding, err_msg=key)


def assert_same_steps(folder: Path, expected: Path) -> None:
    """Losses and gradient norms of two runs, the samples that they are of, and the learning rate."""
    own, theirs = read_metrics(folder), read_metrics(expected)
    assert_same_losses(own, theirs)
    norms = [[line["grad_norm"] for line in lines] for lines in (own, theirs)]
    np.testing.assert_allclose(*norms, rtol=1e-4)
    for key in ("samples", "text_tokens", "bag_tokens", "padding", "lr"):
        assert [x[key] for x in own] == [x[key] for x in theirs]


def assert_same_pictures(folder: Path, expected: Path) -> None:
    """Of step 20, but for grey values that are rounded the other way."""
    own, theirs = (run / "samples/step-00000020.png" for run in (folder, expected))
    with Image.open(own) as page, Image.open(theirs) as other:
        assert page.size == other.size
        difference = np.abs(np.asarray(page, dtype=np.int64) - np.asarray(other, dtype=np.int64))
        assert page.getextrema() != ((255, 255),) * 3  # something is drawn
    assert difference.max() <= 1


def read_checkpoint(folder: Path, scratch: Path) -> dict[str, Any]:
    """Model, average and optimizer of a checkpoint under dotted names, as whole tensors; `scratch` is overwritten."""
    dcp_to_torch_save(str(folder), str(scratch))
    return dict(_flatten(torch.load(scratch, weights_only=False), ""))


def _flatten(table: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found = []
    for key, value in table.items():
        found += _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return found


def only_error(end: Finished) -> str:
    """The error that a user sees: one line on stderr, no traceback."""
    assert "Traceback" not in end.stderr, end.stderr
    lines = [line for line in end.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, f"exit code {end.code}, stderr:\n{end.stderr}"
    assert end.stderr.rstrip("\n").endswith(lines[0]), end.stderr
    return lines[0]


def hear_hangups() -> None:
    """As programs do in a terminal: one that `nohup` has started ignores SIGHUP, and so does all that it starts."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def free_port() -> int:
    """One that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _serve() -> dict[str, Any]:
    """Answer requests until the tests end; in each forked child, return what it is to run."""
    codes: dict[int, int] = {}
    started: list[int] = []
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid = request["poll"]
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            answer = codes.get(pid)
        else:
            answer = os.fork()
            if answer == 0:
                return request
            started.append(answer)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid in started:
        if pid not in codes:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # left behind by a test that failed
    os._exit(0)


def _become(request: dict[str, Any]) -> None:
    """Run the program of `request` in this process."""
    os.setsid()
    for number, (path, flags) in enumerate(
        [(request["stdin"], os.O_RDONLY)] + [(request[name], os.O_WRONLY | os.O_CREAT) for name in ("stdout", "stderr")]
    ):
        file = os.open(path, flags)
        os.dup2(file, number)
        os.close(file)
    os.environ.update(request["env"])
    os.chdir(request["folder"])
    if request["file_limit"] is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"], request["file_limit"]))
    first, *rest = request["arguments"]
    if first == "-m":
        sys.argv = rest
        sys.path[0] = str(ROOT)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == __file__:
        _call(*rest)
    else:
        sys.argv = [first, *rest]
        sys.path[0] = str((ROOT / first).parent)
        runpy.run_path(str(ROOT / first), run_name="__main__")


def _call(file: str, name: str, task: str) -> None:
    """Run a function of a test file on this rank and write what it returns."""
    from oneflow_dist.runtime import end_process, start_process

    function = runpy.run_path(file)[name]
    start_process()
    result = function(*pickle.loads(Path(task).read_bytes()))
    Path(task).with_name(f"{dist.get_rank()}.result").write_bytes(pickle.dumps(result))
    end_process()


def _load() -> None:
    """Import what the programs import; the modules that are programs themselves are left to be run."""
    import torch._dynamo
    import torch._inductor.compile_fx
    import torch.distributed.fsdp  # noqa: F401
    from diffusers import AutoencoderKL  # noqa: F401
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    import oneflow_dist.training  # noqa: F401

    pick_vec_isa()  # tries the processor's instructions in a process of its own, and remembers
    gc.freeze()  # what is loaded is not searched for garbage at the end of each program


if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # this checkout's code, whichever is installed
    hear_hangups()
    _load()
    _become(_serve())
