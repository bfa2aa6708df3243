"""Predicted against published: a table and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from tools.benchmark.drawing import INK

if TYPE_CHECKING:
    from tools.comparison.published_plans import Outcome

COLOURS = {
    "torchtitan": "#d9822b",
    "KempnerForge": "#2f6fb3",
    "Megatron-LM": "#76a646",
    "llm-foundry": "#8a5fb0",
    "nanochat": "#c2476b",
    "OneFlow": "#30343b",
}


def page(outcomes: Sequence[Outcome], found: Mapping[str, Any]) -> str:
    """All runs in one table."""
    lines = [
        "# Predicted against published",
        "",
        "Made by `python -m tools.comparison.plans published docs/results`. Tokens (of OneFlow rows) per second and",
        "GPU; MFU of 989 TFLOP/s by 6 x weights of products + 12 x layers x width x length a token, as these",
        "systems count: causal attention is not halved. OneFlow's is by its own count. No rate was fitted to a run",
        "that is judged.",
        "",
        f"Of {found['runs']} runs the mean error is {found['mean']:.1%}, the median {found['median']:.1%},",
        f"the worst {found['worst']:+.1%} ({found['worst_run']}).",
        "",
        "| system | run | published | predicted | error | MFU | predicted | exposed | known | assumed |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for o in outcomes:
        error = f"{o.error:+.1%}" if o.is_judged else f"({o.error:+.1%})"
        lines.append(
            f"| {o.system} | {o.name} | {o.published:,.0f} | {o.predicted:,.0f} | {error} | {o.mfu:.1%} "
            f"| {o.predicted_mfu:.1%} | {o.exposed:.1%} | {o.known} | {o.assumed} |"
        )
    return "\n".join([*lines, ""])


def draw(outcomes: Sequence[Outcome], found: Mapping[str, Any]) -> Figure:
    """MFU over MFU, the diagonal, and 10 % beside it; and every error as a bar."""
    figure = Figure(figsize=(15, 8), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    ends = [25.0, 65.0]
    left.fill_between(ends, [0.9 * e for e in ends], [1.1 * e for e in ends], color="#eef1f5", label="within 10 %")
    left.plot(ends, ends, color="#9aa4b1", linewidth=1)
    for system, colour in COLOURS.items():
        own = [outcome for outcome in outcomes if outcome.system == system]
        look = {"color": colour, "s": 64, "edgecolor": "white", "label": system, "zorder": 3}
        left.scatter([100 * o.mfu for o in own], [100 * o.predicted_mfu for o in own], **look)
    left.set(xlabel="published MFU, %", ylabel="predicted MFU, %", xlim=ends, ylim=ends, aspect="equal")
    left.legend(frameon=False, loc="upper left")
    names = [f"{outcome.system} {outcome.name}" for outcome in outcomes]
    places = range(len(outcomes))
    right.barh(places, [100 * o.error for o in outcomes], color=[COLOURS[o.system] for o in outcomes], height=0.7)
    right.axvspan(-10, 10, color="#eef1f5", zorder=0)
    right.axvline(0, color="#9aa4b1", linewidth=1)
    right.set_yticks(places, names, fontsize=8)
    right.set(xlabel="predicted / published - 1, %", ylim=(len(names) - 0.4, -0.6))
    for place, outcome in zip(places, outcomes, strict=True):
        side = {"ha": "left" if outcome.error > 0 else "right", "xytext": (4 if outcome.error > 0 else -4, 0)}
        right.annotate(
            f"{outcome.error:+.0%}",
            (100 * outcome.error, place),
            textcoords="offset points",
            va="center",
            fontsize=8,
            **side,
        )
    right.margins(x=0.15)
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    title = f"{found['runs']} published runs: mean error {found['mean']:.1%}, median {found['median']:.1%}"
    figure.suptitle(f"{title}, worst {found['worst']:+.1%}", x=0.01, ha="left", fontsize=13, color=INK)
    return figure
