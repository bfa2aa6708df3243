from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from oneflow_dist.containers import Capacity, NoisySample, Sample
from oneflow_dist.data.decoding import Reading, decode_record, read_fields
from oneflow_dist.data.packing import pack, size_of
from oneflow_dist.data.samples import make_sample as make_complete
from oneflow_dist.data.streams import SourceStream, fit_sample
from tests.data.making import BYTES, NUM_LANES, MakeLane, source
from tests.messages import naming
from tests.pieces import is_same_pack
from tests.tars import npy, png, write_sources, write_tar

MakeStream = Callable[..., SourceStream]


@pytest.fixture(autouse=True, scope="module")
def _without_shape_checks(unchecked: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Thousands of samples go through here; what noising and packing return is checked in their own tests."""
    with unchecked():
        yield


@pytest.fixture(scope="module")
def make_stream(make_lane: MakeLane) -> MakeStream:
    """The stream of a mixture's only source in a lane."""

    def make(*arguments: str | int) -> SourceStream:
        (stream,) = make_lane(*arguments).streams
        return stream

    return make


def made_by(stream: SourceStream, num_draws: int) -> list[NoisySample]:
    """The first draws of a stream; none may be left out."""
    made = [stream.sample_at(draw) for draw in range(num_draws)]
    return [noisy for noisy in made if noisy is not None]


def is_same(one: NoisySample, other: NoisySample) -> bool:
    return is_same_pack(pack([one], None), pack([other], None))


def test_the_second_pass_has_the_same_samples_in_another_order(make_stream: MakeStream, counting: str) -> None:
    """All lanes together; and each sample is noised anew."""
    lanes = [make_stream(counting, index) for index in range(NUM_LANES)]
    num_samples = len(lanes[0].shards)
    own = num_samples // NUM_LANES
    assert num_samples == NUM_LANES * own
    made = [[lane.sample_at(draw) for draw in range(2 * own)] for lane in lanes]
    first = [noisy for lane in made for noisy in lane[:own] if noisy is not None]
    second = [noisy for lane in made for noisy in lane[own:] if noisy is not None]
    assert Counter(s.key for s in first) == Counter(s.key for s in second)
    assert [s.key for s in first] != [s.key for s in second]
    later = {s.key: s for s in second}
    assert all(s.text_time != later[s.key].text_time for s in first if s.text_time < 1.0)


def test_tasks_come_as_often_as_their_weights(make_stream: MakeStream, digits: Path) -> None:
    tasks = "{text_to_image: 1, image_to_text: 3}"
    stream = make_stream(f"{{single: {{shards: '{digits}/single-heldout-*.tar', weight: 1, tasks: {tasks}}}}}")
    made = [stream.sample_at(draw) for draw in range(400)]
    paints = [noisy.text_time == 1.0 for noisy in made if noisy is not None]
    assert np.mean(paints) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 400) ** 0.5)


# Every sample by itself: what comes of it depends on the seed, the pass and its name.


def test_a_sample_of_a_pass_is_the_same_whichever_lane_draws_it(make_stream: MakeStream, tmp_path: Path) -> None:
    """Its task, its caption, its draw from the posterior, its instant and its noise."""
    write_sources(tmp_path)
    latents = source(f"{tmp_path}/latents-*.tar", "tasks: {both: 1, text_to_image: 1}")
    all_at_once = make_stream(latents, 0, BYTES, "data.packs_per_step=1")
    first = {noisy.key: noisy for noisy in made_by(all_at_once, 60)}
    assert len(first) == 60
    for index in range(NUM_LANES):
        for noisy in made_by(make_stream(latents, index, BYTES), 15):
            assert is_same(noisy, first[noisy.key])
    later = {n.key: n for n in (all_at_once.sample_at(draw) for draw in range(60, 120)) if n is not None}
    assert later.keys() == first.keys()
    assert not any(is_same(later[key], first[key]) for key in first)


def drawn(noisy: NoisySample) -> np.ndarray:
    """The image before it was noised: patches = t x + (1 - t) noise and velocity = x - noise."""
    (images,) = noisy.pieces
    return images.pieces.patches + (1.0 - images.pieces.time[0]) * images.velocity


def test_a_posterior_is_drawn_once_a_pass_and_the_mean_over_passes_is_the_stored_one(
    make_stream: MakeStream, tmp_path: Path
) -> None:
    posterior = np.stack([np.full((1, 8, 8), 3.0), np.full((1, 8, 8), 0.5)])
    header = {"autoencoder": {"scaling_factor": 2.0, "shift_factor": 1.0}}
    path = write_tar(tmp_path / "x.tar", {"1.npy": npy(posterior), "1.txt": b"a"}, header)
    task = source(path, "tasks: {image_only: 1}")
    stream = make_stream(task, 0, BYTES, "data.packs_per_step=1", "flow.condition_dropout_prob=0.0")
    draws = np.stack([drawn(noisy) for noisy in made_by(stream, 400)])
    again = np.stack([drawn(noisy) for noisy in made_by(stream, 3)])
    assert np.array_equal(draws[:3], again)
    assert np.abs(draws.mean(axis=0) - 4.0).max() < 5 * 1.0 / 400**0.5
    assert draws.mean() == pytest.approx(4.0, abs=5 / draws.size**0.5)
    assert draws.std() == pytest.approx(1.0, rel=5 / (2 * draws.size) ** 0.5)
    assert len({draw.tobytes() for draw in draws}) == 400


def test_captions_come_as_often_as_their_weights(make_stream: MakeStream, tmp_path: Path) -> None:
    members = {}
    for number in range(400):
        members[f"{number}.json"] = json.dumps({"short": "s" * 10}).encode()
        members[f"{number}.txt"] = b"t" * 20
    path = write_tar(tmp_path / "x.tar", members)
    stream = make_stream(source(path, "tasks: {text_only: 1}, caption: {txt: 1, short: 3}"), 0, BYTES)
    lengths = [len(noisy.tokens) + len(noisy.bags.tokens) - 1 for noisy in made_by(stream, 100)]
    assert set(lengths) == {10, 20}
    assert np.mean([length == 10 for length in lengths]) == pytest.approx(0.75, abs=4 * (0.25 * 0.75 / 100) ** 0.5)


def test_questions_with_answers_are_learned_from(make_stream: MakeStream, tmp_path: Path) -> None:
    members = {f"{n}.json": json.dumps({"q": "how many?", "a": n}).encode() for n in range(8)}
    path = write_tar(tmp_path / "x.tar", members)
    stream = make_stream(source(path, "tasks: {instruct: 1}, question: q, answer: a, prompt: 'say: '"), 0, BYTES)
    for noisy in made_by(stream, 2):
        assert noisy.tokens[:17].tolist() == [256, *b"say: ", 259, *b"how many?", 260]
        assert len(noisy.tokens) + len(noisy.bags.tokens) == 17 + 1
        assert noisy.is_open.tolist() == [False] * 16 + [True] * (len(noisy.tokens) - 16)


VISION = {"token": "<|vision|>", "channels": 6, "shape": [4, 4], "patch": [2, 2], "per_pack": 24, "codec": "a-siglip"}
VISION |= {"adapter": "linear", "time_conditioning": "added", "loss_weight": 0.0, "understanding": "features"}
SEEING = (
    BYTES,
    "flow.condition_dropout_prob=0.0",
    *(f"modality.vision.{key}={value}" for key, value in VISION.items()),
)


@pytest.mark.parametrize(
    ("given_as", "expected"), [("latents", (1, 0)), ("features", (0, 1)), ("both", (1, 1)), (None, (1, 0))]
)
def test_a_mixture_says_for_each_task_what_stands_for_a_given_picture(
    make_stream: MakeStream, tmp_path: Path, given_as: str | None, expected: tuple[int, int]
) -> None:
    members = {}
    for number in range(8):
        members |= {f"{number}.png": png(255), f"{number}.features.npy": npy(np.full((6, 4, 4), 0.5), "<f2")}
        members[f"{number}.json"] = json.dumps({"question": "q", "answer": "a"}).encode()
    path = write_tar(tmp_path / "x.tar", members)
    more = f", given: {{instruct: {given_as}}}" if given_as else ""
    stream = make_stream(source(path, f"tasks: {{instruct: 1}}{more}"), 0, *SEEING)
    for noisy in made_by(stream, 2):
        assert tuple(len(of_kind.pieces) for of_kind in noisy.pieces) == expected
        assert not any(of_kind.is_moving.any() for of_kind in noisy.pieces)
        assert (noisy.pieces[1].pieces.patches == 0.5).all()
    painting = make_stream(source(path, f"tasks: {{image_only: 1, instruct: 1}}{more}"), 0, *SEEING)
    made = made_by(painting, 2 * 8 // NUM_LANES)
    assert {len(noisy.pieces[1].pieces) for noisy in made if noisy.pieces[0].is_moving.any()} == {0}


# Samples that are left out.


def test_a_task_decodes_only_what_it_looks_at(make_stream: MakeStream, tmp_path: Path) -> None:
    """Pictures that patches do not fill, and a text that cannot be read, are in nobody's way."""
    members = {}
    for number in range(8):
        members |= {f"{number}.png": png(9, (9, 9)), f"{number}.txt": b"text"}
    path = write_tar(tmp_path / "x.tar", members)
    assert len(made_by(make_stream(source(path, "tasks: {text_only: 1}"), 0, BYTES), 2)) == 2
    with pytest.raises(ValueError, match=naming([9, 9])):
        make_stream(source(path, "tasks: {both: 1}"), 0, BYTES).sample_at(0)


def test_a_filter_and_a_limit_of_images_leave_samples_out(make_stream: MakeStream, tmp_path: Path) -> None:
    members = {}
    for number in range(40):
        segments = [{"type": "image", "image": f"{i}.png"} for i in range(number % 3)]
        segments.append({"type": "text", "text": str(number)})
        members |= {f"{number}.{i}.png": png(0) for i in range(number % 3)}
        members[f"{number}.json"] = json.dumps({"segments": segments, "score": number}).encode()
    path = write_tar(tmp_path / "x.tar", members)
    rules = "tasks: {both: 1}, filters: {score: {max: 19}}, max_images: 1"
    stream = make_stream(source(path, rules), 0, BYTES, "data.packs_per_step=1")
    numbers = sorted(int(noisy.key.rpartition("/")[2]) for noisy in made_by(stream, 40))
    assert numbers == [number for number in range(20) if number % 3 <= 1]


# Samples that are too long. Counting documents have up to 10 tokens of text and 5 images of 4 rows.


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ("data.max_sample_rows=8", r"data\.max_sample_rows \(8\)"),
        ("modality.image.per_pack=2", r"modality\.\*\.per_pack \(\[2\], of \[8\] "),
    ],
)
def test_an_overlong_sample_stops_the_run_with_its_name_and_a_way_out(
    make_stream: MakeStream, counting: str, limit: str, told: str
) -> None:
    stream = make_stream(counting, 0, limit)
    with pytest.raises(ValueError, match=rf'^sample count/count-heldout-000000/.*{told}.*data\.overlong = "drop"'):
        made_by(stream, 32)


@pytest.mark.parametrize(("overlong", "grid"), [("drop", (2, 4)), ("drop", (3, 3)), ("window", (3, 3))])
def test_a_sample_of_more_patches_than_a_pack_holds_is_overlong(
    make_sample: Callable[..., Sample], overlong: Literal["drop", "window"], grid: tuple[int, int]
) -> None:
    """Two images of 2 x 2 patches are room for eight patches, in one image too; a window does not cut images."""
    capacity = Capacity(rows=96, tokens=72, bag_tokens=64, sequences=32, pieces=(2,), patches=(8,))
    sample, rng = make_sample([256, None], grid=grid), np.random.default_rng(0)
    if overlong == "window":
        with pytest.raises(ValueError, match=naming("test/sample", 11, 1, 9)):
            fit_sample(sample, 64, capacity, overlong, rng)
    else:
        assert fit_sample(sample, 64, capacity, overlong, rng) is (sample if grid == (2, 4) else None)


def test_overlong_samples_are_dropped_where_asked(make_stream: MakeStream, counting: str) -> None:
    stream = make_stream(counting, 0, "data.max_sample_rows=16", "data.overlong=drop")
    rows = [rows_of(stream, stream.order.sample_at(draw)[1]) for draw in range(len(stream.shards) // NUM_LANES)]
    made = [stream.sample_at(draw) for draw in range(len(rows))]
    assert 0 < sum(noisy is None for noisy in made) < len(made)
    assert [noisy is None for noisy in made] == [num_rows > 16 for num_rows in rows]
    drawn = [next(stream) for _ in range(len(made) - made.count(None))]
    assert [draw for draw, _ in drawn] == [draw for draw, noisy in enumerate(made) if noisy is not None]


def rows_of(stream: SourceStream, index: int) -> int:
    """Of a complete sample."""
    record = stream.shards.read(index)
    kinds, tokenizer, rng = stream.config.modality, stream.tokenizer, np.random.default_rng(0)
    document = decode_record(record, read_fields(record), "txt", Reading(), tokenizer, kinds)
    return make_complete(document, "interleaved", "latents", [], tokenizer, kinds, rng).num_rows


def test_overlong_samples_are_cut_where_asked(make_stream: MakeStream, counting: str) -> None:
    stream = make_stream(counting, 0, "data.max_sample_rows=12", "data.overlong=window", "data.window_samples=8")
    made = [stream.sample_at(draw) for draw in range(8)]
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
    make_stream: MakeStream, counting: str
) -> None:
    stream = make_stream(counting, 0, "data.max_sample_rows=5", "data.overlong=drop")
    with (
        time_limit(5.0),
        pytest.raises(ValueError, match=r"^source count: 33 samples .*data\.max_sample_rows \(5\).*data\.overlong = "),
    ):
        next(stream)


def test_a_source_of_which_a_filter_leaves_out_all_is_refused(make_stream: MakeStream, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {f"{number}.txt": b"text" for number in range(40)})
    stream = make_stream(source(path, "tasks: {text_only: 1}, filters: {score: {min: 5}}"), 0, BYTES)
    with time_limit(5.0), pytest.raises(ValueError, match=r"^source pets: 41 samples in a row are left out, by its "):
        next(stream)
