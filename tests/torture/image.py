"""Is the image what docs/containers.md says? Builds it twice and runs it: same digest, no network, no root, signals.

    python tests/torture/image.py scratch                                       a quarter of an hour, as root
    python tests/torture/image.py scratch --torch-wheel torch-2.13.0+cpu-....whl    where its index cannot be reached

Needs Debian's buildah, podman, runc and mmdebstrap, and no registry of images: in place of the base that the Dockerfile
names there is one of Debian's packages, made in `scratch` where it is missing. Wheels come from PyPI, torch from its
index for CPUs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oneflow_dist.progress import complete_steps
from oneflow_dist.runtime import run_program
from tests.processes import wait_until

ROOT = Path(__file__).parents[2]
BASE, IMAGE = "localhost/oneflow-stand-in", "localhost/oneflow_dist"
PACKAGES = "ca-certificates,python3-venv,python3-dev,gcc,g++,make"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
USER = 10001
PATIENCE = 300.0  # seconds, for a run that was told to stop to end
STEPS = 200
TRAIN = ("torchrun", "--standalone", "--nproc-per-node", "2", "-m", "oneflow_dist.train", "configs/debug.toml")
TRAIN += (f"train.steps={STEPS}", "checkpoint.every_steps=1000")


class Machine:
    """Builder and runner, with images in a folder of their own.

    Args:
        scratch: for images, the base, and the data and runs of containers.
    """

    def __init__(self, scratch: Path):
        self.scratch = scratch
        self.storage = ["--root", f"{scratch}/storage", "--runroot", f"{scratch}/run"]

    def buildah(self, *words: str) -> str:
        """What it prints."""
        return run("buildah", *self.storage, *words)

    def podman(self, *words: str) -> list[str]:
        """The command line; a container gets limits that an unprivileged machine can grant."""
        return ["podman", *self.storage, "--runtime", "runc", *words]

    def container(self, name: str, data: str, *words: str) -> list[str]:
        """The command line of a container as it should run: no network, nothing writable but data, runs and /tmp."""
        folders = [self.scratch / data / part for part in ("data", "runs")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            os.chown(folder, USER, USER)
        mounts = [word for folder in folders for word in ("--volume", f"{folder}:/oneflow_dist/{folder.name}")]
        limits = ("--ulimit", "nofile=20000:20000", "--ulimit", "nproc=1000:1000")
        closed = ("--rm", "--read-only", "--tmpfs", "/tmp", "--network", "none")
        return self.podman("run", "--name", name, *closed, *limits, *mounts, IMAGE, *words)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path, help="folder for images, data and runs: 10 GB")
    parser.add_argument("--torch-wheel", type=Path, help=f"instead of {CPU_INDEX}")
    args = parser.parse_args()
    for program in ("buildah", "podman", "runc", "mmdebstrap"):
        if shutil.which(program) is None:
            raise ValueError(f"{program}: not installed; apt-get install buildah podman runc mmdebstrap")
    args.scratch.mkdir(parents=True, exist_ok=True)
    machine = Machine(args.scratch.resolve())
    for name in ("trained", "quickstart"):
        shutil.rmtree(machine.scratch / name, ignore_errors=True)
    try:
        report("the stand-in base", lambda: make_base(machine))
        first = report("the first build", lambda: build(machine, "first", args.torch_wheel))
        second = report("the second build", lambda: build(machine, "latest", args.torch_wheel))
        if first != second:
            raise ValueError(f"two builds differ: {differences(machine)}")
        report("the image", lambda: inspect(machine))
        make = ("python", "tools/digits/make.py", "data/digits")
        report("data, in a container", lambda: run_whole(machine, "trained", *make))
        report("2 ranks, then a signal", lambda: stop_a_run(machine))
        report("the same command again", lambda: resume(machine))
        report("quickstart", lambda: run_whole(machine, "quickstart", "quickstart"))
    finally:
        subprocess.run(["buildah", *machine.storage, "rm", "--all"], check=False, capture_output=True)
        subprocess.run(machine.podman("system", "reset", "--force"), check=False, capture_output=True)


def report(what: str, do: Callable[[], str]) -> str:
    """Do it, and print a row of the table."""
    start = time.monotonic()
    said = do()
    print(f"{what:24} {time.monotonic() - start:5.0f} s  {said}", flush=True)
    return said


def run(*words: str) -> str:
    """What a program prints.

    Raises:
        ValueError: it failed; with the end of what it said.
    """
    end = subprocess.run(words, capture_output=True, text=True, check=False)
    if end.returncode:
        said = " ".join((end.stdout + end.stderr).split())
        raise ValueError(f"{' '.join(words)[:200]}: ended with code {end.returncode}: {said[-1500:]}")
    return end.stdout.strip()


def make_base(machine: Machine) -> str:
    """Python, a compiler and make, as the base of the Dockerfile has them."""
    base = machine.scratch / "base.tar"
    if not base.exists():
        partial = machine.scratch / "partial.tar"
        run("mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(partial))
        partial.rename(base)
    container = machine.buildah("from", "scratch")
    machine.buildah("add", "--quiet", container, str(base), "/")
    machine.buildah("commit", "--quiet", container, BASE)
    return f"{base.stat().st_size / 2**20:.0f} MiB"


def build(machine: Machine, tag: str, wheel: Path | None) -> str:
    """The digest of the image, built without a layer of an earlier build."""
    index, settings = CPU_INDEX, machine.scratch / "pip.conf"
    settings.write_text("[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n")
    volumes = ["/etc/ssl/certs:/etc/ssl/certs:ro", f"{settings}:/etc/pip.conf:ro"]  # this machine's authorities
    if wheel is not None:
        page = machine.scratch / "index/torch/index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        with wheel.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        page.write_text(f'<a href="file:///wheels/{wheel.name}#sha256={digest}">{wheel.name}</a>')
        index = "file:///index"
        volumes += [f"{page.parents[1]}:/index:ro", f"{wheel.resolve().parent}:/wheels:ro"]
    machine.buildah(
        "bud",
        *("--isolation", "chroot", "--network", "host", "--format", "oci", "--no-cache", "--timestamp", "0"),
        *(word for volume in volumes for word in ("--volume", volume)),
        *("--build-arg", f"BASE={BASE}", "--build-arg", f"PIP_EXTRA_INDEX_URL={index}"),
        *("--tag", f"{IMAGE}:{tag}", str(ROOT)),
    )
    return str(inspected(machine, tag)["Digest"])


def differences(machine: Machine) -> str:
    """The first few files that the two images do not share."""
    folders = [Path(machine.buildah("mount", machine.buildah("from", f"{IMAGE}:{tag}"))) for tag in ("first", "latest")]
    end = subprocess.run(["diff", "-rq", "--no-dereference", *folders], capture_output=True, text=True, check=False)
    return "; ".join(end.stdout.splitlines()[:5]) or "in owners, modes or settings"


def inspected(machine: Machine, tag: str = "latest") -> dict[str, Any]:
    """What podman says of the image."""
    (image,) = json.loads(run(*machine.podman("image", "inspect", f"{IMAGE}:{tag}")))
    return dict(image)


def inspect(machine: Machine) -> str:
    """Its size, and folders that everyone may write to, without those that are mounted."""
    image = inspected(machine)
    if image["User"] != f"{USER}:{USER}":
        raise ValueError(f"{IMAGE}: runs as {image['User']}, not as {USER}")
    find = "import subprocess; subprocess.run('find / -xdev -type d -perm -0002 -not -path /proc/*'.split())"
    writable = run(*machine.container("look", "trained", "python", "-c", find)).split()
    return f"{image['Size'] / 2**20:.0f} MiB; writable by all: {' '.join(writable)}"


def run_whole(machine: Machine, data: str, *words: str) -> str:
    """The last line that a container prints which runs to its end."""
    return run(*machine.container("whole", data, *words)).rpartition("\n")[2] or "done"


def stop_a_run(machine: Machine) -> str:
    """Two ranks make their first steps, are found healthy, and save when the container is stopped."""
    with (machine.scratch / "output").open("w") as output:
        process = subprocess.Popen(machine.container("training", "trained", *TRAIN), stdout=output, stderr=output)
    try:
        wait_until(lambda: len(steps_made(machine)) >= 5 or process.poll() is not None, "the first steps", PATIENCE)
        run(*machine.podman("exec", "training", "/oneflow_dist/launch/container.sh", "health"))
        run(*machine.podman("stop", "--time", "60", "training"))
        code = process.wait(PATIENCE)
    finally:
        process.kill()
    last = steps_made(machine)[-1]
    said = (machine.scratch / "output").read_text()
    if last not in complete_steps(str(machine.scratch / "trained/runs/debug")) or f"after step {last};" not in said:
        raise ValueError(f"{machine.scratch}/output: the run was stopped and did not save")
    return f"healthy; stopped and saved after step {last}, exit code {code}"


def resume(machine: Machine) -> str:
    """The same command makes the other steps, each once."""
    first = len(steps_made(machine))
    run(*machine.container("training", "trained", *TRAIN))
    steps = steps_made(machine)
    if steps != list(range(1, STEPS + 1)):
        raise ValueError(f"{machine.scratch}/trained: steps {steps}, not 1 to {STEPS}")
    return f"steps {first + 1} to {steps[-1]}"


def steps_made(machine: Machine) -> list[int]:
    """The steps of the run in its log."""
    path = machine.scratch / "trained/runs/debug/metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


if __name__ == "__main__":
    run_program(main)
