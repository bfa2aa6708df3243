from __future__ import annotations

import pytest

from tests.tools.experiments.making import measured
from tools.experiments.analyses.bags import steps_to_reach, write_section
from tools.experiments.reading import load_experiment
from tools.experiments.results import Results

SAMPLED = {80.0: 1.0, 160.0: 0.8, 240.0: 0.7, 320.0: 0.6}


def test_steps_to_be_as_good_lie_between_those_that_were_measured() -> None:
    assert steps_to_reach(SAMPLED, SAMPLED) == 1.0
    assert steps_to_reach({80.0: 0.9, 160.0: 0.7, 240.0: 0.5}, SAMPLED) == pytest.approx(200.0 / 320.0)
    assert steps_to_reach({80.0: 0.5}, SAMPLED) == 0.25
    assert steps_to_reach({80.0: 1.0, 320.0: 0.61}, SAMPLED) is None


def test_a_world_without_data_is_left_out_and_seconds_are_steps_times_what_they_take() -> None:
    found = []
    for bags, worth, noise in (("sampled", 1.0, 4.0), ("averaged", 0.5, 1.0)):
        losses = [("loss", ("", step, "text", 1.0 / step * worth)) for step in (80.0, 160.0, 240.0, 320.0)]
        found.append(measured(f"letters, {bags}", 0, []) | {"rows": losses})
        found[0]["rows"] = [*found[0]["rows"], ("noise", (bags, None, "noise", noise))]
    paces = [
        ("pace", (f"letters, {bags}", None, "step_seconds", s)) for bags, s in (("sampled", 0.1), ("averaged", 0.12))
    ]
    found.append(measured("pace", 0, []) | {"rows": paces})
    section = write_section(Results(load_experiment("bags"), tuple(found)))
    (row,) = [line for line in section.splitlines() if line.startswith("| letters |")]
    assert row == "| letters | 0.25 | 0.50 | 0.60 |"
    assert "paragraphs" not in section
