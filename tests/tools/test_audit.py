"""tools/audit.py against a database of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.tars import answering
from tools import audit

KNOWN = {("jinja2", "2.4.1"): ["GHSA-462w", "PYSEC-2019"], ("urllib3", "1.0"): ["CVE-1"]}
LOCK = """\
# tested
jinja2==2.4.1 --hash=sha256:00 --hash=sha256:01
torch==2.13.0; sys_platform == "linux" --hash=sha256:02
"""


class Database(BaseHTTPRequestHandler):
    """Answers as osv.dev does: a result for each query, in their order, empty where nothing is known."""

    def do_POST(self) -> None:
        queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        assert self.path == "/v1/querybatch"
        assert {query["package"]["ecosystem"] for query in queries} == {"PyPI"}
        known = [KNOWN.get((query["package"]["name"], query["version"]), []) for query in queries]
        results = [{"vulns": [{"id": name, "modified": "2026"} for name in names]} if names else {} for names in known]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"results": results}).encode())

    def log_request(self, *_: object) -> None:
        """A request is no output of a test."""


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with answering(Database) as address:
        yield address


def run(lock: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of an audit."""
    monkeypatch.setattr("sys.argv", ["audit.py", str(lock), "--database", database])
    try:
        audit.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_version_with_a_known_vulnerability_is_named_and_fails(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(LOCK)
    assert run(lock, database, monkeypatch) == 1
    named, total = capsys.readouterr().out.splitlines()
    assert named.startswith("jinja2==2.4.1: GHSA-462w, PYSEC-2019;")
    assert "1 of 2" in total
    lock.write_text(LOCK.replace("2.4.1", "3.1.6"))
    assert run(lock, database, monkeypatch) == 0
    assert "0 of 2" in capsys.readouterr().out


def test_what_could_not_be_audited_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "requirements.lock").write_text(LOCK)
    assert run(tmp_path / "requirements.lock", "http://127.0.0.1:1", monkeypatch) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "NOT audited: http://127.0.0.1:1 " in line
