from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oneflow_dist.canvas import Canvas, blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.data.identity import name_latents
from oneflow_dist.data.sound import RANGE
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.model.autoencoder import load_autoencoder
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.pictures import (
    check_decoders,
    decoder_of,
    draw_document,
    draw_page,
    draw_pieces,
    draw_progress,
    enlarge,
    grid,
    stack,
    text_line,
    with_margin,
)
from tests.messages import naming
from tests.modalities import SOUND, VIDEO, VISION, overrides
from tests.precompute.making import save_autoencoder


@pytest.fixture(scope="session")
def write(config: Config, tokenizer: Tokenizer) -> Callable[..., Canvas]:
    """A finished document of texts, latents and grey values, each of which is an image of this value in [-1, 1]."""

    def make(parts: Sequence[str | float | np.ndarray]) -> Canvas:
        prompt: list[int | tuple[str, np.ndarray]] = []
        for part in parts:
            if isinstance(part, str):
                prompt += tokenizer.encode(part)
            else:
                grey = np.full((1, 8, 8), part, dtype=np.float32) if isinstance(part, float) else part
                prompt.append(("image", grey))
        return blank_canvas(prompt, tokenizer, config.modality, seed=0, index=0)

    return make


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB")).astype(int)


def has_ink(picture: Image.Image) -> bool:
    return bool((pixels(picture).sum(-1) < 300).any())


def test_text_alone_is_one_line_of_text(write: Callable[..., Canvas], tokenizer: Tokenizer) -> None:
    page = draw_document(write(["count up: one two"]), tokenizer, width=400)
    assert (page.mode, page.height) == ("RGB", 24)
    ink = np.flatnonzero((pixels(page).sum(-1) < 300).any(axis=0))
    assert ink.min() < 4
    assert page.width - 4 < ink.max() < 400  # as wide as its text


def test_an_empty_document_says_that_it_is_empty(write: Callable[..., Canvas], tokenizer: Tokenizer) -> None:
    page = draw_document(write([]), tokenizer, width=200)
    assert page.height == 24
    assert has_ink(page)


def test_images_alone_stand_side_by_side_in_order(write: Callable[..., Canvas], tokenizer: Tokenizer) -> None:
    page = pixels(draw_document(write([-1.0, 0.0, 0.6]), tokenizer, width=300, image_height=64))
    assert page.shape == (64, 3 * 64 + 2 * 8, 3)
    for number, grey in enumerate((0, 128, 204)):
        assert (page[:, 72 * number : 72 * number + 64] == grey).all()
    assert (page[:, 64:72] == 255).all()


def test_a_wide_image_takes_its_width(write: Callable[..., Canvas], tokenizer: Tokenizer) -> None:
    wide = np.zeros((1, 4, 12), dtype=np.float32)
    wide[:, :, 8:] = -1.0
    page = pixels(draw_document(write([wide, 0.6]), tokenizer, width=300, image_height=64))
    for columns, grey in ((slice(0, 128), 128), (slice(128, 192), 0), (slice(192, 200), 255), (slice(200, 264), 204)):
        assert (page[:, columns] == grey).all()


def test_text_and_images_keep_the_order_of_reading(write: Callable[..., Canvas], tokenizer: Tokenizer) -> None:
    page = pixels(draw_document(write(["one", -1.0, "two"]), tokenizer, width=300, image_height=64))
    columns = np.flatnonzero((page == 0).all(axis=(0, 2)))  # black from top to bottom: the image
    assert len(columns) == 64
    ink = np.flatnonzero((page.sum(-1) < 300).any(axis=0))
    assert ink.min() < columns[0]
    assert ink.max() > columns[-1]
    assert page.shape[0] == 64


def test_a_long_document_wraps_and_stays_within_the_page(write: Callable[..., Canvas], tokenizer: Tokenizer) -> None:
    page = draw_document(write([-1.0] * 7), tokenizer, width=220, image_height=64)
    assert page.size == (3 * 64 + 2 * 8, 3 * 64 + 2 * 8)  # three images fit in 220 pixels
    black = (pixels(page) == 0).all(-1)
    assert black.sum() == 7 * 64 * 64


def test_a_word_wider_than_the_page_is_drawn_all_the_same(write: Callable[..., Canvas], tokenizer: Tokenizer) -> None:
    page = draw_document(write(["x" * 200]), tokenizer, width=100)
    assert page.size == (100, 24)
    assert has_ink(page)


def test_bytes_that_are_no_text_are_drawn_all_the_same(config: Config, tokenizer: Tokenizer) -> None:
    prompt = [*range(256), tokenizer.bos, tokenizer.bos + 1]  # every byte, line ends among them, and special tokens
    page = draw_document(blank_canvas(prompt, tokenizer, config.modality, 0, 0), tokenizer)
    assert has_ink(page)


@pytest.mark.parametrize("text", ["", " ", "a\nb", "é\ufffd\t\r\n", "x" * 500])
def test_any_text_makes_a_line(text: str) -> None:
    line = text_line(text, 20)
    assert line.height == 27
    assert line.width >= 1
    assert has_ink(line) == bool(text.strip())


def test_small_pictures_grow_with_crisp_pixels_and_large_ones_smoothly() -> None:
    checks = np.indices((8, 8)).sum(0) % 2 * 255
    small = Image.fromarray(checks.astype(np.uint8))
    grown = pixels(enlarge(small, 64))
    assert grown.shape == (64, 64, 3)
    assert (grown == np.kron(checks, np.ones((8, 8), dtype=int))[..., None]).all()
    wide = Image.new("L", (80, 40), 7)
    assert enlarge(wide, 20).size == (40, 20)
    assert enlarge(Image.new("L", (1, 60)), 6).size == (1, 6)  # never without width


def test_stacked_pictures_lie_below_each_other() -> None:
    a, b = Image.new("RGB", (4, 2), "red"), Image.new("RGB", (8, 3), "blue")
    page = stack([a, b], gap=5)
    assert page.size == (8, 10)
    assert page.getpixel((0, 0)) == (255, 0, 0)
    assert page.getpixel((6, 0)) == (255, 255, 255)
    assert page.getpixel((0, 4)) == (255, 255, 255)
    assert page.getpixel((7, 9)) == (0, 0, 255)
    assert stack([a, b], gap=5, align="centre").getpixel((2, 1)) == (255, 0, 0)


def test_a_grid_has_cells_as_wide_as_the_widest_in_rows_as_high_as_their_highest() -> None:
    pictures = [Image.new("RGB", size, "red") for size in ((4, 4), (2, 6), (4, 4))]
    page = grid(pictures, columns=2, gap=3)
    assert page.size == (2 * 7 - 3, 6 + 3 + 4)
    red = (pixels(page) == (255, 0, 0)).all(-1)
    assert red.sum() == 16 + 12 + 16
    assert red[:6, 8:10].all()  # centred in its cell
    assert red[9:13, :4].all()
    assert (pixels(grid(pictures, columns=2, gap=3, align="left"))[:6, 7:9] == (255, 0, 0)).all()


def test_a_page_of_short_documents_has_several_beside_each_other(
    write: Callable[..., Canvas], tokenizer: Tokenizer
) -> None:
    one, many = (draw_page([write(["one", -1.0])] * count, tokenizer) for count in (1, 9))
    assert one.width < 200
    assert 960 - one.width < many.width - 2 * 24 <= 960
    assert many.height < 4 * one.height
    long = draw_page([write([-1.0] * 20), write([-1.0])], tokenizer)
    assert long.width <= 960 + 2 * 24  # and below each other
    assert ((pixels(long) == 0).all(-1)).sum() == 21 * 64 * 64


def test_a_margin_is_white_all_around() -> None:
    page = with_margin(Image.new("RGB", (2, 3), "red"), 5)
    assert page.size == (12, 13)
    assert (pixels(page) == (255, 0, 0)).all(-1).sum() == 6
    assert page.getpixel((5, 5)) == (255, 0, 0)


# Pieces of every kind.


def test_frames_of_a_video_stand_side_by_side_with_a_white_line_after_each(make_config: Callable[..., Config]) -> None:
    video = make_config(*VIDEO).modality["video"]
    latent = np.stack([np.full((4, 4), grey, dtype=np.float32) for grey in (-1.0, 0.0)])[None]
    (page,) = draw_pieces([latent], video)
    assert (pixels(page)[:, :, 0] == np.array([[0] * 4 + [255] + [128] * 4 + [255]] * 4)).all()


def test_the_lowest_band_of_a_sound_is_at_the_bottom_and_silence_is_black(make_config: Callable[..., Config]) -> None:
    keys = ("modality.sound.codec=spectrogram@8000", "modality.sound.channels=3")
    sound = make_config(*SOUND, *keys).modality["sound"]
    latent = np.full((3, 6), -1.0, dtype=np.float32)
    latent[0] = RANGE - 1.0  # about the loudest there is
    (page,) = draw_pieces([latent], sound)
    assert (pixels(page)[:, :, 0] == np.array([[0] * 6, [0] * 6, [255] * 6])).all()


def test_pieces_without_files_are_drawn_by_their_values(make_config: Callable[..., Config]) -> None:
    """One row a channel, the first at the bottom; of features and other maps the first three channels."""
    config = make_config(*overrides("vector", channels=2, shape=[], patch=[]), *VISION)
    (page,) = draw_pieces([np.array([-1.0, 1.0], dtype=np.float32)], config.modality["vector"])
    assert pixels(page)[:, :, 0].tolist() == [[255], [0]]
    colours = np.linspace(-1.0, 1.0, 3, dtype=np.float32)[:, None, None] + np.zeros((3, 4, 2), dtype=np.float32)
    (page,) = draw_pieces([colours], config.modality["vision"])
    assert (pixels(page) == np.array([0, 128, 255])).all()
    assert page.size == (2, 4)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained autoencoder of four channels that halves the sides."""
    return save_autoencoder(tmp_path_factory.mktemp("autoencoder") / "vae")


def of_latents(make_config: Callable[..., Config], folder: Path, channels: int = 4) -> Config:
    return make_config(f"modality.image.channels={channels}", f"modality.image.codec={folder}", *SOUND)


def test_latents_are_drawn_by_the_autoencoder_of_their_modality(vae: Path, make_config: Callable[..., Config]) -> None:
    modality = of_latents(make_config, vae).modality["image"]
    rng = np.random.default_rng(0)
    latents = [rng.standard_normal(shape, dtype=np.float32) for shape in ((4, 8, 8), (4, 4, 12))]
    pages = draw_pieces(latents, modality)
    assert [page.size for page in pages] == [(16, 16), (24, 8)]
    autoencoder = load_autoencoder(str(vae), "cpu", torch.float32)
    for page, latent in zip(pages, latents, strict=True):
        raw = torch.from_numpy(latent) / autoencoder.scaling_factor + autoencoder.shift_factor
        expected = np.rint((autoencoder.decode(raw[None])[0].permute(1, 2, 0).numpy() + 1.0) * 127.5)
        np.testing.assert_allclose(pixels(page), expected.clip(0, 255), atol=1)


def test_an_autoencoder_of_other_latents_is_refused(vae: Path, make_config: Callable[..., Config]) -> None:
    with pytest.raises(ValueError, match=naming(vae, 4, "channels", 16)):
        decoder_of(of_latents(make_config, vae, channels=16).modality["image"])


def test_decoders_are_compared_with_what_made_the_data(
    vae: Path, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    """Of pictures alone: sounds and what has no files need none."""
    config = of_latents(make_config, vae)
    autoencoder = load_autoencoder(str(vae), "cpu", torch.float32)
    check_decoders(config, {"latents": name_latents(autoencoder.describe())})
    check_decoders(config, {})  # there are no images
    pixels_alone = make_config(*SOUND, *VISION)
    check_decoders(pixels_alone, {"latents": name_latents({"name": "pixels"})})
    other = save_autoencoder(tmp_path / "other", scaling_factor=0.25)
    for found, data in ((of_latents(make_config, other), autoencoder.describe()), (config, {"name": "pixels"})):
        with pytest.raises(ValueError, match=naming("modality.image.codec")):
            check_decoders(found, {"latents": name_latents(data)})


def test_progress_is_four_documents_of_each_prompt_and_the_same_whenever_it_is_drawn(
    make_config: Callable[..., Config], make_model: Callable[..., OneFlow], tmp_path: Path
) -> None:
    sampling = ["sampling.steps=2", "sampling.max_rows=24", 'sampling.prompts=["", "count up:", "one<|image|>"]']
    config = make_config(f"run.folder={tmp_path}", *sampling)
    model = make_model(config)
    path = draw_progress(model, config, 12)
    assert path == tmp_path / "samples/step-00000012.png"
    with Image.open(path) as page:
        assert page.width <= 960 + 2 * 24
        assert page.height >= 12 * 24
        assert has_ink(page)
    first = path.read_bytes()
    assert draw_progress(model, config, 12).read_bytes() == first
    assert draw_progress(model, config, 13).read_bytes() != first  # it names its step


def test_progress_without_prompts_is_an_empty_page(
    make_config: Callable[..., Config], make_model: Callable[..., OneFlow], tmp_path: Path
) -> None:
    config = make_config(f"run.folder={tmp_path}", "sampling.prompts=[]")
    with Image.open(draw_progress(make_model(config), config, 1)) as page:
        assert has_ink(page)
