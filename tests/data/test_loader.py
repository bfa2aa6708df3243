from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from oneflow_dist.config import Config
from oneflow_dist.containers import PackedBatch
from oneflow_dist.data.loader import LaneStates, PackLoader
from oneflow_dist.data.tokenizer import train_ranks, write_ranks

CPU = torch.device("cpu")
NUM_LANES = 4
STEPS = 2


@pytest.fixture(autouse=True, scope="module")
def _without_shape_checks(unchecked: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Thousands of samples go through here; what noising and packing return is checked in their own tests."""
    with unchecked():
        yield


@pytest.fixture(scope="module")
def make_small(
    make_config: Callable[..., Config], digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Config]:
    """Four lanes of small packs, from shards of 60 captioned digits and 32 counting documents."""
    folder = tmp_path_factory.mktemp("small")
    with (
        tarfile.open(digits / "single-heldout-000000.tar") as whole,
        tarfile.open(folder / "single-train-000000.tar", "w") as part,
    ):
        for member in whole.getmembers()[: 3 * 60]:
            part.addfile(member, whole.extractfile(member))
    shutil.copy(digits / "count-heldout-000000.tar", folder / "count-train-000000.tar")
    mixture = folder / "mixture.yaml"
    mixture.write_text((digits / "mixture.yaml").read_text().replace(str(digits), str(folder)))
    small = ["rows_per_pack=64", "tokens_per_pack=64", "bag_tokens_per_pack=64", "images_per_pack=24"]
    small += ["sequences_per_pack=32", "max_sample_rows=64", "window_samples=20", f"packs_per_step={NUM_LANES}"]
    small += [f"mixture={mixture}"]
    return lambda *overrides: make_config(*(f"data.{key}" for key in small), *overrides)


def run(
    config: Config, world_size: int, steps: int, states: LaneStates | None = None
) -> tuple[list[PackedBatch], LaneStates]:
    """The packs of all ranks in global order, and the lanes' states as a checkpoint gathers them."""
    loaders = [PackLoader(config, rank, world_size, states) for rank in range(world_size)]
    packs = []
    for _ in range(steps):
        own = [loader.next_step(CPU) for loader in loaders]
        packs += [own[lane % world_size][lane // world_size] for lane in range(NUM_LANES)]
    gathered = {index: state for loader in loaders for index, state in loader.states.items()}
    return packs, gathered


def assert_same(actual: list[PackedBatch], expected: list[PackedBatch]) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        for field in fields(PackedBatch):
            a, b = getattr(one, field.name), getattr(other, field.name)
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


@pytest.fixture(scope="module")
def unbroken(make_small: Callable[..., Config]) -> list[PackedBatch]:
    """One rank, no workers, twice the steps."""
    return run(make_small(), 1, 2 * STEPS)[0]


def test_lanes_hold_different_samples(unbroken: list[PackedBatch]) -> None:
    keys = [key for pack in unbroken[:NUM_LANES] for key in pack.keys]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_ranks_and_workers_do_not_change_the_packs(
    make_small: Callable[..., Config], unbroken: list[PackedBatch], world_size: int, workers: int
) -> None:
    packs, _ = run(make_small(f"data.workers={workers}"), world_size, 1)
    assert_same(packs, unbroken[:NUM_LANES])


def test_one_rank_takes_two_steps_of_two(make_small: Callable[..., Config], unbroken: list[PackedBatch]) -> None:
    """Gradient accumulation: next_step returns all packs of the rank's lanes, in order."""
    loader = PackLoader(make_small(), 1, 2)
    assert_same(loader.next_step(CPU), [unbroken[1], unbroken[3]])
    assert_same(loader.next_step(CPU), [unbroken[NUM_LANES + 1], unbroken[NUM_LANES + 3]])


@pytest.mark.parametrize(("before", "after", "workers"), [(1, 1, 0), (1, 4, 0), (2, 1, 0), (2, 2, 2)])
def test_resuming_continues_as_if_unbroken(
    make_small: Callable[..., Config], unbroken: list[PackedBatch], before: int, after: int, workers: int
) -> None:
    """Prefetched packs are not lost, and other ranks may continue."""
    config = make_small(f"data.workers={workers}")
    _, states = run(config, before, STEPS)
    assert all(state["waiting"] for state in states.values())
    packs, _ = run(config, after, STEPS, states)
    assert_same(packs, unbroken[STEPS * NUM_LANES :])


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
        assert [sorted(PackLoader(config, rank, 2, resumed).states) for rank in range(2)] == [[0, 2], [1, 3]]


def test_an_unused_loader_reports_the_state_that_it_started_from(make_small: Callable[..., Config]) -> None:
    config = make_small()
    _, states = run(config, 1, 1)
    assert PackLoader(config, 0, 1, states).states == states


# What is refused, and how it is said.


def refusal(config: Config, world_size: int = 1) -> str:
    with pytest.raises(ValueError) as error:
        PackLoader(config, 0, world_size).next_step(CPU)
    message = str(error.value)
    error.value.__traceback__ = None  # it holds the loader, whose workers end with it
    del error
    return message


def test_lanes_must_divide_among_ranks(make_small: Callable[..., Config]) -> None:
    assert refusal(make_small(), 3) == (
        "data.packs_per_step (4) is not a multiple of the 3 data-parallel ranks; set data.packs_per_step=3"
    )
    assert refusal(make_small(), 8) == (
        "data.packs_per_step (4) is not a multiple of the 8 data-parallel ranks; set data.packs_per_step=8"
    )


def test_the_vocabulary_must_hold_the_tokenizer(make_small: Callable[..., Config]) -> None:
    config = make_small("data.tokenizer=bytes", "model.vocab_size=259")
    assert refusal(config) == "model.vocab_size (259) is smaller than the tokenizer's 260 (bytes); raise it"
    assert len(PackLoader(make_small("data.tokenizer=bytes", "model.vocab_size=260"), 0, 1).next_step(CPU)) == NUM_LANES


def test_every_lane_needs_a_sample_of_every_source(make_small: Callable[..., Config]) -> None:
    assert refusal(make_small("data.packs_per_step=2000")) == (
        "source single: 60 samples for data.packs_per_step (2000); each lane needs one"
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unusable_sample_reaches_the_trainer_as_it_is(make_small: Callable[..., Config], workers: int) -> None:
    """In one line, without the traceback of a worker."""
    message = refusal(make_small("data.max_sample_rows=9", f"data.workers={workers}"))
    assert message.startswith("sample ")
    assert message.endswith('raise them or set data.overlong = "drop"')
    assert "\n" not in message


def test_a_tokenizer_without_the_words_still_reads_every_text(
    make_small: Callable[..., Config], tmp_path: Path
) -> None:
    write_ranks(tmp_path / "other.tiktoken", train_ranks(["nothing of the kind"], vocab_size=260))
    config = make_small(f"data.tokenizer={tmp_path / 'other.tiktoken'}")
    assert len(PackLoader(config, 0, 1).next_step(CPU)) == NUM_LANES
