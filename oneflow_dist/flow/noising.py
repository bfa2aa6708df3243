"""What a sample looks like at one instant of its generation: tokens deleted, pieces noised."""

# Shapes: n tokens, i pieces, p patches of E elements of one sample.

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from oneflow_dist.config import Config
from oneflow_dist.containers import Bags, NoisyPieces, NoisySample, Pieces, Sample
from oneflow_dist.flow.alignments import averaged_bags
from oneflow_dist.flow.schedule import KeepSchedule
from oneflow_dist.flow.times import TimeLaw

Span = tuple[float, float]  # a part of [0, 1]
WHOLE: Span = (0.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noising:
    """How samples are noised."""

    schedule: KeepSchedule
    laws: tuple[TimeLaw, ...]  # of the times of each modality
    condition_dropout_prob: float = 0.0  # chance that a sample with moving pieces loses everything else
    prompt_dropout_prob: float = 0.0  # chance that a sample with a prompt and open slots loses the prompt
    averages_bags: bool = False  # over all ways in which the kept tokens may lie in the text

    @classmethod
    def of(cls, config: Config) -> Noising:
        """As a config says."""
        return cls(
            schedule=KeepSchedule.of(config.flow),
            laws=tuple(TimeLaw.of(modality) for modality in config.modality.values()),
            condition_dropout_prob=config.flow.condition_dropout_prob,
            prompt_dropout_prob=config.flow.prompt_dropout_prob,
            averages_bags=config.flow.bags == "averaged",
        )


def keyed_generator(seed: int, pass_index: int, key: str) -> np.random.Generator:
    """The generator of one sample in one pass over the data: the same on any rank, worker and restart."""
    rng = np.random.Generator(np.random.SFC64(0))
    set_key(rng, seed, pass_index, key)
    return rng


def set_key(rng: np.random.Generator, seed: int, pass_index: int, key: str) -> None:
    """Make an SFC64 generator that of another sample, which is much faster than to make another generator."""
    digest = hashlib.blake2b(f"{seed}/{pass_index}/{key}".encode(), digest_size=32).digest()
    state = {"state": np.frombuffer(digest, dtype=np.uint64)}
    rng.bit_generator.state = {"bit_generator": "SFC64", "state": state, "has_uint32": 0, "uinteger": 0}


def gaussian(rng: np.random.Generator, shape: tuple[int, ...]) -> Float32[np.ndarray, "..."]:
    """Standard normal values: Box and Muller, from 32 bits of radius and 32 of angle for each two.

    Three times as fast as numpy's own. The largest value that 32 bits of radius can give is 6.7.

    Numerics: the last bits depend on the CPU's vector instructions.
    """
    num_values = math.prod(shape)
    bits = rng.bit_generator.random_raw(-(-num_values // 2)).view(np.uint32).reshape(2, -1)
    radius, angle = bits.astype(np.float32)
    radius += np.float32(0.5)
    radius *= np.float32(2.0**-32)
    np.log(radius, out=radius)
    radius *= np.float32(-2.0)
    np.sqrt(radius, out=radius)
    angle *= np.float32(2.0 * math.pi * 2.0**-32)
    values = np.empty(bits.shape, dtype=np.float32)
    np.cos(angle, out=values[0])
    np.sin(angle, out=values[1])
    values *= radius
    return values.reshape(-1)[:num_values].reshape(shape)


def noise_sample(sample: Sample, noising: Noising, rng: np.random.Generator) -> NoisySample:
    """Draw an instant of the sample's generation, then delete and noise accordingly.

    What guidance will compare with is learnt from samples that lose their condition; with c and p the two chances:

                                        whole        without its prompt    its moving pieces alone
        moving pieces, open text        1 - c - p    p                     c
        moving pieces alone             1 - c        -                     c
        open text alone                 1 - p        p                     -

    Open text without a prompt is the second row, or stays whole.

    Args:
        rng: the only source of randomness; the same state gives the same result.
    """
    draw = rng.random()
    text_time, ages = draw_times(sample, noising, rng)
    return lose_condition(noise_at(sample, text_time, ages, noising, rng), draw, noising)


def lose_condition(noisy: NoisySample, draw: float, noising: Noising) -> NoisySample:
    """A noisy sample, or what guidance compares it with: `draw` in [0, 1) says which."""
    draw -= noising.condition_dropout_prob
    if draw < 0.0:
        return without_condition(noisy) if noisy.has_moving else noisy
    return without_prompt(noisy) if draw < noising.prompt_dropout_prob and noisy.is_open.any() else noisy


def draw_times(
    sample: Sample,
    noising: Noising,
    rng: np.random.Generator,
    text_span: Span = WHOLE,
    piece_span: Span = WHOLE,
) -> tuple[float, list[Float[np.ndarray, "_"]]]:
    """Text time and, for each modality, the ages of its pieces at one instant.

    Interleaved: tau ~ U[0, 2], text time min(1, tau), and a piece has the age tau minus its insertion time; a negative
    age means that it is not there yet. Independent: text has a uniform time, every piece one of its modality's law.
    Prompt pieces are clean: age 1. A sample without missing text is at text time 1.

    Args:
        text_span: where the uniform draw of the text time, or of tau / 2, falls.
        piece_span: where those of independent pieces' times do.

    Source: arXiv:2510.03506 Algorithm 3 and Eq. 28.
    """
    ages = []
    if sample.is_interleaved:
        extended_time = 2.0 * _draw_in(text_span, rng.random())
        text_time = min(1.0, extended_time)
    elif is_deletable(sample).any():
        text_time = _draw_in(text_span, rng.random())
    else:
        text_time = 1.0
    for pieces, law in zip(sample.pieces, noising.laws, strict=True):
        draws = rng.random(len(pieces))
        if sample.is_interleaved:
            age = extended_time - noising.schedule.insertion_time(draws)
        else:
            age = law.time(_draw_in(piece_span, draws), pieces)
        age[~sample.is_target[pieces.token]] = 1.0
        ages.append(age)
    return text_time, ages


def noise_at(
    sample: Sample,
    text_time: float,
    ages: Sequence[Float[np.ndarray, "_"]],
    noising: Noising,
    rng: np.random.Generator,
) -> NoisySample:
    """Delete target tokens and noise target pieces, as at the instant (`text_time`, `ages`).

    A target token survives with probability `schedule.keep_prob(text_time)`. A piece of negative age is deleted as a
    single token. Every deleted token joins the bag of the slot it fell from. A slot is open if a deletable token may
    lie in it: after a deletable token, and before one.

    Args:
        ages: for each modality those of its pieces.

    Returns:
        The noisy sample. Bags are sorted by slot.

    Source: arXiv:2510.03506, Algorithm 3 lines 2-28, Eq. 2 and 28.
    """
    can_go = is_deletable(sample)
    keep = draw_kept(sample, text_time, ages, noising, rng)
    slot = keep.cumsum() - 1  # for each token the last kept one at or before it
    noisy = noise_present(sample, ages, slot, rng)
    is_open = can_go.copy()
    is_open[:-1] |= can_go[1:]
    if noising.averages_bags:
        is_bound = ~can_go
        for pieces in sample.pieces:
            is_bound[pieces.token] = True
        bags = averaged_bags(sample.tokens, keep, is_bound, rng)
    else:
        bags = Bags.of_tokens(sample.tokens[~keep], slot[~keep], int(keep.sum()))
    return NoisySample(
        key=sample.key,
        tokens=sample.tokens[keep],
        is_given=~sample.is_target[keep],
        is_open=is_open[keep],
        bags=bags,
        pieces=noisy,
        text_time=text_time,
        block_ends=sample.block_ends or (sample.front,),
    )


def draw_kept(
    sample: Sample,
    text_time: float,
    ages: Sequence[Float[np.ndarray, "_"]],
    noising: Noising,
    rng: np.random.Generator,
) -> Bool[np.ndarray, "n"]:
    """Which tokens are there: each deletable one with the keep probability, that of a piece once it has an age."""
    keep = ~is_deletable(sample) | (rng.random(sample.tokens.size) < noising.schedule.keep_prob(text_time))
    for pieces, age in zip(sample.pieces, ages, strict=True):
        keep[pieces.token] = age >= 0.0
    return keep


def noise_present(
    sample: Sample, ages: Sequence[Float[np.ndarray, "_"]], place: Int64[np.ndarray, "n"], rng: np.random.Generator
) -> tuple[NoisyPieces, ...]:
    """Of each modality the pieces that are there, at their ages.

    Args:
        place: where the sample's tokens stand now.
    """
    noisy = []
    for pieces, age in zip(sample.pieces, ages, strict=True):
        is_present = age >= 0.0
        present, time = pieces.select(is_present), np.minimum(1.0, age[is_present])
        is_moving = sample.is_target[present.token] & (time < 1.0)
        noisy.append(noise_pieces(replace(present, token=place[present.token], time=time), is_moving, rng))
    return tuple(noisy)


def noise_pieces(pieces: Pieces, is_moving: Bool[np.ndarray, "i"], rng: np.random.Generator) -> NoisyPieces:
    """Clean pieces as they look at their times, and the velocity of each patch; it is 0 where a piece is clean.

        noisy = time * patch + (1 - time) * noise,    velocity = patch - noise

    Source: arXiv:2510.03506, section 2.2.
    """
    if (pieces.time >= 1.0).all():
        return NoisyPieces(pieces=pieces, velocity=pieces.still(), is_moving=is_moving)
    noise = gaussian(rng, pieces.patches.shape)
    time = pieces.per_patch(pieces.time.astype(np.float32))[:, None]
    velocity = pieces.patches - noise
    noise *= np.float32(1.0) - time
    noise += time * pieces.patches
    if (time == 1.0).any():
        velocity *= time < 1.0
    return NoisyPieces(pieces=replace(pieces, patches=noise), velocity=velocity, is_moving=is_moving)


def without_condition(noisy: NoisySample) -> NoisySample:
    """The first token and the moving pieces alone, every slot closed: what guidance of pieces compares with.

    Slots are closed because an empty text is no complete document: scored, it would teach the model to write none.
    """
    is_kept = np.arange(len(noisy.tokens)) == 0
    for of_kind in noisy.pieces:
        is_kept[of_kind.pieces.token[of_kind.is_moving]] = True
    left = _keep_tokens(noisy, is_kept, is_kept)
    bags = Bags.of_tokens(noisy.tokens[:0], noisy.bags.slot[:0], len(left.tokens))
    return replace(left, is_open=np.zeros(len(left.tokens), dtype=bool), bags=bags, text_time=1.0)


def without_prompt(noisy: NoisySample) -> NoisySample:
    """One more first token in place of each stretch of the prompt: what guidance of text compares with.

    Slots stay as they are. The token says that something stands there which is not told. Without it, this would be a
    document that has no prompt, and free generation would write answers to no question.
    """
    is_prompt = noisy.is_given & (np.arange(len(noisy.tokens)) > 0)
    is_last = is_prompt & (noisy.is_open | ~np.append(is_prompt[1:], False))  # of its stretch
    untold = replace(noisy, tokens=np.where(is_last, noisy.tokens[0], noisy.tokens))
    return _keep_tokens(untold, is_last | ~is_prompt, ~is_prompt)


def _keep_tokens(noisy: NoisySample, is_kept: Bool[np.ndarray, "n"], has_piece: Bool[np.ndarray, "n"]) -> NoisySample:
    """Some tokens, no bag of another among them, and the pieces of those that have theirs still."""
    place = is_kept.cumsum() - 1
    pieces = []
    for of_kind in noisy.pieces:
        stays = has_piece[of_kind.pieces.token]
        left = of_kind.pieces.select(stays)
        velocity = of_kind.velocity[of_kind.pieces.per_patch(stays)]
        own = replace(left, token=place[left.token])
        pieces.append(NoisyPieces(pieces=own, velocity=velocity, is_moving=of_kind.is_moving[stays]))
    bags = noisy.bags
    return replace(
        noisy,
        tokens=noisy.tokens[is_kept],
        is_given=noisy.is_given[is_kept],
        is_open=noisy.is_open[is_kept],
        bags=replace(
            bags,
            slot=place[bags.slot],
            missing_count=bags.missing_count[is_kept],
            filled_prob=bags.filled_prob[is_kept],
        ),
        pieces=tuple(pieces),
        block_ends=tuple(int(is_kept[:end].sum()) for end in noisy.block_ends),
    )


def is_deletable(sample: Sample) -> Bool[np.ndarray, "n"]:
    """Which tokens noising may delete: target text, and target pieces where they are inserted like text."""
    can_go = sample.is_target.copy()
    if not sample.is_interleaved:
        for pieces in sample.pieces:
            can_go[pieces.token] = False
    return can_go


def _draw_in(span: Span, draw: Any) -> Any:
    """Uniform draws of [0, 1) as draws of a part of it; of the whole they stay the same bits."""
    low, high = span
    return low + (high - low) * draw
