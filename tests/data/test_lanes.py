from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from oneflow_dist.config import Config
from oneflow_dist.data.decoding import decode_record, num_rows
from oneflow_dist.data.lanes import Lane, capacity_of
from oneflow_dist.data.mixture import load_mixture
from oneflow_dist.data.packing import size_of
from oneflow_dist.data.shards import open_shards
from oneflow_dist.data.tokenizer import load_tokenizer

NUM_LANES = 4
Unchecked = Callable[[], AbstractContextManager[None]]
MakeLane = Callable[..., Lane]


@pytest.fixture(autouse=True, scope="module")
def _without_shape_checks(unchecked: Unchecked) -> Iterator[None]:
    """Thousands of samples go through here; what noising and packing return is checked in their own tests."""
    with unchecked():
        yield


@pytest.fixture(scope="module")
def make_lane(make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> MakeLane:
    """A lane over sources given as a table of YAML, for small packs."""

    def make(sources: str, index: int = 0, *overrides: str) -> Lane:
        mixture = tmp_path_factory.mktemp("mixture") / "mixture.yaml"
        mixture.write_text(f"sources: {sources}\n")
        small = ["rows_per_pack=96", "tokens_per_pack=72", "bag_tokens_per_pack=64", "images_per_pack=24"]
        small += ["sequences_per_pack=32", "max_sample_rows=64", "window_samples=32", f"packs_per_step={NUM_LANES}"]
        config = make_config(f"data.mixture={mixture}", *(f"data.{key}" for key in small), *overrides)
        read = load_mixture(config.data.mixture)
        shards = [open_shards(source.name, source.shards) for source in read]
        return Lane(index, config, read, shards, load_tokenizer(config.data.tokenizer))

    return make


@pytest.fixture(scope="module")
def heldout(digits: Path) -> str:
    """359 captioned digits, which four lanes share unequally."""
    return f"{{single: {{shards: '{digits}/single-heldout-*.tar', weight: 1, tasks: {{interleaved: 1}}}}}}"


@pytest.fixture(scope="module")
def counting(digits: Path) -> str:
    return f"{{count: {{shards: '{digits}/count-heldout-*.tar', weight: 1, tasks: {{interleaved: 1}}}}}}"


def with_window(lane: Lane, num_samples: int) -> Lane:
    config = replace(lane.config, data=replace(lane.config.data, window_samples=num_samples))
    return Lane(lane.index, config, lane.sources, lane.shards, lane.tokenizer)


def keys_of_first_draws(lane: Lane, num_draws: int) -> list[str]:
    """What the lane draws first, whichever of it is packed: a window of that size is filled once."""
    lane = with_window(lane, num_draws)
    pack = lane.next_pack()
    assert lane.draws.tolist() == [num_draws]
    return [*pack.keys, *(waiting.noisy.key for waiting in lane.window)]


def test_every_sample_comes_once_a_pass_over_all_lanes(make_lane: MakeLane, heldout: str) -> None:
    lanes = [make_lane(heldout, index) for index in range(NUM_LANES)]
    shards = lanes[0].shards[0]
    shares = [90, 90, 90, 89]
    keys = [key for lane, share in zip(lanes, shares, strict=True) for key in keys_of_first_draws(lane, share)]
    assert sorted(keys) == sorted(shards.name(i) for i in range(len(shards)))


def test_the_second_pass_has_the_same_samples_in_another_order(make_lane: MakeLane, counting: str) -> None:
    """All lanes together; and each sample is noised anew."""
    lanes = [make_lane(counting, index) for index in range(NUM_LANES)]
    num_samples = len(lanes[0].shards[0])
    own = num_samples // NUM_LANES
    assert num_samples == NUM_LANES * own
    made = [[lane._make(0, draw) for draw in range(2 * own)] for lane in lanes]
    first = [noisy for lane in made for noisy in lane[:own] if noisy is not None]
    second = [noisy for lane in made for noisy in lane[own:] if noisy is not None]
    assert Counter(s.key for s in first) == Counter(s.key for s in second)
    assert [s.key for s in first] != [s.key for s in second]
    later = {s.key: s for s in second}
    assert all(s.text_time != later[s.key].text_time for s in first if s.text_time < 1.0)


def test_another_seed_gives_another_order_and_other_noise(make_lane: MakeLane, heldout: str) -> None:
    one, other = make_lane(heldout), make_lane(heldout, 0, "run.seed=1")
    assert one.next_pack().keys != other.next_pack().keys


@pytest.mark.parametrize("weights", [(1, 1), (1, 3), (0.2, 0.7)])
def test_the_realised_mixture_is_that_of_the_weights(
    make_lane: MakeLane, digits: Path, weights: tuple[float, float]
) -> None:
    """At every moment each source is within one draw of its part."""
    sources = ", ".join(
        f"{name}: {{shards: '{digits}/{name}-heldout-*.tar', weight: {weight}, tasks: {{interleaved: 1}}}}"
        for name, weight in zip(("single", "count"), weights, strict=True)
    )
    lane = make_lane(f"{{{sources}}}")
    parts = np.array(weights) / sum(weights)
    for number in range(1, 101):
        lane._draw()
        assert np.abs(lane.draws - parts * number).max() <= 1.0
    assert Counter(waiting.source for waiting in lane.window) == dict(enumerate(lane.draws.tolist()))


def test_tasks_come_as_often_as_their_weights(make_lane: MakeLane, digits: Path) -> None:
    tasks = "{text_to_image: 1, image_to_text: 3}"
    lane = make_lane(f"{{single: {{shards: '{digits}/single-heldout-*.tar', weight: 1, tasks: {tasks}}}}}")
    made = [lane._make(0, draw) for draw in range(400)]
    paints = [noisy.text_time == 1.0 for noisy in made if noisy is not None]
    assert np.mean(paints) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 400) ** 0.5)


def test_a_lane_continues_from_its_state_as_if_unbroken(make_lane: MakeLane, heldout: str) -> None:
    lane, again = make_lane(heldout, 1), make_lane(heldout, 1)
    for _ in range(3):
        lane.next_pack()
    assert lane.state()["waiting"]
    again.load_state(lane.state())
    for _ in range(3):
        expected, actual = lane.next_pack(), again.next_pack()
        assert actual.keys == expected.keys
        assert actual.latents.equal(expected.latents)
        assert actual.tokens.equal(expected.tokens)
        assert actual.bag_tokens.equal(expected.bag_tokens)
    assert again.state() == lane.state()


def test_a_state_is_a_few_integers_and_no_data(make_lane: MakeLane, heldout: str) -> None:
    lane = make_lane(heldout)
    lane.next_pack()
    state = lane.state()
    assert set(state) == {"draws", "waiting"}
    numbers = [*state["draws"], *(number for pair in state["waiting"] for number in pair)]
    assert all(type(number) is int for number in numbers)
    assert len(state["waiting"]) == len(lane.window) > 0


def test_packs_leave_less_than_three_percent_padding(config: Config) -> None:
    """With the capacities and the window of the quickstart."""
    sources = load_mixture(config.data.mixture)
    shards = [open_shards(source.name, source.shards) for source in sources]
    lane = Lane(0, config, sources, shards, load_tokenizer(config.data.tokenizer))
    counts = [lane.next_pack().counts for _ in range(3)]
    assert sum(c.rows for c in counts) / sum(c.padded_rows for c in counts) > 0.97
    assert capacity_of(config).rows == counts[0].padded_rows


def test_no_sample_waits_for_long(make_lane: MakeLane, heldout: str) -> None:
    """The oldest go first: what waits has been drawn within the last two windows."""
    lane = make_lane(heldout)
    for _ in range(10):
        lane.next_pack()
        oldest = min((waiting.draw for waiting in lane.window), default=int(lane.draws[0]))
        assert lane.draws[0] - oldest <= 2 * lane.config.data.window_samples


def test_caching_changes_nothing(make_lane: MakeLane, counting: str) -> None:
    with_cache = make_lane(counting, 0, "data.cached_samples=1000")
    without = make_lane(counting, 0, "data.cached_samples=0")
    for _ in range(3):
        expected, actual = with_cache.next_pack(), without.next_pack()
        assert actual.keys == expected.keys
        assert actual.latents.equal(expected.latents)


# Samples that are too long. Counting documents have up to 10 tokens of text and 5 images of 4 rows.


def test_an_overlong_sample_stops_the_run_with_its_name_and_a_way_out(make_lane: MakeLane, counting: str) -> None:
    lane = make_lane(counting, 0, "data.max_sample_rows=8")
    with pytest.raises(ValueError, match=r"^sample count/count-heldout-000000/") as error:
        lane.next_pack()
    message = str(error.value)
    assert message.split(" needs ")[1].split(", ", 1)[1] == (
        'more than data.max_sample_rows (8) or data.images_per_pack (24); raise them or set data.overlong = "drop"'
    )


def test_a_sample_of_too_many_images_stops_the_run(make_lane: MakeLane, counting: str) -> None:
    lane = make_lane(counting, 0, "data.images_per_pack=2")
    with pytest.raises(
        ValueError, match=r"images, more than data.max_sample_rows \(64\) or data.images_per_pack \(2\); "
    ):
        lane.next_pack()


def test_overlong_samples_are_dropped_where_asked(make_lane: MakeLane, counting: str) -> None:
    lane = make_lane(counting, 0, "data.max_sample_rows=16", "data.overlong=drop")
    shards, image = lane.shards[0], lane.config.image
    records = [shards.read(i) for i in range(len(shards))]
    rows = {r.key: num_rows(decode_record(r, "interleaved", "", lane.tokenizer, image), image) for r in records}
    packed = {key for _ in range(4) for key in lane.next_pack().keys}
    assert max(rows.values()) > 16
    assert max(rows[key] for key in packed) <= 16
    drawn = [lane._make(0, draw) for draw in range(len(shards) // NUM_LANES)]
    assert 0 < sum(noisy is None for noisy in drawn) == sum(rows[key] > 16 for key in own_keys(lane))


def own_keys(lane: Lane) -> list[str]:
    """The samples of one pass of a lane that drops none."""
    config = replace(lane.config, data=replace(lane.config.data, max_sample_rows=64))
    whole = Lane(lane.index, config, lane.sources, lane.shards, lane.tokenizer)
    made = [whole._make(0, draw) for draw in range(len(lane.shards[0]) // NUM_LANES)]
    return [noisy.key for noisy in made if noisy is not None]


def test_overlong_samples_are_cut_where_asked(make_lane: MakeLane, counting: str) -> None:
    lane = make_lane(counting, 0, "data.max_sample_rows=12", "data.overlong=window", "data.window_samples=8")
    made = [lane._make(0, draw) for draw in range(8)]
    assert all(noisy is not None for noisy in made)
    assert max(size_of([noisy], lane.config.image).rows for noisy in made if noisy is not None) <= 12


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def test_a_source_of_overlong_samples_alone_is_refused_instead_of_searched_for_ever(
    make_lane: MakeLane, counting: str
) -> None:
    lane = make_lane(counting, 0, "data.max_sample_rows=5", "data.overlong=drop")
    with time_limit(5.0), pytest.raises(ValueError) as error:
        lane.next_pack()
    assert str(error.value) == (
        "33 samples in a row are longer than data.max_sample_rows (5) and dropped; raise it or set "
        'data.overlong = "window"'
    )
