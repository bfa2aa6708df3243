"""Is every node of this job fit for hours of training? Started as the training is, before it, on the same ranks.

    torchrun --nproc-per-node 8 -m launch.health configs/oneflow_8b.toml run.folder=runs/8b

Exit code 0: all are; 2: something is wrong that the user can mend, as a full disk; 3: some nodes are unfit, and their
names stand in the file that ONEFLOW_EXCLUDE names (runs/excluded_nodes), one a line.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from launch.faults import (
    Fault,
    Report,
    describe_faults,
    describe_fit,
    judge_links,
    judge_nodes,
    name_nodes,
    ranks_of_nodes,
    split_blame,
)
from launch.gpus import gpu_faults, query_gpus, used_gpus
from launch.meeting import Meeting
from launch.speeds import compute_rate, ring_rates, within_rate
from launch.surroundings import check_room, find_mark, shared_facts, write_mark
from oneflow_dist.config import Config, load_config
from oneflow_dist.readiness import check_data, check_shared_memory
from oneflow_dist.runtime import GLOO, gather_objects, node_name, register_gloo, run_program
from oneflow_dist.verdict import tell

FIT, USERS, UNFIT = 0, 2, 3  # exit codes
START_SECONDS = 300.0  # between the first rank that has loaded torch and the last
CHECK_SECONDS = 120.0  # a dead disk or GPU keeps who asks it waiting for ever


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="TOML file, as configs/quickstart.toml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values are TOML")
    args = parser.parse_intermixed_args()
    config = load_config(args.config, args.overrides)
    report = Report(
        node=node_name(),
        node_rank=int(os.environ.get("GROUP_RANK", "0")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    os._exit(check(report, config))  # without the interpreter's shutdown, see runtime.end_process


def check(report: Report, config: Config) -> int:
    """Look at everything and say what is wrong; the exit code, the same on all ranks.

    Ranks look by themselves and then meet, so that none waits in a message for one whose look has failed or hangs.
    """
    start = time.monotonic()
    meeting = Meeting(report.node, exclude_silent)
    meeting.wait("loading torch", START_SECONDS)
    mark = meeting.say("mark", f".health-{report.node}-{uuid.uuid4().hex[:8]}")
    if report.local_rank == 0:
        look_at_node(report, config)
    if meeting.rank == 0:
        with report.noting("room", "user"):
            write_mark(config.run.folder, mark)
            report.room = check_room(config)
    meeting.wait("looking at its node", CHECK_SECONDS)
    if report.local_rank == 0:
        with report.noting("folder", "either"):
            find_mark(config.run.folder, mark)
    with report.noting(f"product {report.local_rank}", "node"):
        report.compute = compute_rate(device_of(report))
    meeting.wait("multiplying matrices", CHECK_SECONDS)
    join(meeting)
    report.clock = time.time()
    reports = gather_objects(report)
    faults = judge_nodes(reports)
    if not faults:
        nodes = ranks_of_nodes(reports)
        if report.device == "cuda" and len(nodes[0]) > 1:
            report.within = within_rate(nodes[report.node_rank], device_of(report))
        report.between = ring_rates(nodes, device_of(report))
        reports = gather_objects(report)
        faults = judge_links(reports)
    if meeting.rank == 0:
        (Path(config.run.folder) / mark).unlink(missing_ok=True)
    return conclude(faults, reports, time.monotonic() - start)


def look_at_node(report: Report, config: Config) -> None:
    """What the first rank of a node sees before any rank of it takes memory of a GPU."""
    report.facts = {**shared_facts(config), "device": report.device}
    with report.noting("nvidia-smi", "either"), suppress(FileNotFoundError):  # no nvidia-smi, no GPUs
        look_at_gpus(report)
    with report.noting("data", "either"):
        check_data(config)
    if report.device == "cuda":
        with report.noting("shared memory", "either"):
            check_shared_memory()


def look_at_gpus(report: Report) -> None:
    """Those that the ranks of this node will use, where there are any.

    Raises:
        FileNotFoundError: there is no nvidia-smi.
        ValueError: it fails.
    """
    visible, num_ranks = os.environ.get("CUDA_VISIBLE_DEVICES"), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    gpus = [] if visible == "" else used_gpus(query_gpus(), visible, num_ranks)
    if not gpus and report.device == "cpu":
        return
    for gpu in gpus:
        if gpu.driver:
            report.facts["driver"] = gpu.driver
    seen = torch.cuda.device_count()
    if len(gpus) < num_ranks or seen < num_ranks:
        text = f"for its {num_ranks} local ranks nvidia-smi lists {len(gpus)} and torch sees {seen} GPUs"
        advice = f"start fewer ranks, reboot the node, or mend torch ({torch.__version__}) or its driver"
        report.note("number of GPUs", "either", f"{text}; {advice}")
    for gpu in gpus:
        for kind, blame, text in gpu_faults(gpu):
            report.note(kind, blame, text)


def join(meeting: Meeting) -> None:
    """Become a process group whose messages go by the processor: it works where GPUs do not."""
    register_gloo()
    dist.init_process_group(GLOO, store=meeting.store, rank=meeting.rank, world_size=meeting.world_size)
    dist.barrier()


def device_of(report: Report) -> torch.device:
    """The device of a rank."""
    return torch.device(f"cuda:{report.local_rank}" if report.device == "cuda" else "cpu")


def conclude(faults: Sequence[Fault], reports: Sequence[Report], seconds: float) -> int:
    """Rank 0 says what is wrong and leaves out who is to blame; all wait for it, and return the exit code."""
    of_nodes, of_user = split_blame(faults, len(ranks_of_nodes(reports)))
    lines = describe_faults(faults)
    if dist.get_rank() == 0:
        say(lines)
        if of_nodes:
            exclude(of_nodes)
        if of_user:
            print("health: mend this and start again; other nodes would not help")
            tell("failed", "; ".join(describe_faults(of_user)))
        elif of_nodes:
            tell("unfit", "; ".join(lines))
        else:
            print(f"health: {describe_fit(reports)}; {seconds:.1f} s")
        sys.stdout.flush()
    dist.barrier()
    return USERS if of_user else UNFIT if of_nodes else FIT


def say(faults: Sequence[str]) -> None:
    """Each in a line of its own."""
    for fault in faults:
        print(f"error: {fault}")


def exclude_silent(nodes: Sequence[str], text: str) -> None:
    """Blame nodes that others have waited for; called by one rank, which may be any."""
    faults = [Fault(node, "node", "silence", text) for node in nodes]
    say(describe_faults(faults) or [text])
    if faults:
        exclude(faults)
        tell("unfit", *describe_faults(faults))
    sys.stdout.flush()


def exclude(faults: Sequence[Fault]) -> None:
    """Add the nodes that have them to the file of nodes that no job asks for again, and say so."""
    path = Path(os.environ.get("ONEFLOW_EXCLUDE", "runs/excluded_nodes"))
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {line.split()[0] for line in path.read_text().splitlines() if line.strip()} if path.exists() else set()
    nodes = dict.fromkeys(fault.node for fault in faults)
    with path.open("a") as file:
        for node in nodes.keys() - known:
            texts = "; ".join(fault.text for fault in faults if fault.node == node)
            file.write(f"{node}  # {time.strftime('%F')} {texts}\n")
    print(f"health: unfit: {name_nodes(list(nodes))}; now in {path}")


if __name__ == "__main__":
    run_program(main)
