"""What tests/torture/image.py does before and beside building."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.messages import naming
from tests.torture import image


def test_a_program_that_is_missing_is_named_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["image.py", str(tmp_path / "scratch")])
    with pytest.raises(ValueError, match=naming("buildah", "apt-get install")):
        image.main()
    assert not (tmp_path / "scratch").exists()


def test_a_command_that_fails_tells_the_end_of_what_it_said() -> None:
    with pytest.raises(ValueError, match=naming("sh -c", 7, "first", "last")):
        image.run("sh", "-c", "echo first; echo last >&2; exit 7")


def test_a_step_whose_line_is_not_whole_is_not_made(tmp_path: Path) -> None:
    machine = image.Machine(tmp_path)
    assert image.steps_made(machine) == []
    log = tmp_path / "trained/runs/debug/metrics.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 3')
    assert image.steps_made(machine) == [1, 2]


@pytest.mark.parametrize("is_resumed", [True, False])
def test_a_run_that_starts_anew_is_not_taken_for_resumed(
    is_resumed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = image.Machine(tmp_path)
    steps = list(range(1, image.STEPS + 1)) if is_resumed else [*range(1, 9), *range(1, image.STEPS + 1)]
    monkeypatch.setattr(image, "run", lambda *_: "")
    monkeypatch.setattr(image.Machine, "container", lambda *_: [])
    monkeypatch.setattr(image, "steps_made", lambda _: steps)
    if is_resumed:
        assert image.resume(machine).endswith(f"to {image.STEPS}")
    else:
        with pytest.raises(ValueError, match=naming(image.STEPS)):
            image.resume(machine)
