from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from oneflow_dist.evaluation.running import claim_folder, hash_weights
from oneflow_dist.evaluation.suite import Suite
from tests.messages import names, refused

PROTOCOL = {"checkpoint": "a" * 64, "step": 3}


def test_a_folder_belongs_to_one_checkpoint_and_one_suite(suite: Suite, tmp_path: Path) -> None:
    claim_folder(tmp_path, suite, PROTOCOL)
    claim_folder(tmp_path, suite, PROTOCOL)  # again, as after a kill
    message = refused(claim_folder, tmp_path, suite, {**PROTOCOL, "step": 4})
    assert names(message, tmp_path / "run.json", tmp_path)
    other = replace(suite, task={"paint": suite.task["paint"]})
    assert names(refused(claim_folder, tmp_path, other, PROTOCOL), tmp_path / "suite.toml")


def test_the_checksum_of_weights_is_of_every_bit(config, make_model) -> None:  # type: ignore[no-untyped-def]
    model = make_model(config)
    before = hash_weights(model)
    assert hash_weights(make_model(config)) == before
    with torch.no_grad():
        weight = next(iter(model.parameters()))
        weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(9.0))
    assert hash_weights(model) != before
