from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from oneflow_dist.reporting.differences import ABSENT, differing_keys, flatten, nearest_base, value_of
from tests.launching import ROOT
from tests.reporting.made_up import write_run


def read_config(run: Path) -> dict[str, object]:
    return flatten(tomllib.loads((run / "config.toml").read_text()))


def test_tables_are_flattened_by_whole_names() -> None:
    table = {"modality": {"image": {"shape": [8, 8]}}, "guidance": {}, "train": {"steps": 3}}
    assert flatten(table) == {"modality.image.shape": [8, 8], "train.steps": 3}


def test_keys_differ_where_values_do_or_one_has_none() -> None:
    first, second = {"a.x": 1, "a.y": True, "run.folder": "p"}, {"a.x": 1, "a.y": False, "run.folder": "q", "b.z": 2}
    assert differing_keys([first, second]) == ["a.y", "b.z"]
    assert differing_keys([first]) == []
    assert [value_of(first, key) for key in ("a.y", "b.z", "run.folder")] == ["true", ABSENT, '"p"']


@pytest.mark.parametrize(
    ("overrides", "keys"), [((), ["train.steps"]), (["optim.lr=0.5"], ["optim.lr", "train.steps"])]
)
def test_the_base_is_the_config_of_the_project_with_the_fewest_differences(
    overrides: list[str], keys: list[str], tmp_path: Path
) -> None:
    config = read_config(write_run(tmp_path / "run", *overrides))
    base = nearest_base(config)
    assert base is not None
    assert base[0] == "configs/quickstart.toml"
    assert differing_keys([base[1], config]) == keys


def test_configs_in_stages_are_bases_and_what_is_no_config_is_none(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/a.toml").write_text((ROOT / "configs/debug.toml").read_text())
    (tmp_path / "half.toml").write_text("[run")
    base = nearest_base({"train.steps": 1}, tmp_path)
    assert base is not None
    assert base[0] == "configs/stages/a.toml"


def test_without_configs_there_is_no_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert nearest_base({"train.steps": 1}, tmp_path / "configs") is None
