"""What a sample looks like at one instant of its generation: tokens deleted, images noised."""

# Shapes: n tokens, i images, C H W latent of one sample.

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Float

from oneflow_dist.containers import NoisySample, Sample
from oneflow_dist.flow.schedule import KeepSchedule


def keyed_generator(seed: int, pass_index: int, key: str) -> np.random.Generator:
    """The generator of one sample in one pass over the data: the same on any rank, worker and restart."""
    digest = hashlib.blake2b(f"{seed}/{pass_index}/{key}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def noise_sample(
    sample: Sample, schedule: KeepSchedule, condition_dropout_prob: float, rng: np.random.Generator
) -> NoisySample:
    """Draw an instant of the sample's generation, then delete and noise accordingly.

    Args:
        condition_dropout_prob: chance that a sample with moving images loses everything else (for guidance).
        rng: the only source of randomness; the same state gives the same result.
    """
    drop_condition = rng.random() < condition_dropout_prob
    text_time, image_age = draw_times(sample, schedule, rng)
    noisy = noise_at(sample, text_time, image_age, schedule, rng)
    return without_condition(noisy) if drop_condition and noisy.image_is_scored.any() else noisy


def draw_times(
    sample: Sample, schedule: KeepSchedule, rng: np.random.Generator
) -> tuple[float, Float[np.ndarray, "i"]]:
    """Text time and image ages of one instant.

    Interleaved: tau ~ U[0, 2], text time min(1, tau), and an image has the age tau minus its insertion time; a negative
    age means that it is not there yet. Independent: text and every image have their own uniform time. Prompt images
    are clean: age 1. A sample without missing text is at text time 1.

    Source: arXiv:2510.03506 Algorithm 3 and Eq. 28.
    """
    is_target_image = sample.is_target[sample.image_at]
    if sample.is_interleaved:
        extended_time = 2.0 * rng.random()
        age = extended_time - schedule.insertion_time(rng.random(len(sample.image_at)))
        text_time = min(1.0, extended_time)
    else:
        text_time = rng.random() if _is_deletable(sample).any() else 1.0
        age = rng.random(len(sample.image_at))
    return text_time, np.where(is_target_image, age, 1.0)


def noise_at(
    sample: Sample,
    text_time: float,
    image_age: Float[np.ndarray, "i"],
    schedule: KeepSchedule,
    rng: np.random.Generator,
) -> NoisySample:
    """Delete target tokens and noise target images, as at the instant (`text_time`, `image_age`).

    A target token survives with probability `schedule.keep_prob(text_time)`. An image of negative age is deleted as a
    single token. Every deleted token joins the bag of the slot it fell from. A slot is open if a deletable token may
    lie in it: after a deletable token, and before one.

    Returns:
        The noisy sample. Bags hold the deleted tokens in reading order, sorted by slot.

    Source: arXiv:2510.03506, Algorithm 3 lines 2-28, Eq. 2 and 28.
    """
    is_deletable = _is_deletable(sample)
    keep = ~is_deletable | (rng.random(sample.tokens.size) < schedule.keep_prob(text_time))
    is_present = image_age >= 0.0
    keep[sample.image_at] = is_present

    image_time = np.minimum(1.0, image_age[is_present])
    latents = sample.latents[is_present]
    noise = rng.standard_normal(latents.shape, dtype=np.float32)
    time = image_time.astype(np.float32)[:, None, None, None]

    slot = np.cumsum(keep) - 1  # the last kept token at or before each place
    is_open = is_deletable | np.append(is_deletable[1:], False)
    return NoisySample(
        key=sample.key,
        tokens=sample.tokens[keep],
        is_open=is_open[keep],
        image_at=slot[sample.image_at[is_present]],
        bag_tokens=sample.tokens[~keep],
        bag_slot=slot[~keep],
        latents=time * latents + (1.0 - time) * noise,
        velocity=latents - noise,
        image_time=image_time,
        image_is_scored=sample.is_target[sample.image_at[is_present]] & (image_time < 1.0),
        text_time=text_time,
    )


def without_condition(noisy: NoisySample) -> NoisySample:
    """The first token and the moving images alone, every slot closed: the unconditional case of guidance.

    Slots are closed because an empty text is no complete document: scored, it would teach the model to write none.
    """
    moving = np.flatnonzero(noisy.image_is_scored)
    kept = np.append(0, noisy.image_at[moving])
    return NoisySample(
        key=noisy.key,
        tokens=noisy.tokens[kept],
        is_open=np.zeros(kept.size, dtype=bool),
        image_at=np.arange(1, kept.size),
        bag_tokens=noisy.bag_tokens[:0],
        bag_slot=noisy.bag_slot[:0],
        latents=noisy.latents[moving],
        velocity=noisy.velocity[moving],
        image_time=noisy.image_time[moving],
        image_is_scored=noisy.image_is_scored[moving],
        text_time=1.0,
    )


def _is_deletable(sample: Sample) -> np.ndarray:
    """Which tokens noising may delete: target text, and target images where they are inserted like text."""
    if sample.is_interleaved:
        return sample.is_target
    is_deletable = sample.is_target.copy()
    is_deletable[sample.image_at] = False
    return is_deletable
