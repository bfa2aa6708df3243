"""What turns images into latents: a diffusers autoencoder from a folder on disk, or the pixels themselves."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from oneflow_dist.extras import require

PIXELS = "pixels"  # stands for a folder: latents are the images themselves
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
UNPICKLED = (".bin", ".pt", ".pth", ".ckpt")  # formats that can run code when they are read


@dataclass(frozen=True, slots=True)
class Autoencoder:
    """Images to raw posteriors and back; a model of latents sees `(raw - shift_factor) * scaling_factor`."""

    name: str
    channels: int  # of a latent
    downsample: int  # pixels per latent element, along each side
    scaling_factor: float
    shift_factor: float
    config_sha256: str  # of the canonical config.json without keys that start with "_"
    weights_sha256: str  # of the bytes of the safetensors file
    _model: Any = field(repr=False)  # diffusers' AutoencoderKL; None: pixels

    def describe(self) -> dict[str, str | int | float]:
        """What the header of a shard says of the autoencoder of its latents."""
        fields = ("name", "config_sha256", "weights_sha256", "scaling_factor", "shift_factor", "channels", "downsample")
        return {field: getattr(self, field) for field in fields}

    @torch.inference_mode()
    def encode(
        self, images: Float32[Tensor, "n 3 H W"]
    ) -> tuple[Float32[Tensor, "n C h w"], Float32[Tensor, "n C h w"]]:
        """Mean and standard deviation of the raw posterior, on the CPU.

        Args:
            images: in [-1, 1]; height and width are multiples of `downsample`.

        Numerics: the network in its dtype, the standard deviation in float32. The same batch gives the same bytes
        with the same number of threads; alone and in a batch, an image's posterior differs by rounding.
        """
        height, width = images.shape[-2:]
        if height % self.downsample or width % self.downsample:
            raise ValueError(
                f"images: {width}x{height} pixels, but autoencoder {self.name} needs multiples of {self.downsample}; "
                f"crop or resize them"
            )
        if self._model is None:
            return images.cpu(), torch.zeros_like(images, device="cpu")
        with repeatable_convolutions():
            posterior = self._model.encode(images.to(self._model.device, self._model.dtype)).latent_dist
        mean, log_variance = posterior.parameters.float().cpu().chunk(2, dim=1)
        return mean.contiguous(), (0.5 * log_variance.clamp(-30.0, 20.0)).exp()

    @torch.inference_mode()
    def decode(self, latents: Float32[Tensor, "n C h w"]) -> Float32[Tensor, "n 3 H W"]:
        """Images of raw latents, on the CPU, clipped to [-1, 1]."""
        if self._model is None:
            return latents.cpu().clamp(-1.0, 1.0)
        with repeatable_convolutions():
            images = self._model.decode(latents.to(self._model.device, self._model.dtype)).sample
        return images.float().cpu().clamp(-1.0, 1.0)


def load_autoencoder(folder: str, device: torch.device | str, dtype: torch.dtype) -> Autoencoder:
    """The AutoencoderKL that diffusers saved in `folder`, or "pixels"; nothing is fetched, nothing unpickled.

    Raises:
        ValueError: no such folder, or not a whole AutoencoderKL with safetensors weights in it.
    """
    if folder == PIXELS:
        return _pixels()
    config, weights = _find_files(Path(folder))
    settings = _read_settings(config)
    model = _load_model(Path(folder), dtype)
    return Autoencoder(
        name=Path(folder).resolve().name,
        channels=int(model.config.latent_channels),
        downsample=2 ** (len(model.config.block_out_channels) - 1),
        scaling_factor=float(model.config.scaling_factor),
        shift_factor=float(model.config.shift_factor or 0.0),
        config_sha256=_hash_settings(settings),
        weights_sha256=hash_file(weights),
        _model=model.to(device),
    )


def hash_file(path: Path) -> str:
    """Sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def repeatable_convolutions() -> Any:
    """On a GPU: whole float32 and the same algorithm every time."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def psnr_db(restored: Float32[Tensor, "n 3 H W"], original: Float32[Tensor, "n 3 H W"]) -> Float32[Tensor, "n"]:
    """Peak signal to noise ratio of images in [-1, 1], in decibels; an error is at least a tenth of a level."""
    error = (restored - original).square().mean(dim=(1, 2, 3))
    return 10.0 * torch.log10(4.0 / error.clamp(min=(0.2 / 255.0) ** 2))


def _pixels() -> Autoencoder:
    return Autoencoder(
        name=PIXELS,
        channels=3,
        downsample=1,
        scaling_factor=1.0,
        shift_factor=0.0,
        config_sha256=_hash_settings({"latent_channels": 3, "name": PIXELS}),
        weights_sha256=hashlib.sha256().hexdigest(),  # of no bytes
        _model=None,
    )


def _find_files(folder: Path) -> tuple[Path, Path]:
    """The config and the weights in a folder."""
    if not folder.is_dir():
        raise ValueError(f'{folder}: no such folder; name one with a saved AutoencoderKL, or "{PIXELS}"')
    config, weights = folder / CONFIG, folder / WEIGHTS
    if not config.is_file():
        inner = folder / "vae"
        advice = f"name {inner}" if (inner / CONFIG).is_file() else "save the model there with save_pretrained"
        raise ValueError(f"{folder}: no {CONFIG}; {advice}")
    if not weights.is_file():
        unsafe = sorted(path.name for path in folder.iterdir() if path.suffix in UNPICKLED)
        found = f", and {unsafe[0]} is not read, since unpickling runs code" if unsafe else ""
        raise ValueError(
            f"{folder}: no {WEIGHTS}{found}; save the model there with save_pretrained(safe_serialization=True)"
        )
    return config, weights


def _read_settings(path: Path) -> dict[str, Any]:
    """The config of an AutoencoderKL as it stands in its file."""
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); save the model again") from error
    kind = settings.get("_class_name") if isinstance(settings, dict) else None
    if kind != "AutoencoderKL":
        raise ValueError(f"{path}: _class_name is {kind!r}; only AutoencoderKL gives posteriors that can be stored")
    if settings.get("latents_mean") is not None or settings.get("latents_std") is not None:
        raise ValueError(
            f"{path}: latents_mean and latents_std of each channel are not supported; "
            f"use a model with one scaling_factor"
        )
    return dict(settings)


def _load_model(folder: Path, dtype: torch.dtype) -> Any:
    """Diffusers' model in inference mode; an error where a weight is missing or left over."""
    require(folder, "latents", "diffusers")
    from diffusers import AutoencoderKL

    try:
        model, report = AutoencoderKL.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,  # True needs accelerate
            torch_dtype=dtype,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: not a whole AutoencoderKL ({reason}); copy or save it again") from error
    for problem in ("missing", "unexpected"):  # diffusers makes up what is missing, and only logs it
        if names := sorted(report[f"{problem}_keys"]):
            raise ValueError(f"{folder}: {len(names)} {problem} weights, as {names[0]}; {CONFIG} is of another model")
    return model.requires_grad_(False).eval()


def _hash_settings(settings: dict[str, Any]) -> str:
    kept = {key: value for key, value in settings.items() if not key.startswith("_")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
