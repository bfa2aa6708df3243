"""An experiment as a page for people, CSV for programs, and what its claims have come to."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tools.experiments.estimates import Estimate, difference
from tools.experiments.reading import Claim, Figure
from tools.experiments.results import Point, Results

RANGES = (
    "± is the range of one more seed, on any machine: 99 of 100 lie within. It comes from the spread of the seeds and "
    "from what is usual in the column, since three seeds know their spread badly; of shares it is never less than "
    "drawing other documents makes, of others never less than rounding on another processor is granted."
)
CLAIMED = "The mean difference of the two numbers, seed by seed, with its 95 % interval."
NUMBER = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a claim has come to."""

    claim: Claim
    verdict: str
    numbers: str


def judge(results: Results) -> dict[str, Outcome]:
    """Every claim by name.

    Raises:
        ValueError: a claim names a number that is not there.
    """
    return {name: judge_claim(results, claim) for name, claim in results.experiment.claim.items()}


def judge_claim(results: Results, claim: Claim) -> Outcome:
    """One claim; of a single seed nothing is said, unless there is no chance in it, nor of an arm that was left out."""
    keys = claim.larger, claim.smaller
    if any(map(results.is_left_out, keys)):
        return Outcome(claim=claim, verdict="not measured", numbers="")
    larger, smaller = (Estimate.exact(float(key)) if is_number(key) else results.at(key) for key in keys)
    found = difference(larger, smaller) if any(map(is_number, keys)) else results.compare(*keys)
    figure = results.experiment.figure[next(key for key in keys if not is_number(key)).rpartition(":")[2]]
    means = f"{larger.mean:.{figure.places}f} and {smaller.mean:.{figure.places}f}"
    is_sure = max(larger.seeds, smaller.seeds) > 1 or results.experiment.probe[figure.probe].seeds == 1
    return Outcome(
        claim=claim,
        verdict=found.verdict(claim.by) if is_sure else "one seed",
        numbers=f"{means}: {found.value:+.{figure.places}f} ± {found.half:.{figure.places}f}",
    )


def is_number(text: str) -> bool:
    """Whether it is one."""
    return re.fullmatch(r"-?\d+(\.\d+)?", text) is not None


def write_page(results: Results, extra: str) -> str:
    """The whole page.

    Args:
        extra: a section of the experiment's own analysis; "" for none.
    """
    experiment = results.experiment
    parts = [
        f"# {experiment.title}",
        experiment.question.strip(),
        f"    oneflow experiment {experiment.name} --seeds {len(results.seeds)}",
        experiment.method.strip(),
        f"![{experiment.title}]({experiment.name}.png)",
        fill(experiment.finding.strip(), results),
    ]
    if experiment.claim:
        outcomes = judge(results).values()
        rows = [[one.claim.says, one.claim.source, one.numbers, f"**{one.verdict}**"] for one in outcomes]
        parts += ["## What is claimed", CLAIMED, make_claims(rows)]
    parts += ["## What was measured", RANGES]
    for name, probe in experiment.probe.items():
        parts += [f"**{probe.title}**", table_of(results, name)]
    parts += [extra] if extra else []
    parts += ["## What it took", list_costs(results), list_machines(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def make_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; numbers stand to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def make_claims(rows: Sequence[Sequence[str]]) -> str:
    """Markdown whose words stand to the left."""
    head = ["| claim | of | numbers | verdict |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)])


def fill(text: str, results: Results) -> str:
    """A paragraph with the numbers that it names in braces."""

    def write(found: re.Match[str]) -> str:
        if results.is_left_out(found[1]):
            return "(not measured)"
        figure = results.experiment.figure[found[1].rpartition(":")[2]] if ":" in found[1] else None
        return say(results.at(found[1]), figure)

    return NUMBER.sub(write, text)


def say(number: Estimate, figure: Figure | None) -> str:
    """The mean and its range; of one seed the mean alone."""
    places = 3 if figure is None else figure.places
    return f"{number.mean:.{places}f}" + (f" ± {number.half_range:.{places}f}" if number.seeds > 1 else "")


def table_of(results: Results, probe: str) -> str:
    """The figures of a probe, a row for each point."""
    figures = {name: own for name, own in results.experiment.figure.items() if own.probe == probe}
    points = list(dict.fromkeys(point for name in figures for point in results.values[name]))
    has_x = any(point.x is not None for point in points)
    head = ["", *([results.experiment.probe[probe].vary] if has_x else []), *map(title_of, figures.values())]
    rows = []
    for point in points:
        cells = [
            say(results.estimates[name][point], own) if point in results.values[name] else ""
            for name, own in figures.items()
        ]
        rows.append([point.series, *(["" if point.x is None else f"{point.x:g}"] if has_x else []), *cells])
    if not all(math.isnan(own.data) for own in figures.values()):
        cells = ["" if math.isnan(own.data) else f"{own.data:.{own.places}f}" for own in figures.values()]
        rows.append(["the data", *([""] if has_x else []), *cells])
    return make_table(head, rows)


def title_of(figure: Figure) -> str:
    """With which way is good, where that is not plain."""
    return f"{figure.title} (lower is better)" if figure.is_lower_better else figure.title


def list_costs(results: Results) -> str:
    """Steps, FLOPs and seconds of each arm, means over its seeds."""
    rows = []
    for arm in results.experiment.arm:
        own = [result for result in results.measured if result["arm"] == arm]
        trained = [result["training"] for result in own if result["training"]]
        if own:
            rows.append([arm, *mean_cells(trained), f"{mean(result['measuring_seconds'] for result in own):.0f}"])
    return make_table(["arm", "steps", "TFLOP", "seconds of training", "of measuring"], rows)


def mean_cells(trained: Sequence[dict[str, float]]) -> list[str]:
    """Of trainings; nothing where there is none."""
    if not trained:
        return ["", "", ""]
    return [
        f"{mean(own['steps'] for own in trained):,.0f}",
        f"{mean(own['tflops'] for own in trained):,.3f}",
        f"{mean(own['seconds'] for own in trained):,.0f}",
    ]


def mean(values: Iterable[float]) -> float:
    """Of at least one."""
    found = list(values)
    return sum(found) / len(found)


def list_machines(results: Results) -> str:
    """Which machines and commits made the numbers."""
    made = [result["machine"] for result in results.measured]
    machines = sorted({f"{one['device']}, {one['cores']} cores, torch {one['torch']}" for one in made})
    commits = sorted({one["commit"][:10] for one in made})
    dates = sorted({one["date"][:10] for one in made})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    seeds = ", ".join(map(str, results.seeds))
    note = "Seconds: one thread each, as many programs at a time as there are cores."
    return f"Seeds {seeds}. {'; '.join(machines)}. Commits {', '.join(commits)}; {when}. {note}"


def write_csv(results: Results) -> str:
    """A line for each number: its mean, its range, and every seed."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["probe", "series", "x", "figure", "mean", "range", "interval", "seeds", "values"])
    for name, points in results.estimates.items():
        for point, own in points.items():
            x = "" if point.x is None else f"{point.x:g}"
            values = " ".join(f"{value:.6g}" for value in results.values[name][point])
            ends = [f"{own.mean:.6g}", f"{own.half_range:.6g}", f"{own.half_interval:.6g}"]
            writer.writerow([results.experiment.figure[name].probe, point.series, x, name, *ends, own.seeds, values])
    return out.getvalue()


def compare(found: Results, committed: Results) -> tuple[int, list[str]]:
    """How many numbers two makings have in common, and a line for each whose new mean lies outside the old range."""
    count, lines = 0, []
    for name, points in found.estimates.items():
        for point, own in points.items():
            old = committed.estimates[name].get(Point(*point))
            if old is None:
                continue
            count += 1
            if abs(own.mean - old.mean) > old.half_range:
                where = f"{found.experiment.name}, {point}:{name}"
                lines.append(f"{where}: {own.mean:.4g}, committed {old.mean:.4g} ± {old.half_range:.4g}")
    return count, lines
