"""Everything that one GPU can tell about this project: numbers of the kernels, their speed, and a 1B training step."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oneflow_dist.config import Config, load_config
from oneflow_dist.containers import NoisySample, PackedBatch, Sample
from oneflow_dist.data.lanes import capacity_of
from oneflow_dist.data.packing import choose_samples, pack, size_of
from oneflow_dist.flow.noising import gaussian, keyed_generator, noise_sample
from oneflow_dist.flow.schedule import KeepSchedule
from oneflow_dist.guard.guard import Guard
from oneflow_dist.model.flops import step_flops
from oneflow_dist.model.philox import normal_values
from oneflow_dist.optim import make_optimizer
from oneflow_dist.parallel.mesh import make_mesh
from oneflow_dist.runtime import end_process, run_program, start_process
from oneflow_dist.train import build_model, train_step
from oneflow_kernels import reference
from oneflow_kernels.bag_cross_entropy import bag_cross_entropy
from oneflow_kernels.packed_attention import packed_attention

DOCUMENTS = (677, 1024, 1531, 2048, 3134, 3970, 4000)  # rows of the documents of the attention measurement


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/oneflow_1b.toml", help="what to train")
    parser.add_argument("--steps", type=int, default=10, help="timed training steps, after three others")
    parser.add_argument("--output", type=Path, default=Path("kernels/results"), help="folder for the result file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_intermixed_args()
    # One pack a step: this measures one device, not a cluster's batch.
    config = load_config(args.config, ["data.packs_per_step=1", *args.overrides])
    device = start_process()
    scale = 1 if device.type == "cuda" else 64  # on a CPU the same program runs on small shapes
    result = {
        **describe_machine(device),
        "attention_error": attention_error(device),
        "bag_error": bag_error(device),
        "first_values": measure_first_values(device, 8192 // scale),
        "matmul_tflops": matmul_rate(device, 8192 // scale),
        "attention_ms": time_attention(device, [rows // scale for rows in DOCUMENTS]),
        "bag_ms": time_bag(device, slots=16384 // scale, width=4096 // scale, vocab=128256 // scale),
        "training": measure_training(config, args.steps, device),
    }
    result["training"]["mfu_of_measured_matmul"] = result["training"]["tflops_per_second"] / result["matmul_tflops"]
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / f"{result['device'].replace(' ', '-').replace('/', '-')}-{result['date']}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    print(f"wrote {path}")
    end_process()


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on, and with which commit."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    return {
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": commit.stdout.strip() or "unknown",
        "date": datetime.date.today().isoformat(),
    }


def attention_error(device: torch.device) -> dict[str, float]:
    """Largest error against float64, of the function that runs here and of the same formula in the same dtype."""
    generator = torch.Generator().manual_seed(0)
    cu_seqlens = torch.tensor([0, 1, 64, 64, 165, 400], dtype=torch.int32, device=device)
    shapes = ((400, 8, 64), (400, 2, 64), (400, 2, 64))
    q, k, v = (torch.randn(shape, generator=generator).bfloat16().to(device) for shape in shapes)
    errors: dict[str, float] = {}
    for is_causal, suffix in ((False, ""), (True, "_causal")):
        truth = reference.packed_attention(q.double(), k.double(), v.double(), cu_seqlens, is_causal)
        ours = packed_attention(q, k, v, cu_seqlens, 235, is_causal)
        same = reference.packed_attention(q, k, v, cu_seqlens, is_causal)
        errors |= {f"ours{suffix}": _max_error(ours, truth), f"reference_bf16{suffix}": _max_error(same, truth)}
    return errors


def bag_error(device: torch.device) -> dict[str, float]:
    """Largest error of the bag loss against float64."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 128, generator=generator).to(device)
    weight = torch.randn(1000, 128, generator=generator).to(device) * 0.1
    tokens = torch.randint(0, 1000, (700,), generator=generator).to(device)
    slots = torch.randint(0, 300, (700,), generator=generator).sort().values.to(device)
    truth = reference.bag_cross_entropy(hidden.double(), weight.double(), tokens, slots)
    return {"ours": _max_error(bag_cross_entropy(hidden, weight, tokens, slots), truth)}


def measure_first_values(device: torch.device, size: int) -> dict[str, Any]:
    """Milliseconds to draw size x size first weights, and whether a corner of them has the bits of a CPU."""
    places = torch.arange(size, device=device)
    corner = torch.arange(size - 64, size)
    drawn = normal_values(0, "first values", places, places)
    is_same = torch.equal(drawn[-64:, -64:].cpu(), normal_values(0, "first values", corner, corner))
    milliseconds = time_call(lambda: normal_values(0, "first values", places, places), device)
    return {"milliseconds": milliseconds, "is_same_as_on_cpu": is_same}


def matmul_rate(device: torch.device, size: int) -> float:
    """TFLOP/s of a large bfloat16 product: what this device can do."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / time_call(lambda: a @ b, device) / 1e9


def time_attention(device: torch.device, documents: list[int]) -> dict[str, float]:
    """Milliseconds of attention over packed documents, 32 heads of 128, and its rate with the backward pass."""
    rows = sum(documents)
    cu_seqlens = torch.tensor([0, *np.cumsum(documents)], dtype=torch.int32, device=device)
    q, k, v = (
        torch.randn(rows, heads, 128, device=device, dtype=torch.bfloat16, requires_grad=True) for heads in (32, 8, 8)
    )
    grad = torch.randn(rows, 32, 128, device=device, dtype=torch.bfloat16)

    def forward() -> torch.Tensor:
        return packed_attention(q, k, v, cu_seqlens, max(documents))

    both = time_call(lambda: forward().backward(grad), device)
    flops = 3.5 * 4 * 128 * 32 * sum(n * n for n in documents)
    return {"forward": time_call(forward, device), "forward_backward": both, "tflops": flops / both / 1e9}


def time_bag(device: torch.device, slots: int, width: int, vocab: int) -> dict[str, float]:
    """Milliseconds and peak memory of the bag loss with its gradients; half the slots have one missing token."""
    hidden = torch.randn(slots, width, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(vocab, width, device=device) * 0.02).bfloat16().requires_grad_()
    bag_slot = torch.arange(0, slots, 2, device=device)
    bag_tokens = torch.randint(0, vocab, (len(bag_slot),), device=device)
    before = _reset_peak(device)
    milliseconds = time_call(lambda: bag_cross_entropy(hidden, weight, bag_tokens, bag_slot).sum().backward(), device)
    return {"forward_backward": milliseconds, "peak_gib": _peak_gib(device) - before}


def measure_training(config: Config, steps: int, device: torch.device) -> dict[str, Any]:
    """Steps of real size on made-up captioned images: rows per second, FLOP rate and peak memory."""
    model = build_model(config, make_mesh(config, 1, device.type), device)
    optimizer, guard = make_optimizer(model, config.optim), Guard(config)
    batches = [make_batch(config, number).to(device) for number in range(4)]
    for batch in batches[:3]:
        train_step(model, optimizer, [batch], 1, config, guard)
    _reset_peak(device)
    seconds, rows, flops = 0.0, 0, 0.0
    for step in range(steps):
        batch = batches[step % len(batches)]
        _synchronize(device)
        start = time.perf_counter()
        train_step(model, optimizer, [batch], 1, config, guard)
        _synchronize(device)
        seconds += time.perf_counter() - start
        rows += batch.counts.rows
        flops += step_flops(batch.counts, config)
    return {
        "config": dataclasses.asdict(config.model),
        "rows_per_step": batches[0].counts.rows,
        "tokens_per_second": rows / seconds,
        "tflops_per_second": flops / seconds / 1e12,
        "step_ms": 1e3 * seconds / steps,
        "peak_gib": _peak_gib(device),
    }


def make_batch(config: Config, number: int) -> PackedBatch:
    """A full pack of captioned images with random tokens and patches, noised as in training."""
    rng = keyed_generator(config.run.seed, number, "made-up samples")
    capacity, image = capacity_of(config), config.image
    schedule = KeepSchedule(kind=config.flow.keep_schedule, exponent=config.flow.keep_exponent)
    room = config.data.max_sample_rows - image.num_rows - 2
    noisy: list[NoisySample] = []
    while sum(size_of([sample]).rows for sample in noisy) < 1.2 * capacity.rows:
        length = int(rng.integers(room // 4, room + 1))
        tokens = rng.integers(0, config.model.vocab_size, length + 2)
        sample = Sample(
            key=f"made-up/{len(noisy)}",
            tokens=tokens,
            is_target=np.arange(length + 2) > 0,
            image_at=np.array([length + 1]),
            patches=gaussian(rng, (image.num_rows, image.patch_elements)),
            grid=np.array([image.grid]),
            is_interleaved=False,
        )
        noisy.append(noise_sample(sample, schedule, 0.0, rng))
    chosen = choose_samples([size_of([sample]) for sample in noisy], capacity)
    return pack([noisy[index] for index in chosen], capacity)


def time_call(function: Callable[[], Any], device: torch.device) -> float:
    """Median milliseconds of a call, after warming up."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(function, warmup=100, rep=400, return_mode="median"))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def _max_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    return float((value.double() - truth).abs().max())


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> float:
    """Forget the peak; returns what is allocated now, in GiB."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device) / 2**30


def _peak_gib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


if __name__ == "__main__":
    run_program(main)
