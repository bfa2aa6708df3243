from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.canvas import Canvas, blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer
from tools.digits.gallery import draw_gallery

BLACK, GREY = -1.0, 0.0


@pytest.fixture(scope="module")
def write(config: Config, tokenizer: Tokenizer) -> Callable[..., Canvas]:
    """A finished document: texts, and for a number an image of this grey value in [-1, 1]."""

    def make(*parts: str | float) -> Canvas:
        prompt: list[int | tuple[str, np.ndarray]] = []
        for part in parts:
            is_text = isinstance(part, str)
            grey = np.full((1, 8, 8), 0.0 if is_text else part, dtype=np.float32)
            prompt += tokenizer.encode(part) if is_text else [("image", grey)]
        return blank_canvas(prompt, tokenizer, config.modality, seed=0, index=0)

    return make


def draw(folder: Path, *arguments: object) -> np.ndarray:
    draw_gallery(folder / "gallery.png", *arguments)  # type: ignore[arg-type]
    with Image.open(folder / "gallery.png") as page:
        return np.asarray(page.convert("RGB")).astype(int)


def test_a_page_shows_captions_counting_and_writing(
    write: Callable[..., Canvas], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    single = [write("a handwritten one", BLACK)] * 40
    counts = [write("count up:", *(part for _ in range(n) for part in (" one", BLACK))) for n in (3, 1, 2, 3, 1)]
    states = [write("count up:", *[GREY] * min(step, 3)) for step in range(17)]
    page = draw(tmp_path, single, single, counts, tokenizer, states)
    black = (page == 0).all(-1)
    grey = (page == 128).all(-1)
    # 24 and 8 cards, 8 to a row; a counting document for each number of images, 1 + 2 + 3; then 9 of 17 moments.
    assert black.sum() == pytest.approx(32 * 112**2 + 6 * 64**2, rel=1e-3)
    assert grey.sum() == pytest.approx((0 + 2 + 7 * 3) * 56**2, rel=1e-2)
    assert page.shape[1] == 1240 + 2 * 32


@pytest.mark.parametrize(
    "parts",
    [[], ["only text"], [BLACK], [BLACK] * 7, ["line\nbreak \ufffd\t\x00", BLACK], ["x" * 300]],
    ids=["empty", "text", "image", "seven images", "control characters", "long"],
)
def test_any_document_has_a_place(
    parts: list[str | float], write: Callable[..., Canvas], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    canvas = write(*parts)
    page = draw(tmp_path, [canvas], [canvas], [canvas], tokenizer, [canvas])
    assert (page.sum(-1) < 300).any()
    assert page.shape[1] < 3000  # one long line does not make the page unreadable
