"""What ranks leave for who has launched them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from oneflow_dist.verdict import read_verdicts, refuse_to_fail_again, tell
from tests.launching import Launcher, only_error
from tests.messages import names


def test_ranks_that_tell_are_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEFLOW_ATTEMPT", str(tmp_path))
    for rank in (10, 9):
        monkeypatch.setenv("RANK", str(rank))
        tell("hung", f"of rank {rank}")
    assert read_verdicts(tmp_path) == [("hung", "of rank 9"), ("hung", "of rank 10")]
    refuse_to_fail_again()  # to hang is no reason not to start again
    tell("failed", "for good")
    with pytest.raises(ValueError, match="for good"):
        refuse_to_fail_again()


def test_without_a_launch_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEFLOW_ATTEMPT", raising=False)
    monkeypatch.chdir(tmp_path)
    tell("failed", "for good")
    refuse_to_fail_again()
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
    ((told, message),) = read_verdicts(tmp_path)
    assert (told, names(message, *named)) == (state, True)
    if state == "failed":
        assert message in only_error(end)
        again = launcher.run(*command, env={"ONEFLOW_ATTEMPT": str(tmp_path)})  # as torchrun would start it anew
        assert (again.code, message in only_error(again)) == (2, True)
