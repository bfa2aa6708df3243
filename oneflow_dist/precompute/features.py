"""What an understanding tower sees in a picture: SigLIP's patches, stored beside its latent."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float16, UInt8
from PIL import Image
from torch import Tensor

from oneflow_dist.model.autoencoder import CONFIG, hash_file

PROCESSOR, WEIGHTS = "preprocessor_config.json", "model.safetensors"
KINDS = ("siglip", "siglip_vision_model")  # model_type of a whole SigLIP, and of its vision tower alone


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How a processor shrinks a picture: the whole of it, to one size, whatever its aspect."""

    height: int
    width: int
    resampling: Image.Resampling

    def scale_of(self, height: int, width: int) -> float:
        """The factor by which the side that shrinks least shrinks."""
        return 2.0 * max(self.height / height, self.width / width)

    def resize(self, picture: Image.Image) -> Image.Image:
        return picture.resize((self.width, self.height), self.resampling)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """A vision tower with what its processor does before it."""

    name: str
    sha256: str  # of its weights
    view: View
    mean: tuple[float, ...]
    std: tuple[float, ...]
    factor: float  # from 0..255 to what mean and std are of
    _model: Any = field(repr=False)

    @torch.inference_mode()
    def encode(self, views: UInt8[Tensor, "n s _ 3"]) -> Float16[np.ndarray, "n patches width"]:
        """The last hidden state of every patch."""
        pixels = views.to(self._model.device).permute(0, 3, 1, 2).float() * self.factor
        mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        hidden = self._model(pixel_values=((pixels - mean) / std).to(self._model.dtype)).last_hidden_state
        return hidden.to(torch.float16).cpu().numpy()

    def describe(self) -> dict[str, str]:
        """What a shard's header says of it."""
        return {"name": self.name, "sha256": self.sha256}


def load_tower(folder: str, device: torch.device | str, dtype: torch.dtype) -> Tower:
    """The vision tower of the SigLIP that transformers saved in `folder`; nothing is fetched, nothing unpickled.

    Raises:
        ValueError: no such folder, not a SigLIP, or its processor does what is not understood here.
    """
    path = Path(folder)
    for name in (CONFIG, PROCESSOR, WEIGHTS):
        if not (path / name).is_file():
            raise ValueError(f"{folder}: no {name}; save a SigLIP and its processor there with save_pretrained")
    config, processor = (_read_json(path / name) for name in (CONFIG, PROCESSOR))
    if config.get("model_type") not in KINDS:
        raise ValueError(f"{path / CONFIG}: model_type is {config.get('model_type')!r}, not one of {', '.join(KINDS)}")
    steps = {step: processor.get(step, True) for step in ("do_resize", "do_rescale", "do_normalize")}
    size = processor.get("size")
    if not all(steps.values()) or not isinstance(size, dict) or size.keys() != {"height", "width"}:
        raise ValueError(f"{path / PROCESSOR}: only resize to one height and width, rescale and normalize are known")
    return Tower(
        name=path.resolve().name,
        sha256=hash_file(path / WEIGHTS),
        view=View(
            height=int(size["height"]),
            width=int(size["width"]),
            resampling=Image.Resampling(processor.get("resample", Image.Resampling.BICUBIC)),
        ),
        mean=tuple(processor.get("image_mean", (0.5, 0.5, 0.5))),
        std=tuple(processor.get("image_std", (0.5, 0.5, 0.5))),
        factor=float(processor.get("rescale_factor", 1 / 255)),
        _model=_load_model(folder, dtype).to(device),
    )


def _load_model(folder: str, dtype: torch.dtype) -> Any:
    try:
        from safetensors import SafetensorError
        from transformers import SiglipVisionModel
    except ImportError as error:
        raise ValueError(f"{folder}: needs transformers ({error}); pip install oneflow_dist[latents]") from error
    try:
        loaded: Any = SiglipVisionModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: not a whole SigLIP ({reason}); copy or save it again") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{folder}: {len(missing)} missing weights, as {missing[0]}; {CONFIG} is of another model")
    return model.requires_grad_(False).eval()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); save the model again") from error
    return dict(content)
