from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from oneflow_dist.baselines.autoregressive import AutoRegressive
from oneflow_dist.baselines.masked import Masked
from oneflow_dist.config import Config
from oneflow_dist.data.loader import PackLoader
from oneflow_dist.flow.process import Insertion
from oneflow_dist.process import process_of
from tests.messages import naming

PLAIN = "heads.time_conditioning=none"


def test_each_objective_has_its_process_with_its_knobs(make_config: Callable[..., Config]) -> None:
    assert isinstance(process_of(make_config(), 1, 2), Insertion)
    copies = process_of(make_config("objective.kind=autoregressive", PLAIN, "objective.copies_pieces=true"), 1, 2)
    assert isinstance(copies, AutoRegressive)
    assert (copies.copies_pieces, copies.context_noise, copies.eos, copies.mark) == (True, 0.5, 1, 2)
    masked = process_of(make_config("objective.kind=masked", PLAIN, "objective.canvas_tokens=7"), 1, 2)
    assert isinstance(masked, Masked)
    assert (masked.canvas_tokens, masked.eos, masked.mark) == (7, 1, 2)


@pytest.mark.parametrize("kind", ["autoregressive", "masked"])
def test_a_vocabulary_needs_room_for_the_mark(kind: str, make_config: Callable[..., Config]) -> None:
    own = [f"objective.kind={kind}", PLAIN, "data.tokenizer=bytes"]
    with pytest.raises(ValueError, match=naming("model.vocab_size", 262, 263)):
        PackLoader(make_config(*own, "model.vocab_size=262"), 0, 1)
    PackLoader(make_config(*own, "model.vocab_size=263"), 0, 1)
    PackLoader(make_config("data.tokenizer=bytes", "model.vocab_size=262"), 0, 1)


@pytest.mark.parametrize("task", ["infill", "blocks"])
def test_tasks_that_next_tokens_cannot_learn_are_refused(
    task: str, make_config: Callable[..., Config], digits: Path, tmp_path: Path
) -> None:
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(
        f"sources:\n  single: {{shards: '{digits}/single-train-*.tar', weight: 1, tasks: {{{task}: 1}}}}\n"
    )
    own = [PLAIN, f"data.mixture={mixture}", "data.block_rows=16"]
    with pytest.raises(ValueError, match=naming("single", task, "autoregressive")):
        PackLoader(make_config("objective.kind=autoregressive", *own), 0, 1)
    PackLoader(make_config("objective.kind=masked", *own), 0, 1)
