from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oneflow_dist.config import Config
from oneflow_dist.containers import PackedPieces, Pieces
from oneflow_dist.data.codec import cut_pieces
from oneflow_dist.data.media import encode_view
from oneflow_dist.modality import ModalityConfig
from oneflow_dist.model.adapters import Adapter, GivenAdapter
from oneflow_dist.model.linear import Linear
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.model.understanding import load_understanding
from oneflow_dist.views import read_view
from tests.messages import names
from tests.modalities import VISION, overrides, packed
from tests.precompute.making import png, save_siglip

CPU = torch.device("cpu")
WIDTH = 12
PIECES = packed([(1, 1, 3), (1, 1, 2)], 16)
AT_OTHER_TIMES = replace(PIECES, time=PIECES.time.flip(0))
PATCH_PIECE = PIECES.patch_piece


@pytest.fixture(params=["linear", "two_layer"])
def modality(request: pytest.FixtureRequest, config: Config) -> ModalityConfig:
    """Images whose time is added."""
    width = 10 if request.param == "two_layer" else 0
    return replace(config.modality["image"], adapter=request.param, adapter_width=width)


def make_adapter(modality: ModalityConfig) -> Adapter:
    torch.manual_seed(0)
    return Adapter(WIDTH, modality, 1e-5)


def adaln(modality: ModalityConfig) -> Adapter:
    return make_adapter(replace(modality, time_conditioning="adaln"))


def decode(adapter: Adapter, rows: Tensor, pieces: PackedPieces = PIECES) -> Tensor:
    return adapter.decode(rows, pieces, adapter.encode(pieces), None)


def test_added_time_moves_every_row_of_its_piece(modality: ModalityConfig) -> None:
    adapter = make_adapter(modality)
    encoded = adapter.encode(PIECES)
    torch.testing.assert_close(encoded.time, adapter.time(PIECES.time))
    torch.testing.assert_close(encoded.rows - adapter.embed(PIECES.patches), encoded.time[PATCH_PIECE])
    assert encoded.skips is None


def test_modulation_replaces_the_added_time(modality: ModalityConfig) -> None:
    adapter, rows = adaln(modality), torch.randn(5, WIDTH)
    assert torch.equal(adapter.encode(PIECES).rows, adapter.encode(AT_OTHER_TIMES).rows)
    assert not torch.isclose(decode(adapter, rows), decode(adapter, rows, AT_OTHER_TIMES)).all()


def test_modulation_gives_each_patch_the_time_of_its_piece(modality: ModalityConfig) -> None:
    adapter, rows = adaln(modality), torch.randn(5, WIDTH)
    together = decode(adapter, rows)
    for piece, grid in ((0, (1, 1, 3)), (1, (1, 1, 2))):
        own = PATCH_PIECE.eq(piece)
        alone = replace(packed([grid], 16), time=PIECES.time[piece : piece + 1])
        torch.testing.assert_close(together[own], decode(adapter, rows[own], alone))


def test_without_modulation_decoding_knows_no_time(modality: ModalityConfig) -> None:
    adapter, rows = make_adapter(modality), torch.randn(5, WIDTH)
    assert torch.equal(decode(adapter, rows), decode(adapter, rows, AT_OTHER_TIMES))


@pytest.mark.parametrize("adapter", ["linear", "two_layer", "unet"])
def test_where_heads_know_the_text_time_velocities_know_that_of_their_sequence(config: Config, adapter: str) -> None:
    modality = replace(config.modality["image"], adapter=adapter, adapter_width=8 * (adapter != "linear"))
    torch.manual_seed(0)
    knowing, pieces = Adapter(WIDTH, modality, 1e-5, knows_text=True), replace(PIECES, sequence=torch.tensor([0, 1]))
    rows, time = torch.randn(5, WIDTH), torch.randn(2, WIDTH)
    later = time + torch.tensor([[0.0], [1.0]])
    encoded = knowing.encode(pieces)
    before, after = (knowing.decode(rows, pieces, encoded, text_time) for text_time in (time, later))
    assert torch.equal((before != after).any(dim=1), PATCH_PIECE == 1)


def test_each_patch_of_the_velocity_comes_from_its_own_row(modality: ModalityConfig) -> None:
    adapter, rows = make_adapter(modality), torch.randn(5, WIDTH)
    changed = rows.clone()
    changed[2] += torch.randn(WIDTH)
    before, after = (decode(adapter, x) for x in (rows, changed))
    assert (after != before).all(dim=1).tolist() == [False, False, True, False, False]
    assert torch.equal((after != before).any(dim=1), (after != before).all(dim=1))


def test_an_adapter_without_pieces_gives_none(modality: ModalityConfig) -> None:
    adapter, nothing = make_adapter(modality), packed([], 16)
    encoded = adapter.encode(nothing)
    velocity = adapter.decode(encoded.rows, nothing, encoded, None)
    assert velocity.shape == (0, 16)
    velocity.sum().backward()
    assert [name for name, p in adapter.named_parameters() if p.grad is None] == []


def test_two_layers_are_two_products_with_silu_between(modality: ModalityConfig) -> None:
    """Into the trunk and, after the norm, out of it; a linear adapter has one of each."""
    adapter, rows = make_adapter(modality), torch.randn(5, WIDTH)
    encoded = adapter.encode(PIECES)

    def layers(name: str) -> list[Linear]:
        part = adapter.get_submodule(name)
        return [layer for layer in part.children() if isinstance(layer, Linear)]

    for name, x, found in (
        ("embed", PIECES.patches, encoded.rows - encoded.time[PATCH_PIECE]),
        ("velocity", F.rms_norm(rows, (WIDTH,), eps=1e-5), adapter.decode(rows, PIECES, encoded, None)),
    ):
        first, *second = layers(name)
        hidden = x @ first.weight.T + first.bias
        for layer in second:
            hidden = hidden * hidden.sigmoid() @ layer.weight.T + layer.bias
        assert [len(layer.weight) for layer in layers(name)[:-1]] == [10] * (modality.adapter == "two_layer")
        torch.testing.assert_close(found, hidden)


# What is only given.


def test_rows_of_features_are_those_of_their_patches_alone(make_config: Callable[..., Config]) -> None:
    torch.manual_seed(0)
    modality = make_config(*VISION).modality["vision"]
    adapter, pieces = GivenAdapter(WIDTH, modality), packed([(1, 2, 2), (1, 1, 1)], modality.patch_elements)
    rows = adapter.encode(pieces).rows
    first, last = adapter.embed.first, adapter.embed.last
    assert first is not None
    expected = F.silu(pieces.patches @ first.weight.T + first.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(rows, expected)
    assert torch.equal(rows, adapter.encode(replace(pieces, time=1.0 - pieces.time)).rows)
    assert adapter.decode(rows, pieces, adapter.encode(pieces), None).shape == (5, 0)
    adapter.load_encoder(CPU)  # there is none to be loaded
    assert adapter.encoder is None


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_siglip(tmp_path_factory.mktemp("siglip") / "tiny")


def looking(make_config: Callable[..., Config], folder: Path, how: str, **keys: object) -> Config:
    """A modality of what the tiny SigLIP sees, computed as `how` says."""
    own = {"channels": 16, "shape": [2, 2], "patch": [1, 1], "loss_weight": 0.0, "adapter": "two_layer"}
    own |= {"adapter_width": 12, "understanding": how, "codec": folder}
    return make_config(*overrides("vision", **own | keys))


def packed_as(pieces: Pieces) -> PackedPieces:
    grids = [tuple(grid) for grid in pieces.grid.tolist()]
    return replace(packed(grids, pieces.patches.shape[1], spare=1), patches=torch.from_numpy(pieces.patches))


@pytest.mark.parametrize("patch", [[1, 1], [2, 2], [1, 2]])
def test_a_live_encoder_gives_the_rows_of_what_it_would_have_stored(
    patch: list[int], siglip: Path, make_config: Callable[..., Config]
) -> None:
    """To the bit where maps are kept in float32; as near as float16 otherwise."""
    live, stored = (looking(make_config, siglip, how, patch=patch).modality["vision"] for how in ("live", "features"))
    pictures = [png(seed, height, width) for seed, (height, width) in enumerate(((20, 30), (16, 16), (9, 40)))]
    shown = [encode_view(data, read_view(str(siglip)), "a picture") for data in pictures]
    pixels = np.stack([np.rint((view.transpose(1, 2, 0) + 1.0) * 127.5).astype(np.uint8) for view in shown])
    maps = load_understanding(str(siglip), CPU, torch.float32).encode(torch.from_numpy(pixels)).numpy()

    torch.manual_seed(0)
    adapter, same = GivenAdapter(WIDTH, live), GivenAdapter(WIDTH, stored)
    same.load_state_dict(adapter.state_dict())
    adapter.load_encoder(CPU)
    found = adapter.encode(packed_as(cut_pieces(shown, [1, 2, 3], live))).rows
    assert found.shape == (3 * 4 // (patch[0] * patch[1]), WIDTH)
    assert found.std(dim=0).min() > 0.01
    assert torch.equal(found, same.encode(packed_as(cut_pieces(list(maps), [1, 2, 3], stored))).rows)
    halves = [of_one.astype(np.float16).astype(np.float32) for of_one in maps]
    rounded = same.encode(packed_as(cut_pieces(halves, [1, 2, 3], stored))).rows
    torch.testing.assert_close(found, rounded, rtol=0.0, atol=2e-3 * found.abs().max().item())


def test_a_live_encoder_needs_no_picture(siglip: Path, make_config: Callable[..., Config]) -> None:
    adapter = GivenAdapter(WIDTH, looking(make_config, siglip, "live").modality["vision"])
    adapter.load_encoder(CPU)
    rows = adapter.encode(packed([], 3 * 8 * 8, spare=2)).rows
    assert rows.shape == (0, WIDTH)
    rows.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in adapter.parameters())


def test_weights_of_a_live_encoder_are_no_parameters_of_the_model(
    siglip: Path, make_config: Callable[..., Config]
) -> None:
    live, stored = (OneFlow(looking(make_config, siglip, how)) for how in ("live", "features"))
    live.load_encoders(CPU)
    adapter = live.adapters["vision"]
    assert isinstance(adapter, GivenAdapter)
    assert adapter.encoder is not None
    for listed in ("named_parameters", "named_buffers", "named_modules", "state_dict"):
        of_both = [sorted(dict(getattr(model, listed)())) for model in (live, stored)]
        assert of_both[0] == of_both[1], listed


@pytest.mark.parametrize("unlike", [{"channels": 8}, {"shape": [4, 4]}, {"shape": [1, 4]}])
def test_an_encoder_unlike_the_config_is_refused_in_one_line(
    unlike: dict[str, object], siglip: Path, make_config: Callable[..., Config]
) -> None:
    modality = looking(make_config, siglip, "live", **unlike).modality["vision"]
    with pytest.raises(ValueError) as error:
        GivenAdapter(WIDTH, modality).load_encoder(CPU)
    assert "\n" not in str(error.value)
    sides = f"[{', '.join(map(str, modality.shape))}]"
    assert names(str(error.value), siglip, 16, "2x2", "channels", modality.channels, "shape", sides)
