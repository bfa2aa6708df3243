from __future__ import annotations

from pathlib import Path

from oneflow_dist.evaluation.suite import load_suite
from tests.messages import names, refused
from tools.experiments.probes.suite import measure, write_suite
from tools.experiments.reading import Probe
from tools.experiments.rows import Subject

SUITE = """
[task.image_to_text]
source = "shards"
path = "{digits}/single-heldout-000000.tar"
prompt = "{{picture}}"
count = 2
group = 2
scores = ["captions"]
"""


def test_a_way_adds_to_the_sampling_of_every_task(root: Path, tmp_path: Path) -> None:
    old = load_suite(root / "configs/suites/paper_table2.toml")
    new = load_suite(
        write_suite(root / "configs/suites/paper_table2.toml", ("sampling.steps=4",), tmp_path / "suite.toml")
    )
    assert list(new.task) == list(old.task)
    for name, task in new.task.items():
        assert task.sampling == (*old.task[name].sampling, "steps=4")


def test_figures_are_those_of_the_suites_report_in_every_way(subject: Subject, digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "captions.toml"
    path.write_text(SUITE.format(digits=digits))
    ways = {"one step": ("sampling.steps=1",), "two steps": ("sampling.steps=2",)}
    probe = Probe(kind="suite", title="", kinds=(str(path), "image_to_text/bleu_1"), ways=ways)
    rows = list(measure(subject, probe))
    assert [(row.way, row.x, row.figure) for row in rows] == [(way, None, "image_to_text/bleu_1") for way in ways]
    assert all(0.0 <= row.value <= 1.0 for row in rows)
    unknown = Probe(kind="suite", title="", kinds=(str(path), "none/such"), ways={"one step": ("sampling.steps=1",)})
    assert names(refused(lambda: [*measure(subject, unknown)]), path, "none/such", "image_to_text/bleu_1")
