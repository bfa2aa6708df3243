"""What travels: one dataclass for each stage of a sample's path.

    tar shard -> ShardRecord -> Document -> Sample -> NoisySample -> PackedBatch -> Prediction -> Losses -> StepMetrics

Pieces (images, sounds, whatever [modality] names) are patches, so that any grid of them may stand beside any other; of
a tuple one entry belongs to each modality, in the order of the config. Shapes: n tokens, b bag tokens, i pieces, p
patches of E elements of one sample; N slots (= kept tokens), B bag tokens, I pieces, P patches, T trunk rows, S
sequences of one packed batch; L losses, of M modalities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from itertools import zip_longest
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
    role: str = "user"  # whose turn it is of


@dataclass(frozen=True, slots=True, kw_only=True)
class PiecePart:
    """One piece as it is stored: values, or an autoencoder's posterior; the model sees (value - shift) * scale."""

    modality: str
    posterior: Shaped[np.ndarray, "k C *shape"]  # mean, and standard deviation unless the values are exact
    mirrored: Shaped[np.ndarray, "l C *shape"]  # of the flipped picture, or nothing: a latent cannot be flipped
    shift: float = 0.0
    scale: float = 1.0
    features: PiecePart | None = None  # of the same picture; its pixels, where an encoder has yet to look at them
    role: str = "user"  # whose turn it is of

    @classmethod
    def exact(cls, modality: str, values: Shaped[np.ndarray, "C *shape"], role: str = "user") -> PiecePart:
        """Values as they are: pixels, or a latent that somebody gives."""
        return cls(modality=modality, posterior=values[None], mirrored=values[None][:0], role=role)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A decoded record in reading order, before it is known what of it is prompt and what is target."""

    key: str
    parts: tuple[TextPart | PiecePart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """Those of one modality in one sample, in reading order: grids of patches, which lie end to end like tokens."""

    token: Int64[np.ndarray, "i"]  # which of the sample's tokens each piece is, ascending
    time: Float[np.ndarray, "i"]  # 0: noise, 1: clean
    grid: Int64[np.ndarray, "i 3"]  # patches along time, height and width
    stride: Float[np.ndarray, "i"]  # positions from a patch to the next; 1 unless a large grid is squeezed
    patches: Float32[np.ndarray, "p E"]  # of all pieces, each in the order of its grid
    is_given_only: bool = False  # such pieces never move, so they have no velocity

    def __post_init__(self) -> None:
        num_pieces, num_patches = len(self.token), int(self.num_patches.sum())
        assert len(self.grid) == len(self.time) == num_pieces, f"{len(self.grid)} pieces for {num_pieces} tokens"
        assert len(self.patches) == num_patches, f"{len(self.patches)} patches for grids of {num_patches}"

    def __len__(self) -> int:
        return len(self.token)

    @property
    def num_patches(self) -> Int64[np.ndarray, "i"]:
        """Of each piece."""
        return self.grid.prod(axis=1)

    def per_patch(self, values: Shaped[np.ndarray, "i"]) -> Shaped[np.ndarray, "p"]:
        """For every patch the value of its piece."""
        return values.repeat(self.num_patches)

    def take(self, order: Int64[np.ndarray, "j"]) -> Pieces:
        """These pieces, in this order."""
        num_patches = self.num_patches
        first, count = (np.cumsum(num_patches) - num_patches)[order], num_patches[order]
        patch = (first - np.cumsum(count) + count).repeat(count) + np.arange(count.sum())
        return replace(
            self,
            token=self.token[order],
            time=self.time[order],
            grid=self.grid[order],
            stride=self.stride[order],
            patches=self.patches[patch],
        )

    def join(self, others: Pieces) -> Pieces:
        """These, then others, with no regard to where their tokens stand."""
        names = ("token", "time", "grid", "stride", "patches")
        both: Any = {name: np.concatenate([getattr(self, name), getattr(others, name)]) for name in names}
        return replace(self, **both)

    def still(self) -> Float32[np.ndarray, "p V"]:
        """Velocities of pieces that stand still."""
        width = 0 if self.is_given_only else self.patches.shape[1]
        return np.zeros((len(self.patches), width), dtype=np.float32)

    def select(self, is_kept: Bool[np.ndarray, "i"]) -> Pieces:
        """Those of them; if all are, no patch is copied."""
        return self if is_kept.all() else self.take(np.flatnonzero(is_kept))


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyPieces:
    """Pieces at one instant, and where they flow."""

    pieces: Pieces  # noisy: time * patch + (1 - time) * noise
    velocity: Float32[np.ndarray, "p V"]  # patch - noise; of what is only ever given there is none (V = 0)
    is_moving: Bool[np.ndarray, "i"]  # targets that are not done yet (time < 1): their velocity is learnt


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One training example before noising. A piece is one token in `tokens` and a grid of patches."""

    key: str
    tokens: Int64[np.ndarray, "n"]
    is_target: Bool[np.ndarray, "n"]  # to be generated; the others are prompt. The first token never is one.
    pieces: tuple[Pieces, ...]  # clean: of time 1
    is_interleaved: bool  # pieces are inserted like tokens (Algorithm 3); else they are there from the start
    # Where the finished blocks of a prompt end, as numbers of tokens before; (): what stands before targets is one.
    block_ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.tokens.size == 0 or self.is_target[0]:
            raise ValueError(f"sample {self.key!r}: its first token is a target; put a BOS or prompt token before it")

    @property
    def num_rows(self) -> int:
        """Trunk rows of the complete sample."""
        return len(self.tokens) + sum(len(pieces.patches) for pieces in self.pieces)

    @property
    def front(self) -> int:
        """Tokens before the first target."""
        return int(self.is_target.argmax()) if self.is_target.any() else len(self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bags:
    """What n slots miss: the deleted tokens, or their mean over all ways in which they may have been deleted."""

    tokens: Int64[np.ndarray, "b"]
    slot: Int64[np.ndarray, "b"]  # the kept token each fell behind, ascending
    weight: Float32[np.ndarray, "b"]  # how often it is expected there
    missing_count: Float32[np.ndarray, "n"]  # expected size of each slot's bag
    filled_prob: Float32[np.ndarray, "n"]  # chance that it is not empty

    @classmethod
    def of_tokens(cls, tokens: Int64[np.ndarray, "b"], slot: Int64[np.ndarray, "b"], num_slots: int) -> Bags:
        """Of tokens that are known to be missing."""
        count = np.bincount(slot, minlength=num_slots).astype(np.float32)
        weight = np.ones(len(tokens), dtype=np.float32)
        return cls(tokens=tokens, slot=slot, weight=weight, missing_count=count, filled_prob=np.minimum(count, 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisySample:
    """A sample at one instant of its generation: what is there, and what is missing where."""

    key: str
    tokens: Int64[np.ndarray, "n"]  # the kept ones
    is_given: Bool[np.ndarray, "n"]  # those of the prompt, the first among them
    is_open: Bool[np.ndarray, "n"]  # may tokens be inserted after this one?
    bags: Bags
    pieces: tuple[NoisyPieces, ...]
    text_time: float
    block_ends: tuple[int, ...] = ()  # as in `Sample`; what follows the last is being written
    attention_scale: float = 1.0  # of logits; in generation, for a look that is less sharp

    @property
    def has_moving(self) -> bool:
        """Whether any piece is still in the making."""
        return any(noisy.is_moving.any() for noisy in self.pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The most that a packed batch holds."""

    rows: int
    tokens: int
    bag_tokens: int
    sequences: int
    pieces: tuple[int, ...]  # of each modality
    patches: tuple[int, ...]

    def to_list(self) -> list[int]:
        """All of them, rows first."""
        return [self.rows, self.tokens, self.bag_tokens, self.sequences, *self.pieces, *self.patches]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What losses are divided by, and what a step has processed; of one batch, or summed over a whole step."""

    open_slots: int
    text_sequences: int  # with at least one open slot
    rows: int  # padding not counted
    padded_rows: int  # all rows of the batch
    text_tokens: int  # rows that are tokens
    bag_tokens: int
    filled_slots: int  # with at least one bag token
    sequences: int
    attention_pairs: int  # (row, key that it sees): squared sequence lengths, unless prompts see less; no padding
    patches: tuple[int, ...]  # of each modality
    moving_elements: tuple[int, ...]  # of pieces that are scored

    @classmethod
    def zeros(cls, num_modalities: int = 0) -> Counts:
        """Of nothing; what sums start from may know of no modality."""
        return cls.from_list([0] * (len(fields(cls)) - 2 + 2 * num_modalities))

    def to_list(self) -> list[int]:
        """All of them, end to end."""
        *scalars, patches, elements = (getattr(self, f.name) for f in fields(self))
        return [*scalars, *patches, *elements]

    @classmethod
    def from_list(cls, values: list[int]) -> Counts:
        """The inverse of `to_list`."""
        names = [f.name for f in fields(cls)]
        num_scalars = len(names) - 2
        middle = (num_scalars + len(values)) // 2
        scalars = dict(zip(names, values[:num_scalars], strict=False))
        return cls(**scalars, patches=tuple(values[num_scalars:middle]), moving_elements=tuple(values[middle:]))

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{f.name: _plus(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)})


def _plus(a: Any, b: Any) -> Any:
    """Of numbers, or one by one of tuples, of which one may be shorter."""
    return a + b if isinstance(a, int) else tuple(x + y for x, y in zip_longest(a, b, fillvalue=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedPieces:
    """The pieces of one modality in a packed batch, whose patches lie end to end."""

    time: Float32[Tensor, "I"]
    grid: Int64[Tensor, "I 3"]  # patches along time, height and width
    patches: Float32[Tensor, "P E"]  # noisy
    velocity: Float32[Tensor, "P V"]  # target; V = 0 for what is only ever given
    sequence: Int64[Tensor, "I"]  # whose text time is theirs, too
    patch_piece: Int64[Tensor, "P"]
    patch_row: Int64[Tensor, "P"]  # its row in the trunk
    patch_weight: Float32[Tensor, "P"]  # 1 on patches of scored pieces; 0 on those of clean ones

    def map(self, move: Callable[[Tensor], Tensor]) -> PackedPieces:
        """The same with every tensor moved."""
        return PackedPieces(**{f.name: move(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """Many noisy samples as one sequence of T rows, with no batch dimension.

    Rows of a sample are its kept tokens in order; the token of a piece is followed by the rows of its patches. Rows
    that no sample fills form a last sequence of their own, which nothing reads: T and I are always the same, as
    compiled blocks want it. All else is as long as what is there, so that nothing is looked up for nothing. A row
    belongs to one token or to one patch, so what rows get and what is read from them are permutations, backward too.
    """

    # Text: every kept token owns the slot after it.
    tokens: Int64[Tensor, "N"]
    token_row: Int64[Tensor, "N"]  # its row in the trunk
    token_sequence: Int64[Tensor, "N"]
    slot_weight: Float32[Tensor, "N"]  # in the sums of the text losses; 0 on closed slots
    missing_count: Float32[Tensor, "N"]  # E[k]: how many tokens the slot misses
    filled_prob: Float32[Tensor, "N"]  # P(k > 0)
    bag_tokens: Int64[Tensor, "B"]  # deleted tokens, sorted by slot
    bag_slot: Int64[Tensor, "B"]
    bag_weight: Float32[Tensor, "B"]  # how often it is missing there, times slot_weight[bag_slot]

    pieces: tuple[PackedPieces, ...]

    # Sequence layout.
    position: Float32[Tensor, "T 3"]  # place in the text, or of a patch along time, height and width; mostly whole
    cu_seqlens: Int32[Tensor, "C"]  # first row of each sequence and of the padding; then T, to a power of two and one
    row_end: Int32[Tensor, "T"] | None  # a row sees those of its sequence before this one; None: all
    text_time: Float32[Tensor, "S"]
    attention_scale: Float32[Tensor, "T"] | None  # of each row; None: 1
    draw: Int64[Tensor, ""]  # stands for what is in the pack; from it comes whatever is random in the network
    num_filled: int  # different slots in bag_slot
    max_seqlen: int  # of the longest sequence, rounded up to a power of two so that compiled code sees few values

    # Known on the host.
    counts: Counts
    keys: tuple[str, ...]  # for error messages and dumps of bad batches

    def tensors(self) -> list[Tensor]:
        """All of them."""
        found: list[Tensor] = []

        def find(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.map(find)
        return found

    def map(self, move: Callable[[Tensor], Tensor]) -> PackedBatch:
        """The same batch with every tensor moved."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: Any = {name: move(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **moved, pieces=tuple(pieces.map(move) for pieces in self.pieces))

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch with every tensor on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> PackedBatch:
        """The same batch in memory from which a GPU reads by itself."""
        return self.map(Tensor.pin_memory)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the model says of a packed batch."""

    zero_logit: Float32[Tensor, "N"] | None  # of pi: P(nothing is missing in the slot); None: nobody asks
    log_rate: Float32[Tensor, "N"] | None  # log of the expected missing count when something is
    bag_loss: Float[Tensor, ""]  # sum over bag tokens of weight * -log Q(token); over a tensor axis this rank's share
    velocity: tuple[Float32[Tensor, "_ _"], ...]  # of the patches of each modality
    slot_hidden: Float[Tensor, "N D"]  # from which the sampler asks for Q where it needs it


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Sums over this rank's samples, divided by the counts of the whole step (scalars; nats and mean squares)."""

    zero: Float32[Tensor, ""]
    rate: Float32[Tensor, ""]
    bag: Float32[Tensor, ""]
    velocity: Float32[Tensor, "M"]  # of each modality, also of what is only given, whose is 0
    total: Float32[Tensor, ""]

    def named(self, modalities: Iterable[str]) -> dict[str, Tensor]:
        """Each by its name, as in metrics.jsonl."""
        velocities = {f"velocity_{name}": loss for name, loss in zip(modalities, self.velocity, strict=True)}
        return {"zero": self.zero, "rate": self.rate, "bag": self.bag, **velocities, "total": self.total}

    def stack(self) -> Float32[Tensor, "L"]:
        """All losses in one detached tensor, to be summed over microbatches and ranks; the total is the last."""
        return torch.cat([torch.stack([self.zero, self.rate, self.bag]), self.velocity, self.total[None]]).detach()

    @classmethod
    def unstack(cls, values: Float32[Tensor, "L"]) -> Losses:
        """The inverse of `stack`."""
        zero, rate, bag, *_, total = values.unbind()
        return cls(zero=zero, rate=rate, bag=bag, velocity=values[3:-1], total=total)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """What one optimizer step reports; the same on every rank."""

    losses: Losses
    grad_norm: float  # before clipping
    counts: Counts
    skipped: str = ""  # why the weights were left alone, if they were
