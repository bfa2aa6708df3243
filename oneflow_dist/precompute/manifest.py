"""What is written when all shards of an output are complete: the manifest, the list of bad samples, a contact sheet."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oneflow_dist.files import write_whole
from oneflow_dist.precompute.settings import SETTINGS, Tools, read_json
from oneflow_dist.precompute.shard_work import encode_json, report_path
from oneflow_dist.precompute.sheet import draw_sheet

MANIFEST, QUARANTINE, SHEET = "manifest.json", "quarantine.jsonl", "contact_sheet.png"


def write_final_files(folder: Path, shards: list[Path], tools: Tools) -> None:
    """Write what tells of the whole folder, of all tars in it; one process at a time, and nothing that is there."""
    with _lock(folder / SETTINGS):
        _remove_strays(folder)
        reports = read_reports(folder)
        manifest = encode_manifest(read_json(folder / SETTINGS), reports)
        path = folder / MANIFEST
        if path.exists() and path.read_bytes() == manifest:
            return
        write_whole(folder / QUARANTINE, encode_quarantine(reports))
        sheet = draw_sheet(folder, shards, tools)
        if sheet is not None:
            write_whole(folder / SHEET, sheet)
        write_whole(path, manifest)  # the last: where it is, the output is complete


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """The reports on all tars of an output, by name."""
    return [read_report(path) for path in sorted(folder.glob("*.tar"))]


def read_report(path: Path) -> dict[str, Any]:
    """The report on one tar.

    Raises:
        ValueError: there is none, so the tar was not written here.
    """
    if not report_path(path).exists():
        raise ValueError(
            f"{path}: no {report_path(path).name} beside it, so it is no shard of this output; move it away"
        )
    return read_json(report_path(path))


def encode_manifest(settings: dict[str, Any], reports: list[dict[str, Any]]) -> bytes:
    """The same bytes for the same shards, in whichever order and by however many processes they were written."""
    shards = [describe_shard(report) for report in reports]
    counted = ("bytes", "samples", "images", "quarantined", "damaged")
    totals = {"shards": len(shards), **{name: sum(shard[name] for shard in shards) for name in counted}}
    return encode_json({"settings": settings, "totals": totals, "shards": shards})


def describe_shard(report: dict[str, Any]) -> dict[str, Any]:
    """The line of the manifest for one report."""
    return {
        "name": report["output"]["name"],
        "sha256": report["output"]["sha256"],
        "bytes": report["output"]["bytes"],
        "source_sha256": report["source"]["sha256"],
        "samples": report["samples"]["written"],
        "images": report["images"],
        "quarantined": len(report["quarantined"]),
        "damaged": len(report["damage"]),
    }


def encode_quarantine(reports: list[dict[str, Any]]) -> bytes:
    """A line for each sample that was left out; damage in which no name is readable has the name ""."""
    lines = []
    for report in reports:
        lost = [{"name": "", "reason": reason} for reason in report["damage"]]
        lines += [{"shard": report["source"]["name"], **entry} for entry in [*report["quarantined"], *lost]]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return text.encode("utf-8", "backslashreplace")


def _remove_strays(folder: Path) -> None:
    """Remove claims on what is complete: of processes that were killed when they were about to do so themselves."""
    for path in [folder / SETTINGS, *folder.glob("*.tar")]:
        path.with_name(f"{path.name}.partial").unlink(missing_ok=True)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a file that nobody replaces; a dead process lets go of it."""
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
