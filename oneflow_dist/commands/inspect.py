"""The batches of a run, a line a step: what they hold, and a digest that every layout of ranks and workers equals.

Nothing is trained. How full the packs are, and how fast they come, is told at the end on standard error.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from oneflow_dist.config import load_config
from oneflow_dist.runtime import run_program
from oneflow_dist.toml import check_range

if TYPE_CHECKING:
    from oneflow_dist.containers import PackedBatch
    from oneflow_dist.data.loader import LaneStates, PackLoader

KEYS_SHOWN = 3


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Each line: step, sha256 of all arrays of the step's packs, padding, samples, the keys of the first.",
    )
    parser.add_argument("config", help="TOML file, as configs/quickstart.toml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--steps", default="0:10", metavar="A:B", help="steps A to B - 1; the first of a run is 0")
    parser.add_argument("--world-size", type=int, default=1, metavar="R", help="simulate R data-parallel ranks")
    parser.add_argument("--workers", type=int, metavar="K", help="processes per rank instead of data.workers")
    parser.add_argument("--checkpoint", type=Path, help="start from its state instead of from step 0")
    parser.add_argument("--keys", action="store_true", help="print the keys of all samples")
    parser.add_argument(
        "--show",
        type=Path,
        metavar="PNG",
        help="draw the first pack of step A, and print its first samples: prompts, [targets], {missing ones}",
    )
    parser.add_argument(
        "--suggest", action="store_true", help="measure the mixture, and print capacities that leave little padding"
    )
    args = parser.parse_intermixed_args()
    first, last = parse_steps(args.steps)
    check_range("--world-size", args.world_size, "[1, inf)")
    overrides = [*args.overrides, *([f"data.workers={args.workers}"] if args.workers is not None else [])]
    config = load_config(args.config, overrides)
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    if args.suggest:
        from oneflow_dist.data.capacities import suggest

        print(suggest(config).describe())
        return
    from oneflow_dist.containers import Counts
    from oneflow_dist.data.loader import PackLoader
    from oneflow_dist.data.tokenizer import load_tokenizer
    from oneflow_dist.inspection import draw_pack, spell_pack
    from oneflow_dist.metrics import padding

    start, states = read_start(args.checkpoint, first)
    loaders = [PackLoader(config, rank, args.world_size, states) for rank in range(args.world_size)]
    total, seconds, shares = Counts.zeros(), 0.0, list[float]()
    for step in range(start, last):
        before = time.perf_counter()
        packs = global_batch(loaders)
        if step < first:
            continue
        seconds += time.perf_counter() - before
        total = sum((pack.counts for pack in packs), total)
        shares.append(balance(packs, args.world_size))
        print(describe(step, packs, args.keys), flush=True)
        if args.show and step == first:
            shown = packs[0], load_tokenizer(config.data.tokenizer, config.modality), config
            print("\n".join(spell_pack(*shown)))
            draw_pack(*shown).save(args.show)
            print(f"drew the first pack of step {step}: {args.show}")
    num_packs = (last - first) * config.data.packs_per_step
    print(
        f"{num_packs} packs of {config.data.rows_per_pack} rows: padding {padding(total):.2%}, "
        f"{total.sequences / num_packs:.1f} samples a pack, {total.rows / total.sequences:.1f} rows a sample; "
        f"{total.sequences / seconds:.0f} samples/s, {total.rows / seconds:.0f} rows/s",
        file=sys.stderr,
    )
    if args.world_size > 1:
        print(
            f"attention pairs of a rank: {sum(shares) / len(shares):.1%} of those of the step's slowest, in the mean "
            f"(data.packing is {config.data.packing!r})",
            file=sys.stderr,
        )


def parse_steps(text: str) -> tuple[int, int]:
    """A and B of "A:B".

    Raises:
        ValueError: not of this form, or no step in it.
    """
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise ValueError(f"--steps: {text!r} is not A:B with A below B, as 0:10")
    return int(first), int(last)


def read_start(checkpoint: Path | None, first: int) -> tuple[int, LaneStates | None]:
    """The step to begin at, and the state of the lanes there."""
    from oneflow_dist.progress import read_progress

    if checkpoint is None:
        return 0, None
    progress = read_progress(checkpoint)
    if progress.step > first:
        raise ValueError(
            f"{checkpoint}: was saved after {progress.step} steps, too late for --steps {first}:; "
            f"name an earlier checkpoint, or begin at {progress.step}"
        )
    return progress.step, progress.lanes


def global_batch(loaders: list[PackLoader]) -> list[PackedBatch]:
    """The packs of one step over all ranks, in the order of lanes: rank r of R has lanes r, r + R, ..."""
    of_ranks = [loader.next_step() for loader in loaders]
    return [pack for of_lanes in zip(*of_ranks, strict=True) for pack in of_lanes]


def balance(packs: list[PackedBatch], world_size: int) -> float:
    """The mean of the ranks' attention pairs in a step, as a share of the most that one has."""
    of_ranks = [sum(pack.counts.attention_pairs for pack in packs[rank::world_size]) for rank in range(world_size)]
    return sum(of_ranks) / world_size / max(of_ranks)


def describe(step: int, packs: list[PackedBatch], all_keys: bool) -> str:
    """The line of one step."""
    from oneflow_dist.containers import Counts
    from oneflow_dist.inspection import digest
    from oneflow_dist.metrics import padding

    counts = sum((pack.counts for pack in packs), Counts.zeros())
    keys = [key for pack in packs for key in pack.keys]
    shown = keys if all_keys else keys[:KEYS_SHOWN]
    more = f" ... {len(keys) - len(shown)} more" if len(shown) < len(keys) else ""
    return f"{step} {digest(packs)} padding {padding(counts):.2%} samples {len(keys)} {' '.join(shown)}{more}"


if __name__ == "__main__":
    run_program(main)
