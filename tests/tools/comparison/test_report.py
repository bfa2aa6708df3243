from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from tests.tools.comparison.made_up import CONFIGS, MACHINE, SHARES, outcomes
from tools.comparison.figures import FIGURES
from tools.comparison.report import Circumstances, to_json, write_markdown

MADE = Circumstances(command="python tools/compare.py out a.toml", machine=MACHINE, samples=256)
Tables = dict[str, dict[str, list[str]]]


def tables(markdown: str) -> Tables:
    """By heading and first cell the other cells of a row."""
    found: Tables = {}
    heading = ""
    for line in markdown.splitlines():
        if line.startswith("#"):
            heading = line.strip("# ")
        elif line.startswith("| "):
            first, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            found.setdefault(heading, {})[first] = cells
    return found


def test_the_tables_have_every_figure_of_every_config(tmp_path: Path) -> None:
    found = tables(write_markdown(outcomes(tmp_path), MADE))
    flops, seconds, parity, budgets = found.values()
    for table in (flops, seconds):
        assert table[""] == list(CONFIGS)
        assert sum(title.startswith(figure.title) for title in table for figure in FIGURES) == len(FIGURES)
    assert flops["objective"] == ["insertion", "autoregressive", "masked"]
    assert flops["steps"] == ["120"] * 3
    assert flops["TFLOP spent"] == ["0.600"] * 3
    assert flops["counting: documents right"] == ["0.479 ± 0.001", "0.409 ± 0.001", "0.409 ± 0.001"]
    assert flops["held-out velocity loss (lower is better)"][0] == "0.521 ± 0.001"
    assert parity[""] == [f"{one} against {other}" for one, other in itertools.permutations(CONFIGS, 2)]
    assert all(cell.startswith("0.50 [") for cell in parity["counting: documents right"][:2])
    assert len(budgets) == 2 + len(CONFIGS) * len(SHARES)
    assert budgets["quickstart, 0.25"][:3] == ["30", "0.150", "3.0"]


def test_at_equal_seconds_the_slower_have_had_fewer_steps(tmp_path: Path) -> None:
    seconds = tables(write_markdown(outcomes(tmp_path, rival_efficiency=1.0), MADE))["At equal seconds"]
    assert seconds["counting: documents right"] == ["0.479", "0.409", "0.409"]  # of half as many steps


def test_beyond_its_seconds_a_config_has_the_factor_that_it_had(tmp_path: Path) -> None:
    slow, *fast = outcomes(tmp_path)[::-1]
    seconds = tables(write_markdown([slow, fast[-1]], MADE))["At equal seconds"]
    assert seconds["single: one image"] == ["0.409", "0.479 (at 0.50 x)"]


def test_one_config_of_one_seed_has_no_errors_and_no_rival(tmp_path: Path) -> None:
    found = tables(write_markdown(outcomes(tmp_path, seeds=[1])[:1], MADE))
    assert list(found) == ["At equal FLOPs", "At equal seconds", "Every budget"]
    assert found["At equal FLOPs"]["single: one image"] == ["0.480"]


def test_the_circumstances_are_told(tmp_path: Path) -> None:
    markdown = write_markdown(outcomes(tmp_path), MADE)
    for said in (*map(str, MACHINE.values()), MADE.command, "256 documents", "Seeds 0, 1."):
        assert said in markdown


def test_everything_is_in_the_json(tmp_path: Path) -> None:
    told = json.loads(json.dumps(to_json(outcomes(tmp_path), MADE), allow_nan=False))
    assert told["command"] == MADE.command
    assert told["machine"]["commit"] == MACHINE["commit"]
    assert list(told["configs"]) == list(CONFIGS)
    own = told["configs"]["quickstart"]
    assert [share["share"] for share in own["shares"]] == list(SHARES)
    assert len(own["runs"]) == 2 * len(SHARES)
    assert set(own["runs"][0]["values"]) == {figure.key for figure in FIGURES}
    assert own["runs"][0]["flops"] == own["runs"][0]["flops_expected"] == 30 * own["flops_per_step"]
    assert own["shares"][-1]["standard_error"]["single/agreement"] == pytest.approx(0.001)
    assert told["parity"]["quickstart against masked_quickstart"]["bits"]["value"] == pytest.approx(0.5)


def test_a_ratio_beyond_what_was_measured_is_null_in_the_json(tmp_path: Path) -> None:
    told = to_json(outcomes(tmp_path, rival_efficiency=2.0), MADE)["parity"]
    told = told["quickstart against masked_quickstart"]["velocity"]
    assert (told["value"], told["high"], told["most"]) == (None, None, 1.0)
    assert told["text"].startswith("> 1.00 [")
