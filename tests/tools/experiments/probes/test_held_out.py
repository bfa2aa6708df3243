from __future__ import annotations

import json

import pytest

from tests.messages import names, refused
from tools.experiments.probes.held_out import measure
from tools.experiments.reading import Probe
from tools.experiments.rows import Subject


def test_losses_are_those_that_the_run_has_measured_of_its_average(subject: Subject) -> None:
    lines = [json.loads(line) for line in (subject.folder / "metrics.jsonl").read_text().splitlines()]
    own = {line["step"]: line for line in lines if "validation_ema/single/text" in line}
    rows = list(measure(subject, Probe(kind="held_out", title="", vary="train.steps", values=(2.0, 4.0))))
    assert [(row.x, row.figure) for row in rows] == [(x, figure) for x in (2.0, 4.0) for figure in ("text", "velocity")]
    for place, step, loss in ((0, 2, "text"), (3, 4, "velocity_image")):
        sources = [own[step][f"validation_ema/{source}/{loss}"] for source in ("single", "count")]
        assert rows[place].value == pytest.approx(sum(sources) / 2.0)
    last = list(measure(subject, Probe(kind="held_out", title="")))
    assert [(row.x, row.value) for row in last] == [(None, rows[2].value), (None, rows[3].value)]


def test_bits_are_of_as_many_captions_as_are_asked_for(subject: Subject) -> None:
    bits = [row for row in measure(subject, Probe(kind="held_out", title="", documents=4)) if row.figure == "bits"]
    assert len(bits) == 1
    assert 0.0 < bits[0].value < 40.0


def test_a_step_without_losses_is_refused(subject: Subject) -> None:
    probe = Probe(kind="held_out", title="", vary="train.steps", values=(3.0,))
    assert names(refused(lambda: [*measure(subject, probe)]), subject.folder, 3, "validation.every_steps")
