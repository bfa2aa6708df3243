from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.canvas import blank_canvas
from oneflow_dist.commands.comparing import Cell, describe, draw_comparison, draw_table, title
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer

Cells = Callable[[list[dict[str, object]]], list[Cell]]


@pytest.fixture
def cells(config: Config, tokenizer: Tokenizer) -> Cells:
    def make(settings: list[dict[str, object]]) -> list[Cell]:
        prompt = [*tokenizer.encode("seven"), ("image", np.full((1, 8, 8), -1.0, dtype=np.float32))]
        canvases = [blank_canvas(prompt, tokenizer, config.modality, seed=0, index=index) for index in range(2)]
        return [
            Cell(setting=setting, sampling=config.sampling, canvases=canvases, seconds=1.25, num_rows=12345)
            for setting in settings
        ]

    return make


def test_a_setting_is_described_by_its_values_its_cost_and_its_texts(cells: Cells, tokenizer: Tokenizer) -> None:
    (cell,) = cells([{"steps": 10, "guidance.image": 3.0}])
    assert title(cell.setting) == "steps = 10, guidance.image = 3"
    report = describe(cell, tokenizer)
    assert report["settings"]["steps"] == cell.sampling.steps
    assert {key: report[key] for key in ("values", "seconds", "rows", "documents")} == {
        "values": {"steps": 10, "guidance.image": 3.0},
        "seconds": 1.25,
        "rows": 12345,
        "documents": ["seven [image]", "seven [image]"],
    }


def black_runs(pixels: np.ndarray) -> int:
    """Pictures, which are black squares here, along a line of pixels."""
    is_black = np.append(False, pixels == 0)
    return int((is_black[1:] & ~is_black[:-1]).sum())


def solid_squares(pixels: np.ndarray) -> np.ndarray:
    """Where a black square of the size of a picture begins."""
    windows = np.lib.stride_tricks.sliding_window_view(pixels == 0, (60, 60))
    return np.asarray(windows.all(axis=(2, 3)))


def test_a_page_has_a_row_for_each_value_and_a_column_for_each_of_the_second_key(
    cells: Cells, tokenizer: Tokenizer
) -> None:
    axes = {"guidance.image": [0.0, 1.0, 3.0], "steps": [4, 10]}
    settings: list[dict[str, object]] = [
        {"guidance.image": weight, "steps": steps} for weight in axes["guidance.image"] for steps in axes["steps"]
    ]
    page = np.asarray(draw_comparison(cells(settings), axes, tokenizer).convert("L"))
    y, x = np.argwhere(solid_squares(page))[0] + 30  # inside the first picture
    assert black_runs(page[y]) == 2 * len(axes["steps"])  # in each cell its two documents side by side
    assert black_runs(page[:, x]) == len(axes["guidance.image"])

    rows_alone = draw_comparison(cells(settings[::2]), {"guidance.image": axes["guidance.image"]}, tokenizer)
    page = np.asarray(rows_alone.convert("L"))
    y, x = np.argwhere(solid_squares(page))[0] + 30
    assert (black_runs(page[y]), black_runs(page[:, x])) == (2, len(axes["guidance.image"]))


def test_a_table_has_its_pictures_in_rows_and_columns_as_large_as_the_largest() -> None:
    sizes = [[(10, 5), (20, 8)], [(12, 3), (4, 6)]]
    rows = [[Image.new("RGB", size, "#000000") for size in row] for row in sizes]
    page = np.asarray(draw_table(rows).convert("L"))
    assert page.shape == (8 + 24 + 6, 12 + 24 + 20)
    assert (page[:5, :10] == 0).all()
    assert (page[:8, 36:56] == 0).all()
    assert (page[32:35, :12] == 0).all()
    assert (page[32:38, 36:40] == 0).all()
    assert (page[8:20] == 255).all()
    assert (page[20] < 255).all()  # the line between
    assert (page[21:32] == 255).all()
