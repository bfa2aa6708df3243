"""A server under many users, timed: every user gets what one alone gets, and nothing is left running."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.launching import Run
from tests.messages import naming
from tools.benchmark.serving import DIFFERENT, FIRST, MEMORY, RATE, RATIO, WAYS, WHOLE, children_of, measure, serve


def test_all_users_get_what_one_alone_gets(unbroken: Run) -> None:
    documents = 6
    measured = measure(unbroken.folder, users=3, documents=documents, rounds=1, requests=5)
    cases = [f"{way}, {users}" for way in WAYS for users in ("1 user", "3 users")]
    assert sorted(measured.series[RATE]) == sorted(measured.series[WHOLE]) == sorted(cases)
    for way in WAYS:
        assert measured.series[DIFFERENT][way] == [0]
        one, all_users = (measured.series[RATE][f"{way}, {users}"][0] for users in ("1 user", "3 users"))
        assert measured.series[RATIO][way] == pytest.approx([all_users / one])
    for case in cases:
        assert len(measured.series[WHOLE][case]) == documents
    for name, seconds in measured.series[FIRST].items():  # the first token comes before the last
        assert max(seconds) <= max(measured.series[WHOLE][name])
    assert len(measured.series[MEMORY]["every 100 requests"]) == 2


def test_a_server_ends_with_what_started_it(unbroken: Run) -> None:
    with serve(unbroken.folder) as service:
        assert service.mebibytes() > 10
        processes = [service.pid, *children_of(service.pid)]
        assert len(processes) >= 2  # that of the model is one
    end = time.monotonic() + 10.0  # that of multiprocessing's resources sees a moment later that it is alone
    while left := [pid for pid in processes if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < end, left
        time.sleep(0.1)


def test_what_cannot_be_served_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=naming(str(tmp_path))), serve(tmp_path):
        pass
