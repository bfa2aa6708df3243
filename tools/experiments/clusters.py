"""What the arms of experiments take on H100s, by plan, and the commands that start them."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

from oneflow_dist.config import Config
from oneflow_dist.files import naming
from oneflow_dist.planning.cluster import Cluster
from oneflow_dist.planning.estimate import Estimate, estimate
from oneflow_dist.planning.gpus import GIB, find_gpu
from oneflow_dist.planning.trace import trace_step
from tools.experiments.plan import GPUS, Run, run_of
from tools.experiments.reading import Experiment, at_scale
from tools.experiments.report import make_table

PAGE = "h100.md"
TEXT = """# On H100s

What every arm takes by plan (`oneflow plan`), on hosts of eight H100 of 80 GB. Nothing here has been trained. This
starts an experiment:

    oneflow experiment scaling --scale h100 --seeds 1 --jobs 1
    oneflow experiment mixed --scale h100 --seeds 1 --slurm --jobs 6

On a host with GPUs one training follows the other. With `--slurm` each is a job that is waited for, `--jobs` of them
at a time; what needs several hosts needs that. Then each is asked the suite that the experiment's file names, and the
table lands beside those of the CPUs. Variants, which replace a part of the method, are for CPUs alone. Latency on an
H100, by plan and without any training: [results/latency](../results/latency/report.md)."""


@dataclass(frozen=True, slots=True)
class Planned:
    """An arm on its hosts."""

    run: Run
    config: Config
    costs: Estimate

    @property
    def days(self) -> float:
        """Of the whole training."""
        return self.costs.step_seconds * self.config.train.steps / 86400.0

    @property
    def gpu_hours(self) -> float:
        """Of all GPUs together."""
        return 24.0 * self.days * GPUS * self.run.hosts


def write_plans(experiments: dict[str, Experiment], output: Path) -> None:
    """The page of all experiments that train something at this scale; arms that cost the same are traced once."""
    known: dict[str, Estimate] = {}
    parts = [TEXT]
    for experiment in experiments.values():
        large = at_scale(experiment, "h100")
        planned: dict[str, Planned] = {}
        for arm in large.arm:
            run = run_of(large, arm, "h100", 0, Path("runs/experiments"))
            if run is not None:
                planned[arm] = plan(run, known)
                print(f"{experiment.name}, {arm}", file=sys.stderr, flush=True)
        if planned:
            head = ["arm", "config", "GPUs", "steps", "GiB", "seconds of a step", "MFU", "days", "GPU hours"]
            hours = sum(own.gpu_hours for own in planned.values())
            note = f"{hours:,.0f} GPU hours a seed. Asked: `{large.scale['h100'].suite}`."
            table = make_table(head, [describe(arm, own) for arm, own in planned.items()])
            parts += [f"## [{experiment.title}]({experiment.name}.md)", note, table]
    output.mkdir(parents=True, exist_ok=True)
    with naming(output):
        (output / PAGE).write_text("\n\n".join(parts) + "\n")
    print(f"wrote {output / PAGE}")


def plan(run: Run, known: dict[str, Estimate]) -> Planned:
    """Of a run; `known` has what has been traced, and gets more."""
    config = run.config
    data = dataclasses.replace(config.data, mixture="", tokenizer="")  # packs are full, whatever is in them
    shape = (config.model, config.objective, config.heads, config.modality, data, config.parallel, run.hosts)
    layout = repr((*shape, config.train.precision, config.train.activation_checkpointing, config.optim.matrices))
    if layout not in known:
        cluster = Cluster(gpu=find_gpu("h100-80gb"), gpus_per_node=GPUS, attention_flops_per_second=None)
        known[layout] = estimate(trace_step(config, GPUS * run.hosts), config, cluster)
    return Planned(run, config, known[layout])


def describe(arm: str, planned: Planned) -> list[str]:
    """A row of the table."""
    run, costs = planned.run, planned.costs
    return [
        arm,
        " ".join([f"configs/{run.base.name}", *run.settings]),
        str(GPUS * run.hosts),
        f"{planned.config.train.steps:,}",
        f"{costs.peak_bytes / GIB:.1f}",
        f"{costs.step_seconds:.2f}",
        f"{costs.mfu:.0%}",
        f"{planned.days:.1f}",
        f"{planned.gpu_hours:,.0f}",
    ]
