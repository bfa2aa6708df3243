from __future__ import annotations

import pytest

from oneflow_dist.prepare.packages import need
from tests.messages import naming


def test_what_is_installed_is_imported() -> None:
    assert need("json.decoder").JSONDecoder().decode("1") == 1


def test_a_missing_package_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oneflow_dist.extras.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=naming("pyarrow", "pip install 'oneflow_dist[prepare]'")):
        need("pyarrow.parquet")
