from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from oneflow_dist import training
from oneflow_dist.config import Config
from oneflow_dist.optim import gradient_norm
from oneflow_dist.planning.batches import make_batch
from oneflow_dist.planning.gpus import GPUS
from oneflow_dist.planning.pace import Pace, count_step, pace_of, pace_text

H100 = GPUS["h100-80gb"]
PARTS = {"products of blocks", "attention", "rest of blocks", "FSDP", "outside of blocks", "bag loss", "gradient norm"}
PARTS |= {"AdamW", "moving average"}


@pytest.fixture(scope="module")
def paces(make_config: Callable[..., Config]) -> tuple[Config, Pace, Pace]:
    """Of one pack and of two, in bf16."""
    config = make_config("train.precision=bf16", "optim.ema_every_steps=4", "optim.matrices=adamw")
    one, two = (pace_of(config, [make_batch(config, n) for n in range(count)], H100) for count in (1, 2))
    return config, one, two


def test_every_part_of_a_step_is_counted(paces: tuple[Config, Pace, Pace]) -> None:
    config, one, _ = paces
    parts = {part.name: part for part in one.parts}
    assert parts.keys() == PARTS
    weights = 4 * one.num_parameters
    assert parts["AdamW"].num_bytes == pytest.approx(8 * weights, rel=0.01)  # gradients are divided
    assert parts["gradient norm"].num_bytes == pytest.approx(weights, rel=0.02)
    assert parts["moving average"].num_bytes == pytest.approx(3 * weights / 4, rel=0.01)  # every fourth step
    # Casts to bf16 and their copies, and sums in float32, each once; nothing is copied for ranks that are not there.
    assert parts["FSDP"].num_bytes == pytest.approx(4 * weights, rel=0.02)
    assert parts["products of blocks"].calls == 3 * 4 * config.model.num_layers


def test_what_a_step_does_once_is_shared_by_its_packs(paces: tuple[Config, Pace, Pace]) -> None:
    _, one, two = paces
    alone, shared = ({part.name: part.num_bytes for part in pace.parts} for pace in (one, two))
    for name in ("AdamW", "gradient norm", "moving average"):
        assert shared[name] == alone[name]
    assert shared["products of blocks"] == 2 * alone["products of blocks"]


def test_attention_has_the_flops_of_the_pairs_that_packs_have(paces: tuple[Config, Pace, Pace]) -> None:
    config, one, _ = paces
    parts = {part.name: part for part in one.parts}
    counts = make_batch(config, 0).counts
    model = config.model
    assert parts["attention"].flops == 14 * model.width * model.num_layers * counts.attention_pairs


def test_a_step_that_looked_at_a_number_could_not_be_counted(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("train.precision=bf16")
    monkeypatch.setattr(training, "gradient_norm", lambda model: torch.tensor(float(gradient_norm(model))))
    with pytest.raises(DataDependentOutputException):
        count_step(config, [make_batch(config, 0)])


def test_the_table_says_rates_parts_and_mfu(paces: tuple[Config, Pace, Pace]) -> None:
    _, one, _ = paces
    text = pace_text(one, H100)
    assert all(name in text for name in PARTS)
    assert f"MFU {one.model_flops / one.seconds / 989e12:.1%}" in text
