from __future__ import annotations

import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from oneflow_dist.config import Config
from oneflow_dist.containers import Bags, NoisyPieces, NoisySample, Pieces, Sample
from oneflow_dist.flow.noising import (
    Noising,
    draw_times,
    gaussian,
    is_deletable,
    keyed_generator,
    noise_at,
    noise_pieces,
    noise_sample,
    set_key,
    without_condition,
    without_prompt,
)
from oneflow_dist.flow.schedule import KeepSchedule
from oneflow_dist.flow.times import TimeLaw
from tests.noising import ChosenKeep, noising
from tests.pieces import pieces

SCHEDULES = {
    "linear": KeepSchedule(kind="linear"),
    "square": KeepSchedule(kind="power", exponent=2.0),
    "cube": KeepSchedule(kind="power", exponent=3.0),
    "cosine": KeepSchedule(kind="cosine"),
}
IMAGE = 258
NUM_DRAWS = {"linear": 200_000, "power": 100_000, "cosine": 100_000}
Unchecked = Callable[[], AbstractContextManager[None]]


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """Text and images of any grids in any order, prompt anywhere, both ways in which images appear."""
    kinds = draw(st.lists(st.booleans(), max_size=24))
    is_target = draw(st.lists(st.booleans(), min_size=len(kinds), max_size=len(kinds)))
    tokens = np.array([256] + [IMAGE if is_image else i for i, is_image in enumerate(kinds)], dtype=np.int64)
    image_at = np.flatnonzero(tokens == IMAGE)
    sides = draw(st.lists(st.integers(1, 3), min_size=2 * len(image_at), max_size=2 * len(image_at)))
    grid = with_time(np.array(sides, dtype=np.int64).reshape(-1, 2))
    numbers = np.repeat(np.arange(len(image_at), dtype=np.float32), grid.prod(axis=1))
    patches = numbers[:, None] + np.zeros((1, 4), dtype=np.float32)
    return Sample(
        key="test/sample",
        tokens=tokens,
        is_target=np.array([False, *is_target]),
        pieces=(replace(pieces(image_at, grid, elements=4), patches=patches),),
        is_interleaved=draw(st.booleans()),
    )


def with_time(grid: np.ndarray) -> np.ndarray:
    """Grids of rows and columns as grids of one frame."""
    return np.pad(grid, ((0, 0), (1, 0)), constant_values=1)


def only(of: Sample | NoisySample) -> Pieces:
    """Those of its only modality."""
    (of_kind,) = of.pieces
    return of_kind.pieces if isinstance(of_kind, NoisyPieces) else of_kind


def split(images: Pieces) -> list[np.ndarray]:
    """The patches of each image."""
    return np.split(images.patches, np.cumsum(images.num_patches))[:-1]


some_schedule = st.sampled_from(list(SCHEDULES.values()))
seeds = st.integers(0, 2**32 - 1)


def noise(sample: Sample, schedule: KeepSchedule, seed: int) -> NoisySample:
    return noise_sample(sample, noising(schedule), np.random.default_rng(seed))


def rebuild(noisy: NoisySample) -> list[int]:
    """The tokens with every bag put back into its slot."""
    tokens: list[int] = []
    for slot, token in enumerate(noisy.tokens):
        tokens += [token, *noisy.bags.tokens[noisy.bags.slot == slot]]
    return tokens


@given(samples(), some_schedule, seeds)
def test_bags_and_kept_tokens_rebuild_the_sample(sample: Sample, schedule: KeepSchedule, seed: int) -> None:
    noisy = noise(sample, schedule, seed)
    assert rebuild(noisy) == sample.tokens.tolist()
    assert len(noisy.tokens) + len(noisy.bags.tokens) == len(sample.tokens)
    assert noisy.tokens[0] == sample.tokens[0]


@given(samples(), some_schedule, seeds)
def test_bags_lie_in_open_slots_in_ascending_order(sample: Sample, schedule: KeepSchedule, seed: int) -> None:
    noisy = noise(sample, schedule, seed)
    assert (np.diff(noisy.bags.slot) >= 0).all()
    assert noisy.is_open[noisy.bags.slot].all()


@given(samples(), some_schedule, seeds)
def test_prompt_tokens_and_prompt_images_are_untouched(sample: Sample, schedule: KeepSchedule, seed: int) -> None:
    noisy = noise(sample, schedule, seed)
    prompt_text = [t for t in sample.tokens[~sample.is_target].tolist() if t != IMAGE]
    assert not set(prompt_text) & set(noisy.bags.tokens.tolist())
    images, noisy_images = split(only(sample)), split(only(noisy))
    clean = [p.tolist() for p, is_scored in zip(noisy_images, noisy.pieces[0].is_moving, strict=True) if not is_scored]
    assert all(images[i].tolist() in clean for i in np.flatnonzero(~sample.is_target[only(sample).token]))


@given(samples(), some_schedule, seeds)
def test_images_stay_with_their_tokens_and_keep_their_patches(
    sample: Sample, schedule: KeepSchedule, seed: int
) -> None:
    """patch = noisy patch + (1 - t) velocity, whichever images are missing."""
    noisy = noise(sample, schedule, seed)
    assert (noisy.tokens[only(noisy).token] == IMAGE).all()
    assert (noisy.tokens == IMAGE).sum() == len(only(noisy))
    left = only(noisy).per_patch(1.0 - only(noisy).time.astype(np.float32))[:, None]
    patches = only(noisy).patches + left * noisy.pieces[0].velocity
    # A missing image is a bag token: what remains after taking those out, in order, are the kept images.
    is_missing = np.zeros(len(only(sample)), dtype=bool)
    place = 0
    for slot in range(len(noisy.tokens)):
        place += slot in only(noisy).token
        for token in noisy.bags.tokens[noisy.bags.slot == slot]:
            if token == IMAGE:
                is_missing[place] = True
                place += 1
    np.testing.assert_array_equal(only(noisy).grid, only(sample).grid[~is_missing])
    np.testing.assert_allclose(patches, only(sample).patches[only(sample).per_patch(~is_missing)], atol=1e-5)


@given(samples(), some_schedule, seeds)
def test_only_moving_target_images_are_scored(sample: Sample, schedule: KeepSchedule, seed: int) -> None:
    noisy = noise(sample, schedule, seed)
    assert (only(noisy).time[noisy.pieces[0].is_moving] < 1.0).all()
    assert (only(noisy).time[~noisy.pieces[0].is_moving] == 1.0).all()


@given(samples(), some_schedule, seeds)
def test_an_inserted_image_is_never_older_than_the_text(sample: Sample, schedule: KeepSchedule, seed: int) -> None:
    noisy = noise(sample, schedule, seed)
    if sample.is_interleaved:
        assert (only(noisy).time[noisy.pieces[0].is_moving] <= noisy.text_time).all()


@given(samples(), some_schedule, seeds)
def test_images_that_are_not_inserted_are_never_deleted(sample: Sample, schedule: KeepSchedule, seed: int) -> None:
    if not sample.is_interleaved:
        assert IMAGE not in noise(sample, schedule, seed).bags.tokens


@given(samples(), some_schedule, seeds)
def test_the_same_generator_state_gives_the_same_noise(sample: Sample, schedule: KeepSchedule, seed: int) -> None:
    first, second = noise(sample, schedule, seed), noise(sample, schedule, seed)
    np.testing.assert_equal(asdict(first), asdict(second))


def test_a_slot_is_open_where_a_target_can_be_missing(make_sample: Callable[..., Sample]) -> None:
    """The slot after the prompt's last token is open, those inside the prompt are closed."""
    sample = make_sample([256, 1, 2, 3, None, 4], num_prompt=3)
    noisy = noise_at(sample, 1.0, [np.ones(1)], noising(), np.random.default_rng(0))
    assert noisy.is_open.tolist() == [False, False, True, True, True, True]


def test_all_slots_are_closed_where_only_images_are_painted(make_sample: Callable[..., Sample]) -> None:
    sample = make_sample([256, 1, 2, None], num_prompt=3, is_interleaved=False)
    noisy = noise(sample, KeepSchedule(), 0)
    assert not noisy.is_open.any()
    assert noisy.text_time == 1.0
    assert noisy.pieces[0].is_moving.tolist() == [True]


def test_text_after_a_given_image_is_deleted_and_the_image_is_clean(make_sample: Callable[..., Sample]) -> None:
    sample = make_sample([256, None, 1, 2], num_prompt=2, is_interleaved=False)
    noisy = noise_at(sample, 0.0, [np.ones(1)], noising(), np.random.default_rng(0))
    assert noisy.tokens.tolist() == [256, IMAGE]
    assert noisy.is_open.tolist() == [False, True]
    assert noisy.bags.tokens.tolist() == [1, 2]
    np.testing.assert_array_equal(only(noisy).patches, only(sample).patches)
    assert noisy.pieces[0].is_moving.tolist() == [False]


THREE_IMAGES = [256, 1, None, 2, None, 3, None, 4]


def test_deleting_the_first_and_the_third_image_puts_each_into_the_slot_it_fell_from(
    make_sample: Callable[..., Sample],
) -> None:
    sample = make_sample(THREE_IMAGES, grid=[(1, 2), (3, 2), (2, 2)])
    noisy = noise_at(sample, 1.0, [np.array([-0.1, 0.5, -0.2])], noising(), np.random.default_rng(0))
    assert noisy.tokens.tolist() == [256, 1, 2, IMAGE, 3, 4]
    assert noisy.bags.tokens.tolist() == [IMAGE, IMAGE]
    assert noisy.bags.slot.tolist() == [1, 4]
    assert only(noisy).token.tolist() == [3]
    assert only(noisy).time.tolist() == [0.5]
    assert only(noisy).grid.tolist() == [[1, 3, 2]]
    np.testing.assert_allclose(
        only(noisy).patches + 0.5 * noisy.pieces[0].velocity, only(sample).patches[2:8], atol=1e-6
    )


def test_a_deleted_image_merges_the_bags_before_and_after_it(make_sample: Callable[..., Sample]) -> None:
    sample = make_sample(THREE_IMAGES)
    noisy = noise_at(sample, 0.0, [np.array([-0.1, 0.5, -0.2])], noising(), np.random.default_rng(0))
    assert noisy.tokens.tolist() == [256, IMAGE]
    assert noisy.bags.tokens.tolist() == [1, IMAGE, 2, 3, IMAGE, 4]
    assert noisy.bags.slot.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("text_time", [0.1, 0.5, 0.9])
def test_the_kept_part_follows_the_schedule(
    make_sample: Callable[..., Sample], schedule: KeepSchedule, text_time: float
) -> None:
    num_targets = 40_000
    sample = make_sample([256] + [1] * num_targets)
    noisy = noise_at(sample, text_time, [np.zeros(0)], noising(schedule), np.random.default_rng(0))
    prob = schedule.keep_prob(text_time)
    deviation = (prob * (1.0 - prob) / num_targets) ** 0.5
    assert (len(noisy.tokens) - 1) / num_targets == pytest.approx(prob, abs=4 * deviation)


def test_noise_is_standard_normal(make_sample: Callable[..., Sample]) -> None:
    sample = make_sample([256, None], grid=(32, 32))
    noisy = noise_at(sample, 0.0, [np.zeros(1)], noising(), np.random.default_rng(0))
    assert stats.kstest(only(noisy).patches.ravel(), "norm").pvalue > 0.01


def test_gaussian_values_are_those_of_the_generators_state() -> None:
    rng, again = np.random.default_rng(0), np.random.default_rng(0)
    first, second = gaussian(rng, (64, 64)), gaussian(rng, (64, 64))
    np.testing.assert_array_equal(first, gaussian(again, (64, 64)))
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05
    assert gaussian(rng, (0, 64)).shape == (0, 64)


@pytest.fixture(scope="module")
def million() -> np.ndarray:
    return gaussian(keyed_generator(0, 0, "a/b/c"), (1_000_000,)).astype(np.float64)


def test_gaussian_values_have_the_moments_of_the_normal_distribution(million: np.ndarray) -> None:
    """E x^n = (n - 1)!! for even n, else 0; the deviation of x^n is that of its (2n)th moment."""
    moments = [1.0, 0.0, 1.0, 0.0, 3.0, 0.0, 15.0, 0.0, 105.0, 0.0, 945.0, 0.0, 10395.0]
    for power in range(1, 7):
        deviation = ((moments[2 * power] - moments[power] ** 2) / len(million)) ** 0.5
        assert np.mean(million**power) == pytest.approx(moments[power], abs=4 * deviation), power
    assert stats.kstest(million, "norm").pvalue > 0.01


@pytest.mark.parametrize("bound", [1.0, 2.0, 3.0, 4.0])
def test_gaussian_values_are_as_often_in_each_tail_as_the_normal_distribution(
    million: np.ndarray, bound: float
) -> None:
    expected = len(million) * stats.norm.sf(bound)
    for tail in (million, -million):
        assert np.sum(tail > bound) == pytest.approx(expected, abs=4 * expected**0.5)
    assert np.abs(million).max() > 4.5


@pytest.mark.parametrize("distance", [1, 2, 3, 64, 500_000])
def test_gaussian_values_of_one_stream_are_independent(million: np.ndarray, distance: int) -> None:
    """Those half of the stream apart too, which share a radius: neither they nor their squares are correlated."""
    one, other = million[:-distance], million[distance:]
    for power in (1, 2):
        assert abs(np.corrcoef(one**power, other**power)[0, 1]) < 4 / len(one) ** 0.5
    both_large = np.mean((np.abs(one) > 1.0) & (np.abs(other) > 1.0))
    assert both_large == pytest.approx((2 * stats.norm.sf(1.0)) ** 2, abs=0.002)


def test_gaussian_values_of_neighbouring_keys_are_independent() -> None:
    table = np.array([gaussian(keyed_generator(0, 0, f"a/b/{i}"), (3,)) for i in range(5_000)])
    for column in table.T:
        assert stats.kstest(column, "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(table.T) - np.eye(3)).max() < 4 / 5_000**0.5
    assert abs(np.corrcoef(table[:-1, 0], table[1:, 0])[0, 1]) < 4 / 5_000**0.5


@given(st.lists(st.integers(0, 7), max_size=3).map(tuple), seeds)
def test_any_number_of_gaussian_values_spends_64_bits_for_each_two(shape: tuple[int, ...], seed: int) -> None:
    rng, again = np.random.default_rng(seed), np.random.default_rng(seed)
    values = gaussian(rng, shape)
    size = int(np.prod(shape))
    assert values.shape == shape
    assert values.dtype == np.float32
    again.bit_generator.random_raw((size + 1) // 2)
    assert rng.random() == again.random()


@pytest.mark.parametrize("size", [1, 2, 3, 999, 1000])
def test_gaussian_values_are_those_of_box_and_muller(size: int) -> None:
    """The same bits in double precision."""
    bits = np.random.default_rng(0).bit_generator.random_raw((size + 1) // 2).view(np.uint32).astype(np.float64)
    bits, angle = np.split(bits, 2)
    radius, angle = np.sqrt(-2.0 * np.log((bits + 0.5) * 2.0**-32)), angle * 2.0**-32
    expected = np.concatenate([radius * np.cos(2.0 * np.pi * angle), radius * np.sin(2.0 * np.pi * angle)])[:size]
    np.testing.assert_allclose(gaussian(np.random.default_rng(0), (size,)), expected, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize(("bits", "radius"), [(0, (2.0 * 33.0 * np.log(2.0)) ** 0.5), (2**64 - 1, 0.0)])
def test_the_smallest_and_the_largest_bits_give_finite_values(bits: int, radius: float) -> None:
    """0 is never passed to the logarithm."""

    class Fixed(np.random.Generator):
        bit_generator = SimpleNamespace(random_raw=lambda size: np.full(size, bits, dtype=np.uint64))

    values = gaussian(Fixed(np.random.PCG64(0)), (8,))
    assert np.isfinite(values).all()
    np.testing.assert_allclose(np.hypot(values[:4], values[4:]), radius, rtol=1e-6)


def test_noise_leaves_the_generator_of_torch_alone() -> None:
    state = torch.get_rng_state()
    gaussian(np.random.default_rng(0), (3,))
    assert torch.equal(torch.get_rng_state(), state)


def test_each_image_has_its_own_time(make_sample: Callable[..., Sample]) -> None:
    """The same noise at times 0, 1/2 and 1, on images of three grids."""
    sample = make_sample([256, None, None, None], grid=[(2, 3), (1, 4), (5, 1)], is_interleaved=False)
    age = np.array([0.0, 0.5, 1.0])
    noisy = noise_at(sample, 1.0, [age], noising(), np.random.default_rng(0))
    noise = only(sample).patches - noisy.pieces[0].velocity
    time = np.repeat(age, [6, 4, 5]).astype(np.float32)[:, None]
    np.testing.assert_allclose(only(noisy).patches, time * only(sample).patches + (1.0 - time) * noise, atol=1e-6)
    assert noisy.pieces[0].is_moving.tolist() == [True, True, False]


def images_of(grid: np.ndarray, time: Sequence[float], seed: int = 0) -> Pieces:
    """Clean images that are to be noised to these times."""
    return pieces(range(len(grid)), with_time(grid), 5, time, seed)


def noised(images: Pieces, rng: np.random.Generator) -> tuple[Pieces, np.ndarray]:
    noisy = noise_pieces(images, images.time < 1.0, rng)
    return noisy.pieces, noisy.velocity


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.999, 1.0]), min_size=1, max_size=5), seeds)
def test_clean_and_moving_images_stand_side_by_side(times: list[float], seed: int) -> None:
    """In closed form: t * patch + (1 - t) * noise and patch - noise; a clean image keeps its bits and stands still."""
    images = images_of(np.random.default_rng(seed).integers(1, 4, size=(len(times), 2)), times, seed)
    noisy, velocity = noised(images, np.random.default_rng(seed))
    noise = gaussian(np.random.default_rng(seed), images.patches.shape).astype(np.float64)
    time = images.per_patch(images.time)[:, None]
    np.testing.assert_allclose(noisy.patches, time * images.patches + (1.0 - time) * noise, rtol=0.0, atol=2e-6)
    np.testing.assert_allclose(velocity, np.where(time < 1.0, images.patches - noise, 0.0), rtol=0.0, atol=2e-6)
    is_clean = time[:, 0] == 1.0
    np.testing.assert_array_equal(noisy.patches[is_clean], images.patches[is_clean])
    assert (velocity[is_clean] == 0.0).all()


@pytest.mark.parametrize("num_images", [0, 1, 3])
def test_clean_images_draw_no_noise(num_images: int) -> None:
    images, rng = images_of(np.tile([[2, 3]], (num_images, 1)), [1.0] * num_images), np.random.default_rng(0)
    state = rng.bit_generator.state
    noisy, velocity = noised(images, rng)
    np.testing.assert_array_equal(noisy.patches, images.patches)
    np.testing.assert_array_equal(velocity, np.zeros_like(images.patches))
    assert rng.bit_generator.state == state


def test_noising_leaves_the_sample_as_it_is() -> None:
    images = images_of(np.array([[2, 3], [1, 2]]), [0.5, 1.0])
    images.patches.flags.writeable = False
    before = images.patches.copy()
    noised(images, np.random.default_rng(0))
    np.testing.assert_array_equal(images.patches, before)


def test_a_sample_of_clean_images_alone_draws_for_its_tokens_alone(make_sample: Callable[..., Sample]) -> None:
    sample = make_sample([256, None, 1, 2], num_prompt=2, is_interleaved=False)
    rng, again = np.random.default_rng(0), np.random.default_rng(0)
    noise_at(sample, 0.5, [np.ones(1)], noising(), rng)
    again.random(4)
    assert rng.random() == again.random()


# Interleaved: tau ~ U[0, 2].


@dataclass(frozen=True)
class Draws:
    schedule: KeepSchedule
    text_time: np.ndarray
    age: np.ndarray


@pytest.fixture(scope="module")
def draw(make_sample: Callable[..., Sample], unchecked: Unchecked) -> Callable[[KeepSchedule], Draws]:
    """Text times and image ages of an interleaved sample; drawn once for each schedule."""
    sample = make_sample([256, None])

    @functools.cache
    def draw_once(schedule: KeepSchedule) -> Draws:
        rng = np.random.default_rng(0)
        with unchecked():
            times = [draw_times(sample, noising(schedule), rng) for _ in range(NUM_DRAWS[schedule.kind])]
        return Draws(schedule, np.array([text for text, _ in times]), np.array([age[0] for _, (age,) in times]))

    return draw_once


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES)
def draws(request: pytest.FixtureRequest, draw: Callable[[KeepSchedule], Draws]) -> Draws:
    return draw(request.param)


@pytest.fixture
def linear_draws(draw: Callable[[KeepSchedule], Draws]) -> Draws:
    return draw(SCHEDULES["linear"])


ABSENT_AND_CLEAN = {
    KeepSchedule(kind="linear"): (0.25, 0.25),
    KeepSchedule(kind="power", exponent=2.0): (0.3333, 0.1667),
    KeepSchedule(kind="power", exponent=3.0): (0.375, 0.125),
    KeepSchedule(kind="cosine"): (0.3183, 0.1817),
}


def test_images_are_absent_moving_or_clean_in_the_parts_of_the_schedule(draws: Draws) -> None:
    absent, clean = ABSENT_AND_CLEAN[draws.schedule]
    assert np.mean(draws.age < 0.0) == pytest.approx(absent, abs=0.005)
    assert np.mean((draws.age >= 0.0) & (draws.age < 1.0)) == pytest.approx(0.5, abs=0.005)
    assert np.mean(draws.age >= 1.0) == pytest.approx(clean, abs=0.005)


def test_the_linear_schedule_has_four_equal_quarters(linear_draws: Draws) -> None:
    """Absent, both moving, text done and image moving, all done."""
    is_writing, is_absent = linear_draws.text_time < 1.0, linear_draws.age < 0.0
    is_moving = ~is_absent & (linear_draws.age < 1.0)
    assert np.mean(is_absent) == pytest.approx(0.25, abs=0.005)
    assert np.mean(is_moving & is_writing) == pytest.approx(0.25, abs=0.005)
    assert np.mean(is_moving & ~is_writing) == pytest.approx(0.25, abs=0.005)


def test_no_image_is_absent_when_the_text_is_done_nor_clean_before(draws: Draws) -> None:
    is_writing = draws.text_time < 1.0
    assert (draws.age[~is_writing] >= 0.0).all()
    assert (draws.age[is_writing] < 1.0).all()


def test_the_time_of_a_moving_image_is_uniform(draws: Draws) -> None:
    moving = draws.age[(draws.age >= 0.0) & (draws.age < 1.0)]
    assert stats.kstest(moving, "uniform").statistic < 1.63 / len(moving) ** 0.5  # the 1 % point


def test_an_image_is_absent_as_often_as_a_token_of_the_text(draws: Draws) -> None:
    """P(absent | text time t) = 1 - kappa(t)."""
    edges = np.linspace(0.0, 1.0, 11)
    for low, high in itertools.pairwise(edges):
        is_here = (draws.text_time >= low) & (draws.text_time < high)
        expected = np.mean([1.0 - draws.schedule.keep_prob(t) for t in np.linspace(low, high, 101)])
        assert np.mean(draws.age[is_here] < 0.0) == pytest.approx(expected, abs=0.02)


def test_the_time_of_a_present_image_is_uniform_up_to_the_text_time(linear_draws: Draws) -> None:
    """For the linear schedule: what the sampler sees at text time t."""
    is_here = (linear_draws.text_time < 1.0) & (linear_draws.age >= 0.0)
    part = linear_draws.age[is_here] / linear_draws.text_time[is_here]
    assert stats.kstest(part, "uniform").statistic < 1.63 / len(part) ** 0.5


# Independent times.


def test_independent_times_are_uniform_and_uncorrelated(
    make_sample: Callable[..., Sample], unchecked: Unchecked
) -> None:
    sample, rng = make_sample([256, 1, None, None], is_interleaved=False), np.random.default_rng(0)
    with unchecked():
        times = [draw_times(sample, noising(), rng) for _ in range(10_000)]
    table = np.array([(text, *ages) for text, (ages,) in times])
    for column in table.T:
        assert stats.kstest(column, "uniform").pvalue > 0.01
    assert np.abs(np.corrcoef(table.T) - np.eye(3)).max() < 0.04


# How much is missing: section 7.

LENGTH = 24


@pytest.mark.parametrize("is_interleaved", [False, True])
def test_expected_numbers_of_kept_tokens_and_filled_slots(
    make_sample: Callable[..., Sample], unchecked: Unchecked, is_interleaved: bool
) -> None:
    """tau ~ U[0, 1]: E n = L/2, E n^2 = L (2 L + 1) / 6, (L + 2) / 6 slots with a bag; tau ~ U[0, 2]: half of the
    samples are complete."""
    sample, rng = make_sample([256] + [1] * LENGTH, is_interleaved=is_interleaved), np.random.default_rng(0)
    with unchecked():
        noisy = [noise_sample(sample, noising(), rng) for _ in range(10_000)]
    kept = np.array([len(s.tokens) - 1 for s in noisy])
    filled = np.array([len(set(s.bags.slot.tolist())) for s in noisy])
    part = 0.5 if is_interleaved else 1.0
    expected = {
        "kept": (kept, (1 - part) * LENGTH + part * LENGTH / 2),
        "kept squared": (kept**2, (1 - part) * LENGTH**2 + part * LENGTH * (2 * LENGTH + 1) / 6),
        "missing": (LENGTH - kept, part * LENGTH / 2),
        "filled": (filled, part * (LENGTH + 2) / 6),
    }
    for name, (values, mean) in expected.items():
        assert values.mean() == pytest.approx(mean, abs=4 * values.std() / len(values) ** 0.5), name


# Condition dropout.


@given(samples(), some_schedule, seeds)
def test_a_dropped_condition_leaves_the_first_token_and_the_moving_images(
    sample: Sample, schedule: KeepSchedule, seed: int
) -> None:
    whole = noise(sample, schedule, seed)
    dropping = noising(schedule, condition_dropout_prob=1.0)
    dropped = noise_sample(sample, dropping, np.random.default_rng(seed))
    moving = whole.pieces[0].is_moving
    if not moving.any():
        np.testing.assert_array_equal(dropped.tokens, whole.tokens)
        return
    assert dropped.tokens.tolist() == [256] + [IMAGE] * int(moving.sum())
    assert only(dropped).token.tolist() == list(range(1, int(moving.sum()) + 1))
    assert not dropped.is_open.any()
    assert dropped.bags.tokens.size == 0
    moving_patches = only(whole).per_patch(moving)
    np.testing.assert_array_equal(only(dropped).patches, only(whole).patches[moving_patches])
    np.testing.assert_array_equal(dropped.pieces[0].velocity, whole.pieces[0].velocity[moving_patches])
    np.testing.assert_array_equal(only(dropped).grid, only(whole).grid[moving])
    np.testing.assert_array_equal(only(dropped).time, only(whole).time[moving])
    assert dropped.pieces[0].is_moving.all()


def test_the_condition_is_dropped_as_often_as_asked(make_sample: Callable[..., Sample], unchecked: Unchecked) -> None:
    sample, rng = make_sample([256, 1, None], num_prompt=2, is_interleaved=False), np.random.default_rng(0)
    dropping = noising(condition_dropout_prob=0.1)
    with unchecked():
        lengths = [len(noise_sample(sample, dropping, rng).tokens) for _ in range(10_000)]
    assert np.mean(np.array(lengths) == 2) == pytest.approx(0.1, abs=0.012)


@given(samples(), some_schedule, seeds)
def test_dropping_the_condition_twice_changes_nothing_more(sample: Sample, schedule: KeepSchedule, seed: int) -> None:
    once = without_condition(noise(sample, schedule, seed))
    twice = without_condition(once)
    np.testing.assert_equal(asdict(once), asdict(twice))


# Prompt dropout.

prompted = samples().filter(lambda sample: not sample.is_target[1:].all())


def untold_by_definition(noisy: NoisySample) -> list[int]:
    """The tokens with one more first token for each stretch of prompt; an open slot ends a stretch."""
    tokens, num_tokens = [256], len(noisy.tokens)
    for place in range(1, num_tokens):
        goes_on = place + 1 < num_tokens and noisy.is_given[place + 1] and not noisy.is_open[place]
        if not noisy.is_given[place]:
            tokens.append(int(noisy.tokens[place]))
        elif not goes_on:
            tokens.append(256)
    return tokens


@given(prompted, some_schedule, seeds)
def test_a_lost_prompt_leaves_one_more_first_token_for_each_stretch_of_it(
    sample: Sample, schedule: KeepSchedule, seed: int
) -> None:
    whole = noise(sample, schedule, seed)
    untold = without_prompt(whole)
    assert untold.tokens.tolist() == untold_by_definition(whole)
    assert (untold.tokens[untold.is_given] == 256).all()
    np.testing.assert_array_equal(untold.tokens[~untold.is_given], whole.tokens[~whole.is_given])


@given(prompted, some_schedule, st.booleans(), seeds)
def test_without_a_prompt_open_slots_stay_one_for_one_and_so_do_their_bags(
    sample: Sample, schedule: KeepSchedule, averages_bags: bool, seed: int
) -> None:
    whole = noise_sample(sample, noising(schedule, averages_bags=averages_bags), np.random.default_rng(seed))
    untold = without_prompt(whole)
    before, after = np.flatnonzero(whole.is_open), np.flatnonzero(untold.is_open)
    assert len(before) == len(after)
    np.testing.assert_array_equal(after.searchsorted(untold.bags.slot), before.searchsorted(whole.bags.slot))
    for name in ("tokens", "weight"):
        np.testing.assert_array_equal(getattr(untold.bags, name), getattr(whole.bags, name))
    for name in ("missing_count", "filled_prob"):
        own, of_whole = getattr(untold.bags, name), getattr(whole.bags, name)
        np.testing.assert_array_equal(own[after], of_whole[before])
        assert own.sum() == of_whole.sum()
    assert untold.text_time == whole.text_time


@given(prompted, some_schedule, seeds)
def test_without_a_prompt_its_images_are_gone_and_all_others_as_they_were(
    sample: Sample, schedule: KeepSchedule, seed: int
) -> None:
    whole = noise(sample, schedule, seed)
    untold = without_prompt(whole)
    stays = ~whole.is_given[only(whole).token]
    assert (untold.tokens[only(untold).token] == IMAGE).all()
    assert (untold.tokens == IMAGE).sum() == len(only(untold)) == stays.sum()
    patches = only(whole).per_patch(stays)
    np.testing.assert_array_equal(only(untold).patches, only(whole).patches[patches])
    np.testing.assert_array_equal(untold.pieces[0].velocity, whole.pieces[0].velocity[patches])
    np.testing.assert_array_equal(untold.pieces[0].is_moving, whole.pieces[0].is_moving[stays])
    for name in ("grid", "time"):
        np.testing.assert_array_equal(getattr(only(untold), name), getattr(only(whole), name)[stays])


def test_stretches_of_a_prompt_between_what_is_written_are_lost_one_by_one(make_sample: Callable[..., Sample]) -> None:
    """A given image and a word, then two words, then one after a slot that misses all of its text."""
    sample = make_sample([256, None, 1, 2, 3, 4, 5, 6, None], is_interleaved=False)
    sample = replace(sample, is_target=np.array([0, 0, 0, 1, 0, 0, 1, 0, 1], dtype=bool))
    keep = [token != 5 for token in sample.tokens[1:].tolist()]
    noisy = noise_at(sample, 0.5, [np.array([1.0, 0.3])], noising(), ChosenKeep(keep))
    assert noisy.tokens.tolist() == [256, IMAGE, 1, 2, 3, 4, 6, IMAGE]
    untold = without_prompt(noisy)
    assert untold.tokens.tolist() == [256, 256, 2, 256, 256, IMAGE]
    assert untold.is_given.tolist() == [True, True, False, True, True, False]
    assert untold.is_open.tolist() == [False, True, True, True, False, False]
    assert (untold.bags.tokens.tolist(), untold.bags.slot.tolist()) == ([5], [3])
    assert only(untold).token.tolist() == [5]


@given(samples(), some_schedule, seeds)
def test_losing_the_prompt_twice_changes_nothing_more(sample: Sample, schedule: KeepSchedule, seed: int) -> None:
    once = without_prompt(noise(sample, schedule, seed))
    np.testing.assert_equal(asdict(without_prompt(once)), asdict(once))


@given(samples(), some_schedule, seeds)
def test_a_free_document_has_no_prompt_to_lose(sample: Sample, schedule: KeepSchedule, seed: int) -> None:
    free = replace(sample, is_target=np.arange(len(sample.tokens)) > 0)
    whole = noise(free, schedule, seed)
    np.testing.assert_equal(asdict(without_prompt(whole)), asdict(whole))
    dropping = noising(schedule, prompt_dropout_prob=1.0)
    np.testing.assert_equal(asdict(noise_sample(free, dropping, np.random.default_rng(seed))), asdict(whole))


PROMPT_AND_BOTH = ([256, 1, 2, None, 3, 4], 3)
LOST = {  # a sample, and how often it stays whole, loses its prompt, and is left with its moving pieces alone
    "moving pieces, open text": (PROMPT_AND_BOTH, (0.5, 0.3, 0.2)),
    "moving pieces alone": (([256, 1, 2, None], 3), (0.8, 0.0, 0.2)),
    "open text alone": (([256, 1, None, 3, 4], 3), (0.7, 0.3, 0.0)),
    "moving pieces, open text, no prompt": (([256, None, 3, 4], 1), (0.8, 0.0, 0.2)),
    "open text, no prompt": (([256, 3, 4], 1), (1.0, 0.0, 0.0)),
}


@pytest.mark.parametrize(("made_of", "expected"), LOST.values(), ids=LOST)
def test_prompts_and_conditions_are_lost_as_often_as_asked(
    make_sample: Callable[..., Sample],
    unchecked: Unchecked,
    made_of: tuple[list[int | None], int],
    expected: tuple[float, float, float],
) -> None:
    sample, rng = make_sample(*made_of, is_interleaved=False), np.random.default_rng(0)
    dropping = noising(condition_dropout_prob=0.2, prompt_dropout_prob=0.3)
    found: Counter[str] = Counter()
    with unchecked():
        for _ in range(10_000):
            noisy = noise_sample(sample, dropping, rng)
            is_open, num_given = noisy.is_open.any(), noisy.is_given.sum()
            if is_open == is_deletable(sample).any() and num_given == (~sample.is_target).sum():
                found["whole"] += 1
            else:
                found["untold" if is_open else "alone"] += 1
    for name, prob in zip(("whole", "untold", "alone"), expected, strict=True):
        deviation = (prob * (1.0 - prob) / 10_000) ** 0.5
        assert found[name] / 10_000 == pytest.approx(prob, abs=4 * deviation), name


def test_the_two_dropouts_draw_as_much_as_none(make_sample: Callable[..., Sample]) -> None:
    """What is left of a sample is as it would have been: the same instant, the same noise."""
    sample = make_sample(*PROMPT_AND_BOTH, is_interleaved=False)
    found = []
    for changes in ({}, {"prompt_dropout_prob": 1.0}, {"condition_dropout_prob": 1.0}):
        rng = np.random.default_rng(5)
        noisy = noise_sample(sample, noising(**changes), rng)
        found.append((only(noisy).patches.tolist(), only(noisy).time.tolist(), rng.random()))
    assert found[0] == found[1] == found[2]


# As a config says.


def test_a_config_says_how_its_samples_are_noised(make_config: Callable[..., Config]) -> None:
    config = make_config(
        "flow.keep_schedule=power",
        "flow.keep_exponent=3",
        "flow.condition_dropout_prob=0.125",
        "flow.prompt_dropout_prob=0.25",
        "flow.bags=averaged",
        "modality.image.shift_rows=9",
    )
    assert Noising.of(config) == Noising(
        schedule=SCHEDULES["cube"],
        laws=(TimeLaw(shift_rows=9),),
        condition_dropout_prob=0.125,
        prompt_dropout_prob=0.25,
        averages_bags=True,
    )


# Averaged bags.


def spread_out(bags: Bags) -> np.ndarray:
    """For each slot its expected size, the chance that it is not empty, and how often each token is expected in it."""
    weight = np.zeros((len(bags.missing_count), 300))
    np.add.at(weight, (bags.slot, bags.tokens), bags.weight)
    return np.column_stack([bags.missing_count, bags.filled_prob, weight])


@pytest.mark.parametrize("is_interleaved", [False, True])
def test_averaged_bags_are_the_mean_over_all_ways_in_which_the_kept_tokens_may_lie(
    make_sample: Callable[..., Sample], is_interleaved: bool
) -> None:
    """By enumeration. Prompt and images are where they are, and their tokens stand for no others."""
    sample = make_sample([256, 1, 1, None, 1, 2, None, 1, 1], num_prompt=2, is_interleaved=is_interleaved)
    ages = [np.array([0.5, -0.1 if is_interleaved else 0.5])]
    drawn, averaged = defaultdict(list), []
    for text in itertools.product([True, False], repeat=5):
        keep = np.ones(8, dtype=bool)
        keep[[1, 3, 4, 6, 7]] = text
        noisy, mean = (
            noise_at(sample, 0.5, ages, noising(averages_bags=averages), ChosenKeep(keep.tolist()))
            for averages in (False, True)
        )
        for name in ("tokens", "is_given", "is_open"):
            np.testing.assert_array_equal(getattr(mean, name), getattr(noisy, name))
        drawn[tuple(noisy.tokens.tolist())].append(noisy.bags)
        averaged.append(mean)
    assert max(len(ways) for ways in drawn.values()) > 1
    for mean in averaged:
        ways = drawn[tuple(mean.tokens.tolist())]
        expected = np.mean([spread_out(bags) for bags in ways], axis=0)
        np.testing.assert_allclose(spread_out(mean.bags), expected, atol=1e-6)


@given(samples(), some_schedule, seeds)
def test_where_no_token_is_there_twice_averaged_bags_are_the_drawn_ones(
    sample: Sample, schedule: KeepSchedule, seed: int
) -> None:
    assume(len(np.unique(sample.tokens)) == len(sample.tokens))
    averaged = noise_sample(sample, noising(schedule, averages_bags=True), np.random.default_rng(seed))
    np.testing.assert_equal(asdict(averaged), asdict(noise(sample, schedule, seed)))


# Several modalities.

KINDS = ((258, 16), (260, 5))  # token and elements of a patch
TWO_LAWS = (TimeLaw(), TimeLaw(kind="logit_normal", shift_rows=2))


def story(num_prompt: int = 1, is_interleaved: bool = True) -> Sample:
    """A word, an image, a sound, a word, a sound, an image."""
    tokens = np.array([256, 1, 258, 260, 2, 260, 258])
    return Sample(
        key="test/story",
        tokens=tokens,
        is_target=np.arange(len(tokens)) >= num_prompt,
        pieces=(pieces([2, 6], (1, 2, 2), 16, seed=1), pieces([3, 5], (3, 1, 1), 5, seed=2)),
        is_interleaved=is_interleaved,
    )


@given(st.integers(1, 6), st.booleans(), some_schedule, seeds)
def test_each_modality_keeps_its_own_tokens_grids_and_noise(
    num_prompt: int, is_interleaved: bool, schedule: KeepSchedule, seed: int
) -> None:
    """Whatever of them is missing: patch = noisy patch + (1 - t) velocity in each, and no noise is used twice."""
    sample = story(num_prompt, is_interleaved)
    noisy = noise_sample(sample, noising(schedule, TWO_LAWS), np.random.default_rng(seed))
    assert rebuild(noisy) == sample.tokens.tolist()
    noises = []
    for (token, _), clean, of_kind in zip(KINDS, sample.pieces, noisy.pieces, strict=True):
        present = of_kind.pieces
        assert np.flatnonzero(noisy.tokens == token).tolist() == present.token.tolist()
        assert (present.time[~of_kind.is_moving] == 1.0).all()
        time = present.per_patch(present.time.astype(np.float32))[:, None]
        done = split(replace(present, patches=present.patches + (1.0 - time) * of_kind.velocity))
        assert sum(any(np.allclose(part, own, atol=1e-5) for part in done) for own in split(clean)) == len(present)
        begun = split(replace(present, patches=present.patches - time * of_kind.velocity))
        noises += [part[0, :5].round(4) for part, moves in zip(begun, of_kind.is_moving, strict=True) if moves]
    assert len({tuple(noise.tolist()) for noise in noises}) == len(noises)


def test_a_modality_more_changes_neither_times_nor_text_of_the_first() -> None:
    """Of the same state of the generator, with a sample of images alone: new data do not move the old."""
    both = story(is_interleaved=False)
    alone = replace(both, pieces=(both.pieces[0], pieces([], (1, 1, 1), 5)))
    ages = [draw_times(each, noising(laws=TWO_LAWS), np.random.default_rng(3)) for each in (both, alone)]
    assert ages[0][0] == ages[1][0]
    np.testing.assert_array_equal(ages[0][1][0], ages[1][1][0])


@given(st.integers(1, 4), seeds)
def test_a_dropped_condition_leaves_moving_pieces_of_all_modalities_in_reading_order(
    num_prompt: int, seed: int
) -> None:
    whole = noise_sample(story(num_prompt), noising(laws=TWO_LAWS), np.random.default_rng(seed))
    dropped = without_condition(whole)
    moving = np.sort(np.concatenate([noisy.pieces.token[noisy.is_moving] for noisy in whole.pieces]))
    assert dropped.tokens.tolist() == [256, *whole.tokens[moving].tolist()]
    for (token, _), before, after in zip(KINDS, whole.pieces, dropped.pieces, strict=True):
        assert (dropped.tokens[after.pieces.token] == token).all()
        own = before.pieces.per_patch(before.is_moving)
        np.testing.assert_array_equal(after.pieces.patches, before.pieces.patches[own])
        np.testing.assert_array_equal(after.velocity, before.velocity[own])
        assert after.is_moving.all()
        assert len(after.pieces) == before.is_moving.sum()


@given(st.integers(2, 6), st.booleans(), seeds)
def test_a_lost_prompt_takes_its_pieces_of_all_modalities_along(
    num_prompt: int, is_interleaved: bool, seed: int
) -> None:
    whole = noise_sample(story(num_prompt, is_interleaved), noising(laws=TWO_LAWS), np.random.default_rng(seed))
    untold = without_prompt(whole)
    assert untold.tokens.tolist() == [256, 256, *whole.tokens[num_prompt:].tolist()]
    for before, after in zip(whole.pieces, untold.pieces, strict=True):
        own = before.pieces.token >= num_prompt
        assert after.pieces.token.tolist() == (before.pieces.token[own] - num_prompt + 2).tolist()
        np.testing.assert_array_equal(after.pieces.patches, before.pieces.patches[before.pieces.per_patch(own)])


def test_the_condition_of_a_sound_is_dropped_too() -> None:
    """Whatever modality moves."""
    sample = story(num_prompt=5, is_interleaved=False)  # the last two pieces are targets: a sound and an image
    sample = replace(
        sample,
        tokens=sample.tokens[:6],
        is_target=sample.is_target[:6],
        pieces=(sample.pieces[0].take(np.array([0])), sample.pieces[1]),
    )
    dropped = noise_sample(sample, noising(laws=TWO_LAWS, condition_dropout_prob=1.0), np.random.default_rng(0))
    assert dropped.tokens.tolist() == [256, 260]
    assert [len(noisy.pieces) for noisy in dropped.pieces] == [0, 1]


@pytest.mark.parametrize("num_given", [0, 1, 3])
def test_what_is_only_given_has_no_velocity_and_draws_no_noise(num_given: int) -> None:
    given_only = pieces(range(1, 1 + num_given), (1, 2, 2), 6, is_given_only=True)
    moving = pieces([1 + num_given], (1, 1, 2), 16)
    tokens = np.arange(2 + num_given)
    sample = Sample(
        key="test/seen",
        tokens=tokens,
        is_target=tokens > num_given,
        pieces=(given_only, moving),
        is_interleaved=False,
    )
    rng, again = np.random.default_rng(0), np.random.default_rng(0)
    noisy = noise_at(sample, 1.0, [np.ones(num_given), np.array([0.5])], noising(), rng)
    seen, painted = noisy.pieces
    assert seen.velocity.shape == (4 * num_given, 0)
    assert not seen.is_moving.any()
    np.testing.assert_array_equal(seen.pieces.patches, given_only.patches)
    again.random(len(tokens))
    np.testing.assert_allclose(painted.velocity, moving.patches - gaussian(again, moving.patches.shape), atol=1e-6)
    assert without_condition(noisy).pieces[0].velocity.shape == (0, 0)


# Generators.


def test_a_generator_depends_on_seed_pass_and_key_alone() -> None:
    def first(seed: int, pass_index: int, key: str) -> float:
        return keyed_generator(seed, pass_index, key).random()

    assert first(1, 2, "a/b/c") == first(1, 2, "a/b/c")
    assert len({first(1, 2, "a/b/c"), first(0, 2, "a/b/c"), first(1, 3, "a/b/c"), first(1, 2, "a/b/d")}) == 4


@given(st.integers(0, 9), st.integers(0, 9), st.text(max_size=9), st.integers(0, 5))
def test_a_generator_that_is_given_a_key_is_that_of_the_key(seed: int, pass_index: int, key: str, used: int) -> None:
    """Whatever it was before and however much of it was used, half a number of 64 bits included."""
    rng, fresh = keyed_generator(10, 10, "before"), keyed_generator(seed, pass_index, key)
    rng.integers(2**32, size=used, dtype=np.uint32)
    set_key(rng, seed, pass_index, key)
    np.testing.assert_array_equal(
        rng.integers(2**32, size=3, dtype=np.uint32), fresh.integers(2**32, size=3, dtype=np.uint32)
    )
    np.testing.assert_array_equal(rng.random(3), fresh.random(3))
    np.testing.assert_array_equal(gaussian(rng, (5,)), gaussian(fresh, (5,)))
    assert rng.integers(1000) == fresh.integers(1000)


def test_seed_and_pass_do_not_run_into_each_other() -> None:
    assert keyed_generator(1, 23, "x").random() != keyed_generator(12, 3, "x").random()


def test_first_draws_of_neighbouring_keys_are_uniform() -> None:
    draws = [keyed_generator(0, 0, f"digits/000000/{i:06d}").random() for i in range(2_000)]
    assert stats.kstest(draws, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.06
