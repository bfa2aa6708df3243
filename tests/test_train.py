from __future__ import annotations

from pathlib import Path

from oneflow_dist.config import load_config
from tests.launching import Launcher, run_python


def test_torch_is_loaded_only_after_the_command_line_is_understood() -> None:
    """So that a run says what it does, and what is wrong with it, at once."""
    program = "import sys; import oneflow_dist.train; print('torch' in sys.modules)"
    assert run_python("-c", program).stdout == "False\n"


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
