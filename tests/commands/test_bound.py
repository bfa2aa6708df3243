from __future__ import annotations

from pathlib import Path

from tests.launching import Launcher, Run, oneflow, only_error
from tests.messages import names


def test_a_run_says_its_bits_for_each_source(launcher: Launcher, unbroken: Run, digits: Path, tmp_path: Path) -> None:
    mixture = tmp_path / "held_out.yaml"
    entry = f"shards: {digits}/single-heldout-000000.tar\n    weight: 1\n    tasks: {{text_only: 1}}\n"
    mixture.write_text(f"sources:\n  captions:\n    {entry}")
    end = launcher.run(
        *oneflow("bound"),
        unbroken.folder,
        "--mixture",
        mixture,
        "--documents",
        "20",
        "--instants",
        "4",
    )
    assert end.code == 0, end.stderr
    (line,) = [line for line in end.stdout.splitlines() if "bits a token" in line]
    assert line.startswith("captions: at most ")
    assert 0.5 < float(line.split()[3]) < 20.0


def test_a_run_without_held_out_texts_asks_for_them(launcher: Launcher, unbroken: Run) -> None:
    end = launcher.run(*oneflow("bound"), unbroken.folder)
    assert end.code == 2
    assert names(only_error(end), "validation.mixture", "--mixture")
