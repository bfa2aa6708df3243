from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.messages import names, refused
from tests.tools.comparison.made_up import CONFIGS, contender
from tools.comparison.pace import ROUNDS, STEPS, WARMUP, measure_pace
from tools.comparison.plan import Run

CONTENDERS = [contender(name) for name in list(CONFIGS)[:2]]


def test_configs_are_timed_in_turn_without_their_first_steps(tmp_path: Path) -> None:
    made: list[str] = []

    def train(run: Run) -> None:
        """Of the second config steps take twice as long, and in the second round something else is going on."""
        made.append(run.contender.name)
        seconds = (1.0 + (run.contender is CONTENDERS[1])) * (9.0 if run.folder.name.endswith("-1") else 1.0)
        lines = [{"step": step, "seconds": 99.0 if step <= WARMUP else seconds} for step in range(1, STEPS + 1)]
        (run.folder / "metrics.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in [*lines, {"step": STEPS}])
        )

    own = [each.name for each in CONTENDERS]
    assert measure_pace(CONTENDERS, tmp_path, train) == dict(zip(own, (1.0, 2.0), strict=True))
    assert made == own * ROUNDS
    assert measure_pace(CONTENDERS, tmp_path, train) == dict(zip(own, (1.0, 2.0), strict=True))
    assert len(made) == 2 * ROUNDS  # nothing was measured again


@pytest.mark.parametrize("content", ["{", "[]", '{"quickstart": "fast"}', "{}"])
def test_times_that_are_damaged_are_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "pace.json").write_text(content)
    assert names(refused(measure_pace, CONTENDERS, tmp_path, lambda _: None), tmp_path / "pace.json")
