"""What the small code of a folder has to know, and what it cannot do."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.exporting.remote_config import to_remote_config
from oneflow_dist.model.llama import from_llama_config
from tests.messages import naming
from tests.modalities import UNET, VISION


def test_it_is_plain_json_and_says_what_the_config_says(config: Config, tokenizer: Tokenizer) -> None:
    table = to_remote_config(config, torch.float32, tokenizer, {"image": "autoencoder"})
    assert json.loads(json.dumps(table)) == table
    image = table["modalities"]["image"]
    assert (image["token_id"], image["num_rows"], image["autoencoder"]) == (
        tokenizer.piece_of["image"],
        4,
        "autoencoder",
    )
    assert table["sampling"]["guidance"] == config.sampling.guidance


def test_a_run_can_start_from_it_as_from_a_llama(config: Config, tokenizer: Tokenizer) -> None:
    table = to_remote_config(config, torch.float32, tokenizer, {})
    found = from_llama_config(table, "config.json")
    assert {key: getattr(config.model, key) for key in found} == found


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("objective.kind=masked", "heads.time_conditioning=none"), ("objective.kind", "masked", "--format oneflow")),
        (UNET, ("modality.image", "U-Net", "--format oneflow")),
        (VISION, ("modality.vision", "understanding", "--format oneflow")),
        (("modality.image.shift_rows=4",), ("modality.image", "shift_rows")),
        (("sampling.solver=heun",), ("sampling.solver", "heun", "euler")),
        (("sampling.corrections=2",), ("sampling.corrections", 2, 0)),
        (("sampling.blocks=3",), ("sampling.blocks", 3, 0)),
    ],
)
def test_what_the_code_cannot_do_is_refused_with_its_key(
    overrides: tuple[str, ...], named: tuple[object, ...], make_config: Callable[..., Config], tokenizer: Tokenizer
) -> None:
    with pytest.raises(ValueError, match=naming(*named)):
        to_remote_config(make_config(*overrides), torch.float32, tokenizer, {})
