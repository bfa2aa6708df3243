from __future__ import annotations

import pytest

from tools.comparison import contexts


def test_without_a_folder_nothing_is_planned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["contexts"])
    with pytest.raises(SystemExit) as end:
        contexts.main()
    assert end.value.code == 2
    assert "output" in capsys.readouterr().err
