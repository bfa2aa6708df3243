from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from oneflow_dist.config import Config
from oneflow_dist.containers import Capacity, Counts, NoisySample, PackedBatch, Prediction
from oneflow_dist.data.packing import pack
from oneflow_dist.flow.losses import compute_losses
from oneflow_dist.model.oneflow import OneFlow

VARIANTS = {
    "paper": ["heads.time_conditioning=none", "image.time_conditioning=added", "model.tie_embeddings=true"],
    "token": ["heads.time_conditioning=token", "image.time_conditioning=added"],
    "adaln": ["heads.time_conditioning=adaln", "image.time_conditioning=adaln"],
}
ROOM = Capacity(rows=70, tokens=40, bag_tokens=30, images=8, patches=32, sequences=9)
FIELDS = ("zero_logit", "log_rate", "velocity", "slot_hidden")
Maker = Callable[..., OneFlow]


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def variant(request: pytest.FixtureRequest, make_config: Callable[..., Config]) -> Config:
    return make_config(*request.param)


@pytest.fixture
def samples(make_noisy: Callable[..., NoisySample]) -> list[NoisySample]:
    """Text with an image, text alone, one token alone, one token with two images; three grids."""
    rng = np.random.default_rng(0)
    return [
        make_noisy(rng, num_tokens=n, num_images=i, num_bag_tokens=b, grid=grid)
        for n, i, b, grid in ((6, 1, 4, (2, 2)), (9, 0, 3, (1, 1)), (1, 0, 2, (1, 1)), (1, 2, 0, [(1, 3), (4, 2)]))
    ]


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
    for name in FIELDS:
        values = getattr(expected, name)
        scale = values.abs().max().item() if values.numel() else 1.0
        torch.testing.assert_close(getattr(actual, name), values, rtol=0.0, atol=tolerance * scale)


def cut(prediction: Prediction, tokens: slice, patches: slice) -> Prediction:
    """All but the bag loss, which is one number."""
    return Prediction(
        zero_logit=prediction.zero_logit[tokens],
        log_rate=prediction.log_rate[tokens],
        bag_loss=prediction.bag_loss,
        velocity=prediction.velocity[patches],
        slot_hidden=prediction.slot_hidden[tokens],
    )


def spans(counts: list[int]) -> list[slice]:
    ends = np.cumsum(counts)
    return [slice(int(end) - count, int(end)) for count, end in zip(counts, ends, strict=True)]


def parts_of(samples: list[NoisySample]) -> list[tuple[slice, slice]]:
    """Where each sample's slots and patches lie in a pack."""
    sizes = [[len(getattr(s, name)) for s in samples] for name in ("tokens", "velocity")]
    return list(zip(*(spans(size) for size in sizes), strict=True))


def test_predictions_differ_between_slots_and_images(
    variant: Config, samples: list[NoisySample], make_model: Maker
) -> None:
    """What the tests below compare is not constant."""
    prediction = predict(make_model(variant), samples)
    for name in FIELDS:
        assert getattr(prediction, name).std(dim=0).min() > 1e-2, name


def test_packed_and_unpacked_predictions_agree(variant: Config, samples: list[NoisySample], make_exact: Maker) -> None:
    model = make_exact(variant)
    packed, alone = predict(model, samples), [predict(model, [sample]) for sample in samples]
    for prediction, part in zip(alone, parts_of(samples), strict=True):
        assert_close(cut(packed, *part), prediction)
    torch.testing.assert_close(packed.bag_loss, torch.stack([prediction.bag_loss for prediction in alone]).sum())


def test_padding_changes_no_prediction(variant: Config, samples: list[NoisySample], make_exact: Maker) -> None:
    model = make_exact(variant)
    plain, padded = predict(model, samples), predict(model, samples, ROOM)
    num_tokens, num_patches = len(plain.zero_logit), len(plain.velocity)
    assert (len(padded.zero_logit), len(padded.velocity)) == (num_tokens, num_patches)
    assert_close(cut(padded, slice(num_tokens), slice(num_patches)), plain)
    torch.testing.assert_close(padded.bag_loss, plain.bag_loss)


def gradients_of(model: OneFlow, config: Config, batches: list[PackedBatch]) -> dict[str, Tensor]:
    counts = sum((batch.counts for batch in batches), Counts.zeros())
    for batch in batches:
        compute_losses(model(batch), batch, counts, config.flow).total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Each to a millionth of its norm."""
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        error = (gradient - expected[name]).norm() / expected[name].norm()
        assert error <= 1e-6, f"{name}: relative error {error:.1e}"


def test_padding_changes_no_gradient(variant: Config, samples: list[NoisySample], make_exact: Maker) -> None:
    plain, padded = (gradients_of(make_exact(variant), variant, [pack(samples, capacity)]) for capacity in (None, ROOM))
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
    wide, high = (
        predict(model, [replace(sample, images=replace(sample.images, grid=np.array([grid])))])
        for grid in ((2, 3), (3, 2))
    )
    assert not torch.isclose(wide.velocity, high.velocity).all()


def test_every_parameter_gets_a_gradient(variant: Config, samples: list[NoisySample], make_model: Maker) -> None:
    model = make_model(variant)
    batch = pack(samples, None)
    compute_losses(model(batch), batch, batch.counts, variant.flow).total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_no_document_sees_another(variant: Config, samples: list[NoisySample], make_exact: Maker) -> None:
    """One document gets other tokens, another image and another time; the others' predictions stay as they were."""
    model = make_exact(variant)
    before, images = predict(model, samples), samples[0].images
    changed = replace(
        samples[0],
        tokens=(samples[0].tokens + 1) % 256,
        images=replace(images, patches=images.patches + 1.0, time=images.time / 2),
        text_time=samples[0].text_time / 2,
    )
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
        assert (after.velocity != before.velocity).all()
    after = predict(model, [replace(sample, images=replace(sample.images, patches=sample.images.patches + 1.0))])
    assert (after.zero_logit != before.zero_logit).all()


def test_order_of_tokens_matters(config: Config, samples: list[NoisySample], make_model: Maker) -> None:
    model = make_model(config)
    before = predict(model, samples[1:2])
    after = predict(model, [replace(samples[1], tokens=samples[1].tokens[::-1].copy())])
    assert not torch.isclose(after.zero_logit, before.zero_logit.flip(0)).any()


@pytest.mark.parametrize("conditioning", ["none", "token", "adaln"])
def test_text_time_reaches_the_heads_only_where_they_are_conditioned(
    make_config: Callable[..., Config], samples: list[NoisySample], make_model: Maker, conditioning: str
) -> None:
    config = make_config(f"heads.time_conditioning={conditioning}")
    model = make_model(config)
    early, late = (predict(model, [replace(samples[0], text_time=time)]) for time in (0.1, 0.9))
    assert torch.equal(early.zero_logit, late.zero_logit) == (conditioning == "none")
    assert torch.equal(early.velocity, late.velocity) == (conditioning != "token")  # the token is seen by all rows


def test_a_time_token_is_the_first_of_each_sequence(
    make_config: Callable[..., Config], samples: list[NoisySample], make_model: Maker
) -> None:
    config = make_config("heads.time_conditioning=token")
    model = make_model(config)
    batch = pack(samples, ROOM)
    assert model.text_time is not None
    with torch.no_grad():
        image_time, text_time = model.image_time(batch.image_time), model.text_time(batch.text_time)
        moved = model._embed_rows(batch, image_time, text_time + 1.0) - model._embed_rows(batch, image_time, text_time)
    is_first = torch.zeros(ROOM.rows, dtype=torch.bool)
    is_first[batch.cu_seqlens[: len(samples)].long()] = True
    torch.testing.assert_close(moved, is_first[:, None].float().expand_as(moved), atol=1e-5, rtol=0.0)


def test_image_time_reaches_its_own_image(variant: Config, samples: list[NoisySample], make_model: Maker) -> None:
    model = make_model(variant)
    sample = samples[3]
    early, late = (
        predict(model, [replace(sample, images=replace(sample.images, time=np.array([0.5, time])))])
        for time in (0.1, 0.9)
    )
    first, second = (late.velocity - early.velocity).square().split([3, 8])
    assert second.mean() > first.mean() > 0.0


def test_a_document_without_images_needs_none(variant: Config, samples: list[NoisySample], make_model: Maker) -> None:
    model = make_model(variant)
    batch = pack(samples[1:3], None)
    prediction = model(batch)
    assert prediction.velocity.shape == (0, variant.image.patch_elements)
    assert torch.isfinite(prediction.zero_logit).all()
    compute_losses(prediction, batch, batch.counts, variant.flow).total.backward()
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
