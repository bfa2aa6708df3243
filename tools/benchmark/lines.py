"""Results as lines of a file, each on the disk before anything else happens; and the report beside them."""

from __future__ import annotations

import json
import os
from pathlib import Path

from oneflow_dist.files import write_whole
from tools.benchmark.report import Line, report

LINES, REPORT = "results.jsonl", "report.md"


class Notebook:
    """The results of a folder, old ones first. One process writes, whatever happens to others."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path = folder, folder / LINES
        self.path.touch()
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # a kill may have torn the last line
        os.truncate(self.path, len(whole))
        self.lines: list[Line] = [json.loads(line) for line in whole.splitlines()]

    def add(self, line: Line) -> None:
        """When this returns the line is in both files, and neither a kill nor a power cut takes it away."""
        self.lines.append(line)
        with self.path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        write_whole(self.folder / REPORT, report(self.lines).encode())
