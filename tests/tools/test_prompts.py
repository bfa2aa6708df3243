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
from oneflow_dist.data.codec import encode_pixels, pixels_to_latent
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.model.autoencoder import load_autoencoder
from oneflow_dist.precompute.crop import CropPolicy
from oneflow_dist.precompute.prepare import Preparation, prepare_sample
from tools.autoencoder import make_model
from tools.prompts import encode_photo, read_prompt

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
    shape = ("image.channels=4", "image.height=8", "image.width=8", "image.patch_size=2")
    return make_config(*shape, f"sampling.autoencoder={folder}")


@pytest.mark.parametrize("size", [(8, 8), (4, 8), (4, 4), (16, 4)])
def test_a_picture_that_patches_fill_is_given_as_it_is(
    config: Config, size: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    data = encoded(PHOTO[: size[0], : size[1], 0], "PNG")
    assert np.array_equal(encode_photo(data, config, "a.png"), encode_pixels(data, config.image, "a.png"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("size", "given"),
    [((9, 9), (8, 8)), ((8, 12), (8, 8)), ((300, 400), (8, 8)), ((1, 50), (8, 8)), ((3, 3), (8, 8))],
)
def test_any_other_picture_is_cut_to_the_size_of_generated_ones_and_this_is_said(
    config: Config, size: tuple[int, int], given: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    latent = encode_photo(encoded(PHOTO[: size[0], : size[1]], "PNG"), config, "a.png")
    assert latent.shape == (1, *given)
    said = f"a.png: {size[1]}x{size[0]} resized and cropped to {given[1]}x{given[0]}\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_photo_is_seen_as_precomputed_data_is(of_latents: Config, tokenizer: Tokenizer, kind: str) -> None:
    data, folder = encoded(PHOTO, kind), of_latents.sampling.autoencoder
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
    assert np.array_equal(encode_photo(data, of_latents, "a"), expected)


def test_a_prompt_is_its_parts_in_order(config: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(PHOTO[:8, :8, 0], "PNG"))
    parts = [("text", "one<|image|>two<|hole|>"), ("image", path), ("paint", []), ("hole", [])]
    prompt = read_prompt(parts, tokenizer, config)
    one, two = tokenizer.encode("one"), tokenizer.encode("two")
    (place,) = [place for place, part in enumerate(prompt) if isinstance(part, np.ndarray)]
    assert prompt[:place] == [*one, None, *two, ...]
    assert prompt[place].shape == (1, 8, 8)
    assert prompt[place + 1 :] == [None, ...]


def test_what_is_no_picture_for_this_model_is_refused(config: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^text\.png: its picture is no readable PNG"):
        encode_photo(b"no picture", config, "text.png")
    with pytest.raises(ValueError, match=r"^--image: no such file "):
        read_prompt([("image", tmp_path / "none.png")], tokenizer, config)
    of_latents = dataclasses.replace(config, image=dataclasses.replace(config.image, channels=16))
    with pytest.raises(ValueError, match=r"^--image: .* 16 channels; .* --autoencoder$"):
        encode_photo(encoded(PHOTO, "PNG"), of_latents, "a.png")
