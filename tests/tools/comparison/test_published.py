from __future__ import annotations

import pytest

from tools.comparison import published


def test_without_a_folder_nothing_is_planned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["published"])
    with pytest.raises(SystemExit) as end:
        published.main()
    assert end.value.code == 2
    assert "output" in capsys.readouterr().err
