from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.commands.prompts import check_prompts, read_prompt, read_prompts
from oneflow_dist.config import Config
from oneflow_dist.data.sound import encode_wave
from oneflow_dist.data.tokenizer import Tokenizer
from tests.modalities import overrides

PAINT = ("image", None)
PHOTO = np.random.default_rng(0).integers(256, size=(300, 400, 3)).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


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


def test_options_for_what_is_not_there_are_refused(config: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^--image: no such file "):
        read_prompt([("image", tmp_path / "none.png")], tokenizer, config)
    wide = dataclasses.replace(config.modality["image"], channels=16)
    of_latents = dataclasses.replace(config, modality={"image": wide})
    with pytest.raises(ValueError, match=r"^--vary: .* 16 channels; .* --codec$"):
        read_prompt([("vary", f"0.5={Path(__file__).parents[2] / 'docs/gallery.png'}")], tokenizer, of_latents)
    without = dataclasses.replace(config, modality={})
    (tmp_path / "a.png").write_bytes(encoded(PHOTO, "PNG"))
    for option, value in (("paint", []), ("image", tmp_path / "a.png"), ("vary", f"0.5={tmp_path / 'a.png'}")):
        message = rf"^--{option}: the model has no pictures, but text alone; take one with a \[modality\.NAME\] "
        with pytest.raises(ValueError, match=message):
            read_prompt([(option, value)], tokenizer, without)


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
