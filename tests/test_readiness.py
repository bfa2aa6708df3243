"""What a run begins with, and what is said where it is not there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from oneflow_dist.config import Config
from oneflow_dist.readiness import SHARED_MEMORY_MIB, check_data, check_mixture, check_shared_memory, check_tokenizer
from tests.messages import naming

MakeConfig = Callable[..., Config]
Usage = type(shutil.disk_usage("/"))


def test_data_that_can_be_read_are_no_fault(config: Config) -> None:
    check_data(config)


def test_data_that_cannot_be_read_are_named(make_config: MakeConfig, digits: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    for key in ("mixture", "tokenizer"):
        with pytest.raises(ValueError, match=naming(missing)):
            check_data(make_config(f"data.{key}={missing}"))
    damaged = tmp_path / "damaged.tar"
    damaged.write_bytes((digits / "single-train-000000.tar").read_bytes()[:5000])
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(f"sources:\n  single: {{shards: {damaged}, weight: 1, tasks: {{interleaved: 1}}}}\n")
    with pytest.raises(ValueError, match=naming("single", "damaged.tar")):
        check_data(make_config(f"data.mixture={mixture}"))


def test_it_is_said_how_much_there_is(config: Config) -> None:
    assert int(check_tokenizer(config).split()[0]) > 0
    num_shards, _, _, num_sources, _ = check_mixture(config.data.mixture).split()
    assert int(num_shards) >= int(num_sources) > 0


def leave_free(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**50, 2**50 - num_bytes, num_bytes))


def test_full_shared_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_free(monkeypatch, SHARED_MEMORY_MIB * 2**20)
    check_shared_memory()
    leave_free(monkeypatch, 2**20)
    with pytest.raises(ValueError, match=naming("/dev/shm", 1)):
        check_shared_memory()


def test_nothing_heavy_is_loaded_until_something_is_looked_at() -> None:
    script = "import sys, oneflow_dist.readiness; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
