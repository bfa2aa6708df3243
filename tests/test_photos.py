from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oneflow_dist.commands.autoencoder_training import make_model
from oneflow_dist.config import Config
from oneflow_dist.data.codec import pixels_to_latent
from oneflow_dist.data.media import encode_file
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.model.autoencoder import load_autoencoder
from oneflow_dist.model.understanding import load_understanding
from oneflow_dist.photos import encode_photo
from oneflow_dist.precompute.crop import CropPolicy
from oneflow_dist.precompute.prepare import Preparation, prepare_sample
from tests.messages import names
from tests.modalities import LOOKS, overrides
from tests.precompute.making import save_siglip

PHOTO = np.random.default_rng(0).integers(256, size=(300, 400, 3)).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def of_latents(make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A model of latents of four channels, 8 x 8 at patch size 2, from an untrained autoencoder of factor 4."""
    folder = tmp_path_factory.mktemp("autoencoder")
    model = make_model(channels=4, widths=[8, 8, 8], layers=1, size=32, seed=0)
    model.register_to_config(shift_factor=0.5, scaling_factor=2.0)
    model.save_pretrained(folder)
    image = {"channels": 4, "shape": [8, 8], "patch": [2, 2], "codec": folder}
    return make_config(*(f"modality.image.{key}={value}" for key, value in image.items()))


def latent_of(data: bytes, config: Config, name: str = "a.png") -> np.ndarray:
    """What the model sees of a picture, where this is its latent alone."""
    ((kind, latent),) = encode_photo(data, config, name)
    assert kind == "image"
    return latent


@pytest.mark.parametrize("size", [(8, 8), (4, 8), (4, 4), (16, 4)])
def test_a_picture_that_patches_fill_is_given_as_it_is(
    config: Config, size: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    data = encoded(PHOTO[: size[0], : size[1], 0], "PNG")
    assert np.array_equal(latent_of(data, config), encode_file(data, config.modality["image"], "a.png"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("size", "given"),
    [((9, 9), (8, 8)), ((8, 12), (8, 8)), ((300, 400), (8, 8)), ((1, 50), (8, 8)), ((3, 3), (8, 8))],
)
def test_any_other_picture_is_cut_to_the_size_of_generated_ones_and_this_is_said(
    config: Config, size: tuple[int, int], given: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    latent = latent_of(encoded(PHOTO[: size[0], : size[1]], "PNG"), config)
    assert latent.shape == (1, *given)
    said = f"a.png: {size[1]}x{size[0]} resized and cropped to {given[1]}x{given[0]}\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_photo_is_seen_as_precomputed_data_is(of_latents: Config, tokenizer: Tokenizer, kind: str) -> None:
    data, folder = encoded(PHOTO, kind), of_latents.modality["image"].codec
    how = Preparation(
        crop=CropPolicy(size=32, multiple_of=8, max_aspect=2.0),
        tokenizer=tokenizer,
        view=None,
        allow_missing_text=True,
        allow_missing_picture=False,
    )
    (picture,) = prepare_sample("a", {"png": data, "json": json.dumps({}).encode()}, how).pictures
    autoencoder = load_autoencoder(folder, "cpu", torch.float32)
    mean, _ = autoencoder.encode(torch.from_numpy(pixels_to_latent(picture.pixels))[None])
    expected = ((mean[0] - 0.5) * 2.0).numpy()
    assert expected.shape == (4, 6, 10)
    assert np.array_equal(latent_of(data, of_latents, "a"), expected)


def test_a_cut_need_not_be_told(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    encode_photo(encoded(PHOTO, "PNG"), config, "a.png", is_told=False)
    assert capsys.readouterr().out == ""


def test_what_is_no_picture_for_this_model_is_refused(config: Config) -> None:
    with pytest.raises(ValueError, match=r"^text\.png: its picture is no readable PNG"):
        encode_photo(b"no picture", config, "text.png")
    wide = dataclasses.replace(config.modality["image"], channels=16)
    of_latents = dataclasses.replace(config, modality={"image": wide})
    with pytest.raises(ValueError, match=r"^--image: .* 16 channels; .* --codec$"):
        encode_photo(encoded(PHOTO, "PNG"), of_latents, "a.png")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_siglip(tmp_path_factory.mktemp("siglip") / "tiny")


@pytest.fixture(scope="module")
def looking(siglip: Path, make_config: Callable[..., Config]) -> Callable[..., Config]:
    """A model that sees what the tiny SigLIP sees of a given picture."""

    def make(given: str, **keys: object) -> Config:
        own = LOOKS | {"channels": 16, "shape": [2, 2], "patch": [1, 1], "codec": siglip}
        return make_config(*overrides("vision", **own | keys), f"sampling.given={given}")

    return make


@pytest.mark.parametrize(
    ("given", "kinds"), [("latents", ["image"]), ("features", ["vision"]), ("both", ["vision", "image"])]
)
def test_a_photo_is_given_as_its_latent_as_features_or_as_both(
    given: str, kinds: list[str], siglip: Path, looking: Callable[..., Config]
) -> None:
    """Features are those that oneflow precompute would have stored, before they were rounded to float16."""
    config, data = looking(given), encoded(PHOTO[:16, :24], "PNG")
    seen = encode_photo(data, config, "a.png")
    assert [kind for kind, _ in seen] == kinds
    if "image" in kinds:
        assert np.array_equal(dict(seen)["image"], latent_of(data, looking("latents")))
    if "vision" in kinds:
        encoder = load_understanding(str(siglip), "cpu", torch.float32)
        shown = np.array(encoder.view.resize(Image.fromarray(PHOTO[:16, :24])))
        expected = encoder.encode(torch.from_numpy(shown)[None])[0].numpy()
        np.testing.assert_allclose(dict(seen)["vision"], expected, atol=1e-5)


def test_a_model_that_has_the_encoder_in_itself_is_given_the_picture(looking: Callable[..., Config]) -> None:
    ((kind, view),) = encode_photo(encoded(PHOTO, "PNG"), looking("features", understanding="live"), "a.png")
    assert (kind, view.shape) == ("vision", (3, 16, 16))
    assert -1.0 <= view.min() < view.max() <= 1.0


def test_features_that_the_model_does_not_know_are_refused(
    config: Config, looking: Callable[..., Config], siglip: Path
) -> None:
    plain = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, given="features"))
    with pytest.raises(
        ValueError, match=r"^--given: wants features, but no \[modality\.\*\] has `understanding`; .* take latents$"
    ):
        encode_photo(encoded(PHOTO, "PNG"), plain, "a.png")
    with pytest.raises(ValueError) as error:
        encode_photo(encoded(PHOTO, "PNG"), looking("both", shape=[4, 4]), "a.png")
    assert names(str(error.value), siglip, "[16, 2, 2]", "modality.vision", "[16, 4, 4]", "--codec vision=FOLDER")
