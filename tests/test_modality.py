from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from oneflow_dist.config import Config, load_config, write_config
from oneflow_dist.modality import CODECS, TAKEN_NAMES, TAKEN_TOKENS, ModalityConfig, check_modalities, on_axes
from tests.messages import names, refused
from tests.modalities import LOOKS, SOUND, VIDEO, VISION, overrides
from tests.pieces import modality

QUICKSTART = Path(__file__).parents[1] / "configs/quickstart.toml"
VECTOR = overrides("vector", channels=3, shape=[], patch=[])


def load(*more: str) -> Config:
    return load_config(QUICKSTART, list(more))


def refusal(*more: str) -> str:
    return refused(load, *more)


# Tables of a config.


def test_modalities_are_tables_of_the_config_in_their_order(tmp_path: Path) -> None:
    """And read back equal, order and all, with every key written out."""
    config = load(*VECTOR, *SOUND, *VIDEO, *VISION)
    assert list(config.modality) == ["image", "vector", "sound", "video", "vision"]
    (tmp_path / "again.toml").write_text(write_config(config))
    again = load_config(tmp_path / "again.toml")
    assert again == config
    assert list(again.modality) == list(config.modality)
    assert "[modality.vector]\n" in write_config(config)


def test_a_key_of_one_modality_can_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    path.write_text(write_config(load(*SOUND)))
    config = load_config(path, ["modality.sound.patch=[2]", "modality.sound.codec=spectrogram@16000"])
    sound = config.modality["sound"]
    assert (sound.patch, sound.codec, sound.grid) == ((2,), "spectrogram@16000", (6, 1, 1))
    assert config.modality["image"] == load().modality["image"]


def test_without_any_modality_a_config_is_of_text_alone(tmp_path: Path) -> None:
    text, _, rest = QUICKSTART.read_text().partition("[modality.image]")
    path = tmp_path / "text.toml"
    path.write_text(text + "[flow]" + rest.partition("[flow]")[2])
    config = load_config(path, ["sampling.guidance={}"])
    assert config.modality == {}
    path.write_text(write_config(config))
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("modality.image.paatch=[2]", ("modality.image.paatch", "modality.image.patch")),
        ("modality.image.patch=2", ("modality.image.patch", 2)),
        ('modality.image.patch=["a", 2]', ("modality.image.patch[0]", "int", "'a'")),
        ("modality.image.shape=[8.5, 8]", ("modality.image.shape[0]", "int", 8.5)),
        ("modality.image.adapter=conv", ("modality.image.adapter", "'conv'", "'linear'", "'two_layer'", "'unet'")),
        ("modality.sound.token=<|s|>", ("modality.sound.channels",)),
        ("modality.image=3", ("modality.image", 3)),
        ("modality=3", ("section.key=value",)),
    ],
)
def test_a_bad_key_or_value_of_a_modality_is_named(override: str, named: tuple[object, ...]) -> None:
    assert names(refusal(override), *named)


def test_modalities_that_are_no_tables_are_named(tmp_path: Path) -> None:
    path = tmp_path / "flat.toml"
    path.write_text("modality = 3\n" + QUICKSTART.read_text().partition("[modality.image]")[0])
    with pytest.raises(ValueError) as error:
        load_config(path)
    assert names(str(error.value), "modality", "[modality.NAME]", 3)


# What cannot work: one line that names key and value.


@pytest.mark.parametrize("name", ["Image", "2d", "a-b", "a.b", "ä", "", *TAKEN_NAMES])
def test_a_name_that_is_none_is_named(name: str) -> None:
    with pytest.raises(ValueError) as error:
        check_modalities({name: modality()})
    assert names(str(error.value), f"modality.{name}", "_", *TAKEN_NAMES)


@pytest.mark.parametrize("token", [*TAKEN_TOKENS, "<|image|>"])
def test_a_token_that_is_taken_is_named_with_whose_it_is(token: str) -> None:
    message = refusal(*SOUND, f"modality.sound.token={token}")
    assert names(message, "modality.sound.token", token)
    assert names(message, "modality.image" if token == "<|image|>" else "special")


@pytest.mark.parametrize("token", ["image", "<image>", "<||>", "<|a b|>", "", "x<|image|>", "<|image|>x"])
def test_a_token_of_another_form_is_named(token: str) -> None:
    assert names(refusal(f"modality.image.token='{token}'"), "modality.image.token", repr(token), "<|name|>")


@pytest.mark.parametrize(
    ("shape", "patch"),
    [([8, 8], [2]), ([8], [2, 2]), ([], [1]), ([8, 8, 8, 8], [2, 2, 2, 2]), ([1] * 4, [1] * 4)],
)
def test_a_shape_and_a_patch_of_other_dimensions_are_named(shape: list[int], patch: list[int]) -> None:
    message = refusal(*SOUND, f"modality.sound.shape={shape}", f"modality.sound.patch={patch}")
    assert names(message, "modality.sound", shape, len(shape), patch, len(patch), 3)


@pytest.mark.parametrize(
    ("shape", "patch"), [([8, 9], [4, 4]), ([8, 8], [16, 8]), ([8, 8], [0, 8]), ([0, 8], [2, 2]), ([8, -8], [2, -2])]
)
def test_a_patch_that_does_not_divide_its_shape_is_named(shape: list[int], patch: list[int]) -> None:
    message = refusal(f"modality.image.shape={shape}", f"modality.image.patch={patch}")
    assert names(message, "modality.image.patch", patch, "modality.image.shape", shape)


@pytest.mark.parametrize(
    ("codec", "shape", "made"),
    [
        ("pixels", [12], "2 or 3"),
        ("pixels", [], "2 or 3"),
        ("spectrogram@8000", [12, 12], 1),
        ("spectrogram@8000", [], 1),
        ("data/sd3-vae", [12], 2),
        ("spectogram@8000", [12], 2),  # a folder, if it is not mistyped
        ("efficientnet-lite0", [12, 12, 12], 2),
    ],
)
def test_a_codec_of_other_dimensions_is_named_with_those_that_there_are(
    codec: str, shape: list[int], made: object
) -> None:
    message = refusal(*overrides("x", channels=3, shape=shape, patch=[1] * len(shape), codec=codec))
    assert names(message, "modality.x.codec", codec, made, "modality.x.shape", len(shape), CODECS)


@pytest.mark.parametrize("rate", ["", "8k", "-8000", "8e3"])
def test_a_sample_rate_that_is_none_is_named(rate: str) -> None:
    assert names(refusal(*SOUND, f"modality.sound.codec=spectrogram@{rate}"), "modality.sound.codec", 8000)


@pytest.mark.parametrize("codec", ["", "' '"])
def test_an_empty_codec_is_named_with_those_that_there_are(codec: str) -> None:
    assert names(refusal(f"modality.image.codec={codec}"), "modality.image.codec", CODECS)


@pytest.mark.parametrize(("adapter", "width"), [("linear", 8), ("two_layer", 0), ("unet", 0)])
def test_a_width_belongs_to_an_adapter_that_has_one(adapter: str, width: int) -> None:
    message = refusal(f"modality.image.adapter={adapter}", f"modality.image.adapter_width={width}")
    assert names(message, "modality.image.adapter_width", width, adapter)


@pytest.mark.parametrize(
    "keys",
    [
        {"adapter": "unet"},
        {"loss_weight": 0.5},
        {"shape": [4], "patch": [2]},
        {"shape": [2, 4, 4], "patch": [1, 2, 2]},
    ],
)
def test_what_is_only_given_is_flat_is_not_scored_and_has_no_unet(keys: dict[str, Any]) -> None:
    table = {"channels": 3, "shape": [4, 4], "patch": [2, 2], **LOOKS} | keys
    assert names(refusal(*overrides("vision", **table)), "modality.vision", "`understanding`", 2, "loss_weight", 0)


def test_two_that_understand_are_named() -> None:
    second = overrides("look", channels=3, shape=[4, 4], patch=[2, 2], **LOOKS)
    assert names(refusal(*VISION, *second), "modality", "vision", "look", "`understanding`")


# What everything else asks.


@pytest.mark.parametrize(
    ("shape", "patch", "grid"),
    [((), (), (1, 1, 1)), ((12,), (3,), (4, 1, 1)), ((8, 6), (2, 3), (1, 4, 2)), ((2, 8, 6), (1, 4, 2), (2, 2, 3))],
)
def test_a_grid_lies_along_the_axes_that_a_shape_has(
    shape: tuple[int, ...], patch: tuple[int, ...], grid: tuple[int, int, int]
) -> None:
    one = modality(channels=5, shape=shape, patch=patch, codec="latents")
    check_modalities({"one": one})
    assert (one.grid, one.dimensions) == (grid, len(shape))
    assert one.num_rows == grid[0] * grid[1] * grid[2]
    assert one.num_rows * one.patch_elements == 5 * math.prod(shape)


def test_sides_lie_along_time_height_and_width() -> None:
    assert [on_axes(sides) for sides in ((), (5,), (5, 6), (5, 6, 7))] == [(1, 1, 1), (5, 1, 1), (1, 5, 6), (5, 6, 7)]


@pytest.mark.parametrize(
    ("codec", "has_folder", "has_sound"),
    [
        ("pixels", False, False),
        ("latents", False, False),
        ("spectrogram@8000", False, True),
        ("efficientnet-lite0", False, False),  # a package has its weights
        ("data/sd3-vae", True, False),
    ],
)
def test_a_codec_may_lie_in_a_folder(codec: str, has_folder: bool, has_sound: bool) -> None:
    one = modality(codec=codec)
    assert (one.has_folder, one.has_sound) == (has_folder, has_sound)


def test_every_key_that_a_modality_may_leave_out_changes_nothing() -> None:
    given = {"times": "uniform", "shift_rows": 0, "squeezed_to": 0, "understanding": "none", "adapter_width": 0}
    assert modality() == modality(**given)
    assert modality().is_target
    assert len(ModalityConfig.__dataclass_fields__) == len(given) + 9
