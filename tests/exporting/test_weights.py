from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from oneflow_dist.exporting import weights
from oneflow_dist.exporting.folder import Options, export
from oneflow_dist.first_weights import map_tensors
from oneflow_dist.trained import find_checkpoint
from tests.launching import Run


def test_large_models_are_cut_into_files_with_an_index(
    unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "FILE_BYTES", 100_000)
    export(find_checkpoint(unbroken.folder), tmp_path / "out", Options(dtype=torch.float32), unbroken.folder)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert [path.name for path in files] == [
        f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)
    ]
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    tensors = {}
    for path in files:
        own = load_file(path)
        assert weights.num_bytes(own) <= 100_000 or len(own) == 1
        assert {index["weight_map"][name] for name in own} == {path.name}
        tensors |= own
    assert tensors.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == weights.num_bytes(tensors)
    mapped = map_tensors(tmp_path / "out")
    assert all(torch.equal(mapped[name], tensor) for name, tensor in tensors.items())
    llama = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(llama.model.norm.weight, tensors["model.norm.weight"])
    files[1].unlink()
    with pytest.raises(ValueError, match=rf"^{files[1]}: no such file; copy the folder of the model again"):
        map_tensors(tmp_path / "out")


def test_a_disk_without_room_is_told_before_anything_is_written(
    unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "FREE_SHARE", 1e9)
    with pytest.raises(OSError, match=r"out: needs 0 MiB but the disk has \d+ MiB left; make room"):
        export(find_checkpoint(unbroken.folder), tmp_path / "out", Options(), unbroken.folder)
    assert list(tmp_path.iterdir()) == []
