from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from oneflow_dist.config import Config
from oneflow_dist.containers import PackedBatch
from oneflow_dist.data.index import index_tar
from oneflow_dist.data.loader import LaneStates, PackLoader
from oneflow_dist.data.tokenizer import train_ranks, write_ranks
from tests.messages import Message, names
from tests.pieces import is_same_pack
from tests.tars import serve, write_sources, write_tar

# three workers are more than the small machines that run tests have cores
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes:UserWarning")

CPU = torch.device("cpu")
NUM_LANES = 24
STEPS = 4


@pytest.fixture(autouse=True, scope="module")
def _without_shape_checks(unchecked: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Thousands of samples go through here; what noising and packing return is checked in their own tests."""
    with unchecked():
        yield


@pytest.fixture(scope="module")
def make_small(make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    """Twenty-four lanes of small packs from three sources."""
    folder = tmp_path_factory.mktemp("sources")
    mixture = folder / "mixture.yaml"
    mixture.write_text(f"sources: {write_sources(folder)}\n")
    small = ["rows_per_pack=64", "tokens_per_pack=64", "bag_tokens_per_pack=64"]
    small += ["sequences_per_pack=16", "max_sample_rows=60", "window_samples=8", f"packs_per_step={NUM_LANES}"]
    small += [f"mixture={mixture}", "tokenizer=bytes"]
    keys = ["modality.image.per_pack=12", *(f"data.{key}" for key in small)]
    return lambda *overrides: make_config(*keys, *overrides)


def run(
    config: Config, world_size: int, steps: int, states: LaneStates | None = None
) -> tuple[list[PackedBatch], LaneStates]:
    """The packs of all ranks in global order, and the lanes' states as a checkpoint gathers them."""
    num_lanes = config.data.packs_per_step
    own, gathered = [], {}
    for rank in range(world_size):
        loader = PackLoader(config, rank, world_size, states)
        own.append([loader.next_step() for _ in range(steps)])
        assert {len(packs) for packs in own[-1]} == {-(-num_lanes // world_size)}
        gathered |= loader.states
        del loader  # and its workers
    return [own[n % world_size][step][n // world_size] for step in range(steps) for n in range(num_lanes)], gathered


def assert_same(actual: list[PackedBatch], expected: list[PackedBatch]) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert is_same_pack(one, other), one.keys


@pytest.fixture(scope="module")
def unbroken(make_small: Callable[..., Config]) -> list[PackedBatch]:
    """One rank, no workers, all steps."""
    return run(make_small(), 1, STEPS)[0]


def test_packs_hold_all_sources_side_by_side(unbroken: list[PackedBatch]) -> None:
    sources = [{key.partition("/")[0] for key in pack.keys} for pack in unbroken]
    assert {"latents", "stories", "notes"} in sources
    assert sum(len(names) > 1 for names in sources) > len(sources) / 2
    assert sum(pack.counts.rows for pack in unbroken) / sum(pack.counts.padded_rows for pack in unbroken) > 0.85


@pytest.mark.parametrize("world_size", [1, 2, 5, 8, 24])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_ranks_and_workers_do_not_change_the_packs(
    make_small: Callable[..., Config], unbroken: list[PackedBatch], world_size: int, workers: int
) -> None:
    steps = 1 if workers else STEPS
    packs, _ = run(make_small(f"data.workers={workers}"), world_size, steps)
    assert_same(packs, unbroken[: steps * NUM_LANES])


def test_balanced_packs_are_the_same_on_any_ranks_and_workers_after_a_stop(make_small: Callable[..., Config]) -> None:
    config = make_small("data.packing=balanced")
    expected, _ = run(config, 1, STEPS)
    packs, states = run(replace(config, data=replace(config.data, workers=1)), 4, 1)
    assert_same(packs, expected[:NUM_LANES])
    assert_same(run(config, 8, STEPS - 1, states)[0], expected[NUM_LANES:])
    before, _ = run(make_small(), 1, 1)
    assert any(one.keys != other.keys for one, other in zip(before, expected[:NUM_LANES], strict=True))


@pytest.mark.parametrize("source", ["latents", "stories", "notes"])
def test_every_sample_comes_once_a_pass_whoever_loads_it(make_small: Callable[..., Config], source: str) -> None:
    """Of each the number of passes that all lanes have finished, give or take what waits in their windows."""
    config = make_small("data.packs_per_step=4", "data.window_samples=4", f"data.mixture={only(make_small(), source)}")
    packs, states = run(config, 2, 40)
    size = {"latents": 60, "stories": 40, "notes": 120}[source]
    seen = Counter(key for pack in packs for key in pack.keys)
    assert len(seen) == (size // 2 if source == "notes" else size)
    assert sum(seen.values()) == sum(state["used"][0] - len(state["waiting"]) for state in states.values())
    passes = [state["draws"][0] / (size / 4) for state in states.values()]
    assert max(seen.values()) <= math.ceil(max(passes))
    assert min(seen.values()) >= math.floor(min(passes)) - 1


def only(config: Config, source: str) -> Path:
    """A mixture of one of the sources."""
    table = yaml.safe_load(Path(config.data.mixture).read_text())
    path = Path(config.data.mixture).with_name(f"{source}.yaml")
    path.write_text(yaml.safe_dump({"sources": {source: table["sources"][source]}}))
    return path


def test_a_config_without_modalities_reads_text_alone(make_small: Callable[..., Config]) -> None:
    """What else a sample holds is left out by its task."""
    config = make_small("data.packs_per_step=4")
    table = yaml.safe_load(Path(config.data.mixture).read_text())
    text_alone = {name: table["sources"][name] | {"tasks": {"text_only": 1}} for name in ("latents", "notes")}
    mixture = Path(config.data.mixture).with_name("text.yaml")
    mixture.write_text(yaml.safe_dump({"sources": text_alone}))
    config = replace(config, modality={}, data=replace(config.data, mixture=str(mixture)))
    for pack in PackLoader(config, 0, 1).next_step():
        assert (pack.pieces, pack.counts.patches, pack.counts.moving_elements) == ((), (), ())
        assert pack.counts.rows == pack.counts.text_tokens > 40
        assert {key.partition("/")[0] for key in pack.keys} == {"latents", "notes"}


def test_a_rank_takes_all_its_lanes_in_each_step(
    make_small: Callable[..., Config], unbroken: list[PackedBatch]
) -> None:
    """Gradient accumulation: next_step returns all packs of the rank's lanes, in order."""
    loader = PackLoader(make_small(), 1, 8)
    for step in range(2):
        assert_same(loader.next_step(), unbroken[step * NUM_LANES + 1 : (step + 1) * NUM_LANES : 8])


def test_a_rank_with_fewer_lanes_adds_a_pack_that_counts_nothing_and_a_line_tells_how_much_is_idle(
    make_small: Callable[..., Config], unbroken: list[PackedBatch]
) -> None:
    loader = PackLoader(make_small(), 6, 7)
    for step in range(2):
        *own, silent = loader.next_step()
        assert_same(own, unbroken[step * NUM_LANES + 6 : (step + 1) * NUM_LANES : 7])
        assert set(silent.counts.to_list()) == {0}
        weights = [silent.slot_weight, silent.bag_weight, *(pieces.patch_weight for pieces in silent.pieces)]
        assert not any(weight.any() for weight in weights)
        assert len(silent.slot_weight) == len(own[0].slot_weight)
    assert sorted(loader.states) == [6, 13, 20]
    (line,) = [line for line in loader.report if "packs_per_step" in line]
    assert names(line, 24, 7, "14%")  # 4 of 28
    assert not any("packs_per_step" in line for line in PackLoader(make_small(), 0, 8).report)


@pytest.mark.parametrize(
    ("step", "before", "after", "workers"), [(1, 1, 8, 0), (2, 2, 1, 0), (3, 4, 7, 0), (1, 7, 2, 0), (2, 1, 2, 3)]
)
def test_resuming_continues_as_if_unbroken(
    make_small: Callable[..., Config],
    unbroken: list[PackedBatch],
    step: int,
    before: int,
    after: int,
    workers: int,
) -> None:
    """Prefetched packs are not lost, other ranks may continue, and the state goes through a file."""
    config = make_small(f"data.workers={workers}")
    _, states = run(config, before, step)
    assert any(state["waiting"] for state in states.values())
    written = json.dumps(states)
    assert len(written) < 200 * NUM_LANES
    read = {int(index): state for index, state in json.loads(written).items()}
    packs, _ = run(config, after, STEPS - step, read)
    assert_same(packs, unbroken[step * NUM_LANES :])


def test_resuming_twice_continues_as_if_unbroken(
    make_small: Callable[..., Config], unbroken: list[PackedBatch]
) -> None:
    """What a resumed run saves is where it is, not where it was resumed from."""
    config = make_small()
    _, first = run(config, 2, 1)
    _, second = run(config, 2, 1, first)
    packs, _ = run(config, 2, 1, second)
    assert_same(packs, unbroken[2 * NUM_LANES : 3 * NUM_LANES])


def test_a_rank_reports_its_own_lanes_alone(make_small: Callable[..., Config]) -> None:
    config = make_small()
    _, states = run(config, 2, 1)
    for resumed in (None, states):
        assert [sorted(PackLoader(config, rank, 2, resumed).states) for rank in range(2)] == [
            list(range(0, NUM_LANES, 2)),
            list(range(1, NUM_LANES, 2)),
        ]


def test_an_unused_loader_reports_the_state_that_it_started_from(make_small: Callable[..., Config]) -> None:
    config = make_small()
    _, states = run(config, 1, 1)
    assert PackLoader(config, 0, 1, states).states == states


# What is refused, and how it is said.


def refusal(config: Config, world_size: int = 1) -> str:
    with pytest.raises(ValueError) as error:
        PackLoader(config, 0, world_size).next_step()
    message = Message(error.value)
    error.value.__traceback__ = None  # it holds the loader, whose workers end with it
    del error
    return message


def test_every_rank_needs_a_lane(make_small: Callable[..., Config]) -> None:
    assert refusal(make_small(), 48) == (
        "data.packs_per_step (24) is less than the 48 data-parallel ranks, which need one each; "
        "set data.packs_per_step=48, or let ranks share packs (parallel.context, parallel.tensor)"
    )


def test_the_vocabulary_must_hold_the_tokenizer(make_small: Callable[..., Config]) -> None:
    config = make_small("data.tokenizer=bytes", "model.vocab_size=261")
    assert refusal(config) == (
        "model.vocab_size (261) is smaller than the 262 tokens of tokenizer (bytes) and objective; raise it"
    )
    assert len(PackLoader(make_small("data.tokenizer=bytes", "model.vocab_size=262"), 0, 1).next_step()) == NUM_LANES


def test_every_lane_needs_a_sample_of_every_source(make_small: Callable[..., Config]) -> None:
    assert refusal(make_small("data.packs_per_step=2000")) == (
        "source stories: 40 samples for data.packs_per_step (2000); each lane needs one"
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unusable_sample_reaches_the_trainer_as_it_is(make_small: Callable[..., Config], workers: int) -> None:
    """In one line, without the traceback of a worker."""
    message = refusal(make_small("data.max_sample_rows=9", f"data.workers={workers}"))
    assert str(message).startswith("sample ")
    assert message.endswith('raise them or set data.overlong = "drop"')
    assert "\n" not in message


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_that_is_filtered_away_reaches_the_trainer_as_it_is(
    make_small: Callable[..., Config], tmp_path: Path, workers: int
) -> None:
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(Path(make_small().data.mixture).read_text().replace("min: 0.5", "min: 2"))
    message = refusal(make_small(f"data.workers={workers}", f"data.mixture={mixture}"))
    assert message.startswith("source notes: 121 samples in a row are left out, by its filters, ")


def test_a_tokenizer_without_the_words_still_reads_every_text(
    make_small: Callable[..., Config], tmp_path: Path
) -> None:
    write_ranks(tmp_path / "other.tiktoken", train_ranks(["nothing of the kind"], vocab_size=262))
    config = make_small(f"data.tokenizer={tmp_path / 'other.tiktoken'}", "data.packs_per_step=4")
    assert len(PackLoader(config, 0, 1).next_step()) == 4


# Shards at an address.


@pytest.mark.parametrize("workers", [0, 2])
def test_remote_shards_give_the_same_packs_on_any_ranks_and_are_fetched_once_a_pass(
    make_small: Callable[..., Config], tmp_path: Path, workers: int
) -> None:
    """Each lane owns two shards of ten samples."""
    for shard in range(8):
        members = {f"{shard}-{number}.txt": f"text {number} of {shard}".encode() for number in range(10)}
        path = write_tar(tmp_path / f"x-{shard}.tar", members)
        path.with_name(path.name + ".index").write_bytes(index_tar(path, path.name))
    with serve(tmp_path) as (address, fetched):
        mixture = tmp_path / "mixture.yaml"
        mixture.write_text(
            f"sources: {{pets: {{shards: '{address}/x-{{0..7}}.tar', weight: 1, tasks: {{text_only: 1}}}}}}\n"
        )
        config = make_small("data.packs_per_step=4", "data.window_samples=4", f"data.mixture={mixture}")
        expected, _ = run(config, 1, 6)
        num_fetched = {name: times for name, times in fetched.items() if name.endswith(".tar")}
        loaded = replace(config, data=replace(config.data, workers=workers))
        packs, states = run(loaded, 2, 3)
        assert_same(packs, expected[:12])
        packs, _ = run(loaded, 4, 3, states)
        assert_same(packs, expected[12:])
    assert max(num_fetched.values()) <= 3
    assert len({key for pack in expected for key in pack.keys}) > 60
