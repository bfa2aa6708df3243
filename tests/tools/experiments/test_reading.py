from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.messages import names, refused
from tests.tools.experiments.making import TEXT, load, write
from tools.experiments.plan import plan_tasks
from tools.experiments.reading import SCALES, at_scale, known_experiments, load_experiment


@pytest.mark.parametrize("name", known_experiments())
@pytest.mark.parametrize("scale", SCALES)
def test_every_experiment_can_be_planned_at_every_scale(name: str, scale: str, tmp_path: Path) -> None:
    experiment = at_scale(load_experiment(name), scale)
    tasks = plan_tasks({name: experiment}, scale, 2, tmp_path)
    assert len({task.path for task in tasks}) == len(tasks)
    assert all(task.run is None or task.run.config.train.steps for task in tasks)


@pytest.mark.parametrize("name", known_experiments())
def test_numbers_that_pages_and_claims_name_belong_to_figures(name: str) -> None:
    experiment = load_experiment(name)
    claimed = [key for claim in experiment.claim.values() for key in (claim.larger, claim.smaller) if ":" in key]
    for key in [*claimed, *re.findall(r"\{([^{}]+)\}", experiment.finding)]:
        where, _, figure = key.rpartition(":")
        probe = experiment.probe[experiment.figure[figure].probe]
        series, _, x = where.partition("@")
        assert series
        assert float(x) in probe.values if x else not probe.values or figure == "bits"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[arm.one]", "[arm.one]\nlr = 1", ("arm.one.lr",)),
        ('variant = "reversed"', 'variant = "upside_down"', ("arm.other.variant", "upside_down")),
        ('kind = "written"', 'kind = "told"', ("probe.written.kind", "told")),
        ('arms = ["exact"]', 'arms = ["exactly"]', ("probe.exact.arms", "exactly", "exact")),
        ('probe = "exact"', 'probe = "inexact"', ("figure.tv.probe", "inexact", "exact")),
        ("documents = 100", "documents = -1", ("probe.written.documents", -1)),
        ("[arm.two]", '[arm.two]\nstart = "three"', ("arm.two.start", "three")),
        ("[scale.h100]", "[scale.a100]", ("scale.h100",)),
        ('title = "Small"', 'title = "Small"\nanalysis = "deep"', ("analysis", "deep")),
    ],
)
def test_what_leads_nowhere_is_refused(old: str, new: str, said: tuple[object, ...], tmp_path: Path) -> None:
    assert old in TEXT
    path = write(tmp_path, TEXT.replace(old, new, 1))
    assert names(refused(load_experiment, str(path)), path, *said)


def test_an_experiment_without_a_picture_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, re.sub(r"(\[figure.*)", r"\1\nis_drawn = false", TEXT))
    assert names(refused(load_experiment, str(path)), path, "is_drawn")


def test_an_experiment_that_is_not_there_is_refused_with_those_that_are() -> None:
    assert names(refused(load_experiment, "alchemy"), "alchemy", *known_experiments())


def test_on_h100s_a_suite_takes_the_place_of_probes(tmp_path: Path) -> None:
    large = at_scale(load(tmp_path), "h100")
    assert list(large.arm) == ["one", "two"]
    assert large.probe["suite"].kinds == ("configs/suites/paper_table2.toml", "coco_captions/cider")
    assert list(large.figure) == ["coco_captions/cider"]
    assert not large.claim
