"""Made-up documents and the packs that they make: what is counted, by what name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from oneflow_dist.flow.noising import keyed_generator
from tests.launching import Launcher
from tools.benchmark import balance
from tools.benchmark.balance import BALANCE, ENOUGH, KINDS, WORK, Documents, balance_of, measure, pack_lane, row_pairs
from tools.benchmark.balance_curves import draw_balance


@pytest.fixture
def small() -> list[Documents]:
    """All kinds, a sixteenth as long."""
    return [
        replace(
            kind,
            draw=lambda rng, count, draw=kind.draw: draw(rng, count) / 16.0,
            given=kind.given // 16,
            longest=kind.longest // 16,
            rows=kind.rows // 16,
            window=48,
        )
        for kind in KINDS
    ]


def test_the_balance_of_a_step_is_the_mean_of_its_ranks_over_the_most() -> None:
    pairs = np.array([[1, 3, 2, 2, 9], [4, 4, 1, 1, 0]])
    assert balance_of(pairs, 2).tolist() == pytest.approx([200 / 3, 100, 100, 100])
    assert balance_of(pairs, 5).tolist() == pytest.approx([100 * 17 / 45, 50])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_documents_are_no_longer_than_is_said_and_lose_text_alone(kind: Documents) -> None:
    rows = kind.noised(keyed_generator(0, 0, ""), 4000)
    assert len(rows) == 4000
    assert kind.given < rows.min() < rows.max() <= kind.longest <= kind.rows
    assert rows.max() > 0.9 * kind.longest


def test_a_lane_packs_each_document_once_and_counts_its_steps(small: list[Documents]) -> None:
    sections = small[1]
    packs = pack_lane(sections, "balanced", 0, 5)
    assert len(packs.rows) == len(packs.waits) == len(packs.seconds) > 5
    assert all(rows.sum() <= sections.rows for rows in packs.rows)
    assert packs.pairs.tolist() == [sum(n * n for n in rows.tolist()) for rows in packs.rows]
    assert all(waits.min() >= 1 for waits in packs.waits)
    drawn = sections.noised(keyed_generator(0, 0, sections.name), 48)
    assert packs.rows[0][0] == drawn[0]  # the oldest
    assert pack_lane(sections, "oldest", 0, 5).rows[0].tolist() != packs.rows[0].tolist()


def test_every_case_is_told_and_drawn(small: list[Documents], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "FACTORS", (2, 4))
    monkeypatch.setattr(balance, "SWEPT", 3)
    series = measure(small[1:3], 4, 3).series
    cases = [f"{kind}, {packing}" for kind in ("textbooks", "web pages") for packing in ("oldest", "balanced")]
    assert list(series[WORK]) == list(series[BALANCE.format(4)]) == list(series["padding, %"]) == cases
    assert all(len(values) == 3 for values in series[BALANCE.format(4)].values())
    assert all(0.0 <= values[0] < 25.0 for values in series["padding, %"].values())
    (by_rows,) = (named for title, named in series.items() if "by rows" in title)
    assert list(by_rows) == [f"{kind}, {p} x {f}" for kind, p, f in _sizes(("textbooks", "web pages"))]
    for kind in small[1:3]:
        assert series[ENOUGH][kind.name] == [kind.longest / row_pairs(kind)]
    titles = [axes.get_title(loc="left") for axes in draw_balance(series, "what was measured").axes]
    assert [title for title in titles if "% of packs" in title] == ["textbooks: % of packs", "web pages: % of packs"]
    assert sum("mean / most" in title for title in titles) == 3


def _sizes(kinds: tuple[str, ...]) -> list[tuple[str, str, int]]:
    return [(kind, packing, factor) for kind in kinds for factor in (2, 4) for packing in ("oldest", "balanced")]


def test_one_rank_has_nothing_to_balance(launcher: Launcher) -> None:
    refused = launcher.run("-m", "tools.benchmark", "balance", "--ranks", "1")
    assert refused.code == 2
    assert "--ranks" in refused.stderr
