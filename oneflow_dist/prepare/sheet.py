"""A contact sheet: pictures as the model will see them, with what is said of them."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

from oneflow_dist.prepare.shards import Placed

NUM_PICTURES, COLUMNS = 48, 8
HEIGHT, WIDTH = 128, 144  # of a picture, and of the text below it
MAX_CHARACTERS = 48


def draw_sheet(samples: Sequence[Placed], title: str) -> bytes | None:
    """Pictures spread evenly over the samples, as a PNG; None where there are none."""
    from oneflow_dist.pictures import FAINT, INK, enlarge, flow, grid, stack, text_line, with_margin

    held = [placed for placed in samples if placed[0].pictures]
    if not held:
        return None
    count = min(NUM_PICTURES, len(held))
    cells = []
    for sample, read in (held[(2 * turn + 1) * len(held) // (2 * count)] for turn in range(count)):
        with Image.open(io.BytesIO(read(sample.pictures[0]))) as picture:
            shown = enlarge(picture, HEIGHT)
        text = next(iter(sample.texts), "")
        cut = text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS].rsplit(' ', 1)[0]} ..."
        words: list[tuple[str, str] | Image.Image] = [(word, FAINT) for word in cut.split()]
        cells.append(stack([shown, flow(words or [("-", FAINT)], WIDTH, HEIGHT)], gap=4))
    page = stack([text_line(title, 18, INK), grid(cells, COLUMNS, gap=16, align="left")], gap=16)
    buffer = io.BytesIO()
    with_margin(page, 24).save(buffer, "PNG")
    return buffer.getvalue()
