"""A comparison as Markdown for people and as JSON for programs."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tools.comparison.figures import FIGURES, Figure
from tools.comparison.means import Outcome, parity, standard_error
from tools.comparison.parity import Ratio, at_seconds

METHOD = (
    "All configs train the trunk on the same data with the same seeds. FLOPs of a step are counted in the packs that "
    "it really gets, padding left out; each config takes as many steps as cost the same FLOPs. Seconds are steps times "
    "what a step takes on this machine, measured in turn with nothing else under way. {samples} documents of each kind "
    "are judged; "
    "losses of text are left out, since every objective has another: bits a token are the likelihood of next tokens "
    "and upper bounds of the two others. ± is the standard error over seeds."
)
SECONDS = (
    "Means over seeds when {seconds:,.0f} s of training have passed, as long as {name} took for the whole budget: "
    "between budgets linear in the logarithm of seconds. Where a config was not trained for so long, or never so "
    "briefly, it is the nearest that was measured, with the factor of seconds that it had."
)
PARITY = (
    "FLOPs with which the first of two is as good as the second is with the whole budget, over the second's: below 1 "
    "it needs less. ≤: its smallest budget is already enough; >: its largest is not. In brackets 90 % of what seeds "
    "drawn anew would give, and documents judged anew."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a result has to say of how it was made."""

    command: str
    machine: dict[str, Any]  # of tools.benchmark.machine
    samples: int

    @property
    def computer(self) -> str:
        """In a few words."""
        seen = self.machine
        return f"{seen['device']}, {seen['cores']} cores, torch {seen['torch']}, {platform.platform()}"


def write_markdown(outcomes: Sequence[Outcome], made: Circumstances) -> str:
    """The tables."""
    first, names = outcomes[0], [outcome.name for outcome in outcomes]
    seeds = ", ".join(str(row[0].run.seed) for row in first.readings)
    parts = [
        f"# {', '.join(names)}: the same data, budget and seeds",
        f"{made.computer}. Commit {made.machine['commit']}, {made.machine['date']}. Seeds {seeds}.",
        f"```\n{made.command}\n```",
        METHOD.format(samples=made.samples),
        "## At equal FLOPs",
        make_table(["", *names], [*list_costs(outcomes), *list_figures(outcomes)]),
        "## At equal seconds",
        SECONDS.format(seconds=first.seconds.mean(0)[-1], name=first.name),
        make_table(["", *names], list_at_seconds(outcomes)),
    ]
    if len(outcomes) > 1:
        ratios = list_ratios(outcomes, made)
        rows = [[say(figure), *(str(column[figure.key]) for column in ratios.values())] for figure in FIGURES]
        parts += ["## FLOPs to be as good", PARITY, make_table(["", *ratios], rows)]
    parts += ["## Every budget", make_table(*list_budgets(outcomes))]
    return "\n\n".join(parts) + "\n"


def list_ratios(outcomes: Sequence[Outcome], made: Circumstances) -> dict[str, dict[str, Ratio]]:
    """Of every two, either way round, by what is compared and by figure."""
    return {
        f"{ours.name} against {rival.name}": parity(ours, rival, made.samples)
        for ours, rival in itertools.permutations(outcomes, 2)
    }


def make_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; numbers stand to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def say(figure: Figure) -> str:
    """Its title, and which way is good where that is not plain."""
    return f"{figure.title} (lower is better)" if figure.is_lower_better else figure.title


def in_words(values: np.ndarray) -> str:
    """The mean over seeds, and its standard error where there is one."""
    error = standard_error(values)
    return f"{values.mean():.3f}" + ("" if error is None else f" ± {error:.3f}")


def list_costs(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """What the whole budget is and takes."""
    columns = [
        (
            outcome.contender.config.objective.kind,
            f"{outcome.readings[0][0].num_parameters:,}",
            f"{outcome.contender.flops_per_step / 1e9:,.3f}",
            f"{outcome.steps[-1]:,}",
            f"{outcome.flops.mean(0)[-1] / 1e12:,.3f}",
            f"{outcome.seconds.mean(0)[-1]:,.1f}",
        )
        for outcome in outcomes
    ]
    titles = ("objective", "parameters", "GFLOP a step, counted", "steps", "TFLOP spent", "seconds of training")
    return [[title, *row] for title, row in zip(titles, zip(*columns, strict=True), strict=True)]


def list_figures(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """All figures at the whole budget."""
    return [[say(figure), *(in_words(outcome.values(figure)[:, -1]) for outcome in outcomes)] for figure in FIGURES]


def list_at_seconds(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """All figures at the seconds that the first takes for the whole budget."""
    asked = outcomes[0].seconds.mean(0)[-1]
    rows = []
    for figure in FIGURES:
        cells = []
        for outcome in outcomes:
            value, factor = at_seconds(outcome.seconds.mean(0), outcome.values(figure).mean(0), asked)
            cells.append(f"{value:.3f}" + ("" if abs(factor - 1.0) < 1e-9 else f" (at {factor:.2f} x)"))
        rows.append([say(figure), *cells])
    return rows


def list_budgets(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """The figures that are drawn at every share, with their head."""
    drawn = [figure for figure in FIGURES if figure.is_drawn]
    rows = [
        [
            f"{outcome.name}, {share:g}",
            f"{outcome.steps[place]:,}",
            f"{outcome.flops.mean(0)[place] / 1e12:,.3f}",
            f"{outcome.seconds.mean(0)[place]:,.1f}",
            *(in_words(outcome.values(figure)[:, place]) for figure in drawn),
        ]
        for outcome in outcomes
        for place, share in enumerate(outcome.shares)
    ]
    return ["", "steps", "TFLOP", "seconds", *map(say, drawn)], rows


def to_json(outcomes: Sequence[Outcome], made: Circumstances) -> dict[str, Any]:
    """Everything; a ratio is null where it lies beyond `least` or `most`, and `text` tells on which side."""
    return {
        "command": made.command,
        "machine": {**made.machine, "platform": platform.platform()},
        "samples": made.samples,
        "configs": {outcome.name: describe(outcome) for outcome in outcomes},
        "parity": {
            pair: {key: describe_ratio(ratio) for key, ratio in ratios.items()}
            for pair, ratios in list_ratios(outcomes, made).items()
        },
    }


def describe(outcome: Outcome) -> dict[str, Any]:
    """A config with its runs and their means."""
    measured = {figure.key: outcome.values(figure) for figure in FIGURES}
    measured |= {"flops": outcome.flops, "seconds": outcome.seconds}
    errors = {key: standard_error(values) for key, values in measured.items()}
    return {
        "path": str(outcome.contender.path),
        "objective": outcome.contender.config.objective.kind,
        "flops_per_step": outcome.contender.flops_per_step,
        "shares": [
            {
                "share": share,
                "steps": outcome.steps[place],
                "mean": {key: float(values.mean(0)[place]) for key, values in measured.items()},
                "standard_error": {key: None if e is None else float(e[place]) for key, e in errors.items()},
            }
            for place, share in enumerate(outcome.shares)
        ],
        "runs": [
            {
                "folder": str(reading.run.folder),
                "share": reading.run.share,
                "seed": reading.run.seed,
                "steps": reading.run.steps,
                "seconds": reading.seconds,
                "flops": reading.flops,
                "flops_expected": reading.run.flops,
                "num_parameters": reading.num_parameters,
                "values": reading.values,
                **reading.details,
            }
            for row in outcome.readings
            for reading in row
        ],
    }


def describe_ratio(ratio: Ratio) -> dict[str, Any]:
    """A ratio with its interval; JSON knows no infinity."""
    ends = {"value": ratio.value, "low": ratio.low, "high": ratio.high}
    told = {key: value if value is not None and 0.0 < value < float("inf") else None for key, value in ends.items()}
    return {**told, "least": ratio.least, "most": ratio.most, "text": str(ratio)}
