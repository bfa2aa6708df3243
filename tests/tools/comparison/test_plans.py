from __future__ import annotations

from pathlib import Path

import pytest

from tools.comparison import context_plans, plans, published_plans


@pytest.mark.parametrize(("what", "module"), [("published", published_plans), ("contexts", context_plans)])
def test_what_is_asked_for_is_planned_into_the_folder(
    what: str, module: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "write", lambda folder: f"the page of {what} in {folder}")
    monkeypatch.setattr("sys.argv", ["plans", what, str(tmp_path)])
    plans.main()
    assert capsys.readouterr().out == f"the page of {what} in {tmp_path}\n"


@pytest.mark.parametrize("words", [[], ["published"], ["nothing", "out"]])
def test_without_what_and_where_nothing_is_planned(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["plans", *words])
    with pytest.raises(SystemExit) as end:
        plans.main()
    assert end.value.code == 2
