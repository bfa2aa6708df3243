from __future__ import annotations

import dataclasses

import pytest

from tests.messages import names, refused
from tools.experiments.probes.written import KINDS, measure
from tools.experiments.reading import Probe
from tools.experiments.rows import Subject

PROBE = Probe(kind="written", title="", documents=3, kinds=tuple(KINDS))


def test_every_kind_gives_its_shares_and_other_seeds_write_other_documents(subject: Subject) -> None:
    rows = list(measure(subject, PROBE))
    found = {row.figure: row.value for row in rows}
    assert {"single_agreement", "both_text", "count_right", "painted_right", "distance", "told_right"} <= set(found)
    assert all(0.0 <= value <= 1.0 for figure, value in found.items() if figure not in ("distance", "count_images"))
    assert list(measure(subject, PROBE)) == rows
    assert list(measure(dataclasses.replace(subject, seed=1), PROBE)) != rows


def test_ways_and_values_are_settings_of_the_sampler(subject: Subject) -> None:
    ways = {"paper": ('sampling.firing="independent"',), "ours": ()}
    probe = Probe(
        kind="written", title="", documents=2, kinds=("told",), ways=ways, vary="sampling.steps", values=(1.0, 2.0)
    )
    rows = list(measure(subject, probe))
    assert [(row.way, row.x) for row in rows] == [("paper", 1.0), ("paper", 2.0), ("ours", 1.0), ("ours", 2.0)]


def test_a_kind_that_is_not_known_is_refused(subject: Subject) -> None:
    probe = dataclasses.replace(PROBE, kinds=("sung",))
    assert names(refused(lambda: [*measure(subject, probe)]), "sung", *KINDS)
    with pytest.raises(ValueError, match="steps"):
        [*measure(subject, dataclasses.replace(PROBE, kinds=("told",), vary="sampling.stepps", values=(1.0,)))]
