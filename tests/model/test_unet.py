from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oneflow_dist.config import Config
from oneflow_dist.containers import PackedPieces
from oneflow_dist.data.codec import to_patches
from oneflow_dist.modality import ModalityConfig, Sides, on_axes
from oneflow_dist.model.initialization import initialize
from oneflow_dist.model.unet import UNet, _LookAround, look_around, neighbours
from tests.launching import Launcher
from tests.modalities import Grid, overrides, packed

WIDTH = 12
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SHAPES = {1: ((12,), (3,)), 2: ((8, 12), (4, 2)), 3: ((4, 6, 4), (2, 3, 1))}  # by dimensions: a piece, a patch
MIXED: list[Grid] = [(1, 2, 3), (1, 1, 1), (1, 3, 2)]


def reach_of(patch: tuple[int, ...]) -> Sides:
    return on_axes((3,) * len(patch))


def elements_of(images: Tensor, patch: tuple[int, ...]) -> Tensor:
    """[n, C, *sides] as elements, patch by patch."""
    parts = [to_patches(np.arange(images[0, 0].numel()).reshape(1, *images.shape[2:]), on_axes(patch)) for _ in images]
    order = torch.from_numpy(parts[0]).flatten()
    return images.flatten(2).transpose(1, 2)[:, order].flatten(0, 1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("dimensions", SHAPES)
def test_a_look_around_and_a_product_are_a_convolution(dimensions: int, dtype: torch.dtype, tolerance: float) -> None:
    """Three pieces of one shape, whatever their patches: the values, and the gradients of all that goes in."""
    shape, patch = SHAPES[dimensions]
    sides = zip(on_axes(shape), on_axes(patch), strict=True)
    generator = torch.Generator().manual_seed(dimensions)
    images, weight, bias, grad = (
        torch.randn(*size, generator=generator, dtype=dtype).requires_grad_()
        for size in ((3, 2, *shape), (5, 2, *[3] * dimensions), (5,), (3, 5, *shape))
    )
    expected = CONVOLUTIONS[dimensions](images, weight, bias, padding=1)
    near = neighbours(packed([tuple(side // part for side, part in sides)] * 3, 1), on_axes(patch), reach_of(patch))
    seen = look_around(elements_of(images, patch), near)
    found = F.linear(seen, weight.flatten(2).transpose(1, 2).flatten(1), bias)  # neighbour by neighbour, then channels
    inputs = (images, weight, bias)
    pairs = zip(
        [found, *torch.autograd.grad(found, inputs, elements_of(grad, patch).detach())],
        [elements_of(expected, patch), *torch.autograd.grad(expected, inputs, grad.detach())],
        strict=True,
    )
    for actual, exact in pairs:
        scale = exact.abs().max().item()
        torch.testing.assert_close(actual, exact, rtol=0.0, atol=tolerance * scale)


def brute_neighbours(grids: Sequence[Grid], patch: Sides, reach: Sides) -> list[list[int]]:
    """By looking for every place among all places."""
    size = math.prod(patch)
    place_of: dict[tuple[int, ...], int] = {}  # piece and place along each axis -> number of the element
    for piece, grid in enumerate(grids):
        for of_patch in itertools.product(*map(range, grid)):
            for inner in itertools.product(*map(range, patch)):
                at = [p * side + i for p, side, i in zip(of_patch, patch, inner, strict=True)]
                place_of[piece, *at] = len(place_of)
    assert len(place_of) == size * sum(math.prod(grid) for grid in grids)
    steps = list(itertools.product(*([0] if width == 1 else [-1, 0, 1] for width in reach)))
    return [
        [place_of.get((piece, *(a + b for a, b in zip(at, step, strict=True))), len(place_of)) for step in steps]
        for piece, *at in place_of
    ]


@pytest.mark.parametrize(
    ("patch", "grids"),
    [
        ((1,), [(3, 1, 1), (1, 1, 1), (5, 1, 1)]),
        ((4,), [(2, 1, 1), (3, 1, 1)]),
        ((1, 1), [(1, 2, 3), (1, 1, 1), (1, 4, 1)]),
        ((2, 3), [(1, 3, 2), (1, 1, 4)]),
        ((4, 4), [(1, 1, 2), (1, 2, 2)]),
        ((1, 1, 1), [(2, 3, 2), (1, 2, 2)]),
        ((2, 1, 3), [(2, 2, 1), (1, 3, 2)]),
    ],
)
def test_neighbours_are_those_that_a_search_finds(patch: tuple[int, ...], grids: list[Grid]) -> None:
    """Of elements and of patches, in 1, 2 and 3 dimensions."""
    pieces, reach = packed(grids, 1, spare=2), reach_of(patch)
    for sides in (on_axes(patch), (1, 1, 1)):
        assert neighbours(pieces, sides, reach).tolist() == brute_neighbours(grids, sides, reach)


def test_the_gradient_of_a_look_around_is_that_of_its_differences() -> None:
    near = neighbours(packed(MIXED, 1), (1, 1, 2), (1, 3, 3))
    x = torch.randn(len(near), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: _LookAround.apply(x, near), (x,))


# The whole of it.


@pytest.fixture(scope="module")
def modality(make_config: Callable[..., Config]) -> ModalityConfig:
    """Pictures of two channels in patches of 2 x 3."""
    own = overrides("kind", channels=2, shape=[4, 6], patch=[2, 3], adapter="unet", adapter_width=4)
    return make_config(*own).modality["kind"]


def noisy_unet(modality: ModalityConfig, noise: float) -> UNet:
    """As first values leave it, plus noise, in float64."""
    unet = UNet(WIDTH, modality, 1e-5)
    initialize(torch.nn.ModuleDict({"unet": unet}), 0, 1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=generator)
    return unet.double()


@pytest.fixture
def unet(modality: ModalityConfig) -> UNet:
    """One in which every parameter matters."""
    return noisy_unet(modality, 0.3)


def run(unet: UNet, pieces: PackedPieces, patches: Tensor, time: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that go into the trunk, and the velocity from what comes out of it, `rows`."""
    into, skips = unet.encode(patches, pieces, time)
    return into, unet.decode(rows, pieces, time, skips)


def inputs_of(pieces: PackedPieces) -> tuple[Tensor, Tensor, Tensor]:
    """Patches, embedded times of the pieces, and rows out of the trunk."""
    generator = torch.Generator().manual_seed(1)
    sizes = ((len(pieces.grid), WIDTH), (len(pieces.patches), WIDTH))
    time, rows = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes)
    return pieces.patches.double(), time, rows


def piece_of(pieces: PackedPieces, number: int) -> PackedPieces:
    own = pieces.patch_piece == number
    return PackedPieces(
        time=pieces.time[number : number + 1],
        grid=pieces.grid[number : number + 1],
        patches=pieces.patches[own],
        velocity=pieces.velocity[own],
        sequence=pieces.sequence[number : number + 1],
        patch_piece=torch.zeros_like(pieces.patch_piece[own]),
        patch_row=torch.arange(int(own.sum())),
        patch_weight=pieces.patch_weight[own],
    )


@pytest.fixture
def _unchecked(unchecked: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Annotations say float32 where these are float64."""
    with unchecked():
        yield


@pytest.mark.usefixtures("_unchecked")
def test_pieces_of_mixed_shapes_give_together_what_each_gives_alone(unet: UNet) -> None:
    pieces = packed(MIXED, 12, spare=2)
    patches, time, rows = inputs_of(pieces)
    together = run(unet, pieces, patches, time, rows)
    for number in range(len(MIXED)):
        own = pieces.patch_piece == number
        alone = run(unet, piece_of(pieces, number), patches[own], time[number : number + 1], rows[own])
        for whole, part in zip(together, alone, strict=True):
            torch.testing.assert_close(whole[own], part, rtol=0.0, atol=1e-12)


@pytest.mark.usefixtures("_unchecked")
def test_no_element_sees_another_piece(unet: UNet) -> None:
    """Not even where its content or its time is not a number; its own neighbours it does see."""
    pieces = packed(MIXED, 12)
    patches, time, rows = (x.requires_grad_() for x in inputs_of(pieces))
    for number in range(len(MIXED)):
        own = pieces.patch_piece == number
        sums = [found[own].sum() for found in run(unet, pieces, patches, time, rows)]
        for gradient, is_own in zip(
            torch.autograd.grad(sum(sums), (patches, time, rows)),
            (own, torch.arange(len(time)) == number, own),
            strict=True,
        ):
            assert (gradient[is_own] != 0.0).all()
            assert (gradient[~is_own] == 0.0).all()
    wild = [x.detach().clone() for x in (patches, rows)]
    for x in wild:
        x[pieces.patch_piece == 1] = torch.nan
    for before, after in zip(
        run(unet, pieces, patches, time, rows), run(unet, pieces, wild[0], time, wild[1]), strict=True
    ):
        assert torch.equal(before[pieces.patch_piece != 1], after[pieces.patch_piece != 1])


@pytest.mark.parametrize("spare", [0, 3])
def test_without_pieces_it_runs_and_every_parameter_has_a_gradient_of_zeros(spare: int, unet: UNet) -> None:
    """As on a rank whose packs have none; else ranks would wait for each other."""
    unet = unet.float()
    pieces = packed([], 12, spare=spare)
    _, time, rows = (x.float() for x in inputs_of(pieces))
    into, velocity = run(unet, pieces, pieces.patches, time.requires_grad_(), rows.requires_grad_())
    assert (into.shape, velocity.shape) == ((0, WIDTH), (0, 12))
    (into.sum() + velocity.sum()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in unet.parameters())


@pytest.mark.usefixtures("_unchecked")
def test_every_parameter_gets_a_gradient(unet: UNet) -> None:
    pieces = packed(MIXED, 12)
    into, velocity = run(unet, pieces, *inputs_of(pieces))
    (into.square().sum() + velocity.square().sum()).backward()
    assert [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("dimensions", "grids"), [(1, [(2, 1, 1), (5, 1, 1)]), (3, [(2, 1, 2), (1, 2, 3)])])
@pytest.mark.usefixtures("_unchecked")
def test_sounds_and_videos_go_through_it_too(
    dimensions: int, grids: list[Grid], make_config: Callable[..., Config]
) -> None:
    shape, patch = SHAPES[dimensions]
    own = overrides("kind", channels=2, shape=[*shape], patch=[*patch], adapter="unet", adapter_width=4)
    kind = make_config(*own).modality["kind"]
    unet, pieces = noisy_unet(kind, 0.3), packed(grids, kind.patch_elements)
    patches, time, rows = inputs_of(pieces)
    together = run(unet, pieces, patches, time, rows)
    own_patches = pieces.patch_piece == 1
    alone = run(unet, piece_of(pieces, 1), patches[own_patches], time[1:], rows[own_patches])
    for whole, part in zip(together, alone, strict=True):
        torch.testing.assert_close(whole[own_patches], part, rtol=0.0, atol=1e-12)


@pytest.mark.usefixtures("_unchecked")
def test_velocity_starts_at_exactly_zero(modality: ModalityConfig) -> None:
    unet, pieces = noisy_unet(modality, 0.0), packed(MIXED, 12)
    into, velocity = run(unet, pieces, *inputs_of(pieces))
    assert not velocity.any()
    assert into.std() > 0.1


def traced(modality: ModalityConfig) -> list[tuple[Tensor, Tensor]]:
    """Outputs and gradients of the whole as one graph, and without a graph."""
    unet, pieces = noisy_unet(modality, 0.3), packed(MIXED, modality.patch_elements)
    inputs, of_both = [x.requires_grad_() for x in inputs_of(pieces)], []
    for function in (torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=False), run):
        outputs = function(unet, pieces, *inputs)
        total = sum(x.square().sum() for x in outputs)
        of_both.append([*outputs, *torch.autograd.grad(total, [*inputs, *unet.parameters()])])
    return [(found.detach(), expected.detach()) for found, expected in zip(*of_both, strict=True)]


def test_traced_whole_it_computes_what_it_does_eagerly(launcher: Launcher, modality: ModalityConfig) -> None:
    (pairs,) = launcher.call(1, traced, modality)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
