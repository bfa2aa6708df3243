from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from oneflow_dist.config import Config
from oneflow_dist.containers import NoisySample, Sample
from oneflow_dist.data.decoding import Reading, decode_record, read_fields
from oneflow_dist.data.lanes import Lane, capacity_of
from oneflow_dist.data.mixture import load_mixture
from oneflow_dist.data.packing import size_of
from oneflow_dist.data.samples import make_sample as make_complete
from oneflow_dist.data.samples import num_rows
from oneflow_dist.data.shards import open_shards
from oneflow_dist.data.tokenizer import load_tokenizer
from tests.tars import npy, png, write_sources, write_tar

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


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_sources(tmp_path_factory.mktemp("sources"))


def source(shards: str | Path, more: str = "tasks: {text_only: 1}", name: str = "pets") -> str:
    """A mixture of one source."""
    return f"{{{name}: {{shards: '{shards}', weight: 1, {more}}}}}"


BYTES = "data.tokenizer=bytes"


def made_by(lane: Lane, num_draws: int) -> list[NoisySample]:
    """The first draws of the first source; none may be left out."""
    made = [lane._make(0, draw) for draw in range(num_draws)]
    return [noisy for noisy in made if noisy is not None]


def is_same(one: NoisySample, other: NoisySample) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(NoisySample))


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


def test_the_realised_mixture_of_three_sources_is_that_of_the_weights_though_a_filter_leaves_out_half(
    make_lane: MakeLane, three: str
) -> None:
    """Over 10,000 draws, within 1 %: what counts is what is used, not what is looked at."""
    lane = make_lane(three, 1, BYTES, "data.cached_samples=1000", "data.max_sample_rows=64")
    parts = np.array([0.3, 0.2, 0.5])
    for number in range(1, 10_001):
        lane._draw()
        assert np.abs(lane.used - parts * number).max() < 2.0
        if number % 100 == 0:
            lane.window.clear()
    assert np.abs(lane.used / 10_000 - parts).max() < 0.001
    assert lane.draws[:2].tolist() == lane.used[:2].tolist()
    assert lane.draws[2] == pytest.approx(2 * lane.used[2], rel=0.02)


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
        assert actual.patches.equal(expected.patches)
        assert actual.tokens.equal(expected.tokens)
        assert actual.bag_tokens.equal(expected.bag_tokens)
    assert again.state() == lane.state()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_lane_of_three_sources_continues_from_any_state_through_json(
    make_lane: MakeLane, three: str, steps: int
) -> None:
    lane, again = make_lane(three, 2, BYTES), make_lane(three, 2, BYTES)
    for _ in range(steps):
        lane.next_pack()
    again.load_state(json.loads(json.dumps(lane.state())))
    assert again.state() == lane.state()
    for _ in range(3):
        expected, actual = lane.next_pack(), again.next_pack()
        assert actual.keys == expected.keys
        assert actual.patches.equal(expected.patches)
        assert actual.tokens.equal(expected.tokens)


def test_a_state_is_a_few_integers_and_no_data(make_lane: MakeLane, heldout: str) -> None:
    lane = make_lane(heldout)
    lane.next_pack()
    state = lane.state()
    assert set(state) == {"sources", "weights", "draws", "used", "waiting"}
    numbers = [*state["draws"], *state["used"], *(number for pair in state["waiting"] for number in pair)]
    assert all(type(number) is int for number in numbers)
    assert len(state["waiting"]) == len(lane.window) > 0


def test_a_state_does_not_grow_with_the_data_or_the_time(make_lane: MakeLane, tmp_path: Path) -> None:
    sizes = []
    for num_samples in (50, 2_000):
        path = write_tar(tmp_path / f"{num_samples}.tar", {f"{n:05d}.txt": b"abcdefgh" * 3 for n in range(num_samples)})
        lane = make_lane(source(path), 0, BYTES)
        for _ in range(20):
            lane.next_pack()
            sizes.append(len(json.dumps(lane.state())))
    assert max(sizes) < 600


# A mixture that changes on the way.


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A mixture of texts by name and weight; each source has 400."""
    folder = tmp_path_factory.mktemp("pets")
    for name in ("cats", "dogs", "hens"):
        write_tar(folder / f"{name}.tar", {f"{n:03d}.txt": f"{name} {n}".encode() for n in range(400)})

    def mixture(**weights: float) -> str:
        entries = (
            f"{name}: {{shards: '{folder}/{name}.tar', weight: {weight}, tasks: {{text_only: 1}}}}"
            for name, weight in weights.items()
        )
        return f"{{{', '.join(entries)}}}"

    return mixture


def draws_of(lane: Lane) -> dict[str, int]:
    return dict(zip((source.name for source in lane.sources), lane.draws.tolist(), strict=True))


def keys_of(lane: Lane, num_packs: int) -> list[str]:
    return [key for _ in range(num_packs) for key in lane.next_pack().keys]


def resumed(lane: Lane, state: dict[str, object]) -> Lane:
    lane.load_state(json.loads(json.dumps(state)))
    return lane


def test_sources_go_on_by_name_wherever_they_stand_in_the_mixture(
    make_lane: MakeLane, pets: Callable[..., str]
) -> None:
    lane = make_lane(pets(cats=1, dogs=1), 0, BYTES)
    before = keys_of(lane, 5)
    again = resumed(make_lane(pets(dogs=1, cats=1), 0, BYTES), lane.state())
    assert draws_of(again) == draws_of(lane)
    waiting = [waiting.noisy.key for waiting in lane.window]
    assert [waiting.noisy.key for waiting in again.window] == waiting
    later = keys_of(again, 5)
    assert len(set(before + later)) == len(before + later)  # nothing comes twice in a pass
    assert set(keys_of(lane, 3)) & set(later)


def test_a_source_may_come_and_another_go(make_lane: MakeLane, pets: Callable[..., str]) -> None:
    lane = make_lane(pets(cats=1, dogs=1), 0, BYTES)
    before = keys_of(lane, 5)
    again = resumed(make_lane(pets(hens=1, cats=1), 0, BYTES), lane.state())
    assert draws_of(again) == {"hens": 0, "cats": draws_of(lane)["cats"]}
    later = keys_of(again, 5)
    assert {key.partition("/")[0] for key in later} == {"hens", "cats"}
    assert not set(before) & set(later)


def test_new_weights_hold_from_now_on_and_nothing_is_made_up_for(make_lane: MakeLane, pets: Callable[..., str]) -> None:
    lane = make_lane(pets(cats=9, dogs=1), 0, BYTES)
    keys_of(lane, 6)
    again = resumed(make_lane(pets(cats=1, dogs=1), 0, BYTES), lane.state())
    start = draws_of(again)
    keys_of(again, 6)
    drawn = {name: draws_of(again)[name] - start[name] for name in start}
    assert abs(drawn["cats"] - drawn["dogs"]) <= 1


# Every sample by itself: what comes of it depends on the seed, the pass and its name.


def test_a_sample_of_a_pass_is_the_same_whichever_lane_draws_it(make_lane: MakeLane, tmp_path: Path) -> None:
    """Its task, its caption, its draw from the posterior, its instant and its noise."""
    write_sources(tmp_path)
    latents = source(f"{tmp_path}/latents-*.tar", "tasks: {both: 1, text_to_image: 1}")
    all_at_once = make_lane(latents, 0, BYTES, "data.packs_per_step=1")
    first = {noisy.key: noisy for noisy in made_by(all_at_once, 60)}
    assert len(first) == 60
    for index in range(NUM_LANES):
        for noisy in made_by(make_lane(latents, index, BYTES), 15):
            assert is_same(noisy, first[noisy.key])
    later = {n.key: n for n in (all_at_once._make(0, draw) for draw in range(60, 120)) if n is not None}
    assert later.keys() == first.keys()
    assert not any(is_same(later[key], first[key]) for key in first)


def drawn(noisy: NoisySample) -> np.ndarray:
    """The image before it was noised: patches = t x + (1 - t) noise and velocity = x - noise."""
    return noisy.images.patches + (1.0 - noisy.images.time[0]) * noisy.velocity


def test_a_posterior_is_drawn_once_a_pass_and_the_mean_over_passes_is_the_stored_one(
    make_lane: MakeLane, tmp_path: Path
) -> None:
    posterior = np.stack([np.full((1, 8, 8), 3.0), np.full((1, 8, 8), 0.5)])
    header = {"autoencoder": {"scaling_factor": 2.0, "shift_factor": 1.0}}
    path = write_tar(tmp_path / "x.tar", {"1.npy": npy(posterior), "1.txt": b"a"}, header)
    task = source(path, "tasks: {image_only: 1}")
    lane = make_lane(task, 0, BYTES, "data.packs_per_step=1", "flow.condition_dropout_prob=0.0")
    draws = np.stack([drawn(noisy) for noisy in made_by(lane, 400)])
    again = np.stack([drawn(noisy) for noisy in made_by(lane, 3)])
    assert np.array_equal(draws[:3], again)
    assert np.abs(draws.mean(axis=0) - 4.0).max() < 5 * 1.0 / 400**0.5
    assert draws.mean() == pytest.approx(4.0, abs=5 / draws.size**0.5)
    assert draws.std() == pytest.approx(1.0, rel=5 / (2 * draws.size) ** 0.5)
    assert len({draw.tobytes() for draw in draws}) == 400


def test_captions_come_as_often_as_their_weights(make_lane: MakeLane, tmp_path: Path) -> None:
    members = {}
    for number in range(400):
        members[f"{number}.json"] = json.dumps({"short": "s" * 10}).encode()
        members[f"{number}.txt"] = b"t" * 20
    path = write_tar(tmp_path / "x.tar", members)
    lane = make_lane(source(path, "tasks: {text_only: 1}, caption: {txt: 1, short: 3}"), 0, BYTES)
    lengths = [len(noisy.tokens) + len(noisy.bag_tokens) - 1 for noisy in made_by(lane, 100)]
    assert set(lengths) == {10, 20}
    assert np.mean([length == 10 for length in lengths]) == pytest.approx(0.75, abs=4 * (0.25 * 0.75 / 100) ** 0.5)


def test_questions_with_answers_are_learned_from(make_lane: MakeLane, tmp_path: Path) -> None:
    members = {f"{n}.json": json.dumps({"q": "how many?", "a": n}).encode() for n in range(8)}
    path = write_tar(tmp_path / "x.tar", members)
    lane = make_lane(source(path, "tasks: {instruct: 1}, question: q, answer: a, prompt: 'say: '"), 0, BYTES)
    for noisy in made_by(lane, 2):
        assert noisy.tokens[:15].tolist() == [256, *b"say: how many?"]
        assert len(noisy.tokens) + len(noisy.bag_tokens) == 15 + len("\n\n") + 1
        assert noisy.is_open.tolist() == [False] * 14 + [True] * (len(noisy.tokens) - 14)


# Samples that are left out.


def test_a_few_good_samples_among_many_are_found_by_every_lane(make_lane: MakeLane, tmp_path: Path) -> None:
    """A lane of ten samples has another ten in each pass; that one ten holds no good sample is no mistake."""
    members = {}
    for number in range(40):
        members |= {f"{number}.txt": b"text", f"{number}.json": json.dumps({"score": number}).encode()}
    path = write_tar(tmp_path / "x.tar", members)
    for index in range(NUM_LANES):
        lane = make_lane(source(path, "tasks: {text_only: 1}, filters: {score: {max: 4}}"), index, BYTES)
        assert {key.rpartition("/")[2] for _ in range(3) for key in lane.next_pack().keys} <= set("01234")


def test_a_task_decodes_only_what_it_looks_at(make_lane: MakeLane, tmp_path: Path) -> None:
    """Pictures that patches do not fill, and a text that cannot be read, are in nobody's way."""
    members = {}
    for number in range(8):
        members |= {f"{number}.png": png(9, (9, 9)), f"{number}.txt": b"text"}
    path = write_tar(tmp_path / "x.tar", members)
    assert make_lane(source(path, "tasks: {text_only: 1}"), 0, BYTES).next_pack().counts.text_tokens > 0
    with pytest.raises(ValueError, match="9x9 pixels, but "):
        make_lane(source(path, "tasks: {both: 1}"), 0, BYTES).next_pack()


def test_a_filter_and_a_limit_of_images_leave_samples_out(make_lane: MakeLane, tmp_path: Path) -> None:
    members = {}
    for number in range(40):
        segments = [{"type": "image", "image": f"{i}.png"} for i in range(number % 3)]
        segments.append({"type": "text", "text": str(number)})
        members |= {f"{number}.{i}.png": png(0) for i in range(number % 3)}
        members[f"{number}.json"] = json.dumps({"segments": segments, "score": number}).encode()
    path = write_tar(tmp_path / "x.tar", members)
    rules = "tasks: {both: 1}, filters: {score: {max: 19}}, max_images: 1"
    lane = make_lane(source(path, rules), 0, BYTES, "data.packs_per_step=1")
    numbers = sorted(int(noisy.key.rpartition("/")[2]) for noisy in made_by(lane, 40))
    assert numbers == [number for number in range(20) if number % 3 <= 1]


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
        assert actual.patches.equal(expected.patches)


# Samples that are too long. Counting documents have up to 10 tokens of text and 5 images of 4 rows.


def test_an_overlong_sample_stops_the_run_with_its_name_and_a_way_out(make_lane: MakeLane, counting: str) -> None:
    lane = make_lane(counting, 0, "data.max_sample_rows=8")
    with pytest.raises(ValueError, match=r"^sample count/count-heldout-000000/") as error:
        lane.next_pack()
    message = str(error.value)
    assert message.split(" needs ")[1].split(", ", 1)[1] == (
        "more than data.max_sample_rows (8) or data.images_per_pack (24, of 96 patches); raise them or set "
        'data.overlong = "drop"'
    )


def test_a_sample_of_too_many_images_stops_the_run(make_lane: MakeLane, counting: str) -> None:
    lane = make_lane(counting, 0, "data.images_per_pack=2")
    with pytest.raises(
        ValueError,
        match=r" patches, more than data.max_sample_rows \(64\) or data.images_per_pack \(2, of 8 patches\); ",
    ):
        lane.next_pack()


@pytest.mark.parametrize(("overlong", "grid"), [("drop", (2, 4)), ("drop", (3, 3)), ("window", (3, 3))])
def test_a_sample_of_more_patches_than_a_pack_holds_is_overlong(
    make_lane: MakeLane, counting: str, make_sample: Callable[..., Sample], overlong: str, grid: tuple[int, int]
) -> None:
    """Two images of 2 x 2 patches are room for eight patches, in one image too; a window does not cut images."""
    lane = make_lane(counting, 0, "data.images_per_pack=2", f"data.overlong={overlong}")
    sample = make_sample([256, None], grid=grid)
    if overlong == "window":
        with pytest.raises(ValueError, match=r"^sample test/sample needs 11 rows and 1 images of 9 patches, more than"):
            lane._fit(sample, np.random.default_rng(0))
    else:
        assert lane._fit(sample, np.random.default_rng(0)) is (sample if grid == (2, 4) else None)


def test_overlong_samples_are_dropped_where_asked(make_lane: MakeLane, counting: str) -> None:
    lane = make_lane(counting, 0, "data.max_sample_rows=16", "data.overlong=drop")
    shards = lane.shards[0]
    rows = {shards.name(i): rows_of(lane, i) for i in range(len(shards))}
    packed = {key for _ in range(4) for key in lane.next_pack().keys}
    assert max(rows.values()) > 16
    assert max(rows[key] for key in packed) <= 16
    drawn = [lane._make(0, draw) for draw in range(len(shards) // NUM_LANES)]
    assert 0 < sum(noisy is None for noisy in drawn) == sum(rows[key] > 16 for key in own_keys(lane))


def rows_of(lane: Lane, index: int) -> int:
    """Of a complete sample of the first source."""
    record = lane.shards[0].read(index)
    image, tokenizer = lane.config.image, lane.tokenizer
    document = decode_record(record, read_fields(record), "txt", Reading(), tokenizer, image)
    return num_rows(make_complete(document, "interleaved", [], tokenizer, image, np.random.default_rng(0)))


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
    assert max(size_of([noisy]).rows for noisy in made if noisy is not None) <= 12


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
        "source count: 33 samples in a row are left out, by its filters, max_images, or because they are longer than "
        "data.max_sample_rows (5) or have more than data.images_per_pack (24) images; change those or set "
        'data.overlong = "window"'
    )


def test_a_source_of_which_a_filter_leaves_out_all_is_refused(make_lane: MakeLane, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {f"{number}.txt": b"text" for number in range(40)})
    lane = make_lane(source(path, "tasks: {text_only: 1}, filters: {score: {min: 5}}"), 0, BYTES)
    with time_limit(5.0), pytest.raises(ValueError, match=r"^source pets: 41 samples in a row are left out, by its "):
        lane.next_pack()
