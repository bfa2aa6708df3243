from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oneflow_dist.precompute.settings import keep_settings
from tests.messages import names, naming
from tests.precompute.making import make_tools, save_autoencoder


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(ValueError) as error:
        keep_settings(folder, make_tools(**options).settings())
    return str(error.value)


def test_the_header_says_how_latents_were_made(tmp_path: Path) -> None:
    folder = save_autoencoder(tmp_path / "vae")
    header = make_tools(autoencoder=str(folder), mirror=True).header()
    assert (
        header["autoencoder"].items()
        >= {"name": "vae", "scaling_factor": 0.5, "shift_factor": 0.1, "channels": 4, "downsample": 2}.items()
    )
    assert len(header["autoencoder"]["config_sha256"]) == len(header["autoencoder"]["weights_sha256"]) == 64
    assert header["tokenizer"]["name"] == "bytes"
    assert header["crop"] == {"size": 16, "multiple_of": 4, "max_aspect": 2.0, "resampling": "lanczos"}
    assert (header["dtype"], header["mirror"], header["features"]) == ("float16", True, None)
    assert set(header["versions"]) == {"oneflow_dist", "torch", "diffusers"}


def test_the_same_settings_go_on(tmp_path: Path) -> None:
    settings = make_tools().settings()
    keep_settings(tmp_path / "new" / "out", settings)
    before = (tmp_path / "new" / "out" / "settings.json").read_bytes()
    keep_settings(tmp_path / "new" / "out", settings)
    assert [path.read_bytes() for path in (tmp_path / "new" / "out").iterdir()] == [before]


def test_other_settings_are_refused_by_name_and_value(tmp_path: Path) -> None:
    keep_settings(tmp_path, make_tools().settings())
    path = tmp_path / "settings.json"
    assert names(refusal(tmp_path, size=32), path, "crop.size", 16, 32)
    assert names(refusal(tmp_path, mirror=True), path, "mirror", "false", "true")
    assert names(refusal(tmp_path, threads=2), path, "threads", 1, 2)
    other = make_tools(autoencoder=str(save_autoencoder(tmp_path / "vae"))).settings()["autoencoder"]
    mine = make_tools().settings()["autoencoder"]
    message = refusal(tmp_path, autoencoder=str(tmp_path / "vae"), multiple_of=2)
    assert names(message, path, "autoencoder.name", mine["name"], other["name"])


def test_other_weights_are_refused_with_both_hashes(tmp_path: Path) -> None:
    settings = make_tools().settings()
    keep_settings(tmp_path, settings)
    changed = {**settings, "autoencoder": {**settings["autoencoder"], "weights_sha256": "0" * 64}}
    with pytest.raises(ValueError, match=naming("weights_sha256", settings["autoencoder"]["weights_sha256"], "0" * 64)):
        keep_settings(tmp_path, changed)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_size": 0}, ("--batch-size", 0, 1)),
        ({"threads": -1}, ("--threads", -1, 1)),
        ({"multiple_of": 0}, ("--multiple-of", 0, 1, "pixels", 2)),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], named: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match=naming(*named)):
        make_tools(**options)


def test_damaged_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("{")
    assert names(refusal(tmp_path), tmp_path / "settings.json")
