"""Made-up runs whose scores grow with the logarithm of their FLOPs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from oneflow_dist.config import load_config
from tools.comparison.figures import FIGURES, Figure, Reading
from tools.comparison.means import Outcome, gather
from tools.comparison.plan import Contender, Run, plan_runs

ROOT = Path(__file__).parents[3]
CONFIGS = {
    name: ROOT / f"configs/{name}.toml" for name in ("quickstart", "transfusion_quickstart", "masked_quickstart")
}
SHARES = (0.25, 0.5, 1.0)
STEP_FLOPS = 5e9
MACHINE = {"device": "A processor", "cores": 2, "torch": "2.11.0", "commit": "0123abc", "date": "2026-01-01T00:00:00"}


def contender(name: str = "quickstart", flops_per_step: float = STEP_FLOPS) -> Contender:
    config = load_config(CONFIGS[name])
    return Contender(name=name, path=CONFIGS[name], settings=(), config=config, flops_per_step=flops_per_step)


def plan(
    output: Path, names: Sequence[str] = tuple(CONFIGS), seeds: Sequence[int] = (0, 1), steps: int = 120
) -> list[Run]:
    return plan_runs([contender(name) for name in names], steps, SHARES, seeds, output)


def score(figure: Figure, run: Run, efficiency: float) -> float:
    """Of a run whose every FLOP does as much as `efficiency` of them; seeds lie around the mean."""
    growth = 0.1 * math.log(efficiency * run.flops / STEP_FLOPS) + 0.002 * (run.seed - 0.5)
    return 1.0 - growth if figure.is_lower_better else growth


def reading(run: Run, efficiency: float = 1.0, seconds_per_step: float = 0.1) -> Reading:
    return Reading(
        run=run,
        seconds=seconds_per_step * run.steps,
        flops=run.flops,
        num_parameters=1_234_567,
        values={figure.key: score(figure, run, efficiency) for figure in FIGURES},
        details={"velocities": {"validation_ema/single/velocity_image": 0.5}},
    )


def outcomes(output: Path, rival_efficiency: float = 0.5, seeds: Sequence[int] = (0, 1)) -> list[Outcome]:
    """The first does with a FLOP what the others do with 1 / rival_efficiency; they take twice the seconds."""
    runs = plan(output, seeds=seeds)
    first = runs[0].contender.name
    return gather(
        [reading(run) if run.contender.name == first else reading(run, rival_efficiency, 0.2) for run in runs]
    )


def write_run(run: Run, samples: int = 256) -> Run:
    """The files that the programs leave of a finished run."""
    run.folder.mkdir(parents=True)
    steps = [{"step": step + 1, "seconds": 0.5, "tflops_per_second": 0.02} for step in range(run.steps)]
    losses = {f"validation_ema/{source}/velocity_image": 0.25 for source in ("single", "count")}
    losses |= {"validation_ema/single/velocity_image/time_0": 9.0, "validation_ema/single/text": 7.0}
    lines = [*steps, {"step": run.steps, "validation/single/velocity_image": 0.3, **losses}]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report: dict[str, object] = {"steps": run.steps, "num_samples": samples, "num_parameters": 1234}
    for figure in FIGURES:
        if "/" in figure.key:
            part, key = figure.key.split("/")
            table = report.setdefault(part, {})
            assert isinstance(table, dict)
            table[key] = score(figure, run, 1.0)
    (run.folder / "report.json").write_text(json.dumps(report))
    text = "single: at most 1.250 bits a token, error 0.012; 256 texts\ncount: has no task image_to_text\n"
    (run.folder / "bound.txt").write_text(text)
    return run
