from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch

from tools.experiments.probes.exact import KINDS, at_fixed_count, law_of, measure, truncated_rate
from tools.experiments.reading import Probe
from tools.experiments.toys import FIX, VAR, distance, mean_length

# Total variation for N = 1, 2, 4, 8, 16, and the mean length then, as an independent enumeration gives them.
TABLE = {
    "gate": ([0.700, 0.413, 0.196, 0.091, 0.041], [0.95, 1.77, 2.18, 2.23, 2.23]),
    "rate alone": ([0.750, 0.485, 0.224, 0.100, 0.044], [1.00, 2.11, 2.25, 2.25, 2.23]),
    "no time": ([0.700, 0.419, 0.284, 0.234, 0.243], [0.86, 1.60, 2.13, 2.53, 2.81]),
    "no time, tau to 2": ([0.700, 0.499, 0.376, 0.311, 0.233], [0.76, 1.25, 1.61, 1.91, 2.15]),
    "truncated": ([0.700, 0.456, 0.442, 0.455, 0.461], [0.95, 1.49, 1.34, 1.26, 1.21]),
    "truncated, clamped": ([0.700, 0.413, 0.254, 0.171, 0.140], [0.95, 1.77, 1.86, 1.89, 1.90]),
    "fixed count": ([0.700, 0.502, 0.298, 0.320, 0.336], [0.95, 2.09, 2.47, 2.00, 1.69]),
    "systematic firing": ([0.700, 0.476, 0.189, 0.059, 0.022], [0.95, 1.77, 2.19, 2.24, 2.23]),
    "smaller late steps": ([0.700, 0.429, 0.141, 0.064, 0.032], [0.95, 1.60, 2.26, 2.25, 2.23]),
}


@pytest.fixture
def _unchecked(unchecked: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    with unchecked():
        yield


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.usefixtures("_unchecked")
def test_laws_are_those_of_the_table(name: str) -> None:
    laws = [law_of(VAR, KINDS[name], steps) for steps in (1, 2, 4, 8, 16)]
    distances, lengths = TABLE[name]
    assert [distance(law, VAR) for law in laws] == pytest.approx(distances, abs=0.0011)
    assert [mean_length(law) for law in laws] == pytest.approx(lengths, abs=0.006)
    assert [sum(law.values()) for law in laws] == pytest.approx([1.0] * 5, abs=1e-5)


@pytest.mark.usefixtures("_unchecked")
def test_of_texts_of_one_length_the_gate_is_worse_than_the_rate_in_two_steps() -> None:
    found = [distance(law_of(FIX, KINDS[name], 2), FIX) for name in ("gate", "rate alone")]
    assert found == pytest.approx([0.716, 0.478], abs=0.001)


def test_rates_of_the_truncated_likelihood() -> None:
    mean = torch.tensor([1.0, 1.05, 1.2, 1.5, 2.0, 3.0], dtype=torch.float64)
    rates = [0.0, 0.098, 0.376, 0.874, 1.594, 2.821]
    assert truncated_rate(mean).tolist() == pytest.approx(rates, abs=6e-4)


def test_of_a_fixed_number_texts_of_the_right_length_count_alone() -> None:
    assert at_fixed_count("baba", "ba", 0.5) == pytest.approx(1.0 / 6.0)
    assert at_fixed_count("ab", "ab", 0.5) < 1e-5
    assert at_fixed_count("abb", "a", 0.5) == pytest.approx(1.0 / 3.0)  # one and a half are two


@pytest.mark.usefixtures("_unchecked")
def test_a_row_for_each_kind_number_of_steps_and_figure() -> None:
    probe = Probe(kind="exact", title="", kinds=("gate", "no time"), vary="steps", values=(2, 4))
    rows = list(measure(None, probe))  # type: ignore[arg-type]
    assert len(rows) == 2 * 2 * 3
    assert {(row.way, row.x) for row in rows} == {(way, x) for way in probe.kinds for x in probe.values}
    found = {(row.way, row.x, row.figure): row.value for row in rows}
    assert found["gate", 4, "tv"] == pytest.approx(0.196, abs=0.001)
    assert found["gate", 2, "tv_fixed"] == pytest.approx(0.716, abs=0.001)
    assert found["no time", 2, "mean_length"] == pytest.approx(1.60, abs=0.006)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kinds: there is no gates; there are gate, rate alone"):
        list(measure(None, Probe(kind="exact", title="", kinds=("gates",), values=(2,))))  # type: ignore[arg-type]
