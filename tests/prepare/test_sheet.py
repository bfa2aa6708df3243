from __future__ import annotations

import io

from PIL import Image

from oneflow_dist.prepare.sheet import draw_sheet
from tests.prepare.nasty import RED, halves, store
from tests.prepare.prepared import a_sample


def test_a_sheet_shows_pictures_and_is_the_same_each_time() -> None:
    png = store(halves(), "PNG")
    samples = [(a_sample(number, captions=("word " * 40,)), lambda _: png) for number in range(100)]
    page = draw_sheet(samples, "title")
    assert page is not None
    assert page == draw_sheet(samples, "title")
    with Image.open(io.BytesIO(page)) as drawn:
        assert sum(count for count, colour in drawn.getcolors(1 << 24) or [] if colour == RED) > 48 * 64 * 100
        assert drawn.width < 1500


def test_texts_have_no_sheet() -> None:
    assert draw_sheet([(a_sample(1, "texts", [], turns=(("", ("a",)),)), lambda _: b"")], "title") is None
