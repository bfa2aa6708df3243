"""The figures that are compared, and what a finished run says of them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneflow_dist.commands.curves import AVERAGE, read_lines
from tools.comparison.plan import Run

REPORT, BOUND, METRICS = "report.json", "bound.txt", "metrics.jsonl"
BITS = re.compile(r"^(\S+): at most (\S+) bits a token, error (\S+); \d+ texts$", re.MULTILINE)
VELOCITY = re.compile(rf"{AVERAGE}[^/]+/velocity_[^/]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure of merit."""

    key: str  # in report.json, or one of the two others
    title: str
    is_lower_better: bool = False
    is_share: bool = True  # of documents, each right or not
    is_drawn: bool = False

    @property
    def sign(self) -> float:
        """Times which larger is better."""
        return -1.0 if self.is_lower_better else 1.0


# Images of one document are right together: their share is as uncertain as one of documents, or less.
FIGURES = (
    Figure(key="interleaved/documents_right", title="counting: documents right", is_drawn=True),
    Figure(key="interleaved/agreement", title="counting: images right"),
    Figure(key="interleaved/valid_text", title="counting: words right"),
    Figure(key="interleaved/has_image", title="counting: an image for each word"),
    Figure(key="single/agreement", title="single: image shows the text", is_drawn=True),
    Figure(key="single/valid_text", title="single: valid text"),
    Figure(key="single/has_image", title="single: one image"),
    Figure(key="both/agreement", title="both: image shows the text"),
    Figure(key="both/valid_text", title="both: valid text"),
    Figure(key="both/has_image", title="both: one image"),
    Figure(key="prompted/text_to_image", title="text → image right", is_drawn=True),
    Figure(key="prompted/image_to_text", title="image → text right", is_drawn=True),
    Figure(
        key="prompted/distance", title="Fréchet distance of images", is_lower_better=True, is_share=False, is_drawn=True
    ),
    Figure(key="velocity", title="held-out velocity loss", is_lower_better=True, is_share=False, is_drawn=True),
    Figure(key="bits", title="bits a token given the image", is_lower_better=True, is_share=False, is_drawn=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a finished run took and reached."""

    run: Run
    seconds: float  # that its steps take alone
    flops: float  # really spent
    num_parameters: int
    values: dict[str, float]  # by key of FIGURES
    details: dict[str, Any]  # what some of these are means of


def read_run(run: Run, pace: float) -> Reading:
    """All that the files of a finished run say.

    Args:
        pace: seconds of a step of its config, measured alone.

    Raises:
        ValueError: one is missing or damaged, or of another run.
    """
    lines, report, bits = read_lines(run.folder), read_report(run.folder), read_bits(run.folder)
    steps = [line for line in lines if "seconds" in line]
    losses = [line for line in lines if any(VELOCITY.fullmatch(key) for key in line)]
    path = run.folder / METRICS
    if not losses or losses[-1]["step"] != run.steps or not steps or steps[-1]["step"] != run.steps:
        raise ValueError(f"{path}: no held-out velocities of step {run.steps}; remove the folder, to make the run anew")
    if any(not line.get("tflops_per_second") for line in steps):
        raise ValueError(f"{path}: a step is without tflops_per_second; remove the folder, to make the run anew")
    velocities = {key: value for key, value in losses[-1].items() if VELOCITY.fullmatch(key)}
    if None in velocities.values():
        raise ValueError(f"{path}: held-out velocities of step {run.steps} are not finite; mend the config of the run")
    own = [figure.key for figure in FIGURES if "/" in figure.key]
    return Reading(
        run=run,
        seconds=run.steps * pace,
        flops=1e12 * sum(line["seconds"] * line["tflops_per_second"] for line in steps),
        num_parameters=int(number_of(report, "num_parameters", run.folder)),
        values={
            **{key: number_of(report, key, run.folder) for key in own},
            "velocity": sum(velocities.values()) / len(velocities),
            "bits": sum(value for value, _ in bits.values()) / len(bits),
        },
        details={"velocities": velocities, "bits": {name: value for name, (value, _) in bits.items()}}
        | {"bits_errors": {name: error for name, (_, error) in bits.items()}},
    )


def read_report(folder: Path) -> dict[str, Any]:
    """What tools/digits/evaluate.py has written.

    Raises:
        ValueError: nothing, or it is damaged.
    """
    path = folder / REPORT
    try:
        report = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{path}: is not there; run the same command again") from error
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); remove it, and it is made again") from error
    if not isinstance(report, dict):
        raise ValueError(f"{path}: damaged (no table); remove it, and it is made again")
    return report


def number_of(report: dict[str, Any], key: str, folder: Path) -> float:
    """A number of a report, by the path to it.

    Raises:
        ValueError: it has none there.
    """
    value: Any = report
    for part in key.split("/"):
        value = value.get(part) if isinstance(value, dict) else None
    if not isinstance(value, int | float):
        raise ValueError(f"{folder / REPORT}: no number {key}; remove it, and it is made again")
    return float(value)


def read_bits(folder: Path) -> dict[str, tuple[float, float]]:
    """Of each source that has the task the bits a token, and their error.

    Raises:
        ValueError: oneflow bound has told of none.
    """
    path = folder / BOUND
    if not path.is_file():
        raise ValueError(f"{path}: is not there; run the same command again")
    try:
        found = {name: (float(bits), float(error)) for name, bits, error in BITS.findall(path.read_text())}
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); remove it, and it is made again") from error
    if not found:
        raise ValueError(f"{path}: no bits of any source; remove it, and it is made again")
    return found
