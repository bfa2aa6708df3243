"""tools/measure_gpu.py on a CPU: the same program on small shapes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

import measure_gpu
from oneflow_dist.config import Config, write_config


def test_the_whole_measurement_runs_and_writes_its_result(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(write_config(make_config("data.rows_per_pack=512", "data.tokens_per_pack=512")))
    monkeypatch.setattr("sys.argv", ["measure_gpu", "--config", str(config), "--steps", "1", "--output", str(tmp_path)])
    assert not dist.is_initialized()
    measure_gpu.main()
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text())
    assert result["torch"] == torch.__version__
    assert result["attention_error"]["ours"] <= 2 * result["attention_error"]["reference_bf16"]
    assert result["attention_error"]["ours_causal"] <= 2 * result["attention_error"]["reference_bf16_causal"]
    assert result["bag_error"]["ours"] < 1e-5
    assert result["first_values"]["is_same_as_on_cpu"]
    assert result["training"]["tokens_per_second"] > 0
    assert 0 < result["training"]["mfu_of_measured_matmul"] < 1


def test_made_up_batches_are_full_and_the_same_for_the_same_number(make_config: Callable[..., Config]) -> None:
    config = make_config("data.bag_tokens_per_pack=4096", "data.tokens_per_pack=2048")
    first, again, other = (measure_gpu.make_batch(config, number) for number in (0, 0, 1))
    assert first.counts.rows > 0.97 * config.data.rows_per_pack
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.patches, again.patches)
    assert not torch.equal(first.tokens, other.tokens)


def test_a_call_is_timed_in_milliseconds() -> None:
    calls: list[int] = []
    milliseconds = measure_gpu.time_call(
        lambda: calls.append(1) or np.ones((200, 200)) @ np.ones((200, 200)), torch.device("cpu")
    )
    assert len(calls) == 5
    assert 0.0 < milliseconds < 1000.0
