from __future__ import annotations

from pathlib import Path

import pytest

from oneflow_dist.config import load_config
from tests.launching import Launcher, run_python
from tests.messages import names


def test_torch_is_loaded_only_after_the_command_line_is_understood() -> None:
    """So that a run says what it does, and what is wrong with it, at once."""
    program = "import sys; import oneflow_dist.train; print('torch' in sys.modules)"
    assert run_python("-c", program).stdout == "False\n"


@pytest.mark.parametrize(
    ("key", "value", "package"), [("metrics.tensorboard", "true", "tensorboard"), ("metrics.wandb", "offline", "wandb")]
)
def test_a_run_that_cannot_report_as_it_should_ends_before_anything_is_loaded(
    key: str, value: str, package: str, tmp_path: Path
) -> None:
    words = ["train", "configs/debug.toml", f"run.folder={tmp_path / 'run'}", f"{key}={value}"]
    program = (
        f"import sys; sys.modules[{package!r}] = None; sys.argv = {words}\n"
        "from oneflow_dist.train import main\n"
        "try:\n    main()\nexcept ValueError as error:\n    print(error, 'torch' in sys.modules)"
    )
    said = run_python("-c", program).stdout
    assert names(said, key, package, "pip install 'oneflow_dist[track]'", False)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_the_large_model_prints_its_sizes_and_touches_nothing(launcher: Launcher, tmp_path: Path) -> None:
    end = launcher.run(
        "-m", "oneflow_dist.train", "configs/oneflow_8b.toml", f"run.folder={tmp_path / 'run'}", "--dry-run"
    )
    assert (end.code, end.stderr) == (0, "")
    sizes = dict(line.split()[:2] for line in end.stdout.splitlines() if line.startswith(("parameters ", "  ")))
    block = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
    assert sizes["blocks"] == f"{32 * block:,}"
    assert sizes["embed"] == sizes["unembed"] == f"{128256 * 4096:,}"
    parts = [int(sizes[name].replace(",", "")) for name in ("embed", "unembed", "blocks", "adapters", "heads")]
    assert sizes["parameters"] == f"{sum(parts):,}"
    printed = end.stdout.partition("\nparameters ")[0]
    (tmp_path / "printed.toml").write_text(printed)
    overrides = [f"run.folder={tmp_path / 'run'}"]
    assert load_config(tmp_path / "printed.toml") == load_config("configs/oneflow_8b.toml", overrides)
    assert not (tmp_path / "run").exists()
