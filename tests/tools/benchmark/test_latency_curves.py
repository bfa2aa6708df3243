from __future__ import annotations

import numpy as np

from tools.benchmark.latency import SECONDS
from tools.benchmark.latency_curves import draw_latency
from tools.benchmark.latency_plan import ANEW, CACHED, INSERTION, Shape, case_of

PLANNED = "seconds by plan, h100-80gb"
SHORT = Shape(prompt=0, text=10, images=0, image_rows=4, steps=2)
LONG = Shape(prompt=0, text=80, images=0, image_rows=4, steps=2)
PICTURED = Shape(prompt=0, text=10, images=3, image_rows=4, steps=2)
MEASURED = {
    case_of(INSERTION, LONG, 1): [2.0, 3.0, 9.0],
    case_of(INSERTION, SHORT, 1): [1.0],
    case_of(INSERTION, SHORT, 8): [4.0],
    case_of(CACHED, SHORT, 1): [5.0],
    case_of(ANEW, SHORT, 1): [6.0],
    case_of(INSERTION, PICTURED, 1): [7.0],
}


def test_each_number_of_images_has_a_panel_and_each_way_and_number_of_documents_a_curve() -> None:
    text, pictured = draw_latency({SECONDS: MEASURED, "forwards": MEASURED}, "title").axes
    assert [line.get_label() for line in text.lines] == [
        f"{INSERTION}, 1 at once",
        f"{INSERTION}, 8 at once",
        f"{CACHED}, 1 at once",
        f"{ANEW}, 1 at once",
    ]
    assert np.array_equal(text.lines[0].get_xdata(), [10, 80])
    assert np.array_equal(text.lines[0].get_ydata(), [1.0, 3.0])  # medians
    assert len({(line.get_color(), line.get_linestyle()) for line in text.lines}) == 4
    assert [line.get_label() for line in pictured.lines] == [f"{INSERTION}, 1 at once"]


def test_what_was_planned_has_a_row_of_its_own() -> None:
    panels = draw_latency({SECONDS: MEASURED, PLANNED: MEASURED}, "title").axes
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == [f"{what}; {images}" for what in (SECONDS, PLANNED) for images in ("0 images", "3 images")]
