from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from oneflow_dist.config import Config, load_config, write_config
from oneflow_dist.containers import Losses, NoisySample, PackedBatch
from oneflow_dist.data.loader import PackLoader
from oneflow_dist.data.packing import pack
from oneflow_dist.guard.bad_batches import keep_suspects, read_bad_batch
from oneflow_dist.inspection import digest
from tests.launching import Launcher
from tests.messages import names
from tests.modalities import SOUND, VISION, with_pieces
from tests.pieces import is_same_pack

CPU = torch.device("cpu")
NUM_LOSSES = len(dataclasses.fields(Losses))  # of one modality
SMALL = ("data.rows_per_pack=256", "data.tokens_per_pack=192", "data.bag_tokens_per_pack=128")


@pytest.fixture
def batches(make_config: Callable[..., Config]) -> list[PackedBatch]:
    return PackLoader(make_config("data.packs_per_step=2"), 0, 1).next_step()


@pytest.mark.usefixtures("group_of_one")
def test_a_kept_batch_is_read_again_bitwise(batches: list[PackedBatch], tmp_path: Path) -> None:
    own = torch.ones(2, NUM_LOSSES)
    own[1, 2] = math.nan
    where, kept = keep_suspects(own, batches, 12, str(tmp_path))
    (path,) = tmp_path.iterdir()
    assert path.name == "bad-batch-step-00000012-rank-0-pack-1.pt"
    again = read_bad_batch(path)
    assert digest([again]) == digest([batches[1]])
    assert (again.counts, again.keys) == (batches[1].counts, batches[1].keys)
    keys = batches[1].keys
    assert names(where, 0)
    assert names(kept, *keys[:8], len(keys), f"{tmp_path}/bad-batch-*.pt")
    assert all(key not in kept for key in keys[8:])


@pytest.mark.usefixtures("group_of_one")
def test_a_kept_batch_of_several_modalities_is_read_again_bitwise(
    make_noisy: Callable[..., NoisySample], make_config: Callable[..., Config], tmp_path: Path
) -> None:
    """The last loss of velocity is what was not finite."""
    kinds, rng = make_config(*SOUND, *VISION).modality, np.random.default_rng(0)
    more = [(kinds["sound"], [(4, 1, 1), (2, 1, 1)]), (kinds["vision"], [(1, 2, 2)])]
    batch = pack([with_pieces(make_noisy(rng), rng, more)], None)
    own = torch.ones(1, NUM_LOSSES + 2)
    own[0, -2] = math.inf
    keep_suspects(own, [batch], 1, str(tmp_path))
    assert is_same_pack(read_bad_batch(next(tmp_path.iterdir())), batch)


@pytest.mark.usefixtures("group_of_one")
def test_where_all_losses_are_finite_the_batch_of_the_highest_is_kept(
    batches: list[PackedBatch], tmp_path: Path
) -> None:
    own = torch.tensor([[9.0] * (NUM_LOSSES - 1) + [1.0], [0.0] * (NUM_LOSSES - 1) + [2.0]])  # the total decides
    where, kept = keep_suspects(own, batches, 3, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["bad-batch-step-00000003-rank-0-pack-1.pt"]
    assert not names(where, 0)  # no rank is at fault
    assert names(kept, 0, batches[1].keys[0])


def keep_on_ranks(config_path: str, num_bad: int, folder: str) -> tuple[str, str]:
    """Rank 1 has `num_bad` of its three packs not finite; rank 0 has the highest finite loss."""
    config = load_config(config_path)
    batches = PackLoader(config, dist.get_rank(), dist.get_world_size()).next_step()
    own = torch.full((len(batches), NUM_LOSSES), 2.0 - dist.get_rank())
    if dist.get_rank() == 1:
        own[:num_bad] = math.inf
    return keep_suspects(own, batches, 1, folder)


@pytest.mark.parametrize(
    ("num_bad", "expected"),
    [(0, {"0-pack-0"}), (2, {"1-pack-0", "1-pack-1"}), (5, {f"1-pack-{n}" for n in range(4)})],
)
def test_all_ranks_name_the_same_batches_and_a_few_are_kept(
    num_bad: int, expected: set[str], launcher: Launcher, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    path, folder = tmp_path / "config.toml", tmp_path / "run"
    path.write_text(write_config(make_config("data.packs_per_step=10", "modality.image.per_pack=48", *SMALL)))
    folder.mkdir()
    first, second = launcher.call(2, keep_on_ranks, str(path), num_bad, str(folder))
    assert first == second
    assert names(first[0], 1) == (num_bad > 0)
    assert names(first[1], 4, f"{folder}/bad-batch-*.pt") == (num_bad == 5)
    assert {kept.stem.removeprefix("bad-batch-step-00000001-rank-") for kept in folder.iterdir()} == expected
    assert names(first[1], read_bad_batch(min(folder.iterdir())).keys[0])


@pytest.mark.usefixtures("group_of_one")
def test_ranks_that_share_a_batch_keep_it_once(batches: list[PackedBatch], tmp_path: Path) -> None:
    twins = [batches[0], dataclasses.replace(batches[0])]
    keep_suspects(torch.full((2, NUM_LOSSES), math.nan), twins, 1, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["bad-batch-step-00000001-rank-0-pack-0.pt"]
