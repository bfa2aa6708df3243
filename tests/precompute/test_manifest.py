from __future__ import annotations

import json
from pathlib import Path

import pytest

from oneflow_dist.precompute.manifest import (
    encode_manifest,
    encode_quarantine,
    read_report,
    read_reports,
    write_final_files,
)
from tests.messages import naming
from tests.precompute.making import contents, make_tools, run, write_shards


@pytest.fixture
def output(tmp_path: Path) -> Path:
    run(write_shards(tmp_path / "raw", num_shards=2, samples=2), tmp_path / "out")
    return tmp_path / "out"


def test_the_manifest_names_settings_shards_and_totals(output: Path) -> None:
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["settings"] == json.loads((output / "settings.json").read_text())
    assert [shard["name"] for shard in manifest["shards"]] == ["raw-00.tar", "raw-01.tar"]
    for name in ("samples", "images", "bytes"):
        assert manifest["totals"][name] == sum(shard[name] for shard in manifest["shards"]) > 0
    assert manifest["totals"]["shards"] == 2


def test_the_final_files_tell_of_no_time(output: Path, tmp_path: Path) -> None:
    before = contents(output)
    for name in ("manifest.json", "quarantine.jsonl", "contact_sheet.png"):
        (output / name).unlink()
    write_final_files(output, sorted((tmp_path / "raw").iterdir()), make_tools())
    assert contents(output) == before


def test_a_claim_on_what_is_complete_is_removed(output: Path, tmp_path: Path) -> None:
    before = contents(output)
    for name in ("settings.json", "raw-01.tar"):
        (output / f"{name}.partial").touch()
    write_final_files(output, sorted((tmp_path / "raw").iterdir()), make_tools())
    assert contents(output) == before


def test_a_name_that_is_no_utf8_is_an_escape(output: Path) -> None:
    (report, _) = read_reports(output)
    report["quarantined"] = [{"name": "é\udcff", "reason": "its name is not UTF-8"}]
    line = encode_quarantine([report])
    assert line.decode() == '{"shard": "raw-00.tar", "name": "é\\udcff", "reason": "its name is not UTF-8"}\n'
    assert json.loads(line)["name"] == "é\udcff"
    assert b'"quarantined": 1' in encode_manifest({}, [report])


def test_a_tar_without_report_belongs_to_another_output(output: Path) -> None:
    (output / "raw-01.tar.report.json").unlink()
    with pytest.raises(ValueError, match=naming(output / "raw-01.tar", "raw-01.tar.report.json")):
        read_report(output / "raw-01.tar")
