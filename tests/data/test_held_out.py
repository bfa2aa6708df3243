from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from oneflow_dist.config import Config
from oneflow_dist.containers import ShardRecord
from oneflow_dist.data.held_out import HEAD_BYTES, digest_of, find_held_out, report_held_out
from oneflow_dist.data.loader import PackLoader
from oneflow_dist.data.shards import open_shards
from tests.data.making import BYTES, source
from tests.messages import names, naming
from tests.tars import write_tar

MakeConfig = Callable[..., Config]
TEXTS = {f"{number:03d}.txt": f"note {number}".encode() for number in range(12)}


def trained_on(folder: Path, make_config: MakeConfig, held_out: str = "", every_steps: int = 1) -> set[str]:
    """The keys of a few steps on `train.tar`."""
    (folder / "train.yaml").write_text(f"sources: {source(folder / 'train.tar')}\n")
    data = [BYTES, f"data.mixture={folder / 'train.yaml'}", "data.window_samples=4", "data.sequences_per_pack=4"]
    if held_out:
        (folder / "heldout.yaml").write_text(f"sources: {held_out}\n")
        data += [f"validation.mixture={folder / 'heldout.yaml'}", f"validation.every_steps={every_steps}"]
    loader = PackLoader(make_config(*data), 0, 1)
    keys = [key for _ in range(8) for batch in loader.next_step() for key in batch.keys]
    return {key.rpartition("/")[2] for key in keys}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve notes."""
    write_tar(tmp_path / "train.tar", TEXTS)
    return tmp_path


def test_without_validation_all_documents_are_trained_on(folder: Path, make_config: MakeConfig) -> None:
    assert trained_on(folder, make_config) == {f"{number:03d}" for number in range(12)}


def test_a_held_out_document_is_left_out_by_its_key(folder: Path, make_config: MakeConfig) -> None:
    """Its content may have been written anew; sources of one name share their keys, others do not."""
    write_tar(folder / "other.tar", {"003.txt": b"written anew", "104.txt": b"no note"})
    kept = trained_on(folder, make_config, source(folder / "other.tar"))
    assert kept == {f"{number:03d}" for number in range(12)} - {"003"}
    kept = trained_on(folder, make_config, source(folder / "other.tar", name="others"))
    assert kept == {f"{number:03d}" for number in range(12)}


def test_a_run_says_which_sources_share_keys_with_held_out_ones(folder: Path, make_config: MakeConfig) -> None:
    trained = open_shards("pets", str(folder / "train.tar"))
    write_tar(folder / "other.tar", {"003.txt": b"written anew", "104.txt": b"no note"})
    for name, expected in (("pets", 1), ("others", 0)):
        (folder / "heldout.yaml").write_text(f"sources: {source(folder / 'other.tar', name=name)}\n")
        lines = report_held_out(find_held_out(str(folder / "heldout.yaml"), [trained]), [trained])
        assert len(lines) == expected
        assert all(names(line, "pets", 1, 12) for line in lines)


def test_a_renamed_copy_of_a_held_out_document_is_left_out(folder: Path, make_config: MakeConfig) -> None:
    write_tar(folder / "other.tar", {"x.txt": TEXTS["005.txt"], "y.txt": b"no note"})
    kept = trained_on(folder, make_config, source(folder / "other.tar", name="others"))
    assert kept == {f"{number:03d}" for number in range(12)} - {"005"}


def test_a_shard_of_both_mixtures_is_refused(folder: Path, make_config: MakeConfig) -> None:
    shutil.copy(folder / "train.tar", folder / "other.tar")
    expected = naming(
        "validation.mixture", folder / "heldout.yaml", "others", folder / "other.tar", folder / "train.tar"
    )
    with pytest.raises(ValueError, match=expected):
        trained_on(folder, make_config, source(folder / "other.tar", name="others"))


def test_where_all_is_held_out_the_run_says_so(folder: Path, make_config: MakeConfig) -> None:
    write_tar(folder / "other.tar", {**TEXTS, "more.txt": b"one more"})
    with pytest.raises(ValueError, match=naming("pets", "validation.mixture")):
        trained_on(folder, make_config, source(folder / "other.tar", name="others"))


def test_a_digest_is_of_names_of_members_text_and_the_beginning_of_all_else() -> None:
    def digest(**files: bytes) -> bytes:
        return digest_of(ShardRecord(key="a/b/c", files=files))

    head = bytes(HEAD_BYTES)
    assert digest(txt=b"a", png=head + b"1") == digest(png=head + b"2", txt=b"a")
    assert digest(txt=head + b"1") != digest(txt=head + b"2")
    others = [digest(txt=b"a"), digest(json=b"a"), digest(txt=b"a", png=b""), digest(png=head), digest(png=head + b"1")]
    assert len(set(others)) == len(others)


def test_digits_that_are_held_out_share_no_key_with_those_of_training(digits: Path) -> None:
    trained = [open_shards(name, f"{digits}/{name}-train-*.tar") for name in ("single", "count")]
    held_out = find_held_out(str(digits / "heldout.yaml"), trained)
    assert len(held_out.digests) > 300
    for shards in trained:
        assert not any(
            held_out.has(shards.source, shards.key(sample), shards.read(sample)) for sample in range(len(shards))
        )
