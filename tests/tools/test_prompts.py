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

from oneflow_dist.config import Config
from oneflow_dist.data.codec import pixels_to_latent
from oneflow_dist.data.media import encode_file
from oneflow_dist.data.sound import encode_wave
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.model.autoencoder import load_autoencoder
from oneflow_dist.model.understanding import load_understanding
from oneflow_dist.precompute.crop import CropPolicy
from oneflow_dist.precompute.prepare import Preparation, prepare_sample
from tests.messages import names
from tests.modalities import LOOKS, overrides
from tests.precompute.making import save_siglip
from tools.autoencoder import make_model
from tools.prompts import check_prompts, encode_photo, read_prompt, read_prompts

PAINT = ("image", None)
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


def test_a_prompt_is_its_parts_in_order(config: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(PHOTO[:8, :8, 0], "PNG"))
    parts = [("text", "one<|image|>two<|hole|>"), ("image", path), ("paint", []), ("hole", [])]
    prompt = read_prompt(parts, tokenizer, config)
    one, two = tokenizer.encode("one"), tokenizer.encode("two")
    place = len(one) + 1 + len(two) + 1
    assert prompt[:place] == [*one, PAINT, *two, ...]
    kind, latent = prompt[place]
    assert (kind, latent.shape) == ("image", (1, 8, 8))
    assert prompt[place + 1 :] == [PAINT, ...]


def test_a_variation_is_the_latent_with_its_time_whatever_the_model_sees_of_given_pictures(
    config: Config, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(encoded(PHOTO[:8, :8, 0], "PNG"))
    ((_, given),) = read_prompt([("image", tmp_path / "a.png")], tokenizer, config)
    features = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, given="features"))
    ((kind, latent, time),) = read_prompt([("vary", f"0.25={tmp_path / 'a.png'}")], tokenizer, features)
    assert (kind, time) == ("image", 0.25)
    assert np.array_equal(latent, given)


def test_lines_are_prompts_and_what_is_wrong_with_one_is_told_with_its_place(
    make_config: Callable[..., Config], config: Config, tokenizer: Tokenizer
) -> None:
    lines = [("a, line 1", "one<|image|>"), ("a, line 3", "<|hole|>")]
    prompts = read_prompts([], lines, tokenizer, config)
    assert prompts == [("a, line 1", [*tokenizer.encode("one"), PAINT]), ("a, line 3", [...])]
    check_prompts(prompts, tokenizer, config)
    assert read_prompts([("paint", [])], None, tokenizer, config) == [("the prompt", [PAINT])]
    blank = [("a, line 7", "one" + " " * 100_001)]
    with pytest.raises(ValueError, match=r"^a, line 7: .* 100001 blanks"):
        read_prompts([], blank, tokenizer, config)
    with pytest.raises(ValueError, match=r"^a, line 1: .*sampling\.blocks is 2"):
        check_prompts(prompts, tokenizer, make_config("sampling.blocks=2"))
    with pytest.raises(ValueError, match=r"^a, line 1: takes \d+ rows alone, more than sampling\.max_rows \(2\)"):
        check_prompts(prompts, tokenizer, make_config("sampling.max_rows=2"))


def test_what_is_no_picture_for_this_model_is_refused(config: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^text\.png: its picture is no readable PNG"):
        encode_photo(b"no picture", config, "text.png")
    with pytest.raises(ValueError, match=r"^--image: no such file "):
        read_prompt([("image", tmp_path / "none.png")], tokenizer, config)
    wide = dataclasses.replace(config.modality["image"], channels=16)
    of_latents = dataclasses.replace(config, modality={"image": wide})
    with pytest.raises(ValueError, match=r"^--image: .* 16 channels; .* --codec$"):
        encode_photo(encoded(PHOTO, "PNG"), of_latents, "a.png")
    with pytest.raises(ValueError, match=r"^--vary: .* 16 channels; .* --codec$"):
        read_prompt([("vary", f"0.5={Path(__file__).parents[2] / 'docs/gallery.png'}")], tokenizer, of_latents)
    without = dataclasses.replace(config, modality={})
    (tmp_path / "a.png").write_bytes(encoded(PHOTO, "PNG"))
    for option, value in (("paint", []), ("image", tmp_path / "a.png"), ("vary", f"0.5={tmp_path / 'a.png'}")):
        message = rf"^--{option}: the model has no pictures, but text alone; take one with a \[modality\.NAME\] "
        with pytest.raises(ValueError, match=message):
            read_prompt([(option, value)], tokenizer, without)


# What a given picture looks like, and pieces of other kinds.


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
    """Features are those that tools/precompute_latents.py would have stored, before they were rounded to float16."""
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


def test_a_piece_of_any_modality_is_read_from_its_file(
    make_config: Callable[..., Config], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = make_config(*overrides("sound", channels=16, shape=[8], patch=[2], codec="spectrogram@8000"))
    path = tmp_path / "seven=7.wav"
    path.write_bytes(encode_wave(np.sin(np.arange(16 * 6) / 3.0), 8000))
    ((kind, latent),) = read_prompt([("piece", f"sound={path}")], tokenizer, config)
    assert (kind, latent.shape) == ("sound", (16, 6))
    for value in ("noise=a.wav", "sound", "sound=", str(path)):
        with pytest.raises(ValueError, match=r"^--piece: .* is not NAME=FILE of a modality \(image, sound\)$"):
            read_prompt([("piece", value)], tokenizer, config)
    with pytest.raises(ValueError, match=r"^--piece: no such file "):
        read_prompt([("piece", f"sound={tmp_path / 'none.wav'}")], tokenizer, config)
