"""What ranks that share a pack answer for adds up to the pack, and what they say together is what one process says."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from oneflow_dist.config import Config, load_config, write_config
from oneflow_dist.containers import Capacity, Counts, PackedBatch, Prediction
from oneflow_dist.data.packing import pack
from oneflow_dist.data.streams import capacity_of
from oneflow_dist.flow.losses import compute_losses
from oneflow_dist.model.axis import ALONE, Axis
from oneflow_dist.parallel.dealing import count_once, part_of_context, predict
from oneflow_dist.parallel.mesh import make_mesh
from oneflow_dist.training import build_model
from tests.launching import Launcher
from tests.modalities import SOUND, UNET, VISION
from tests.parallel.packs import KINDS, SOUNDS_ALONE, add_noise, make_samples

OF_TOKENS = ("tokens", "token_row", "token_sequence", "slot_weight", "missing_count", "filled_prob")
OF_PATCHES = ("patches", "velocity", "patch_piece", "patch_row", "patch_weight")


@pytest.fixture(scope="module")
def two_kinds(make_config: Callable[..., Config]) -> Config:
    """Images and sounds."""
    return make_config(*SOUND, "modality.image.loss_weight=0.7")


def mixed_batch(config: Config, capacity: Capacity | None = None) -> PackedBatch:
    """All kinds of samples in turn, so that each rank's part has some of all."""
    kinds = zip(*(make_samples(kind, 3, config) for kind in (*KINDS, SOUNDS_ALONE)), strict=True)
    return pack([sample for samples in kinds for sample in samples], capacity, config.flow.normalize, config.sees)


def weights_of(batch: PackedBatch) -> list[torch.Tensor]:
    """Of slots and patches; bags are scored by all ranks together."""
    assert len(batch.pieces) == 2
    return [batch.slot_weight, *(pieces.patch_weight for pieces in batch.pieces)]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_weights_and_counts_of_the_ranks_of_a_tensor_group_add_up_to_those_of_the_batch(
    size: int, two_kinds: Config
) -> None:
    batch = mixed_batch(two_kinds)
    shares = [count_once(batch, Axis(rank=rank, size=size)) for rank in range(size)]
    for whole, *parts in zip(*(weights_of(one) for one in (batch, *shares)), strict=True):
        stacked = torch.stack(parts)
        assert torch.equal(stacked.sum(0), whole)
        assert ((stacked != 0.0).sum(0) <= 1).all()  # of one rank each
        assert all((part != 0.0).any() for part in parts)
    assert sum((share.counts for share in shares), Counts.zeros()) == batch.counts
    assert [share.counts == Counts.zeros(2) for share in shares] == [False] + [True] * (size - 1)
    for share in shares:
        for field in dataclasses.fields(batch):
            if field.name not in ("slot_weight", "pieces", "counts"):
                assert getattr(share, field.name) is getattr(batch, field.name), field.name
        for own, all_of_kind in zip(share.pieces, batch.pieces, strict=True):
            for field in dataclasses.fields(own):
                if field.name != "patch_weight":
                    assert getattr(own, field.name) is getattr(all_of_kind, field.name), field.name


@pytest.mark.parametrize("normalize", ["batch", "paper"])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_losses_of_the_ranks_of_a_tensor_group_add_up_to_those_of_the_batch(
    size: int, normalize: str, two_kinds: Config
) -> None:
    config = dataclasses.replace(two_kinds, flow=dataclasses.replace(two_kinds.flow, normalize=normalize))
    batch = mixed_batch(config)
    generator = torch.Generator().manual_seed(0)
    num_slots = len(batch.tokens)
    prediction = Prediction(
        zero_logit=torch.randn(num_slots, generator=generator),
        log_rate=torch.randn(num_slots, generator=generator),
        bag_loss=torch.tensor(7.0),
        velocity=tuple(torch.randn(p.velocity.shape, generator=generator) for p in batch.pieces),
        slot_hidden=torch.zeros(num_slots, 1),
    )

    def losses(share: PackedBatch, num_ranks: int) -> torch.Tensor:
        own = dataclasses.replace(prediction, bag_loss=prediction.bag_loss / num_ranks)  # as the model gives it
        return compute_losses(own, share, batch.counts, config).stack()

    parts = [losses(count_once(batch, Axis(rank=rank, size=size)), size) for rank in range(size)]
    assert (torch.stack(parts) > 0.0).all()
    torch.testing.assert_close(torch.stack(parts).sum(0), losses(batch, 1))


def test_a_rank_alone_answers_for_the_batch_as_it_is(config: Config) -> None:
    batch = mixed_batch(config)
    assert count_once(batch, ALONE) is batch


@pytest.fixture(scope="module")
def roomy(two_kinds: Config) -> Config:
    """Packs of 256 rows, of which the last quarter is padding."""
    sizes = {"rows_per_pack": 256, "tokens_per_pack": 200, "bag_tokens_per_pack": 128, "sequences_per_pack": 24}
    modality = {name: dataclasses.replace(m, per_pack=40) for name, m in two_kinds.modality.items()}
    return dataclasses.replace(two_kinds, data=dataclasses.replace(two_kinds.data, **sizes), modality=modality)


def parts_of(batch: PackedBatch, size: int, is_seen_whole: tuple[bool, ...]) -> list[PackedBatch]:
    return [part_of_context(batch, Axis(rank=rank, size=size), is_seen_whole) for rank in range(size)]


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_context_group_deals_out_what_lies_on_rows(size: int, roomy: Config) -> None:
    batch = mixed_batch(roomy, capacity_of(roomy))
    parts = parts_of(batch, size, (False, False))
    for name in OF_TOKENS:
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name)), name
    first = 0
    for rank, part in enumerate(parts):
        rows = range(rank * 256 // size, (rank + 1) * 256 // size)
        assert set(part.token_row.tolist()) <= set(rows)
        here = (batch.bag_slot >= first) & (batch.bag_slot < first + len(part.tokens))
        assert torch.equal(part.bag_slot + first, batch.bag_slot[here])
        assert torch.equal(part.bag_tokens, batch.bag_tokens[here])
        assert torch.equal(part.bag_weight, batch.bag_weight[here])
        assert part.num_filled == len(set(part.bag_slot.tolist()))
        for own in part.pieces:
            assert set(own.patch_row.tolist()) <= set(rows)
        first += len(part.tokens)
    for number, whole in enumerate(batch.pieces):
        for name in OF_PATCHES:
            joined = torch.cat([getattr(part.pieces[number], name) for part in parts])
            assert torch.equal(joined, getattr(whole, name)), name
    assert sum((part.counts for part in parts), Counts.zeros()) == batch.counts


def test_a_cut_goes_through_pictures_and_leaves_some_ranks_with_nothing(roomy: Config) -> None:
    """So that what holds for these packs, here and on ranks, holds for such cuts."""
    parts = parts_of(mixed_batch(roomy, capacity_of(roomy)), 8, (False, False))
    pieces = [set(part.pieces[0].patch_piece.tolist()) for part in parts]
    assert any(one & other for one, other in itertools.pairwise(pieces))
    empty = parts[-1]
    assert len(empty.tokens) == len(empty.bag_tokens) == empty.num_filled == 0
    assert all(len(own.patches) == 0 for own in empty.pieces)


def test_a_piece_that_is_seen_whole_is_on_every_rank_and_scored_on_one(roomy: Config) -> None:
    batch = mixed_batch(roomy, capacity_of(roomy))
    parts = parts_of(batch, 4, (True, False))
    for part in parts:
        assert part.pieces[0].patches is batch.pieces[0].patches
        assert part.pieces[0].patch_row is batch.pieces[0].patch_row
    weights = torch.stack([part.pieces[0].patch_weight for part in parts])
    assert torch.equal(weights.sum(0), batch.pieces[0].patch_weight)
    assert ((weights != 0.0).sum(0) <= 1).all()


def test_without_a_context_group_a_pack_stays_as_it_is(roomy: Config) -> None:
    batch = mixed_batch(roomy)
    assert part_of_context(batch, ALONE, (False, False)) is batch


def predict_on_ranks(config_path: str, overrides: list[str]) -> Prediction:
    """Of packs with and without a capacity that is more than full of what there is."""
    config = load_config(config_path, overrides)
    model = build_model(config, make_mesh(config, dist.get_world_size(), "cpu"), torch.device("cpu"))
    add_noise(model)
    with torch.no_grad():
        return predict(model, mixed_batch(config, capacity_of(config)))


@pytest.mark.parametrize("adapters", [(), UNET], ids=["linear", "unet"])
@pytest.mark.parametrize(
    ("num_ranks", "overrides"),
    [
        (2, ["parallel.context=2"]),
        (4, ["parallel.context=4", "parallel.shard=1"]),
        (4, ["parallel.context=2", "parallel.tensor=2"]),
    ],
    ids=["context 2", "context 4, two for a key head", "context 2, tensor 2"],
)
def test_ranks_that_share_a_pack_say_together_what_one_process_says(
    num_ranks: int,
    overrides: list[str],
    adapters: tuple[str, ...],
    launcher: Launcher,
    roomy: Config,
    make_config: Callable[..., Config],
    tmp_path: Path,
) -> None:
    heads = ("model.num_attention_heads=4", "model.num_kv_heads=2")
    config = make_config(*SOUND, *VISION, *heads, *adapters)
    modality = {name: dataclasses.replace(m, per_pack=40) for name, m in config.modality.items()}
    path = tmp_path / "config.toml"
    path.write_text(write_config(dataclasses.replace(config, data=roomy.data, modality=modality)))
    (alone,) = launcher.call(1, predict_on_ranks, str(path), [])
    for found in launcher.call(num_ranks, predict_on_ranks, str(path), overrides):
        for name in ("zero_logit", "log_rate", "slot_hidden"):
            torch.testing.assert_close(getattr(found, name), getattr(alone, name), rtol=1e-5, atol=1e-5)
        for own, expected in zip(found.velocity, alone.velocity, strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)
