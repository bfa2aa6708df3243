from __future__ import annotations

from pathlib import Path

from tests.tools.benchmark.made_up import MACHINE, end
from tools.benchmark.lines import LINES, REPORT, Notebook


def test_a_line_is_in_both_files_when_it_is_added(tmp_path: Path) -> None:
    notebook = Notebook(tmp_path / "new")
    notebook.add(MACHINE)
    assert (notebook.folder / LINES).read_text().count("\n") == 1
    assert "NVIDIA H100" in (notebook.folder / REPORT).read_text()
    notebook.add(end("a", "failed", "no room"))
    assert "| a | failed: no room |" in (notebook.folder / REPORT).read_text()
    assert {path.name for path in notebook.folder.iterdir()} == {LINES, REPORT}


def test_what_a_kill_tore_is_dropped_and_the_rest_goes_on(tmp_path: Path) -> None:
    Notebook(tmp_path).add(MACHINE)
    with (tmp_path / LINES).open("a") as file:
        file.write('{"kind": "end", "jo')
    notebook = Notebook(tmp_path)
    assert notebook.lines == [MACHINE]
    notebook.add(end("a", "measured", ""))
    assert Notebook(tmp_path).lines == [MACHINE, end("a", "measured", "")]
