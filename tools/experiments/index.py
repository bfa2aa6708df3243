"""docs/experiments/README.md: every claim of every experiment in one table."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tools.experiments.reading import Experiment
from tools.experiments.report import judge
from tools.experiments.results import load_results, results_path

TEXT = """# The claims, tested

What the paper says of the method, and what we say ourselves, tried in small on real data: models of a tenth to a few
millions of parameters, most of them trained for a minute of a CPU core. {counts}

*Seen*: the difference is larger than chance makes it, with 95 % confidence over the seeds. *Contradicted*: it goes the
other way, as surely. *Not seen at this scale*: neither; more seeds or larger models may tell. Each claim is judged by
itself, so of fifty one or two may stand on the wrong side by chance. A claim about a billion parameters is not refuted
by a model of one million: this says what to expect of small ones.

    make experiments
    oneflow experiment heads --seeds 3

The first makes all tables anew with one seed, in less than an hour of two cores, and tells which numbers lie outside
the ranges of those here; the second makes one of them with three seeds. Both go on where they were stopped, and any
number of machines that share a folder take work from the same list. [How to add one](../extending.md#an-experiment).
What each takes on H100s, by plan: [h100.md](h100.md)."""


def write_index(experiments: dict[str, Experiment], folder: Path) -> str:
    """The page, of the experiments that have results in the folder."""
    counts: Counter[str] = Counter()
    lines = ["| | claim | of | verdict | numbers |", "| --- | --- | --- | --- | --- |"]
    for name, experiment in experiments.items():
        path = results_path(folder, name)
        if not path.exists():
            continue
        title = f"[{experiment.title}]({name}.md)"
        for outcome in judge(load_results(experiment, path)).values():
            counts[outcome.verdict] += 1
            cells = [title, outcome.claim.says, outcome.claim.source, f"**{outcome.verdict}**", outcome.numbers]
            lines.append(f"| {' | '.join(cells)} |")
            title = ""
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    return "\n\n".join([TEXT.format(counts=f"Of {sum(counts.values())} claims: {told}."), "\n".join(lines)]) + "\n"
