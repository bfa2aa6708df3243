"""The training of a small image autoencoder of SD3's architecture, and what it is worth."""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from oneflow_dist.bars import bar
from oneflow_dist.data.codec import decode_pixels, pixels_to_latent
from oneflow_dist.data.picture import read_picture
from oneflow_dist.data.shards import ShardSet, open_shards
from oneflow_dist.data.tar import IMAGE_EXTENSIONS
from oneflow_dist.extras import require
from oneflow_dist.model.autoencoder import Autoencoder, load_autoencoder, psnr_db
from oneflow_dist.pictures import enlarge, grid, stack, text_line, with_margin
from oneflow_dist.runtime import share_cores
from oneflow_dist.signals import StopSignals

STATISTICS_IMAGES = 1024  # enough for a mean and a standard deviation
SHOWN_IMAGES = 16


def make_autoencoder(args: argparse.Namespace, signals: StopSignals) -> None:
    """Train, measure and write an autoencoder; one that was stopped is written as it is then."""
    share_cores(others=0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, val_images = open_images(args.shards, args.val, args.seed)
    model = make_model(args.channels, args.widths, args.layers, args.size, args.seed).to(device)
    args.folder.parent.mkdir(parents=True, exist_ok=True)
    signals.begin()
    with tempfile.TemporaryDirectory(dir=args.folder.parent, prefix=f".{args.folder.name}-") as partial:
        folder = Path(partial) / "autoencoder"
        start = time.perf_counter()
        losses = train(model, images, args, signals)
        signals.end()
        seconds = time.perf_counter() - start
        if len(losses) < args.steps:
            print(f"stopped after {len(losses)} of {args.steps} steps; measuring and writing", flush=True)
        shift, std = measure_latents(model, images, args)
        model.register_to_config(shift_factor=shift, scaling_factor=1.0 / std)
        model.save_pretrained(folder)

        autoencoder = load_autoencoder(str(folder), device, torch.float32)
        psnr = {size: measure_psnr(autoencoder, val_images, size, args.batch) for size in args.val_size}
        metrics = {
            "psnr_db": psnr,
            "loss": float(np.mean(losses[-max(1, len(losses) // 10) :])),
            "steps": len(losses),
            "seconds": seconds,
            "shift_factor": shift,
            "scaling_factor": 1.0 / std,
        }
        metrics |= {"parameters": model.num_parameters(), "images": len(images), "val_images": len(val_images)}
        settings = {key: value for key, value in vars(args).items() if key != "folder"}
        (folder / "metrics.json").write_text(json.dumps(metrics | {"settings": settings}, indent=2) + "\n")
        draw_reconstructions(autoencoder, val_images, args.val_size[-1]).save(folder / "reconstructions.png")
        folder.rename(args.folder)
    shown = ", ".join(f"{value:.2f} dB at {size}x{size}" for size, value in psnr.items())
    print(f"wrote {args.folder}: {metrics['parameters']:,} parameters, PSNR {shown}, {seconds:.0f} s of training")


@dataclass(frozen=True)
class ImageSet:
    """The images of shards, decoded when they are asked for."""

    members: list[tuple[ShardSet, int, str]]  # shards, index of the sample, extension

    def __len__(self) -> int:
        return len(self.members)

    def read(self, index: int, size: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """Image [3, size, size] in [-1, 1], its short side resized to `size`; a random crop, or the centre."""
        shards, number, extension = self.members[index]
        record = shards.read(number)
        picture = read_picture(record.files[extension], "RGB", f"{record.key}.{extension}")
        scale = size / min(picture.size)
        width, height = (max(size, round(side * scale)) for side in picture.size)
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        left, top = (
            extra // 2 if rng is None else int(rng.integers(extra + 1)) for extra in (width - size, height - size)
        )
        return pixels_to_latent(np.asarray(picture.crop((left, top, left + size, top + size))))

    def read_batch(self, indices: Any, size: int, rng: np.random.Generator | None = None) -> Tensor:
        """Images [n, 3, size, size]."""
        return torch.from_numpy(np.stack([self.read(int(index), size, rng) for index in indices]))


def open_images(patterns: list[str], val_patterns: list[str], seed: int) -> tuple[ImageSet, ImageSet]:
    """Images to train on and to measure on; without shards for the latter, a tenth of the former."""
    members = _list_images(patterns)
    if val_patterns:
        return ImageSet(members), ImageSet(_list_images(val_patterns))
    order = np.random.default_rng(seed).permutation(len(members))
    num_val = max(1, len(members) // 10)
    if num_val == len(members):
        raise ValueError(f"{' '.join(patterns)}: 1 image, and none to measure on; add images, or --val with shards")
    val, rest = order[:num_val], order[num_val:]
    return ImageSet([members[i] for i in rest]), ImageSet([members[i] for i in val])


def _list_images(patterns: list[str]) -> list[tuple[ShardSet, int, str]]:
    members = []
    for pattern in patterns:
        shards = open_shards("images", pattern)
        for index in range(len(shards)):
            names = sorted(name for name in shards.read(index).files if name.rpartition(".")[2] in IMAGE_EXTENSIONS)
            members += [(shards, index, name) for name in names]
    if not members:
        raise ValueError(
            f"{' '.join(patterns)}: no images; samples need a member that ends on one of {', '.join(IMAGE_EXTENSIONS)}"
        )
    return members


def make_model(channels: int, widths: list[int], layers: int, size: int, seed: int) -> Any:
    """An untrained AutoencoderKL, as SD3's: no convolutions around the latent, attention at the lowest resolution."""
    require("oneflow autoencoder", "latents", "diffusers")
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    model = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        block_out_channels=widths,
        layers_per_block=layers,
        latent_channels=channels,
        norm_num_groups=math.gcd(*widths) // 4,  # four channels to a group of the narrowest level, as SD3's
        sample_size=size,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    make_nearly_linear(model)
    return model


def make_nearly_linear(model: Any) -> None:
    """Orthogonal convolutions, silent residual branches: on emoji 20.3 dB after 490 steps; torch's weights: 17.6 dB."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.orthogonal_(module.weight)
        if name.endswith((".conv2", ".to_out.0")):  # the end of a residual branch
            torch.nn.init.zeros_(module.weight)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.zeros_(parameter)


def train(model: Any, images: ImageSet, args: argparse.Namespace, signals: StopSignals) -> list[float]:
    """Train on random crops until all steps are made or a signal asks for the end; the loss of each step."""
    rng = np.random.default_rng([args.seed, 1])
    noise = torch.Generator(model.device).manual_seed(args.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, args.steps))
    losses: list[float] = []
    model.train()
    with bar(range(args.steps), desc="training", unit="step") as shown:
        for step in shown:
            batch = images.read_batch(rng.integers(len(images), size=args.batch), args.size, rng).to(model.device)
            loss = compute_loss(model, batch, args.kl_weight, noise)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"step {step}: loss is {losses[-1]}; lower --lr ({args.lr})")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            shown.set_postfix(loss=f"{np.mean(losses[-50:]):.4f}", refresh=False)
            if signals.name:
                break
    model.eval()
    return losses


def lr_factor(step: int, num_steps: int) -> float:
    """Linear warm-up over a twentieth of the steps, then a cosine to zero."""
    warmup = max(1, num_steps // 20)
    return (
        min(1.0, (step + 1) / warmup)
        * 0.5
        * (1.0 + math.cos(math.pi * max(0, step - warmup) / (num_steps - warmup + 1)))
    )


def compute_loss(model: Any, images: Tensor, kl_weight: float, noise: torch.Generator) -> Tensor:
    """Absolute plus squared error of a pixel, plus `kl_weight` times the KL divergence of a latent element."""
    posterior = model.encode(images).latent_dist
    restored = model.decode(posterior.sample(noise)).sample
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar).mean()
    return F.l1_loss(restored, images) + F.mse_loss(restored, images) + kl_weight * kl


@torch.inference_mode()
def measure_latents(model: Any, images: ImageSet, args: argparse.Namespace) -> tuple[float, float]:
    """Mean and standard deviation of the latents drawn for training images."""
    rng = np.random.default_rng([args.seed, 2])
    chosen = rng.permutation(len(images))[:STATISTICS_IMAGES]
    total, squares, count = 0.0, 0.0, 0
    for first in range(0, len(chosen), args.batch):
        batch = images.read_batch(chosen[first : first + args.batch], args.size, rng).to(model.device)
        posterior = model.encode(batch).latent_dist
        total += posterior.mean.double().sum().item()
        squares += (posterior.mean.double().square() + posterior.var).sum().item()
        count += posterior.mean.numel()
    mean = total / count
    return mean, math.sqrt(squares / count - mean**2)


def measure_psnr(autoencoder: Autoencoder, images: ImageSet, size: int, batch: int) -> float:
    """Peak signal to noise ratio in dB of the posterior's mean decoded again, averaged over centre crops."""
    values: list[float] = []
    for first in range(0, len(images), batch):
        original = images.read_batch(range(first, min(first + batch, len(images))), size)
        values += psnr_db(autoencoder.decode(autoencoder.encode(original)[0]), original).tolist()
    return float(np.mean(values))


def draw_reconstructions(autoencoder: Autoencoder, images: ImageSet, size: int) -> Image.Image:
    """Images evenly from the set, each above its reconstruction."""
    chosen = np.linspace(0, len(images) - 1, min(SHOWN_IMAGES, len(images))).round()
    original = images.read_batch(chosen, size)
    restored = autoencoder.decode(autoencoder.encode(original)[0])
    pairs = [
        stack([enlarge(decode_pixels(image.numpy()), 128) for image in pair], gap=2)
        for pair in zip(original, restored, strict=True)
    ]
    title = text_line("above: original, below: reconstruction", 18)
    return with_margin(stack([title, grid(pairs, columns=8, gap=10)], gap=10), 16)
