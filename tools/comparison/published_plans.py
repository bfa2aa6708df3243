"""What plans say of runs whose speed was published: predicted against measured, with nothing left out."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneflow_dist.config import Config, load_config
from oneflow_dist.planning.batches import make_batch
from oneflow_dist.planning.cluster import Cluster
from oneflow_dist.planning.estimate import estimate
from oneflow_dist.planning.gpus import GPUS
from oneflow_dist.planning.pace import pace_of
from oneflow_dist.planning.rates import Rates
from oneflow_dist.planning.search import trace_few_layers
from oneflow_dist.planning.trace import fresh_processes
from tools.comparison.published_runs import RUNS, Published, per_token

# Steps of OneFlow that this project measured on an H100 (docs/gpu.md): packs like those of training.
OWN = {1: 0.482, 4: 0.511, 8: 0.516}  # packs a step: MFU
SOURCE_OF_RATES = "rates come from it"  # what is not judged by them


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A run, published and predicted; tokens or rows per second and GPU, MFU as published systems count it."""

    system: str
    name: str
    published: float
    predicted: float
    mfu: float
    predicted_mfu: float
    exposed: float  # share of the step
    is_judged: bool
    known: str
    assumed: str

    @property
    def error(self) -> float:
        """Predicted / published - 1."""
        return self.predicted / self.published - 1.0


def config_of(run: Published, root: Path) -> Config:
    """The config of a run: texts, next tokens, packs of its documents, no moving average."""
    trunk, rows = run.trunk, run.documents * run.length
    config = load_config(
        root / "configs" / "transfusion_8b.toml",
        [
            f"model.width={trunk.width}",
            f"model.num_layers={trunk.layers}",
            f"model.num_attention_heads={trunk.heads}",
            f"model.num_kv_heads={trunk.kv_heads}",
            f"model.mlp_width={trunk.mlp_width}",
            f"model.vocab_size={trunk.vocab}",
            f"model.tie_embeddings={str(trunk.tied).lower()}",
            *(f"data.{name}_per_pack={rows}" for name in ("rows", "tokens", "bag_tokens")),
            f"data.sequences_per_pack={run.documents + 1}",
            f"data.max_sample_rows={run.length}",
            f"data.packs_per_step={run.accumulated * run.shard * run.replicate}",
            "optim.ema_every_steps=1000000",
            f"train.precision={run.precision}",
            f"train.activation_checkpointing={run.checkpointing}",
            f"train.compile={str(run.is_compiled or run.is_async).lower()}",
            *(f"parallel.{axis}={getattr(run, axis)}" for axis in ("replicate", "shard", "tensor")),
            f"parallel.async_tensor={str(run.is_async).lower()}",
        ],
    )
    return dataclasses.replace(config, modality={})


def predict(run: Published, root: Path, pool: Executor) -> Outcome:
    """By a plan of its shape."""
    config, cluster = config_of(run, root), Cluster(gpu=run.gpu, gpus_per_node=run.gpus_per_node)
    found = estimate(trace_few_layers(config, run.world_size, pool), config, cluster)
    flops, peak = per_token(run.trunk, run.length), GPUS["h100-80gb"].flops_per_second  # on any GPU, as theirs
    return Outcome(
        system=run.system,
        name=run.name,
        published=run.tokens_per_second,
        predicted=found.rows_per_second,
        mfu=run.tokens_per_second * flops / peak,
        predicted_mfu=found.rows_per_second * flops / peak,
        exposed=sum(found.exposed_seconds.values()) / found.step_seconds,
        is_judged=True,
        known=run.known,
        assumed=run.assumed,
    )


def predict_own(packs: int, measured: float, root: Path) -> Outcome:
    """A step of OneFlow 1B on one H100, of made-up packs like those that were measured."""
    config = load_config(root / "configs" / "oneflow_1b.toml", ["train.activation_checkpointing=none"])
    batches = [make_batch(config, number) for number in range(packs)]
    gpu = GPUS["h100-80gb"]
    pace = pace_of(config, batches, gpu)
    seconds = pace.seconds * (1.0 + Rates.of(gpu).paced)
    mfu = pace.model_flops / seconds / gpu.flops_per_second
    rows = sum(batch.counts.rows for batch in batches)
    return Outcome(
        system="OneFlow",
        name=f"1B, one H100, {packs} pack{'s' * (packs > 1)} a step",
        published=rows / seconds * measured / mfu,
        predicted=rows / seconds,
        mfu=measured,
        predicted_mfu=mfu,
        exposed=0.0,
        is_judged=False,
        known="docs/gpu.md; MFU of what a pack holds",
        assumed=SOURCE_OF_RATES,
    )


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Of those that are judged: mean and median of errors' sizes, and the worst."""
    judged = [outcome for outcome in outcomes if outcome.is_judged]
    sizes = [abs(outcome.error) for outcome in judged]
    worst = max(judged, key=lambda outcome: abs(outcome.error))
    return {
        "runs": len(judged),
        "mean": statistics.fmean(sizes),
        "median": statistics.median(sizes),
        "worst": worst.error,
        "worst_run": f"{worst.system} {worst.name}",
    }


def write(folder: Path) -> str:
    """Plan all runs, leave published.json, .md and .png in a folder, and return the page."""
    from tools.comparison.published_page import draw, page

    root = Path(__file__).parents[2]
    with fresh_processes(os.cpu_count() or 1) as pool, ThreadPoolExecutor(4) as threads:
        outcomes = [*threads.map(lambda run: predict(run, root, pool), RUNS)]
    outcomes += [predict_own(packs, measured, root) for packs, measured in OWN.items()]
    folder.mkdir(parents=True, exist_ok=True)
    found = summary(outcomes)
    table = [dataclasses.asdict(outcome) | {"error": outcome.error} for outcome in outcomes]
    (folder / "published.json").write_text(json.dumps({"summary": found, "runs": table}, indent=1) + "\n")
    (folder / "published.md").write_text(page(outcomes, found))
    draw(outcomes, found).savefig(folder / "published.png")
    return page(outcomes, found)
