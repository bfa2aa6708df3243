"""Write into requirements.lock the hash of every wheel of every version in it: pip then refuses all other bytes."""

from __future__ import annotations

import argparse
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote
from urllib.request import urlopen

from packaging.requirements import Requirement
from packaging.tags import Tag
from packaging.utils import canonicalize_name, parse_wheel_filename

from oneflow_dist.files import write_whole
from oneflow_dist.runtime import run_program

INDEXES = ("https://pypi.org/simple", "https://download.pytorch.org/whl/cpu")  # the latter for torch without CUDA
WHEEL = re.compile(r'href="[^"#]*?([^"#/]+\.whl)#sha256=([0-9a-f]{64})"')
PLATFORM = re.compile(r"any|manylinux.*_(x86_64|aarch64)|macosx_.*_(arm64|universal2)")
ABI = re.compile(r"none|abi3|cp31[1-9]")  # Python 3.11 and later, with its lock


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lock", type=Path, nargs="?", default=Path("requirements.lock"), help="(%(default)s)")
    parser.add_argument("--indexes", nargs="+", default=INDEXES, metavar="URL", help="(%(default)s)")
    args = parser.parse_args()
    with ThreadPoolExecutor(8) as pool:
        lines = list(pool.map(lambda line: with_hashes(line, args.indexes), args.lock.read_text().splitlines()))
    write_whole(args.lock, "".join(f"{line}\n" for line in lines).encode())


def with_hashes(line: str, indexes: list[str]) -> str:
    """A line of the lock, with the hashes of today; comments stay as they are.

    Raises:
        ValueError: no index has a wheel of that version.
    """
    if not line or line.startswith("#"):
        return line
    requirement = locked(line)
    hashes = sorted({digest for index in indexes for digest in wheel_hashes(requirement, index)})
    if not hashes:
        raise ValueError(f"{requirement}: no wheel of it on {', '.join(indexes)}; choose a version that has some")
    return " ".join([str(requirement), *(f"--hash=sha256:{digest}" for digest in hashes)])


def locked(line: str) -> Requirement:
    """The version that a line of the lock is of."""
    return Requirement(line.partition(" --hash")[0])


def wheel_hashes(requirement: Requirement, index: str) -> list[str]:
    """SHA-256 of the wheels that an index has of a version and that the project can use."""
    try:
        with urlopen(f"{index}/{canonicalize_name(requirement.name)}/") as page:
            wheels = WHEEL.findall(page.read().decode())
    except HTTPError as error:
        if error.code in (403, 404):  # not one of its packages
            return []
        raise
    named = [(unquote(name), digest) for name, digest in wheels]
    return [digest for name, digest in named if fits(name, requirement)]


def fits(wheel: str, requirement: Requirement) -> bool:
    """Whether a wheel is of the version, whatever its build (`+cpu`), and for a machine that torch supports."""
    if not wheel.split("-")[1].startswith(str(requirement.specifier).removeprefix("==")):
        return False  # an old name may be none at all
    _, version, _, tags = parse_wheel_filename(wheel)
    return version.public in requirement.specifier and any(map(is_supported, tags))


def is_supported(tag: Tag) -> bool:
    """Whether a wheel with this tag can be installed where the project runs."""
    return PLATFORM.fullmatch(tag.platform) is not None and ABI.fullmatch(tag.abi) is not None


if __name__ == "__main__":
    run_program(main)
