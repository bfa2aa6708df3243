from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from oneflow_dist.evaluation.interleaved.scenes import NOUNS
from tests.messages import naming
from tests.precompute.making import write_tar
from tests.tools.interleaved.made_up import CAPTION, emoji, section, write_emoji, write_sections
from tools.interleaved.icons import make_icon
from tools.interleaved.raw import list_figures, read_icons


def test_every_noun_has_the_icon_of_the_emoji_of_its_name(tmp_path: Path) -> None:
    icons = read_icons(write_emoji(tmp_path))
    assert [*icons] == [*NOUNS]
    for number, icon in enumerate(icons.values(), start=1):
        assert np.array_equal(icon, make_icon(emoji(number)))


def test_an_emoji_that_is_missing_is_named(tmp_path: Path) -> None:
    pattern = write_emoji(tmp_path)
    (tmp_path / "emoji-train-000001.tar").unlink()
    with pytest.raises(ValueError, match=naming("--emoji", pattern, "penguin")):
        read_icons(pattern)


def test_figures_have_captions_of_some_length_on_one_line(tmp_path: Path) -> None:
    figures = list_figures(write_sections(tmp_path))
    assert [(figure.key, figure.book) for figure in figures] == [
        *((f"large-1-{number}", "large") for number in range(1, 6)),
        *((f"small-1-{number}", "small") for number in range(1, 3)),
        *((f"large-2-{number}", "large") for number in range(1, 5)),
    ]
    assert [figure.caption for figure in figures if figure.book == "large"] == [
        CAPTION.format(number, "large") for number in range(9)
    ]


def test_a_figure_is_the_file_that_its_section_names(tmp_path: Path) -> None:
    files = dict(section("small-1", "small", [CAPTION.format(number, "small") for number in range(2)], 20))
    found = {figure.key: figure.content for figure in list_figures(write_sections(tmp_path))}
    assert (found["small-1-1"], found["small-1-2"]) == (files["small-1.0.jpg"], files["small-1.1.jpg"])


def test_a_figure_without_its_file_is_named(tmp_path: Path) -> None:
    members = section("large-1", "large", [CAPTION.format(0, "large")], 0)[:1]
    write_tar(tmp_path / "cut.tar", members)
    with pytest.raises(ValueError, match=naming("large-1", "0.jpg")):
        list_figures(f"{tmp_path}/cut.tar")


def test_nothing_is_written_beside_the_shards(tmp_path: Path) -> None:
    list_figures(write_sections(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["sections-val-000000.tar"]
