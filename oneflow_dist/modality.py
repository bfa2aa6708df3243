"""The continuous pieces of documents: a table for each kind, by which alone everything else knows it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from oneflow_dist.toml import NonNegative, NonNegativeFloat, Positive, check_range, field_ranges

Sides = tuple[int, int, int]  # along time, height and width
PIXELS, SPECTROGRAM, LATENTS = "pixels", "spectrogram@", "latents"
EFFICIENTNET = "efficientnet-lite0"  # stands for the folder of an understanding encoder: a package has its weights
CODECS = f'"{PIXELS}", "{SPECTROGRAM}8000", "{LATENTS}" or a folder'  # of a [modality]
AXES = {0: (), 1: ("time",), 2: ("height", "width"), 3: ("time", "height", "width")}  # of pieces, by their dimensions
Given = Literal["latents", "features", "both"]  # what the model sees of a picture that it does not make
GIVEN = get_args(Given)
TAKEN_TOKENS = ("<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>", "<|hole|>")
BESIDE = ("tokens", "mirrored", "features")  # how the names of arrays end that are no pieces
TAKEN_NAMES = ("text", "gate", "rate", *BESIDE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModalityConfig:
    """[modality.NAME] One kind of continuous piece in a document: image, sound, video, vector; or what one looks like.

    Everything else knows pieces by this table alone. The shape is that of pieces that generation makes. Pieces that are
    given, in data and in prompts, may have any that `patch` divides.
    """

    token: str  # stands for a piece in the text, as "<|image|>"
    channels: Positive
    shape: tuple[int, ...]  # of a latent, in elements: none, (time), (height, width) or (time, height, width)
    patch: tuple[int, ...]  # a patch of so many elements along each of them is one row of the trunk
    per_pack: Positive  # pieces of that shape; their patches are the room for pieces of any shape
    codec: str  # between files and latents: "pixels", "spectrogram@RATE", "latents" (no files), or a folder, see CODECS
    adapter: Literal["linear", "two_layer", "unet"]  # between patches and rows
    adapter_width: NonNegative = 0  # of what is hidden in an adapter; a U-Net's channels
    time_conditioning: Literal["added", "adaln"]  # added to the patches' rows, or AdaLN-Zero in every block
    loss_weight: NonNegativeFloat  # of the velocity loss
    times: Literal["uniform", "logit_normal"] = "uniform"  # of training, where no schedule of insertion gives them
    shift_rows: NonNegative = 0  # larger pieces than of so many rows spend longer in noise; 0: none does
    squeezed_to: NonNegative = 0  # patches along a side; longer pieces take so many positions. 0: one for every patch
    # What a given picture looks like to a frozen encoder (the folder `codec`), stored with the data or computed in
    # training; such a piece is never noised and never generated.
    understanding: Literal["none", "features", "live"] = "none"

    @property
    def is_seen_whole(self) -> bool:
        """Whether what becomes of a patch depends on the rest of its piece, before the trunk or after it."""
        return self.adapter == "unet" or self.understanding == "live"

    @property
    def is_target(self) -> bool:
        """Whether such pieces can be generated."""
        return self.understanding == "none"

    @property
    def has_folder(self) -> bool:
        """Whether the codec is a network in a folder."""
        return self.codec not in (PIXELS, LATENTS, EFFICIENTNET) and not self.has_sound

    @property
    def has_sound(self) -> bool:
        """Whether its files are sounds."""
        return self.codec.startswith(SPECTROGRAM)

    @property
    def dimensions(self) -> int:
        return len(self.shape)

    @property
    def patch_elements(self) -> int:
        return self.channels * math.prod(self.patch)

    @property
    def grid(self) -> Sides:
        """Patches of a piece along time, height and width."""
        sides = zip(on_axes(self.shape), on_axes(self.patch), strict=True)
        time, height, width = (side // patch for side, patch in sides)
        return time, height, width

    @property
    def num_rows(self) -> int:
        """Trunk rows of one piece, its patches."""
        return math.prod(self.grid)


def on_axes(sides: tuple[int, ...]) -> Sides:
    """Sides of a piece along time, height and width; 1 along those that it does not have."""
    match sides:
        case (time, height, width):
            return time, height, width
        case (height, width):
            return 1, height, width
        case (time,):
            return time, 1, 1
        case _:
            return 1, 1, 1


Modalities = Mapping[str, ModalityConfig]


def first_picture(modalities: Modalities, who: str) -> str:
    """The name of the first modality of pictures that can be generated; a ValueError tells `who` that there is none."""
    for name, modality in modalities.items():
        if modality.is_target and modality.dimensions == 2:
            return name
    raise ValueError(
        f"{who}: the model has no pictures, but {', '.join(modalities) or 'text alone'}; take one with a "
        "[modality.NAME] of height and width"
    )


def understanding_of(modalities: Modalities, who: str) -> str:
    """The name of the modality that has `understanding`; a ValueError tells `who` that none has."""
    for name, modality in modalities.items():
        if not modality.is_target:
            return name
    raise ValueError(f"{who}: wants features, but no [modality.*] has `understanding`; add one, or take latents")


MODALITY_RANGES = field_ranges(ModalityConfig)


def check_modalities(modalities: Modalities) -> None:
    """Names, tokens, sides and adapters that cannot work.

    Raises:
        ValueError: names the key, its value and a way out.
    """
    tokens: dict[str, str] = {}
    understood = [name for name, modality in modalities.items() if not modality.is_target]
    if len(understood) > 1:
        raise ValueError(f"modality: {' and '.join(understood)} both have `understanding`; keep one")
    for name, modality in modalities.items():
        where = f"modality.{name}"
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in TAKEN_NAMES:
            raise ValueError(f"{where}: not a name; take small letters, digits and _, and not {', '.join(TAKEN_NAMES)}")
        for key, interval in MODALITY_RANGES.items():
            check_range(f"{where}.{key}", getattr(modality, key), interval)
        if not re.fullmatch(r"<\|\w+\|>", modality.token):
            raise ValueError(f"{where}.token: {modality.token!r} is not of the form <|name|>; write it so")
        other = "a special token" if modality.token in TAKEN_TOKENS else tokens.get(modality.token)
        if other:
            raise ValueError(f"{where}.token: {modality.token} is that of {other}, too; take another")
        tokens[modality.token] = f"modality.{name}"
        _check_sides(where, modality)
        _check_adapter(where, modality)


def _check_sides(where: str, modality: ModalityConfig) -> None:
    shape, patch = modality.shape, modality.patch
    if len(shape) > 3 or len(shape) != len(patch):
        raise ValueError(
            f"{where}: shape {list(shape)} has {len(shape)} dimensions, patch {list(patch)} has {len(patch)}; "
            "give both the same, at most 3"
        )
    if min((*shape, *patch), default=1) < 1 or any(side % part for side, part in zip(shape, patch, strict=True)):
        raise ValueError(f"{where}.patch: {list(patch)} must divide {where}.shape ({list(shape)}), all from 1 on")


def _check_adapter(where: str, modality: ModalityConfig) -> None:
    codec = modality.codec
    if not codec.strip():
        raise ValueError(f"{where}.codec: is empty; name {CODECS}")
    if codec.startswith("~"):  # what has a home is at home since `load_config`
        raise ValueError(f"{where}.codec: {codec}: there is no such user here; ./{codec} is what is called so")
    dimensions = {PIXELS: (2, 3), LATENTS: (0, 1, 2, 3)}.get(codec, (1,) if modality.has_sound else (2,))
    if modality.dimensions not in dimensions:
        what = codec if codec == PIXELS or modality.has_sound else f"the folder {codec}"
        raise ValueError(
            f"{where}.codec: {what} makes latents of {' or '.join(map(str, dimensions))} dimensions, but {where}.shape "
            f"has {modality.dimensions}; name {CODECS}"
        )
    if modality.has_sound and not codec.removeprefix(SPECTROGRAM).isdigit():
        raise ValueError(f"{where}.codec: {codec} names no sample rate; write one in hertz, as {SPECTROGRAM}8000")
    if (modality.adapter == "linear") != (modality.adapter_width == 0):
        raise ValueError(
            f"{where}.adapter_width: {modality.adapter_width}, but the adapter is {modality.adapter}; 0 is for a "
            "linear one, the others need a width"
        )
    if not modality.is_target and (modality.adapter == "unet" or modality.dimensions != 2 or modality.loss_weight):
        raise ValueError(
            f"{where}: has `understanding`, so it is given only: 2 dimensions, loss_weight 0, and adapter linear or "
            "two_layer"
        )
