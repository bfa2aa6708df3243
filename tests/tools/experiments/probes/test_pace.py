from __future__ import annotations

from pathlib import Path

from tests.messages import names, refused
from tests.tools.experiments.making import TEXT, write
from tests.tools.experiments.probes.conftest import SMALL
from tools.experiments.probes.pace import measure
from tools.experiments.reading import Probe, load_experiment
from tools.experiments.rows import Subject


def test_arms_that_are_named_are_timed(digits: Path, tmp_path: Path, root: Path) -> None:
    data = f'"data.mixture={digits}/mixture.yaml", "data.tokenizer={digits}/words.tiktoken"'
    small = ", ".join(f'"{setting}"' for setting in SMALL)
    text = TEXT.replace("configs/debug.toml", f"{root}/configs/quickstart.toml")
    text = text.replace('settings = ["train.steps=4"]', f"settings = [{data}, {small}]", 1)
    experiment = load_experiment(str(write(tmp_path, text)))
    subject = Subject(experiment=experiment, arm="one", seed=0, folder=tmp_path)
    rows = list(measure(subject, Probe(kind="pace", title="", kinds=("one",))))
    assert [(row.way, row.figure) for row in rows] == [("one", "step_seconds")]
    assert rows[0].value > 0.0
    probe = Probe(kind="pace", title="", kinds=("exact",))
    assert names(refused(lambda: [*measure(subject, probe)]), "exact")
