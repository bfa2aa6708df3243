"""What ranks leave for who has launched them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launch.attempt import verdict_of
from oneflow_dist.verdict import tell
from tests.launching import Launcher, only_error
from tests.messages import names


def test_without_a_launch_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEFLOW_ATTEMPT", raising=False)
    monkeypatch.chdir(tmp_path)
    tell("failed", "for good")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "state", "named"),
    [
        (["train.steps=1"], "finished", ["1"]),
        (["train.steps=1", "data.tokenizer=nowhere"], "failed", ["nowhere"]),
        (["train.steps=2", "optim.lr=1e38"], "failed", ["step", "finite"]),
    ],
)
def test_a_run_tells_how_it_ended(
    launcher: Launcher,
    train_command: Callable[..., list[str]],
    tmp_path: Path,
    overrides: list[str],
    state: str,
    named: list[str],
) -> None:
    command = train_command(tmp_path / "run", "sampling.every_steps=0", *overrides)
    end = launcher.run(*command, env={"ONEFLOW_ATTEMPT": str(tmp_path)})
    told, message = verdict_of(tmp_path, end.code)
    assert (told, names(message, *named)) == (state, True)
    if state == "failed":
        assert message in only_error(end)
