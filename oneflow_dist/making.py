"""The pieces of a document while they are made: from noise along their velocity, each on its own clock."""

# Shapes: n tokens, k insertions, i pieces, p patches of E elements of one document and modality.

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from oneflow_dist.containers import NoisyPieces, Pieces
from oneflow_dist.data.codec import cut_pieces, to_latents
from oneflow_dist.flow.noising import gaussian
from oneflow_dist.flow.times import TimeLaw
from oneflow_dist.modality import ModalityConfig
from oneflow_dist.sampling import SamplingConfig

MOVING_TOLERANCE = 1e-9  # clocks are sums of 1/N


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """The pieces of one modality, given, in the making or done."""

    modality: ModalityConfig
    token: int
    pieces: Pieces
    is_target: Bool[np.ndarray, "i"]
    end: Int64[np.ndarray, "i"]  # step at which each was finished; 0: it was given, or is not finished yet
    half: Pieces | None = None  # in place of time and patches, half of what the last step added to each; of heun alone

    @property
    def is_moving(self) -> Bool[np.ndarray, "i"]:
        """Those that are still being made."""
        return self.is_target & (self.pieces.time < 1.0 - MOVING_TOLERANCE)

    def clock(self, shift: float = 1.0) -> Float[np.ndarray, "i"]:
        """How far each has come, on the clock whose steps are even."""
        return TimeLaw.of(self.modality, shift).clock(self.pieces.time, self.pieces)

    def clock_left(self, shift: float) -> float:
        """How far the clock of the one that ends last has to go; 0 if none is moving."""
        return float((1.0 - self.clock(shift)[self.is_moving]).max(initial=0.0))

    def noisy(self) -> NoisyPieces:
        """As the network sees them."""
        now = replace(self.pieces, time=np.minimum(1.0, self.pieces.time))
        return NoisyPieces(pieces=now, velocity=now.still(), is_moving=self.is_moving)

    def advance(
        self,
        velocity: Float32[np.ndarray, "p _"],
        step_size: float,
        shift: float,
        sampling: SamplingConfig,
        rng: np.random.Generator,
        step: int,
    ) -> Making:
        """Moved along their velocity v, those that move, by h of their time.

            euler    Y + h v
            heun     Y + h v + (v - v') h' / 2        v', h' of the step before

        That is Heun's mean of the velocities before and after a step, made good when the second is known: it was
        computed on the text as it is by then, and serves the next step, too.

        Args:
            step_size: on their clocks.
            shift: of the clocks.
        """
        pieces, was_moving = self.pieces, self.is_moving
        if not was_moving.any():
            return self
        way = TimeLaw.of(self.modality, shift).step(pieces.time, step_size, pieces)
        steps = np.where(was_moving, way, 0.0)
        moves = _of_patches(pieces, steps) * velocity
        patches, half = pieces.patches + moves, None
        if sampling.solver == "heun":
            if self.half is not None:
                late = _of_patches(pieces, np.where(was_moving, self.half.time, 0.0)) * velocity - self.half.patches
                patches += np.where(pieces.per_patch(was_moving)[:, None], late, np.float32(0.0))
            half = replace(pieces, time=0.5 * steps, patches=np.float32(0.5) * moves)
        if sampling.churn:
            patches += _exchanged_noise(pieces, velocity, steps, sampling.churn, rng)
        after = replace(self, pieces=replace(pieces, time=pieces.time + steps, patches=patches), half=half)
        return replace(after, end=np.where(was_moving & ~after.is_moving, step, self.end))

    def insert(self, slots: Int64[np.ndarray, "k"], tokens: Int64[np.ndarray, "k"], rng: np.random.Generator) -> Making:
        """After tokens have been inserted behind `slots`; a token of this modality spawns noise."""
        # A token moves by as many places as there are insertions before it, and so does a token that is inserted.
        old = self.pieces.token + np.searchsorted(slots, self.pieces.token)
        moved = replace(self, pieces=replace(self.pieces, token=old))
        return moved.spawn(slots + 1 + np.arange(len(slots)), tokens, rng)

    def spawn(self, places: Int64[np.ndarray, "k"], tokens: Int64[np.ndarray, "k"], rng: np.random.Generator) -> Making:
        """With noise for each token of this modality among those that now stand at `places`."""
        new = places[tokens == self.token]
        if len(new) == 0:
            return self
        noise = gaussian(rng, (len(new), self.modality.channels, *self.modality.shape))
        born = cut_pieces(list(noise), new.tolist(), self.modality)
        born = replace(born, time=np.zeros(len(new)))
        still = replace(born, patches=np.zeros_like(born.patches))
        pieces = self.pieces.join(born)
        order = np.argsort(pieces.token)
        return replace(
            self,
            pieces=pieces.take(order),
            half=None if self.half is None else self.half.join(still).take(order),
            is_target=np.append(self.is_target, np.ones(len(new), dtype=bool))[order],
            end=np.append(self.end, np.zeros(len(new), dtype=np.int64))[order],
        )

    def keep(self, is_kept: Bool[np.ndarray, "n"]) -> Making:
        """Those whose tokens stay."""
        stays, token = is_kept[self.pieces.token], (is_kept.cumsum() - 1)[self.pieces.token]
        return replace(
            self,
            pieces=replace(self.pieces, token=token).select(stays),
            is_target=self.is_target[stays],
            end=self.end[stays],
            half=None if self.half is None else self.half.select(stays),
        )

    def rewind(
        self,
        way: float,
        is_written: Bool[np.ndarray, "i"],
        is_kept: Bool[np.ndarray, "n"],
        rng: np.random.Generator,
    ) -> Making:
        """Those whose tokens are kept; what was written looks as it may have a way earlier, on its clock.

        From time t back to s, as noise covers a piece:

            (s / t) Y + sqrt((1 - s)^2 - (s / t)^2 (1 - t)^2) fresh

        Args:
            is_written: whose tokens were inserted; the others were there from the start, and stay as they are.
            is_kept: of the document's tokens.
        """
        time = TimeLaw.of(self.modality).at_clock(np.maximum(0.0, self.clock() - way), self.pieces)
        time = np.where(is_written, time, self.pieces.time)
        share = time / np.maximum(self.pieces.time, MOVING_TOLERANCE)
        share = np.where(is_written, share, 1.0)
        fresh = np.sqrt(np.maximum(0.0, (1.0 - time) ** 2 - (share * (1.0 - self.pieces.time)) ** 2))
        patches = _of_patches(self.pieces, share) * self.pieces.patches
        patches += _of_patches(self.pieces, fresh) * gaussian(rng, patches.shape)
        back = replace(self.pieces, time=time, patches=patches)
        return replace(self, pieces=back, end=np.where(is_written, 0, self.end), half=None).keep(is_kept)

    def latents(self) -> list[Float32[np.ndarray, "C *_"]]:
        """The pieces as they stand now, each of its own shape."""
        return to_latents(self.pieces, self.modality)


def _of_patches(pieces: Pieces, values: Float[np.ndarray, "i"]) -> Float32[np.ndarray, "p 1"]:
    return pieces.per_patch(values.astype(np.float32))[:, None]


def _exchanged_noise(
    pieces: Pieces,
    velocity: Float32[np.ndarray, "p E"],
    steps: Float[np.ndarray, "i"],
    churn: float,
    rng: np.random.Generator,
) -> Float32[np.ndarray, "p E"]:
    """What a stochastic step adds to Euler's from time t to t + h: a part of the noise is drawn anew.

        (1 - t - h) ((c - 1) noise + sqrt(1 - c^2) fresh),    noise = Y - t v,    c = ((1 - t - h) / (1 - t)) ^ churn

    The noise that the velocity believes in decays as in the stochastic equation that has the same law at each time as
    the flow, with diffusion 2 churn (1 - t).

    Source: arXiv:2303.08797, section 2.3 (a diffusion of any size has the same law, given the velocity).
    """
    left = 1.0 - pieces.time
    left_after = np.maximum(0.0, left - steps)
    share = np.where(steps > 0.0, (left_after / np.maximum(left, MOVING_TOLERANCE)) ** churn, 1.0)
    noise = pieces.patches - _of_patches(pieces, pieces.time) * velocity
    old, new = (share - 1.0) * left_after, np.sqrt(1.0 - share**2) * left_after
    return _of_patches(pieces, old) * noise + _of_patches(pieces, new) * gaussian(rng, pieces.patches.shape)
