"""What a run needs on a cluster: memory, traffic, FLOPs and time, from a dry run of one step on this machine's CPU."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from oneflow_dist.config import Config, load_config
from oneflow_dist.planning.gpus import AXES, GIB, GPUS, Gpu, find_gpu
from oneflow_dist.runtime import run_program
from oneflow_dist.toml import check_range

if TYPE_CHECKING:
    from oneflow_dist.planning.cluster import Cluster
    from oneflow_dist.planning.estimate import Estimate
    from oneflow_dist.planning.trace import Trace


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="TOML file, as configs/oneflow_8b.toml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values are TOML")
    parser.add_argument("--world-size", type=int, help="ranks")
    parser.add_argument(
        "--step", type=int, metavar="PACKS", help="instead, a step of so many packs on one GPU, by part"
    )
    parser.add_argument("--mesh", help="replicate,shard,context,tensor instead of [parallel], as 1,64,1,8")
    parser.add_argument("--gpu", default="h100-80gb", help=f"{', '.join(GPUS)} (%(default)s)")
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument(
        "--attention", type=float, metavar="TFLOPS", help="of kernels other than those measured, on long documents"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument("--search", action="store_true", help="compare all layouts and plan the fastest that fits")
    parser.add_argument(
        "--draw", metavar="FILE.png", help="a picture of the last microbatch and the update: lanes, waits"
    )
    args = parser.parse_intermixed_args()
    if (args.world_size is None) == (args.step is None):
        parser.error("name one of --world-size and --step")
    for name in ("world_size", "gpus_per_node", "step"):
        if getattr(args, name) is not None:
            check_range(f"--{name.replace('_', '-')}", getattr(args, name), "[1, inf)")
    if args.attention is not None:
        check_range("--attention", args.attention, "(0, inf)")
    gpu = find_gpu(args.gpu)
    if args.step is not None:
        print_pace(load_config(args.config, args.overrides), args.step, gpu)
        return
    config = load_config(args.config, [*args.overrides, *mesh_overrides(args.mesh)])
    print(f"planning {args.config} on {args.world_size} x {gpu.name}", file=sys.stderr, flush=True)
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from oneflow_dist.planning.cluster import Cluster
    from oneflow_dist.planning.estimate import estimate
    from oneflow_dist.planning.report import plan_json, plan_text
    from oneflow_dist.planning.trace import trace_step

    attention = None if args.attention is None else 1e12 * args.attention
    cluster = Cluster(gpu=gpu, gpus_per_node=args.gpus_per_node, attention_flops_per_second=attention)
    if args.search:
        config = best_layout(config, args.world_size, cluster)
    trace = trace_step(config, args.world_size)
    costs = estimate(trace, config, cluster)
    if args.draw:
        save_picture(args.draw, trace, costs, config, cluster)
    if args.format == "json":
        print(json.dumps(plan_json(trace, costs, config, cluster), indent=2))
    else:
        print(plan_text(trace, costs, config, cluster))


def print_pace(config: Config, packs: int, gpu: Gpu) -> None:
    """Milliseconds of each part of a step on one GPU, of made-up packs like those of training."""
    print(f"counting a step of {packs} packs on one {gpu.name}", file=sys.stderr, flush=True)
    from oneflow_dist.planning.batches import make_batch
    from oneflow_dist.planning.pace import pace_of, pace_text

    print(pace_text(pace_of(config, [make_batch(config, number) for number in range(packs)], gpu), gpu))


def save_picture(path: str, trace: Trace, costs: Estimate, config: Config, cluster: Cluster) -> None:
    """The lanes of the last microbatch and the update."""
    from oneflow_dist.planning.drawing import draw_timeline
    from oneflow_dist.planning.estimate import timeline_of
    from oneflow_dist.planning.report import layout_text

    title = f"{layout_text(trace, cluster)}: the last of {trace.microbatches} microbatches, and the update"
    title += f"; a step takes {costs.step_seconds:.3f} s, MFU {costs.mfu:.1%}"
    draw_timeline(timeline_of(trace.stretches[-2:], trace, config, cluster), title).savefig(path)


def mesh_overrides(mesh: str | None) -> list[str]:
    """`--mesh` as overrides of [parallel].

    Raises:
        ValueError: it is not four whole numbers.
    """
    if mesh is None:
        return []
    sizes = mesh.split(",")
    if len(sizes) != len(AXES) or not all(size.isdigit() for size in sizes):
        raise ValueError(f"--mesh: {mesh!r} is not {','.join(AXES)}; write four whole numbers, as 1,64,1,8")
    return [f"parallel.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True)]


def best_layout(config: Config, world_size: int, cluster: Cluster) -> Config:
    """The fastest layout that fits, after a table of all; the one that needs least memory if none fits."""
    from oneflow_dist.planning.search import search

    plans = search(config, world_size, cluster)
    print(
        f"{'replicate':>9} {'shard':>6} {'context':>8} {'tensor':>6} {'checkpointing':>14} {'GiB':>8} {'step s':>8} "
        f"{'exposed':>8} {'MFU':>6}",
        file=sys.stderr,
    )
    for candidate, trace, costs in plans:
        replicate, shard, context, tensor = trace.mesh
        exposed = sum(costs.exposed_seconds.values()) / costs.step_seconds
        print(
            f"{replicate:>9} {shard:>6} {context:>8} {tensor:>6} {candidate.train.activation_checkpointing:>14} "
            f"{costs.peak_bytes / GIB:>8.1f} {costs.step_seconds:>8.3f} {exposed:>8.1%} {costs.mfu:>6.1%}"
            f"{'' if costs.fits else '  does not fit'}",
            file=sys.stderr,
        )
    return plans[0][0]


if __name__ == "__main__":
    run_program(main)
