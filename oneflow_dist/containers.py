"""What travels: one dataclass for each stage of a sample's path.

    tar shard -> ShardRecord -> Document -> Sample -> NoisySample -> PackedBatch -> Prediction -> Losses -> StepMetrics

Images are patches, so that any grid of them may stand beside any other. Shapes: n tokens, b bag tokens, i images, p
patches of E elements of one sample; N slots (= kept tokens), B bag tokens, I images, P patches, T trunk rows,
S sequences of one packed batch; L losses.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int32, Int64, Shaped
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """The members of one WebDataset sample, still encoded."""

    key: str  # "source/shard/key": names the sample in every message
    files: dict[str, bytes]  # by extension: "png", "txt", "json", "0.jpg"
    header: dict[str, Any] = field(default_factory=dict)  # what the writer of the shard says of it; empty for most


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    """A stretch of text, tokenized by itself."""

    tokens: list[int]
    is_answer: bool = False  # what the task "instruct" has generated


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePart:
    """One image as it is stored: pixels, or an autoencoder's posterior; the model sees (value - shift) * scale."""

    posterior: Float[np.ndarray, "k C h w"]  # mean, and standard deviation unless the values are exact
    mirrored: Float[np.ndarray, "l C h w"]  # the same of the flipped image, or nothing: a latent cannot be flipped
    shift: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A decoded record in reading order, before it is known what of it is prompt and what is target."""

    key: str
    parts: tuple[TextPart | ImagePart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The images of one sample, in reading order: each a grid of patches, which lie end to end like tokens."""

    token: Int64[np.ndarray, "i"]  # which of the sample's tokens each image is, ascending
    time: Float[np.ndarray, "i"]  # 0: noise, 1: clean
    grid: Int64[np.ndarray, "i 2"]  # rows and columns of patches
    patches: Float32[np.ndarray, "p E"]  # of all images, each row by row

    def __post_init__(self) -> None:
        num_images, num_patches = len(self.token), int(self.num_patches.sum())
        assert len(self.grid) == len(self.time) == num_images, f"{len(self.grid)} images for {num_images} tokens"
        assert len(self.patches) == num_patches, f"{len(self.patches)} patches for grids of {num_patches}"

    def __len__(self) -> int:
        return len(self.token)

    @property
    def num_patches(self) -> Int64[np.ndarray, "i"]:
        """Of each image."""
        return self.grid.prod(axis=1)

    def per_patch(self, values: Shaped[np.ndarray, "i"]) -> Shaped[np.ndarray, "p"]:
        """For every patch the value of its image."""
        return values.repeat(self.num_patches)

    def take(self, order: Int64[np.ndarray, "j"]) -> Images:
        """These images, in this order."""
        num_patches = self.num_patches
        first, count = (np.cumsum(num_patches) - num_patches)[order], num_patches[order]
        patch = (first - np.cumsum(count) + count).repeat(count) + np.arange(count.sum())
        return Images(
            token=self.token[order], time=self.time[order], grid=self.grid[order], patches=self.patches[patch]
        )

    def select(self, is_kept: Bool[np.ndarray, "i"]) -> Images:
        """Those of them; if all are, no patch is copied."""
        return self if is_kept.all() else self.take(np.flatnonzero(is_kept))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One training example before noising. An image is one token in `tokens` and a grid of patches."""

    key: str
    tokens: Int64[np.ndarray, "n"]
    is_target: Bool[np.ndarray, "n"]  # to be generated; the others are prompt. The first token never is one.
    images: Images  # clean: of time 1
    is_interleaved: bool  # images are inserted like tokens (Algorithm 3); else they are there from the start

    def __post_init__(self) -> None:
        if self.tokens.size == 0 or self.is_target[0]:
            raise ValueError(f"sample {self.key!r}: its first token is a target; put a BOS or prompt token before it")


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisySample:
    """A sample at one instant of its generation: what is there, and what is missing where."""

    key: str
    tokens: Int64[np.ndarray, "n"]  # the kept ones
    is_open: Bool[np.ndarray, "n"]  # may tokens be inserted after this one?
    bag_tokens: Int64[np.ndarray, "b"]  # the deleted ones, in reading order
    bag_slot: Int64[np.ndarray, "b"]  # the kept token each fell behind, ascending
    images: Images  # noisy: time * patch + (1 - time) * noise
    velocity: Float32[np.ndarray, "p E"]  # patch - noise
    is_moving: Bool[np.ndarray, "i"]  # targets that are not done yet (time < 1): their velocity is learnt
    text_time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The most that a packed batch holds."""

    rows: int
    tokens: int
    bag_tokens: int
    images: int
    patches: int
    sequences: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What losses are divided by, and what a step has processed; of one batch, or summed over a whole step."""

    open_slots: int
    text_sequences: int  # with at least one open slot
    image_elements: int  # of images that are scored
    rows: int  # padding not counted
    padded_rows: int  # all rows of the batch
    text_tokens: int  # rows that are tokens
    bag_tokens: int
    filled_slots: int  # with at least one bag token
    sequences: int
    attention_pairs: int  # sum of squared sequence lengths, padding not counted

    @classmethod
    def zeros(cls) -> Counts:
        return cls(**{field.name: 0 for field in fields(cls)})

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """Many noisy samples as one sequence of T rows, with no batch dimension.

    Rows of a sample are its kept tokens in order; an image token is followed by the rows of its patches. Rows that no
    sample fills form a last sequence of their own, which nothing reads: T and I are always the same, as compiled blocks
    want it. All else is as long as what is there, so that nothing is looked up for nothing. A row belongs to one token
    or to one patch, so what rows get and what is read from them are permutations, backward too.
    """

    # Text: every kept token owns the slot after it.
    tokens: Int64[Tensor, "N"]
    token_row: Int64[Tensor, "N"]  # its row in the trunk
    token_sequence: Int64[Tensor, "N"]
    slot_weight: Float32[Tensor, "N"]  # in the sums of the text losses; 0 on closed slots
    missing_count: Float32[Tensor, "N"]  # k: how many bag tokens the slot has
    bag_tokens: Int64[Tensor, "B"]  # deleted tokens, sorted by slot
    bag_slot: Int64[Tensor, "B"]
    bag_weight: Float32[Tensor, "B"]  # slot_weight[bag_slot]

    # Images.
    image_time: Float32[Tensor, "I"]
    patches: Float32[Tensor, "P E"]  # noisy
    velocity: Float32[Tensor, "P E"]  # target
    patch_image: Int64[Tensor, "P"]
    patch_row: Int64[Tensor, "P"]  # its row in the trunk
    patch_weight: Float32[Tensor, "P"]  # 1 on patches of scored images; 0 on those of clean ones

    # Sequence layout.
    row_image: Int64[Tensor, "T"]  # the image a row is a patch of; I on every other row
    position: Int32[Tensor, "T 3"]  # place in the text, patch row, patch column
    cu_seqlens: Int32[Tensor, "C"]  # first row of each sequence and of the padding; then T, to a power of two and one
    text_time: Float32[Tensor, "S"]
    num_filled: int  # different slots in bag_slot
    max_seqlen: int  # of the longest sequence, rounded up to a power of two so that compiled code sees few values

    # Known on the host.
    counts: Counts
    keys: tuple[str, ...]  # for error messages and dumps of bad batches

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are tensors."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch with every tensor on `device`."""
        moved: Any = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors().items()}
        return replace(self, **moved)

    def pinned(self) -> PackedBatch:
        """The same batch in memory from which a GPU reads by itself."""
        pinned: Any = {name: tensor.pin_memory() for name, tensor in self.tensors().items()}
        return replace(self, **pinned)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the model says of a packed batch."""

    zero_logit: Float32[Tensor, "N"]  # of pi: P(nothing is missing in the slot)
    log_rate: Float32[Tensor, "N"]  # log of the expected missing count when something is
    bag_loss: Float32[Tensor, ""]  # sum over bag tokens of weight * -log Q(token); over a tensor axis this rank's share
    velocity: Float32[Tensor, "P E"]
    slot_hidden: Float[Tensor, "N D"]  # from which the sampler asks for Q where it needs it


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Sums over this rank's samples, divided by the counts of the whole step (scalars; nats and mean squares)."""

    zero: Float32[Tensor, ""]
    rate: Float32[Tensor, ""]
    bag: Float32[Tensor, ""]
    velocity: Float32[Tensor, ""]
    total: Float32[Tensor, ""]

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Of all of them, in the order in which they are stacked."""
        return tuple(field.name for field in fields(cls))

    def stack(self) -> Float32[Tensor, "L"]:
        """All losses in one detached tensor, to be summed over microbatches and ranks."""
        return torch.stack([getattr(self, name).detach() for name in self.names()])

    @classmethod
    def unstack(cls, values: Float32[Tensor, "L"]) -> Losses:
        """The inverse of `stack`."""
        return cls(**dict(zip(cls.names(), values.unbind(), strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """What one optimizer step reports; the same on every rank."""

    losses: Losses
    grad_norm: float  # before clipping
    counts: Counts
    skipped: str = ""  # why the weights were left alone, if they were
