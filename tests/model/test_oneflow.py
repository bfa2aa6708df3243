from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from oneflow_dist.config import Config
from oneflow_dist.containers import Capacity, Counts, NoisySample, PackedBatch, Prediction
from oneflow_dist.data.packing import pack, size_of
from oneflow_dist.flow.losses import compute_losses
from oneflow_dist.model.adapters import Encoded
from oneflow_dist.model.oneflow import OneFlow
from tests.modalities import SOUND, UNET, VIDEO, VISION, Grid, with_pieces

VARIANTS = {
    "paper": ["heads.time_conditioning=none", "modality.image.time_conditioning=added", "model.tie_embeddings=true"],
    "token": ["heads.time_conditioning=token", "modality.image.time_conditioning=added"],
    "adaln": ["heads.time_conditioning=adaln", "modality.image.time_conditioning=adaln"],
    "three kinds": [*UNET, *SOUND, *VISION],  # modulated, with a time that is added, and without a time
}
Maker = Callable[..., OneFlow]


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def variant(request: pytest.FixtureRequest, make_config: Callable[..., Config]) -> Config:
    return make_config(*request.param)


@pytest.fixture
def samples(request: pytest.FixtureRequest, make_noisy: Callable[..., NoisySample]) -> list[NoisySample]:
    """Text with an image, text alone, one token alone, one token with two images; three grids.

    Where the variant has more kinds of pieces, the first has one of each, and the last two sounds of other lengths.
    """
    rng = np.random.default_rng(0)
    found = [
        make_noisy(rng, num_tokens=n, num_images=i, num_bag_tokens=b, grid=grid)
        for n, i, b, grid in ((6, 1, 4, (2, 2)), (9, 0, 3, (1, 1)), (1, 0, 2, (1, 1)), (1, 2, 0, [(1, 3), (4, 2)]))
    ]
    variant = request.getfixturevalue("variant") if "variant" in request.fixturenames else None
    if variant is None or len(variant.modality) == 1:
        return found
    sound, vision = variant.modality["sound"], variant.modality["vision"]
    grids: list[tuple[list[Grid], list[Grid]]] = [
        ([(4, 1, 1)], [(1, 2, 2)]),
        ([], []),
        ([], []),
        ([(2, 1, 1), (5, 1, 1)], []),
    ]
    return [
        with_pieces(sample, rng, [(sound, sounds), (vision, visions)])
        for sample, (sounds, visions) in zip(found, grids, strict=True)
    ]


def with_room(samples: list[NoisySample]) -> Capacity:
    """More of everything than they need."""
    size = size_of(samples)
    return Capacity(
        rows=size.rows + 20,
        tokens=size.tokens + 20,
        bag_tokens=size.bag_tokens + 20,
        sequences=size.sequences + 5,
        pieces=tuple(count + 5 for count in size.pieces),
        patches=tuple(count + 10 for count in size.patches),
    )


def fields_of(prediction: Prediction) -> dict[str, Tensor]:
    """All but the bag loss, which is one number."""
    velocities = {f"velocity {n}": velocity for n, velocity in enumerate(prediction.velocity) if velocity.shape[1]}
    return {name: getattr(prediction, name) for name in ("zero_logit", "log_rate", "slot_hidden")} | velocities


def velocity_of(prediction: Prediction) -> Tensor:
    """Of all pieces, end to end."""
    return torch.cat([velocity.flatten() for velocity in prediction.velocity])


def with_images(sample: NoisySample, **changes: np.ndarray) -> NoisySample:
    """The sample with images of another time, grid or content."""
    noisy, *others = sample.pieces
    return replace(sample, pieces=(replace(noisy, pieces=replace(noisy.pieces, **changes)), *others))


@pytest.fixture
def make_exact(make_model: Maker, unchecked: Callable[..., AbstractContextManager[None]]) -> Iterator[Maker]:
    """Models in float64, for what is the same in another order of sums: there it changes 1e-14, in float32 1e-4.

    Single steps, as those of the losses, are float32 even so and add roundings of 1e-7; annotations say float32, too.
    """
    with unchecked():
        yield lambda config: make_model(config).double()


def predict(model: OneFlow, samples: list[NoisySample], capacity: Capacity | None = None) -> Prediction:
    with torch.no_grad():
        return model(pack(samples, capacity))


def assert_close(actual: Prediction, expected: Prediction, tolerance: float = 1e-6) -> None:
    """The largest error, measured against the largest value."""
    found = fields_of(actual)
    assert found.keys() == fields_of(expected).keys()
    for name, values in fields_of(expected).items():
        scale = values.abs().max().item() if values.numel() else 1.0
        torch.testing.assert_close(found[name], values, rtol=0.0, atol=tolerance * scale)


def cut(prediction: Prediction, tokens: slice, *patches: slice) -> Prediction:
    """All but the bag loss, which is one number."""
    return Prediction(
        zero_logit=prediction.zero_logit[tokens],
        log_rate=prediction.log_rate[tokens],
        bag_loss=prediction.bag_loss,
        velocity=tuple(velocity[own] for velocity, own in zip(prediction.velocity, patches, strict=True)),
        slot_hidden=prediction.slot_hidden[tokens],
    )


def spans(counts: list[int]) -> list[slice]:
    ends = np.cumsum(counts)
    return [slice(int(end) - count, int(end)) for count, end in zip(counts, ends, strict=True)]


def parts_of(samples: list[NoisySample]) -> list[tuple[slice, ...]]:
    """Where each sample's slots, and its patches of each modality, lie in a pack."""
    sizes = [[len(sample.tokens), *(len(noisy.velocity) for noisy in sample.pieces)] for sample in samples]
    return list(zip(*(spans(list(size)) for size in zip(*sizes, strict=True)), strict=True))


def test_predictions_differ_between_slots_and_images(
    variant: Config, samples: list[NoisySample], make_model: Maker
) -> None:
    """What the tests below compare is not constant."""
    prediction = predict(make_model(variant), samples)
    for name, values in fields_of(prediction).items():
        assert values.std(dim=0).min() > 1e-2, name


def test_packed_and_unpacked_predictions_agree(variant: Config, samples: list[NoisySample], make_exact: Maker) -> None:
    model = make_exact(variant)
    packed, alone = predict(model, samples), [predict(model, [sample]) for sample in samples]
    for prediction, part in zip(alone, parts_of(samples), strict=True):
        assert_close(cut(packed, *part), prediction)
    torch.testing.assert_close(packed.bag_loss, torch.stack([prediction.bag_loss for prediction in alone]).sum())


def test_padding_changes_no_prediction(variant: Config, samples: list[NoisySample], make_exact: Maker) -> None:
    model = make_exact(variant)
    plain, padded = predict(model, samples), predict(model, samples, with_room(samples))
    assert_close(padded, plain)
    torch.testing.assert_close(padded.bag_loss, plain.bag_loss)


def gradients_of(model: OneFlow, config: Config, batches: list[PackedBatch]) -> dict[str, Tensor]:
    counts = sum((batch.counts for batch in batches), Counts.zeros())
    for batch in batches:
        compute_losses(model(batch), batch, counts, config).total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Each to a millionth of its norm."""
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        error = (gradient - expected[name]).norm() / expected[name].norm()
        assert error <= 1e-6, f"{name}: relative error {error:.1e}"


def test_padding_changes_no_gradient(variant: Config, samples: list[NoisySample], make_exact: Maker) -> None:
    packs = [pack(samples, capacity) for capacity in (None, with_room(samples))]
    plain, padded = (gradients_of(make_exact(variant), variant, [batch]) for batch in packs)
    assert_same_gradients(padded, plain)


def test_gradients_of_a_pack_of_mixed_shapes_are_those_of_packs_of_one_shape(
    variant: Config, samples: list[NoisySample], make_exact: Maker
) -> None:
    mixed = gradients_of(make_exact(variant), variant, [pack(samples, None)])
    assert_same_gradients(
        gradients_of(make_exact(variant), variant, [pack([sample], None) for sample in samples]), mixed
    )


def test_the_shape_of_an_image_is_seen(
    config: Config, make_noisy: Callable[..., NoisySample], make_model: Maker
) -> None:
    """The same patches as 2 x 3 and as 3 x 2."""
    model = make_model(config)
    sample = make_noisy(np.random.default_rng(0), grid=(2, 3))
    wide, high = (predict(model, [with_images(sample, grid=np.array([grid]))]) for grid in ((1, 2, 3), (1, 3, 2)))
    assert not torch.isclose(velocity_of(wide), velocity_of(high)).all()


def test_every_parameter_gets_a_gradient(variant: Config, samples: list[NoisySample], make_model: Maker) -> None:
    model = make_model(variant)
    batch = pack(samples, None)
    compute_losses(model(batch), batch, batch.counts, variant).total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_no_document_sees_another(variant: Config, samples: list[NoisySample], make_exact: Maker) -> None:
    """One document gets other tokens, another image and another time; the others' predictions stay as they were."""
    model = make_exact(variant)
    before, first = predict(model, samples), samples[0]
    pieces = [
        replace(noisy, pieces=replace(noisy.pieces, patches=noisy.pieces.patches + 1.0, time=noisy.pieces.time / 2))
        for noisy in first.pieces
    ]
    tokens = (first.tokens + 1) % 256
    changed = replace(first, tokens=tokens, pieces=tuple(pieces), text_time=first.text_time / 2)
    after = predict(model, [changed, *samples[1:]])
    own, *others = parts_of(samples)
    assert not torch.isclose(cut(before, *own).zero_logit, cut(after, *own).zero_logit).any()
    for part in others:
        assert_close(cut(after, *part), cut(before, *part))


def test_every_slot_sees_every_token_and_image_of_its_document(
    variant: Config, samples: list[NoisySample], make_model: Maker
) -> None:
    model = make_model(variant)
    sample = samples[0]
    before = predict(model, [sample])
    for place in range(len(sample.tokens)):
        tokens = sample.tokens.copy()
        tokens[place] = (tokens[place] + 1) % 256
        after = predict(model, [replace(sample, tokens=tokens)])
        assert (after.zero_logit != before.zero_logit).all()
        assert (velocity_of(after) != velocity_of(before)).all()
    for number, noisy in enumerate(sample.pieces):
        pieces = list(sample.pieces)
        pieces[number] = replace(noisy, pieces=replace(noisy.pieces, patches=noisy.pieces.patches + 1.0))
        after = predict(model, [replace(sample, pieces=tuple(pieces))])
        assert (after.zero_logit != before.zero_logit).all()
        assert (velocity_of(after) != velocity_of(before)).all()


def test_order_of_tokens_matters(config: Config, samples: list[NoisySample], make_model: Maker) -> None:
    model = make_model(config)
    before = predict(model, samples[1:2])
    after = predict(model, [replace(samples[1], tokens=samples[1].tokens[::-1].copy())])
    assert not torch.isclose(after.zero_logit, before.zero_logit.flip(0)).any()


@pytest.mark.parametrize("conditioning", ["none", "token", "adaln"])
def test_text_time_reaches_heads_and_velocities_only_where_heads_are_conditioned(
    make_config: Callable[..., Config], samples: list[NoisySample], make_model: Maker, conditioning: str
) -> None:
    config = make_config(f"heads.time_conditioning={conditioning}")
    model = make_model(config)
    early, late = (predict(model, [replace(samples[0], text_time=time)]) for time in (0.1, 0.9))
    assert torch.equal(early.zero_logit, late.zero_logit) == (conditioning == "none")
    assert torch.equal(velocity_of(early), velocity_of(late)) == (conditioning == "none")


def encode(model: OneFlow, batch: PackedBatch) -> list[Encoded]:
    adapters: list[Any] = list(model.adapters.values())
    return [adapter.encode(pieces) for adapter, pieces in zip(adapters, batch.pieces, strict=True)]


def test_a_time_token_is_the_first_of_each_sequence(
    make_config: Callable[..., Config], samples: list[NoisySample], make_model: Maker
) -> None:
    config = make_config("heads.time_conditioning=token")
    model = make_model(config)
    room = with_room(samples)
    batch = pack(samples, room)
    assert model.text_time is not None
    with torch.no_grad():
        encoded, text_time = encode(model, batch), model.text_time(batch.text_time)
        moved = model._embed_rows(batch, encoded, text_time + 1.0) - model._embed_rows(batch, encoded, text_time)
    is_first = torch.zeros(room.rows, dtype=torch.bool)
    is_first[batch.cu_seqlens[: len(samples)].long()] = True
    torch.testing.assert_close(moved, is_first[:, None].float().expand_as(moved), atol=1e-5, rtol=0.0)


def test_image_time_reaches_its_own_image(variant: Config, samples: list[NoisySample], make_model: Maker) -> None:
    model = make_model(variant)
    sample = samples[3]
    early, late = (predict(model, [with_images(sample, time=np.array([0.5, time]))]) for time in (0.1, 0.9))
    first, second = (late.velocity[0] - early.velocity[0]).square().split([3, 8])
    assert second.mean() > first.mean() > 0.0


def test_documents_without_pieces_need_none(variant: Config, samples: list[NoisySample], make_model: Maker) -> None:
    model = make_model(variant)
    batch = pack(samples[1:3], None)
    prediction = model(batch)
    kinds = variant.modality.values()
    assert [v.shape for v in prediction.velocity] == [(0, kind.patch_elements * kind.is_target) for kind in kinds]
    assert torch.isfinite(prediction.zero_logit).all()
    compute_losses(prediction, batch, batch.counts, variant).total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []  # all layers have run


def test_bag_logits_are_the_distribution_that_bag_losses_score(
    variant: Config, samples: list[NoisySample], make_model: Maker
) -> None:
    model, batch = make_model(variant), pack(samples, None)
    with torch.no_grad():
        prediction = model(batch)
        log_probs = model.bag_logits(prediction.slot_hidden).log_softmax(-1)
    expected = -(batch.bag_weight * log_probs[batch.bag_slot, batch.bag_tokens]).sum()
    torch.testing.assert_close(prediction.bag_loss, expected, atol=1e-5, rtol=1e-5)


def test_tied_embeddings_are_one_parameter(make_config: Callable[..., Config]) -> None:
    tied, free = (OneFlow(make_config(f"model.tie_embeddings={tie}")) for tie in ("true", "false"))
    assert tied._unembedding() is tied.embed.weight
    assert free._unembedding() is not free.embed.weight
    sizes = [sum(p.numel() for p in model.parameters()) for model in (free, tied)]
    assert sizes[0] - sizes[1] == free.embed.weight.numel()


def test_forward_draws_no_random_numbers(config: Config, samples: list[NoisySample], make_model: Maker) -> None:
    model = make_model(config)
    state = torch.get_rng_state()
    first, second = predict(model, samples), predict(model, samples)
    assert torch.equal(torch.get_rng_state(), state)
    assert_close(first, second, tolerance=0.0)


def test_each_row_of_a_modulating_kind_has_the_time_of_its_own_piece_and_all_others_none(
    make_config: Callable[..., Config], samples: list[NoisySample], make_model: Maker
) -> None:
    """Two kinds that modulate the blocks and one between them that does not, all with more room than pieces."""
    kinds = ("modality.image.time_conditioning=adaln", *VIDEO, *SOUND, "modality.sound.time_conditioning=adaln")
    config = make_config(*kinds)
    video, sound = config.modality["video"], config.modality["sound"]
    grids: list[tuple[list[Grid], list[Grid]]] = [([], [(4, 1, 1)]), ([(1, 4, 1)], [(2, 1, 1), (3, 1, 1)])]
    rng = np.random.default_rng(1)
    many = [
        with_pieces(sample, rng, [(video, videos), (sound, sounds)])
        for sample, (videos, sounds) in zip((samples[3], samples[0]), grids, strict=True)
    ]
    batch, model = pack(many, with_room(many)), make_model(config)
    encoded = encode(model, batch)
    condition, row_piece = model._condition(batch, encoded, torch.zeros(len(batch.position), config.model.width))
    is_modulated = torch.zeros(len(batch.position), dtype=torch.bool)
    for number in (0, 2):
        pieces = batch.pieces[number]
        own = row_piece[pieces.patch_row]
        assert torch.equal(condition[own], encoded[number].time[pieces.patch_piece])
        is_modulated[pieces.patch_row] = True
    assert len(condition.unique(dim=0)) == 2 * (3 + 1)  # of three pieces each, and of the room for more
    assert is_modulated.sum() == 15 + 9
    assert (row_piece[~is_modulated] == len(condition)).all()


def test_where_no_piece_modulates_modulated_blocks_are_plain_ones(
    make_config: Callable[..., Config], samples: list[NoisySample], make_exact: Maker
) -> None:
    """Text, sounds with a time that is added, and features pass as if there were no images that modulate."""
    plain, modulated = (
        make_exact(make_config(f"modality.image.time_conditioning={how}", *SOUND, *VISION))
        for how in ("added", "adaln")
    )
    shared = {name: value for name, value in modulated.state_dict().items() if name in plain.state_dict()}
    assert plain.load_state_dict(shared) is not None
    assert len(modulated.state_dict()) > len(shared)
    sound, vision = (make_config(*SOUND, *VISION).modality[name] for name in ("sound", "vision"))
    rng = np.random.default_rng(2)
    grids: list[Grid] = [(4, 1, 1), (2, 1, 1)]
    without_images = [with_pieces(s, rng, [(sound, grids), (vision, [(1, 2, 2)])]) for s in samples[1:3]]
    assert_close(predict(modulated, without_images), predict(plain, without_images), tolerance=1e-12)
