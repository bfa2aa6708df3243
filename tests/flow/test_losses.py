from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from oneflow_dist.config import Config
from oneflow_dist.containers import Bags, Counts, Losses, NoisySample, PackedBatch, Prediction, Sample
from oneflow_dist.data.packing import pack
from oneflow_dist.flow.losses import are_finite, compute_losses
from oneflow_dist.flow.noising import noise_at, noise_pieces
from tests.noising import ChosenKeep, noising, with_bags
from tests.pieces import noisy_pieces, pieces

HALF = 0.5  # at this keep probability every set of kept tokens is equally likely
SURE = 30.0  # a logit that stands for probability 1


def flow_of(config: Config, normalize: str, *loss_weights: float) -> Config:
    """A modality, [image] and more of its like, for each weight; [image] alone of weight 1 without any."""
    image = config.modality["image"]
    modality = {f"m{i}": replace(image, loss_weight=weight) for i, weight in enumerate(loss_weights)}
    return replace(config, flow=replace(config.flow, normalize=normalize), modality=modality or {"image": image})


def predict(batch: PackedBatch, zero_logit: Tensor, log_rate: Tensor, bag_nll: Tensor | None = None) -> Prediction:
    """What a model says that has no error in its velocities; likelihoods of bag tokens are summed as it sums them."""
    return Prediction(
        zero_logit=zero_logit,
        log_rate=log_rate,
        bag_loss=torch.zeros(()) if bag_nll is None else (batch.bag_weight * bag_nll).sum(),
        velocity=tuple(pieces.velocity.clone() for pieces in batch.pieces),
        slot_hidden=torch.zeros(len(batch.tokens), 1),
    )


def with_moving(noisy: NoisySample, *is_moving: bool) -> NoisySample:
    """Its images as they are, but those that are clean."""
    (images,) = noisy.pieces
    return replace(noisy, pieces=(replace(images, is_moving=np.array(is_moving)),))


class Table:
    """One free parameter for every slot of every noisy text that occurs: what an ideal network could learn."""

    def __init__(self, samples: list[NoisySample], config: Config):
        self.config = config
        self.batches = {normalize: pack(samples, None, normalize) for normalize in ("batch", "paper")}
        views = [(tuple(s.tokens.tolist()), slot) for s in samples for slot in range(len(s.tokens))]
        self.views = sorted(set(views))
        self.view_of_slot = torch.tensor([self.views.index(view) for view in views])
        # Of gradients at the optimum. Averaged bags have weights as 1/3, which float32 rounds once more.
        self.rounding = 2e-8 if all((s.bags.weight == 1.0).all() for s in samples) else 4e-8

    def fill(self, value: Callable[[int], float]) -> Tensor:
        """A parameter per view, from the number of kept tokens (the first not counted)."""
        values = [value(len(tokens) - 1) for tokens, _ in self.views]
        return torch.tensor(values, dtype=torch.float32, requires_grad=True)

    def losses(self, zero_logit: Tensor, log_rate: Tensor, bag_logits: Tensor, normalize: str) -> Losses:
        batch = self.batches[normalize]
        log_probs = bag_logits.log_softmax(-1)[self.view_of_slot[batch.bag_slot]]
        bag_nll = -log_probs.gather(1, batch.bag_tokens[:, None]).squeeze(1)
        prediction = predict(batch, zero_logit[self.view_of_slot], log_rate[self.view_of_slot], bag_nll)
        return compute_losses(prediction, batch, batch.counts, flow_of(self.config, normalize))


def all_noisings(
    make_sample: Callable[..., Sample], texts: list[tuple[int, ...]], averages_bags: bool = False
) -> list[NoisySample]:
    """Every text with every set of its tokens kept."""
    how = noising(averages_bags=averages_bags)
    return [
        noise_at(make_sample([9, *text]), 0.5, [np.zeros(0)], how, ChosenKeep(keep))
        for text in texts
        for keep in itertools.product([True, False], repeat=len(text))
    ]


VOCAB, LENGTH = 3, 3


@pytest.fixture(scope="module", params=[False, True], ids=["sampled", "averaged"])
def uniform(request: pytest.FixtureRequest, config: Config, make_sample: Callable[..., Sample]) -> Table:
    """All noisings of all texts of three tokens over a vocabulary of three: an exact expectation."""
    texts = list(itertools.product(range(VOCAB), repeat=LENGTH))
    return Table(all_noisings(make_sample, texts, request.param), config)


def logit(prob: float) -> float:
    return float(torch.logit(torch.tensor(prob, dtype=torch.float64)).clamp(-SURE, SURE))


def optimum(table: Table) -> dict[str, Tensor]:
    """The closed forms for data uniform on {1..V}^L and m kept tokens: pi = m/L, rate = L/(m+1), Q = 1/V."""
    return {
        "zero_logit": table.fill(lambda m: logit(m / LENGTH)),
        "log_rate": table.fill(lambda m: float(np.log(LENGTH / (m + 1)))),
        "bag_logits": torch.zeros(len(table.views), VOCAB, requires_grad=True),
    }


@pytest.mark.parametrize("normalize", ["batch", "paper"])
def test_closed_forms_of_uniform_data_are_stationary(uniform: Table, normalize: str) -> None:
    parameters = optimum(uniform)
    uniform.losses(**parameters, normalize=normalize).total.backward()
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() < uniform.rounding, name


@pytest.mark.parametrize("normalize", ["batch", "paper"])
@pytest.mark.parametrize("name", ["zero_logit", "log_rate"])
@pytest.mark.parametrize("off", [-0.1, 0.1])
def test_beside_the_closed_forms_the_gradient_points_back(
    uniform: Table, normalize: str, name: str, off: float
) -> None:
    parameters = optimum(uniform)
    has_optimum = torch.tensor([0 < len(tokens) - 1 < LENGTH for tokens, _ in uniform.views])
    if name == "log_rate":
        has_optimum = torch.tensor([len(tokens) - 1 < LENGTH for tokens, _ in uniform.views])
    parameters[name].data += off
    uniform.losses(**parameters, normalize=normalize).total.backward()
    grad = parameters[name].grad
    assert grad is not None
    assert (grad[has_optimum] * off > 1e-6).all()


@pytest.mark.parametrize("token", range(VOCAB))
def test_beside_a_uniform_distribution_the_gradient_of_bag_logits_points_back(uniform: Table, token: int) -> None:
    parameters = optimum(uniform)
    parameters["bag_logits"].data[:, token] += 0.1
    uniform.losses(**parameters, normalize="batch").total.backward()
    grad = parameters["bag_logits"].grad
    assert grad is not None
    has_bag = torch.tensor([len(tokens) - 1 < LENGTH for tokens, _ in uniform.views])
    others = [other for other in range(VOCAB) if other != token]
    assert (grad[has_bag, token] > 1e-5).all()
    assert (grad[has_bag][:, others] < -1e-6).all()
    assert (grad[~has_bag] == 0.0).all()


@pytest.mark.parametrize("averages_bags", [False, True], ids=["sampled", "averaged"])
def test_closed_forms_of_a_mixture_of_lengths_are_stationary(
    config: Config, make_sample: Callable[..., Sample], averages_bags: bool
) -> None:
    """Lengths 1, 2, 4 with p = 1/5, 2/5, 2/5: P(n | m) ~ p_n C(n, m) (1 - kappa)^(n - m), E[k] = E[n - m] / (m + 1)."""
    part = {1: 1, 2: 2, 4: 2}
    samples = []
    for length, count in part.items():  # each of the 2^length noisings has probability p_n / 2^length
        samples += all_noisings(make_sample, [(0,) * length] * (count * 2 ** (4 - length)), averages_bags)
    table = Table(samples, config)

    def posterior(m: int) -> dict[int, float]:
        weight = {
            n: p * float(np.prod([(n - j) / (j + 1) for j in range(m)])) * HALF ** (n - m) for n, p in part.items()
        }
        return {n: w / sum(weight.values()) for n, w in weight.items()}

    def zero_prob(m: int) -> float:
        return sum(p * m / n for n, p in posterior(m).items())

    def rate(m: int) -> float:
        expected_count = sum(p * (n - m) for n, p in posterior(m).items()) / (m + 1)
        return expected_count / (1.0 - zero_prob(m)) if zero_prob(m) < 1.0 else 1.0

    zero_logit = table.fill(lambda m: logit(zero_prob(m)))
    log_rate = table.fill(lambda m: float(np.log(rate(m))))
    table.losses(zero_logit, log_rate, torch.zeros(len(table.views), 1), "batch").total.backward()
    assert zero_logit.grad is not None
    assert log_rate.grad is not None
    assert zero_logit.grad.abs().max() < table.rounding
    assert log_rate.grad.abs().max() < table.rounding


@pytest.mark.parametrize("normalize", ["batch", "paper"])
@pytest.mark.parametrize("text", [(0, 0, 1), (0, 1, 0), (0, 0, 0), (0, 1, 2), (0, 1, 0, 0, 1)], ids=str)
def test_the_loss_of_averaged_bags_is_the_mean_over_all_alignments(
    config: Config, make_sample: Callable[..., Sample], text: tuple[int, ...], normalize: str
) -> None:
    """Whatever is predicted; the text (0, 0, 1) of which (0,) is kept has two."""
    sampled, averaged = (all_noisings(make_sample, [text], averages_bags) for averages_bags in (False, True))
    generator = torch.Generator().manual_seed(0)
    for mean in averaged:
        ways = [sample for sample in sampled if np.array_equal(sample.tokens, mean.tokens)]
        shapes = ((len(mean.tokens),), (len(mean.tokens),), (len(mean.tokens), VOCAB))
        said = [torch.randn(*shape, generator=generator) for shape in shapes]
        own, *others = (Table([sample], config).losses(*said, normalize).stack() for sample in (mean, *ways))
        torch.testing.assert_close(own, torch.stack(others).mean(0), rtol=0.0, atol=1e-6)


def slots(
    counts: list[int],
    make_noisy: Callable[..., NoisySample],
    is_open: list[bool] | None = None,
    normalize: str = "batch",
) -> PackedBatch:
    """A batch of one text whose slots miss so many tokens."""
    noisy = make_noisy(np.random.default_rng(0), num_tokens=len(counts), num_images=0, num_bag_tokens=sum(counts))
    noisy = with_bags(noisy, np.repeat(np.arange(len(counts)), counts))
    return pack([replace(noisy, is_open=np.array(is_open)) if is_open else noisy], None, normalize)


def learn_rate(counts: list[int], config: Config, make_noisy: Callable[..., NoisySample]) -> float:
    """The rate that gradient descent ends at, when one number must serve all slots."""
    batch = slots(counts, make_noisy)
    log_rate = torch.tensor(0.7, requires_grad=True)
    for _ in range(60):
        prediction = predict(batch, torch.zeros(len(counts)), log_rate.expand(len(counts)))
        (grad,) = torch.autograd.grad(
            compute_losses(prediction, batch, batch.counts, flow_of(config, "batch")).rate, log_rate
        )
        log_rate = (log_rate.detach() - 0.5 * grad).requires_grad_()
    return log_rate.detach().exp().item()


def test_rate_goes_to_one_where_every_bag_has_one_token(config: Config, make_noisy: Callable[..., NoisySample]) -> None:
    assert learn_rate([1] * 10, config, make_noisy) == pytest.approx(1.0, abs=1e-4)


def test_rate_goes_to_the_mean_count_and_not_to_the_truncated_poisson_rate(
    config: Config, make_noisy: Callable[..., NoisySample]
) -> None:
    """Where something is missing, 1.2 tokens are; a zero-truncated Poisson likelihood would end at .376."""
    assert learn_rate([1, 1, 1, 1, 2], config, make_noisy) == pytest.approx(1.2, abs=1e-4)


def test_empty_slots_do_not_pull_on_the_rate(config: Config, make_noisy: Callable[..., NoisySample]) -> None:
    batch = slots([0, 2, 0, 1], make_noisy)
    log_rate = torch.full((4,), 0.3, requires_grad=True)
    compute_losses(
        predict(batch, torch.zeros(4), log_rate), batch, batch.counts, flow_of(config, "batch")
    ).total.backward()
    assert log_rate.grad is not None
    assert (log_rate.grad != 0.0).tolist() == [False, True, False, True]


@pytest.mark.parametrize("normalize", ["batch", "paper"])
def test_losses_are_the_formulas(config: Config, make_noisy: Callable[..., NoisySample], normalize: str) -> None:
    """Means over three open slots; the fourth is closed."""
    batch = slots([0, 2, 1, 0], make_noisy, [True, True, True, False], normalize)
    pi, rate = torch.tensor([0.7, 0.2, 0.4, 0.5]), torch.tensor([5.0, 1.5, 0.8, 1.0])
    prediction = predict(batch, pi.logit(), rate.log(), bag_nll=torch.tensor([0.1, 0.2, 0.4]))
    losses = compute_losses(prediction, batch, batch.counts, flow_of(config, normalize))
    assert losses.zero.item() == pytest.approx(-(np.log(0.7) + np.log(0.8) + np.log(0.6)) / 3, rel=1e-5)
    assert losses.rate.item() == pytest.approx((1.5 - 2 * np.log(1.5) + 0.8 - np.log(0.8)) / 3, rel=1e-5)
    assert losses.bag.item() == pytest.approx(0.7 / 3, rel=1e-5)
    assert losses.total.item() == pytest.approx((losses.zero + losses.rate + losses.bag).item(), rel=1e-6)


def test_image_loss_is_zero_where_the_velocity_is_the_target(
    config: Config, make_noisy: Callable[..., NoisySample]
) -> None:
    batch = pack([make_noisy(np.random.default_rng(0), num_images=3)], None)
    prediction = predict(batch, torch.zeros(9), torch.zeros(9))
    assert compute_losses(prediction, batch, batch.counts, flow_of(config, "batch")).velocity.item() == 0.0


def test_image_loss_is_the_mean_square_over_scored_images(
    config: Config, make_noisy: Callable[..., NoisySample]
) -> None:
    noisy = with_moving(make_noisy(np.random.default_rng(0), num_images=3), True, False, True)
    batch = pack([noisy], None)
    errors = torch.tensor([1.0, 100.0, 3.0]).repeat_interleave(4)[:, None]
    prediction = predict(batch, torch.zeros(9), torch.zeros(9))
    prediction = replace(prediction, velocity=(prediction.velocity[0] + errors,))
    losses = compute_losses(prediction, batch, batch.counts, flow_of(config, "batch", 0.25))
    assert losses.velocity.item() == pytest.approx((1.0 + 9.0) / 2, rel=1e-5)
    text = losses.zero + losses.rate + losses.bag
    assert losses.total.item() == pytest.approx((text + 0.25 * losses.velocity).item(), rel=1e-6)


def test_image_loss_of_mixed_shapes_is_the_mean_over_all_elements(
    config: Config, make_noisy: Callable[..., NoisySample]
) -> None:
    """In float64, image by image: a large image counts by its size, a clean one not at all."""
    rng = np.random.default_rng(5)
    first = make_noisy(rng, num_images=3, grid=[(1, 2), (5, 3), (2, 2)])
    samples = [with_moving(first, True, False, True), make_noisy(rng, grid=(4, 7))]
    batch = pack(samples, None)
    prediction = random_prediction(batch, 0)
    losses = compute_losses(prediction, batch, batch.counts, flow_of(config, "batch"))

    squares: list[float] = []
    place = 0
    for sample in samples:
        (images,) = sample.pieces
        for (_, rows, columns), is_scored in zip(images.pieces.grid, images.is_moving, strict=True):
            own = slice(place, place + rows * columns)
            place += rows * columns
            error = prediction.velocity[0][own].double() - batch.pieces[0].velocity[own].double()
            squares += error.square().flatten().tolist() if is_scored else []
    assert (len(squares),) == batch.counts.moving_elements == (16 * (2 + 4 + 28),)
    assert losses.velocity.item() == pytest.approx(float(np.mean(squares)), rel=1e-6)


def random_values(batch: PackedBatch, seed: int) -> dict[str, Tensor]:
    """What `predict_values` makes a prediction of."""
    generator = torch.Generator().manual_seed(seed)
    zero_logit, log_rate = torch.randn(2, len(batch.tokens), generator=generator)
    bag_nll = torch.rand(len(batch.bag_tokens), generator=generator)
    velocity = torch.randn(batch.pieces[0].velocity.shape, generator=generator)
    return {"zero_logit": zero_logit, "log_rate": log_rate, "bag_nll": bag_nll, "velocity": velocity}


def predict_values(batch: PackedBatch, velocity: Tensor, **values: Tensor) -> Prediction:
    return replace(predict(batch, **values), velocity=(velocity,))


def random_prediction(batch: PackedBatch, seed: int) -> Prediction:
    return predict_values(batch, **random_values(batch, seed))


def join(values: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([value[name] for value in values]) for name in values[0]}


@pytest.mark.parametrize("normalize", ["batch", "paper"])
def test_losses_of_microbatches_sum_to_the_loss_of_one_batch(
    config: Config, make_noisy: Callable[..., NoisySample], normalize: str
) -> None:
    rng, flow = np.random.default_rng(1), flow_of(config, normalize, 0.5)
    samples = [
        make_noisy(rng, num_tokens=n, num_images=i, num_bag_tokens=b) for n, i, b in ((4, 1, 9), (7, 0, 1), (2, 2, 0))
    ]
    parts = [pack([sample], None, normalize) for sample in samples]
    values = [random_values(batch, seed) for seed, batch in enumerate(parts)]
    whole = pack(samples, None, normalize)
    counts = sum((batch.counts for batch in parts), Counts.zeros())
    one = compute_losses(predict_values(whole, **join(values)), whole, whole.counts, flow).stack()
    many = [compute_losses(predict_values(b, **v), b, counts, flow).stack() for v, b in zip(values, parts, strict=True)]
    torch.testing.assert_close(torch.stack(many).sum(0), one)


def test_paper_normalisation_is_the_mean_over_samples_of_the_mean_over_slots(
    config: Config, make_noisy: Callable[..., NoisySample]
) -> None:
    rng = np.random.default_rng(2)
    samples = [make_noisy(rng, num_tokens=n, num_images=0, num_bag_tokens=b) for n, b in ((1, 12), (8, 3), (5, 0))]
    parts = [pack([sample], None, "batch") for sample in samples]
    values = [random_values(batch, seed) for seed, batch in enumerate(parts)]
    whole = pack(samples, None, "paper")
    paper = compute_losses(predict_values(whole, **join(values)), whole, whole.counts, flow_of(config, "paper")).stack()
    alone = [
        compute_losses(predict_values(b, **v), b, b.counts, flow_of(config, "batch")).stack()
        for v, b in zip(values, parts, strict=True)
    ]
    torch.testing.assert_close(paper, torch.stack(alone).mean(0))


@pytest.mark.parametrize("normalize", ["batch", "paper"])
def test_closed_slots_add_no_loss(config: Config, make_noisy: Callable[..., NoisySample], normalize: str) -> None:
    noisy = make_noisy(np.random.default_rng(3), num_tokens=5, num_images=1, num_bag_tokens=3)
    noisy = with_bags(replace(noisy, is_open=np.array([1, 0, 1, 0, 1, 1], dtype=bool)), [0, 2, 2])
    batch = pack([noisy], None, normalize)
    values = random_values(batch, 0)
    wild = {name: value.clone() for name, value in values.items()}
    wild["zero_logit"][[1, 3]] = 50.0
    wild["log_rate"][[1, 3]] = 5.0
    expected, actual = (
        compute_losses(predict_values(batch, **of_batch), batch, batch.counts, flow_of(config, normalize))
        for of_batch in (values, wild)
    )
    torch.testing.assert_close(actual.stack(), expected.stack())


@pytest.mark.parametrize("wild", [89.0, 1e4, 1e30, float("inf"), float("nan")])
@pytest.mark.parametrize("normalize", ["batch", "paper"])
def test_what_is_not_scored_may_be_anything(
    config: Config, make_noisy: Callable[..., NoisySample], normalize: str, wild: float
) -> None:
    """Nothing trains closed slots, rates where nothing is missing, and clean images: they may overflow."""
    noisy = make_noisy(np.random.default_rng(3), num_tokens=5, num_images=2, num_bag_tokens=3)
    is_open = np.array([1, 0, 1, 0, 1, 1, 1], dtype=bool)
    noisy = with_moving(with_bags(replace(noisy, is_open=is_open), [0, 2, 2]), False, True)
    batch = pack([noisy], None, normalize)
    tame = random_prediction(batch, 0)
    is_scored = {
        "zero_logit": batch.slot_weight > 0,
        "log_rate": (batch.slot_weight > 0) & (batch.filled_prob > 0),
        "velocity": (batch.pieces[0].patch_weight > 0)[:, None].expand_as(tame.velocity[0]),
    }
    values = {"zero_logit": tame.zero_logit, "log_rate": tame.log_rate, "velocity": tame.velocity[0]}
    found = []
    for value in (0.0, wild):
        inputs = {name: torch.where(is_scored[name], values[name], value).requires_grad_() for name in values}
        prediction = replace(tame, **inputs | {"velocity": (inputs["velocity"],)})
        losses = compute_losses(prediction, batch, batch.counts, flow_of(config, normalize))
        gradients = torch.autograd.grad(losses.total, list(inputs.values()))
        found.append([losses.stack(), *gradients])
        for name, gradient in zip(values, gradients, strict=True):
            assert (gradient[~is_scored[name]] == 0.0).all(), name
    assert found[0][0][-1] > 0.0
    for same, other in zip(*found, strict=True):
        assert torch.equal(same, other)


@pytest.mark.parametrize("normalize", ["batch", "paper"])
def test_a_batch_with_nothing_to_learn_has_loss_zero(
    config: Config, make_noisy: Callable[..., NoisySample], normalize: str
) -> None:
    noisy = make_noisy(np.random.default_rng(4), num_images=1, num_bag_tokens=0)
    noisy = with_moving(replace(noisy, is_open=np.zeros(7, dtype=bool)), False)
    batch = pack([noisy], None, normalize)
    losses = compute_losses(random_prediction(batch, 0), batch, batch.counts, flow_of(config, normalize))
    assert not losses.stack().any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", range(6))
def test_one_bad_loss_is_seen(place: int, bad: float) -> None:
    """Of text, or of one of two modalities, or the total."""
    good = torch.ones(6)
    assert are_finite(Losses.unstack(good))
    assert not are_finite(Losses.unstack(torch.where(torch.arange(6) == place, bad, good)))


# Several modalities.


@pytest.fixture
def mixed() -> NoisySample:
    """An image of 2 x 2 patches, two sounds of which one is clean, and what a picture looks like."""
    image, sound = noisy_pieces([1], (1, 2, 2), 16), noisy_pieces([2, 3], [(3, 1, 1), (1, 1, 1)], 8)
    looks = noise_pieces(pieces([4], (1, 2, 2), 24, is_given_only=True), np.zeros(1, bool), np.random.default_rng(0))
    tokens = np.arange(6)
    return NoisySample(
        key="test/mixed",
        tokens=tokens,
        is_given=tokens == 0,
        is_open=tokens > 3,
        bags=Bags.of_tokens(tokens[:1], tokens[5:], 6),
        pieces=(image, replace(sound, is_moving=np.array([True, False])), looks),
        text_time=0.5,
    )


def test_each_modality_has_its_own_mean_and_weight(config: Config, mixed: NoisySample) -> None:
    """A clean sound counts nowhere; what is only given has loss 0, whatever its weight."""
    batch = pack([mixed, mixed], None)
    assert batch.counts.moving_elements == (2 * 4 * 16, 2 * 3 * 8, 0)
    prediction = predict(batch, torch.zeros(12), torch.zeros(12))
    errors = (2.0, torch.tensor([3.0, 3.0, 3.0, 100.0] * 2)[:, None], 0.0)
    wrong = tuple(velocity + error for velocity, error in zip(prediction.velocity, errors, strict=True))
    losses = compute_losses(
        replace(prediction, velocity=wrong), batch, batch.counts, flow_of(config, "batch", 0.5, 0.25, 7.0)
    )
    assert losses.velocity.tolist() == pytest.approx([4.0, 9.0, 0.0])
    text = losses.zero + losses.rate + losses.bag
    assert losses.total.item() == pytest.approx(text.item() + 0.5 * 4.0 + 0.25 * 9.0, rel=1e-6)


def test_a_modality_that_a_pack_lacks_adds_nothing_and_no_gradient_that_is_broken(
    config: Config, mixed: NoisySample
) -> None:
    none = replace(mixed, pieces=tuple(noisy_pieces([], (1, 1, 1), elements) for elements in (16, 8, 24)))
    batch = pack([none], None)
    weight = torch.ones((), requires_grad=True)
    prediction = predict(batch, torch.zeros(6), torch.zeros(6))
    velocity = tuple(weight * velocity for velocity in prediction.velocity)
    losses = compute_losses(
        replace(prediction, velocity=velocity), batch, batch.counts, flow_of(config, "batch", 1.0, 1.0, 0.0)
    )
    assert losses.velocity.tolist() == [0.0, 0.0, 0.0]
    (gradient,) = torch.autograd.grad(losses.total, [weight])
    assert gradient == 0.0


def test_a_text_only_model_has_the_losses_of_its_text(config: Config, mixed: NoisySample) -> None:
    batch = pack([replace(mixed, pieces=())], None)
    losses = compute_losses(
        predict(batch, torch.zeros(6), torch.zeros(6)), batch, batch.counts, replace(config, modality={})
    )
    assert losses.velocity.shape == (0,)
    assert losses.total == losses.zero + losses.rate + losses.bag


def test_losses_of_microbatches_with_other_shares_of_modalities_sum_to_those_of_one_batch(
    config: Config, mixed: NoisySample
) -> None:
    """Each is divided by the elements of its modality in the whole step."""
    image, sound, looks = mixed.pieces
    no_image, no_sound = (noisy_pieces([], (1, 1, 1), elements) for elements in (16, 8))
    samples = [mixed, *(replace(mixed, pieces=p) for p in ((no_image, sound, looks), (image, no_sound, looks)))]
    whole, parts = pack(samples, None), [pack([sample], None) for sample in samples]
    counts = sum((part.counts for part in parts), Counts.zeros())
    generator = torch.Generator().manual_seed(0)
    own = [[torch.randn(p.velocity.shape, generator=generator) for p in part.pieces] for part in parts]
    joined = [torch.cat(kind) for kind in zip(*own, strict=True)]
    flow = flow_of(config, "batch", 0.5, 0.25, 0.0)

    def velocity_losses(batch: PackedBatch, velocity: list[Tensor], counts: Counts) -> Tensor:
        zeros = torch.zeros(len(batch.tokens))
        prediction = replace(predict(batch, zeros, zeros), velocity=tuple(velocity))
        return compute_losses(prediction, batch, counts, flow).velocity

    many = [velocity_losses(batch, velocity, counts) for batch, velocity in zip(parts, own, strict=True)]
    one = velocity_losses(whole, joined, whole.counts)
    torch.testing.assert_close(torch.stack(many).sum(0), one)
    assert one[:2].min() > 0.5


@pytest.mark.parametrize("wild", [1e30, float("inf"), float("nan")])
def test_a_clean_piece_of_one_modality_takes_nothing_from_another(
    config: Config, mixed: NoisySample, wild: float
) -> None:
    """Whatever is said of sounds, none of which moves, the image's loss and gradient are its own."""
    image, sound, looks = mixed.pieces
    sound = replace(sound, is_moving=np.zeros(2, dtype=bool))
    batch = pack([replace(mixed, pieces=(image, sound, looks))], None)
    prediction = predict(batch, torch.zeros(6), torch.zeros(6))
    velocity = [prediction.velocity[0] + 2.0, torch.full_like(prediction.velocity[1], wild)]
    inputs = [x.requires_grad_() for x in velocity]
    wrong = replace(prediction, velocity=(*inputs, prediction.velocity[2]))
    losses = compute_losses(wrong, batch, batch.counts, flow_of(config, "batch", 1.0, 1.0, 0.0))
    assert losses.velocity.tolist() == pytest.approx([4.0, 0.0, 0.0])
    gradients = torch.autograd.grad(losses.total, inputs)
    torch.testing.assert_close(gradients[0], torch.full((4, 16), 2 * 2.0 / (4 * 16)))
    assert not gradients[1].any()
