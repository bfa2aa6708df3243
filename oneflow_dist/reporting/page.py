"""The page: one HTML file about one run or several, that needs nothing else."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from oneflow_dist.reporting.differences import ABSENT, differing_keys, nearest_base, value_of
from oneflow_dist.reporting.markup import Html, amount, duration, folded, join, moment, table, tag
from oneflow_dist.reporting.panels import MOST_POINTS, Line, Panel, as_data, curve_of, list_panels
from oneflow_dist.reporting.runs import RECENT, Run, read_runs

MOST_PICTURES, PICTURE_BYTES = 40, 24 * 2**20  # of a run, and of the page
MOST_EVENTS = 200
OPEN_GROUPS = 3  # of panels
PAPERS = {"insertion": "OneFlow", "autoregressive": "Transfusion", "masked": "LLaDA"}
CONTROLS = Html("""<form id="tools" aria-label="how curves are drawn">
<label>smooth <input id="smooth" type="range" min="0" max="100"><output id="smoothed"></output></label>
<label>along <select id="x"><option>steps</option><option>seconds</option><option>tokens</option></select></label>
<label>up <select id="y"><option value="auto">as fits</option><option>linear</option>
<option value="log">logarithmic</option></select></label>
<label id="held">held out <select id="of"><option>average</option><option>weights</option><option>both</option></select>
</label><span id="legend"></span><button type="button" id="reset" disabled>whole run</button></form>""")


def render(runs: Sequence[Path], refresh_seconds: float | None = None, price: float | None = None) -> str:
    """The page about run folders, as they are now.

    Scripts, styles and pictures are in the page: a policy for it needs 'unsafe-inline' of both and data: of pictures.

    Args:
        refresh_seconds: after which the page loads itself again, as it stands; None: never.
        price: of an hour of a device, in any currency; None: no costs are shown.

    Raises:
        ValueError: a run has no metrics, or a file of it is damaged.
    """
    return render_runs(read_runs(runs), refresh_seconds, price)


def render_runs(runs: Sequence[Run], refresh_seconds: float | None = None, price: float | None = None) -> str:
    """The page about runs that have been read."""
    panels = list_panels(runs)
    data = json.dumps({**as_data(panels, runs), "refresh": refresh_seconds}, separators=(",", ":"))
    parts = {
        "Curves": _curves(panels, runs),
        "Samples": _samples(runs),
        "Last values": _last_values(panels, runs),
        "Config": _config(runs),
        "Environment": _of_each(runs, _environment),
        "Cost": _cost(runs, price),
        "Checkpoints": _of_each(runs, _checkpoints),
        "Guard": _of_each(runs, _guard),
    }
    links = [tag("a", name, href=f"#{name}") for name in parts]
    title = ", ".join(run.name for run in runs)
    style, script = (Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += tag("title", title) + tag("style", Html(style))
    cards = tag("div", *(_card(run, len(runs) > 1) for run in runs), class_="cards")
    body = [
        tag("header", tag("h1", title), cards, tag("nav", *links, aria_label="sections")),
        tag("noscript", "Curves and the slider of samples need JavaScript; all else does not."),
        tag("main", *(tag("section", tag("h2", name), part, id=name) for name, part in parts.items())),
        tag("script", Html(data.replace("<", "\\u003c")), id="data", type="application/json"),
        tag("script", Html(script)),
    ]
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{join(body)}</body></html>\n'


def _of_each(runs: Sequence[Run], describe: Callable[[Run], Iterator[Html]]) -> Html:
    """A part for each run, under its name where there are several."""
    names = [tag("h3", run.name) if len(runs) > 1 else "" for run in runs]
    return join(part for name, run in zip(names, runs, strict=True) for part in (name, *describe(run)))


def _card(run: Run, has_name: bool) -> Html:
    """What a run is and how it stands."""
    config, facts = run.config, {}
    if config:
        kind = str(config.get("objective.kind", "insertion"))
        kinds = dict.fromkeys(key.split(".")[1] for key in config if key.startswith("modality."))
        facts["objective"] = f"{kind} ({PAPERS.get(kind, '')}): {' and '.join(['text', *kinds])}"
        size = f"{config.get('model.num_layers')} layers of width {config.get('model.width')}"
        facts["model"] = f"{run.parameters:,} parameters, {size}" if run.parameters else size
    facts["steps"] = f"{run.last_step:,}" + (f" of {run.num_steps:,}" if run.num_steps else "")
    if (loss := run.recent("loss")) is not None:
        facts["loss"] = f"{loss:.4g} over the last {RECENT} steps"
    facts["trained for"] = duration(run.total("seconds"))
    if run.status.is_going and run.num_steps:
        facts["left"] = f"about {duration((run.num_steps - run.last_step) * (run.recent('seconds') or 0.0))}"
    facts["last line"] = moment(run.written)
    name = [tag("i", class_="swatch"), tag("span", run.name)] if has_name else []
    return tag(
        "article",
        tag("h2", *name, tag("b", run.status.state, class_=f"state {run.status.state}")),
        tag("p", run.status.reason),
        tag("progress", value=run.last_step, max=run.num_steps or run.last_step, aria_label=f"steps of {run.name}"),
        tag("dl", *(tag("div", tag("dt", key), tag("dd", value)) for key, value in facts.items())),
    )


def _curves(panels: Sequence[Panel], runs: Sequence[Run]) -> Html:
    """Places for what page.js draws."""
    figures: dict[str, list[Html]] = {}
    for number, panel in enumerate(panels):
        title = tag("figcaption", panel.title)
        figures.setdefault(panel.group, []).append(tag("figure", title, class_="panel", data_panel=number))
    groups = enumerate(figures.items())
    folds = [folded(group, tag("div", *own, class_="grid"), is_open=at < OPEN_GROUPS) for at, (group, own) in groups]
    said = "Drag to zoom, double click for the whole run; arrow keys move along a curve, + and - zoom, Esc resets."
    if max(len(curve.steps) for run in runs for curve in run.curves.values()) > MOST_POINTS:
        said += " Long curves are thinned: of each stretch the least and the greatest are drawn; its mean is smoothed."
    return join([CONTROLS, tag("p", said, class_="note"), *folds])


def choose_pictures(samples: dict[int, Path], most_bytes: int) -> dict[int, bytes]:
    """Pictures of samples, spread over the run and few enough for a page; always the last."""
    steps, chosen = sorted(samples), sorted(samples)
    for number in range(min(MOST_PICTURES, len(steps)), 0, -1):
        chosen = [steps[place] for place in np.linspace(len(steps) - 1, 0, number).round().astype(int)[::-1]]
        if sum(samples[step].stat().st_size for step in chosen) <= most_bytes:
            break
    return {step: samples[step].read_bytes() for step in chosen}


def _samples(runs: Sequence[Run]) -> Html:
    figures = []
    for run in (run for run in runs if run.samples):
        chosen = choose_pictures(run.samples, PICTURE_BYTES // len(runs))
        caption = f"{run.name}, step ", tag("output", max(chosen)), f": {len(chosen)} of {len(run.samples)} pictures"
        pictures = [
            tag(
                "img",
                src=f"data:image/png;base64,{base64.b64encode(content).decode()}",
                alt=f"what {run.name} makes of its prompts after step {step}",
                data_step=step,
                hidden=step != max(chosen),
            )
            for step, content in chosen.items()
        ]
        figures.append(tag("figure", tag("figcaption", *caption), *pictures, class_="samples"))
    if not figures:
        return tag("p", "No pictures: set sampling.every_steps.", class_="note")
    slider = tag("input", id="sample", type="range", min=0, value=0, max=0, aria_label="step of the samples")
    return join([slider, tag("div", *figures, class_="beside")])


def _last_values(panels: Sequence[Panel], runs: Sequence[Run]) -> Html:
    head = ["", *(run.name for run in runs)]
    tables: dict[bool, list[list[str]]] = {True: [], False: []}
    for panel in panels:
        for line in panel.lines:
            title = line.label if line.kind in ("step", "exact") else f"{panel.group}, {panel.title}: {line.label}"
            title += " (weights)" if line.kind == "weights" else ""
            is_first = line.kind in ("step", "exact", "average") and not panel.is_ordered
            tables[is_first].append([title, *(_last(run, line) for run in runs)])
    note = f"Of steps the mean of the last {RECENT}; held out and figures of evaluations as last measured."
    rest = folded("bins, weights, evaluations", table(head, tables[False])) if tables[False] else ""
    return join([tag("p", note, class_="note"), table(head, tables[True]), rest])


def _last(run: Run, line: Line) -> str:
    curve = curve_of(run, line)
    if curve is None:
        return ""
    if curve.low is None or curve.high is None or not np.isfinite(curve.low[-1]):
        return f"{curve.values[-RECENT if line.kind == 'step' else -1 :].mean():.5g}"
    return f"{curve.values[-1]:.4g} [{curve.low[-1]:.4g}, {curve.high[-1]:.4g}]"


def _config(runs: Sequence[Run]) -> Html:
    """First what differs: from the first run, or of one run from what of the project is nearest."""
    base = nearest_base(runs[0].config) if len(runs) == 1 else None
    named = {**dict([base] if base else []), **{run.name: run.config for run in runs}}
    keys = differing_keys(list(named.values()))
    rows = [[key, *(value_of(config, key) for config in named.values())] for key in keys]
    said = f"Differences from {next(iter(named))}: {len(keys)}" + (". It is the nearest in configs/." if base else ".")
    said = said if len(named) > 1 else "No configs/ is here to compare it with."
    whole = [folded(f"config.toml of {run.name}", tag("pre", run.config_text or "is not there")) for run in runs]
    return join([tag("p", said), table(["", *named], rows) if keys else "", *whole])


def _environment(run: Run) -> Iterator[Html]:
    if not run.attempts:
        yield tag("p", "Not started by launch/, so commit, machine and versions are not written down.", class_="note")
        return
    last = run.attempts[-1]
    changed = len(re.findall(r"^[+-](?![+-]{2} )", last.read("changes.diff"), re.MULTILINE))
    facts = {
        "commit": (last["commit"] or "not known") + (f", {changed} lines changed since" if changed else ""),
        "machine": f"{last['host']}, {run.place.ranks or '?'} x {run.place.device or '?'}",
        "versions": f"torch {last['torch']}, Python {last['python']}",
        "command": tag("code", last["command"]),
    }
    yield table(["", "of the last start"], list(facts.items()))
    rows = []
    for own in run.attempts:
        start, saved = f"{own.folder.parent.name}, {own.folder.name}", own["saved_after"] or own["saved_before"]
        rows.append([start, own["began"], own["ended"], own["host"], own.state or "not ended", own.message, saved])
    yield table(["start", "began", "ended", "on", "how", "why", "last saved"], rows)
    yield folded("variables", tag("pre", last.read("environment.txt") or "none"))


def _cost(runs: Sequence[Run], price: float | None) -> Html:
    rows: dict[str, list[str]] = {}
    for run in runs:
        hours = run.total("seconds") / 3600 * max(1, run.ranks)
        facts = {
            "ranks": str(run.ranks) if run.ranks else "not known, taken as 1",
            "device-hours": f"{hours:.4g}",
            "computed": amount(1e12 * run.total("tflops_per_second", is_speed=True), "FLOP"),
            "tokens and patches seen": amount(run.total("tokens_per_second", is_speed=True)),
            "samples seen": amount(run.total("samples")),
            "images seen": amount(run.total("images_per_second", is_speed=True)),
            **({} if price is None else {f"price, at {price:g} per device-hour": f"{hours * price:.2f}"}),
        }
        for key, value in facts.items():
            rows.setdefault(key, []).append(value)
    note = "Of the steps that count: what was made again after a kill, held-out losses and samples are not in it."
    own = [[key, *values] for key, values in rows.items() if set(values) != {"0"}]
    return join([table(["", *(run.name for run in runs)], own), tag("p", note, class_="note")])


def _checkpoints(run: Run) -> Iterator[Html]:
    rows = [[f"step {own.step:,}", amount(own.size, "B"), moment(own.saved)] for own in reversed(run.checkpoints)]
    yield tag("p", f"{len(rows)} kept, {amount(sum(own.size for own in run.checkpoints), 'B')} on disk.")
    if rows:
        yield table(["", "size", "saved"], rows)


def _guard(run: Run) -> Iterator[Html]:
    budget = run.config.get("guard.max_skipped_steps", ABSENT)
    yield tag("p", f"{len(run.skipped)} steps left out (guard.max_skipped_steps = {budget}).")
    if run.events:
        yield table(["", "what"], [[f"step {step:,}", what] for step, what in run.events[-MOST_EVENTS:]])
    if len(run.events) > MOST_EVENTS:
        yield tag("p", f"The last {MOST_EVENTS} of {len(run.events)}.")
