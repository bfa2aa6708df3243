from __future__ import annotations

import dataclasses
from pathlib import Path

from tools.experiments.probes.latency import measure
from tools.experiments.reading import Arm, Experiment, Probe
from tools.experiments.rows import Subject


def test_every_way_is_timed_and_counted(experiment: Experiment, digits: Path, tmp_path: Path) -> None:
    small = ("model.width=32", "model.num_layers=1", "model.mlp_width=48", f"data.tokenizer={digits}/words.tiktoken")
    arm = Arm(base="configs/quickstart.toml", cpu=small, is_trained=False)
    subject = Subject(experiment=dataclasses.replace(experiment, arm={"own": arm}), arm="own", seed=0, folder=tmp_path)
    probe = Probe(kind="latency", title="", kinds=("0", "2"), vary="tokens", values=(4.0, 120.0))
    found = {(row.way, row.x, row.figure): row.value for row in measure(subject, probe)}
    assert found["autoregressive, 0 images", 120.0, "forwards"] > found["insertion, 0 images", 120.0, "forwards"]
    assert found["insertion, 0 images", 4.0, "rows"] < found["insertion without cache, 0 images", 4.0, "rows"]
    assert found["autoregressive, 2 images", 4.0, "rows"] > found["autoregressive, 0 images", 4.0, "rows"]
    assert ("autoregressive without cache, 0 images", 120.0, "seconds") not in found  # it would take too long
    assert all(value > 0.0 for value in found.values())
