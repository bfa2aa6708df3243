"""Counters with a profiler that is a script, and kernels that a CPU computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from oneflow_dist.config import Config
from tests.tools.benchmark.links import Kept
from tools.benchmark.counters import kernel_names, measure_counters, our_calls, read_counters

CPU = torch.device("cpu")
OUTPUT = """==PROF== Connected to process 7
==PROF== Profiling "bag_softmax": 0%....100% - 9 passes
"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","7","bag_softmax","GPU Speed Of Light Throughput","Duration","us","2,500.5"
"0","7","bag_softmax","GPU Speed Of Light Throughput","DRAM Throughput","%","71.2"
"0","7","bag_softmax","Launch Statistics","Registers Per Thread","register/thread","64"
"0","7","bag_softmax","Launch Statistics","Grid Size","","8"
"1","7","attention_forward","GPU Speed Of Light Throughput","Duration","ms","3.1"
"""


def test_a_table_of_counters_becomes_a_line_for_each_launch_the_slowest_first() -> None:
    slow, fast = read_counters(OUTPUT.splitlines())
    assert slow == {"kernel": "attention_forward", "microseconds": 3100.0, "counters": {"Duration": "3.1 ms"}}
    assert fast["counters"] == {
        "Duration": "2,500.5 us",
        "DRAM Throughput": "71.2 %",
        "Registers Per Thread": "64 register/thread",
    }


def test_our_kernels_are_known_by_name() -> None:
    assert {"bag_softmax", "attention_forward", "attention_query_gradient"} <= kernel_names()


def profiler(folder: Path, script: str) -> None:
    (folder / "ncu").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "ncu").chmod(0o755)


def test_counters_are_told_after_everything_is_compiled(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "output").write_text(OUTPUT)
    profiler(tmp_path, f"cat {tmp_path / 'output'}")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    link = Kept()
    measure_counters(make_config(), link, CPU)
    assert [line["kind"] for line in link.lines] == ["ready", "counters", "counters"]


def test_a_profiler_that_counts_nothing_says_why(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiler(tmp_path, "echo '==ERROR== ERR_NVGPUCTRPERM'; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(RuntimeError, match="ncu ended with code 1 and counted nothing; it said: ==ERROR== ERR_NV"):
        measure_counters(make_config(), Kept(), CPU)


def test_what_runs_under_the_profiler_is_ours_on_a_real_pack(make_config: Callable[..., Config]) -> None:
    bag, attention = (call() for call in our_calls(make_config(), CPU))
    assert (len(bag), len(attention)) == (3, 4)  # loss and two gradients; output and three
