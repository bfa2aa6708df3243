"""The fastest launch of every kernel on the GPU at hand: `python -m oneflow_kernels.tune`, once for a kind of GPU."""

# Shapes: T rows, h query heads, g key heads, d head width, D trunk width, V vocabulary, n slots of a chunk.

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.testing import do_bench

from oneflow_kernels import bag_operations_kernels as bags
from oneflow_kernels import fused_logits_kernels as fused
from oneflow_kernels import interval_attention_kernels as attention
from oneflow_kernels.backend import uses_triton
from oneflow_kernels.fused_logits import logsumexp_of_logits, noisy_best_token
from oneflow_kernels.interval_attention import interval_attention
from oneflow_kernels.key_intervals import document_intervals
from oneflow_kernels.launches import TUNED, Launch, Launches, chosen, device_name, target_of, tuned_file

ROUNDS = 3  # in each all launches of a kernel are timed in turn
Call = Callable[[], object]


class Contest(NamedTuple):
    """What is timed with every launch of a kernel; all else in it stays the same."""

    launches: Launches
    call: Call


def contests(device: torch.device, scale: int) -> Iterator[Contest]:
    """Of every kernel that has several launches, at sizes of an 8B model, or `scale` times smaller."""
    yield from attention_contests(device, scale)
    yield from bag_contests(device, scale)


def attention_contests(device: torch.device, scale: int) -> Iterator[Contest]:
    """Documents of 2,048 rows, four query heads for one key head."""
    rows = 16384 // scale
    cu_seqlens = torch.arange(0, rows + 1, rows // 8, dtype=torch.int32, device=device)
    intervals = document_intervals(cu_seqlens, rows)
    for width in (64, 128):
        query, key, value, grad = (_normal(device, rows, heads, width) for heads in (32, 8, 8, 32))

        def forward(q: Tensor = query, k: Tensor = key, v: Tensor = value) -> Tensor:
            return interval_attention(q, k, v, intervals, rows // 8)

        learned = [x.requires_grad_() for x in (query, key, value)]
        for table in (attention.FORWARD, attention.KEY_GRADIENT, attention.QUERY_GRADIENT):
            launches = attention.launches_of(table, 2, width)
            is_forward = table is attention.FORWARD
            yield Contest(launches, forward if is_forward else _backward_of(forward(), learned, grad))


def bag_contests(device: torch.device, scale: int) -> Iterator[Contest]:
    """A chunk of the bag loss, the loss alone, and sampling."""
    rows, width, vocab = 2048 // scale, 4096 // scale, 128256 // scale
    hidden, weight = _normal(device, rows, width), _normal(device, vocab, width) * width**-0.5
    logits = hidden.float() @ weight.float().T
    tokens, starts = (torch.arange(count, device=device) for count in (rows, rows + 1))
    probs = torch.empty_like(logits, dtype=hidden.dtype)
    target, bag_weight = torch.zeros(rows, device=device), torch.ones(rows, device=device)

    def softmax() -> object:
        return bags.softmax_(logits, probs, target, tokens, bag_weight, starts)

    yield Contest(bags.SOFTMAX, softmax)
    yield Contest(fused.LOGSUMEXP[2], lambda: logsumexp_of_logits(hidden, weight))
    yield Contest(fused.BEST_TOKEN[2], lambda: noisy_best_token(hidden, weight, tokens, 1.0, 0, vocab))


def _normal(device: torch.device, *size: int) -> Tensor:
    return torch.randn(*size, device=device, dtype=torch.bfloat16)


def _backward_of(output: Tensor, inputs: list[Tensor], grad: Tensor) -> Call:
    return lambda: torch.autograd.grad(output, inputs, grad, retain_graph=True)


class Timed(NamedTuple):
    """A launch of a kernel and how long its contest took with it."""

    milliseconds: float
    launch: Launch


def compiled_contests(device: torch.device, scale: int = 1, only: tuple[str, ...] = ("",)) -> list[Contest]:
    """Those of kernels that have several launches, each of which has run once: nothing is left to compile.

    Args:
        only: kernels whose names begin with one of these.

    Returns:
        Nothing where the definitions compute and no kernels, as on a CPU.
    """
    like = torch.empty(0, device=device)
    found = []
    for contest in contests(device, scale) if uses_triton(like) else ():
        ways = contest.launches.on_target(target_of(like))
        if len(ways) > 1 and contest.launches.kernel.startswith(only):
            for launch in ways:
                chosen[contest.launches.kernel, like.get_device()] = launch
                contest.call()
            found.append(contest)
    return found


def tune(compiled: list[Contest], device: torch.device, folder: Path) -> Iterator[tuple[str, list[Timed]]]:
    """Every launch of each kernel, the fastest first: it is in use from here on, and remembered.

    Args:
        folder: of the GPU's file, written anew after each kernel.
    """
    like = torch.empty(0, device=device)
    for launches, call in compiled:
        ways, place = launches.on_target(target_of(like)), (launches.kernel, like.get_device())
        times = [[_time(call, place, launch, like) for launch in ways] for _ in range(ROUNDS)]
        medians = map(statistics.median, zip(*times, strict=True))
        timed = sorted(map(Timed, medians, ways), key=lambda one: one.milliseconds)
        chosen[place] = timed[0].launch
        _remember(launches.kernel, timed, device_name(like), folder)
        yield launches.kernel, timed


def _time(call: Call, place: tuple[str, int], launch: Launch, like: Tensor) -> float:
    chosen[place] = launch
    if like.is_cuda:
        return float(do_bench(call, warmup=25, rep=100, return_mode="median"))
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def _remember(kernel: str, timed: list[Timed], device: str, folder: Path) -> None:
    path = tuned_file(folder, device)
    known = json.loads(path.read_text()) if path.exists() else {"launches": {}, "milliseconds": {}}
    known["launches"][kernel] = timed[0].launch._asdict()
    known["milliseconds"][kernel] = {str(launch): milliseconds for milliseconds, launch in timed}
    made = {"device": device, "torch": torch.__version__, "triton": triton.__version__, "date": str(datetime.now(UTC))}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known | made, indent=2) + "\n")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="only kernels whose names begin with this")
    parser.add_argument("--output", type=Path, default=TUNED, help="folder of the file, if not that of the package")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no GPU is here; launches are tuned on the GPU that they are for")
    device = torch.device("cuda", torch.cuda.current_device())
    for kernel, timed in tune(compiled_contests(device, only=(arguments.only,)), device, arguments.output):
        for milliseconds, launch in timed:
            print(f"{kernel:<44} {launch!s:<36} {milliseconds:9.3f} ms", flush=True)
    print(f"wrote {tuned_file(arguments.output, torch.cuda.get_device_name(device))}")


if __name__ == "__main__":
    main()
