from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from oneflow_dist.data.index import index_tar
from oneflow_dist.data.latents import decode_array
from oneflow_dist.data.tar import HEADER_KEY, scan_tar
from oneflow_dist.files import claim
from oneflow_dist.precompute.encoder import Batcher
from oneflow_dist.precompute.prepare import Picture, PreparedSample
from oneflow_dist.precompute.shard_work import ShardWork, check_finite, check_posterior, encode_sample, prepare
from oneflow_dist.precompute.source import open_raw
from tests.messages import naming
from tests.precompute.making import make_tools, pair, png, read_tar, run, write_shards, write_tar


def begin(shard: Path, output: Path, max_bad: float = 0.0) -> ShardWork:
    claimed = claim(output)
    assert claimed is not None
    raw = open_raw(shard)
    return ShardWork(claim=claimed, raw=raw, header={"source": raw.describe()}, dtype="float16", max_bad=max_bad)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "raw", num_shards=1)[0]


def test_a_latent_shard_holds_the_raw_shard_with_latents_for_pictures(shard: Path, tmp_path: Path) -> None:
    run([shard], tmp_path / "out", mirror=True)
    raw, made = read_tar(shard), read_tar(tmp_path / "out" / shard.name)
    expected = []
    for name in raw:
        key, _, extension = name.partition(".")
        stem = extension.rpartition(".")[0]
        names = [f"{key}.{stem}{'.' if stem else ''}{kind}" for kind in ("npy", "mirrored.npy")]
        expected += names if extension.endswith(("png", "jpg")) else [name]
    tokens = {f"{name.partition('.')[0]}.tokens.npy" for name in raw}
    assert [name for name in made if name not in tokens] == expected
    assert tokens < made.keys()
    for name, content in raw.items():
        if name.endswith("txt") or (name.endswith("json") and name.startswith("doc")):
            assert made[name] == content
    assert json.loads(made["001.json"]) == {"id": 1, "width": 12, "height": 20}
    latent, mirrored = (decode_array(made[f"000.{kind}"], kind) for kind in ("npy", "mirrored.npy"))
    assert latent.shape == (2, 3, 16, 16)
    assert np.array_equal(latent[..., ::-1], mirrored)


def test_index_and_report_say_what_the_tar_holds(shard: Path, tmp_path: Path) -> None:
    run([shard], tmp_path / "out")
    path = tmp_path / "out" / shard.name
    assert path.with_name(f"{path.name}.index").read_bytes() == index_tar(path, "out")
    report = json.loads(path.with_name(f"{path.name}.report.json").read_text())
    assert report["samples"] == {"seen": 7, "written": 7}
    assert report["images"] == 7
    assert report["output"]["bytes"] == path.stat().st_size
    assert report["source"]["name"] == shard.name
    with path.open("rb") as file:
        assert scan_tar(file, path.stat().st_size).header["source"] == report["source"]
    assert HEADER_KEY.encode() in path.read_bytes()[:2048]


def test_samples_are_written_in_source_order_whichever_is_encoded_first(shard: Path, tmp_path: Path) -> None:
    work, tools = begin(shard, tmp_path / "out.tar"), make_tools()
    encoder, batcher, batches = tools.encoder(), Batcher(3), []
    for sample in work.raw.samples:
        outcome = prepare(work.raw, sample, tools.preparation())
        work.queue(outcome)
        assert isinstance(outcome, PreparedSample)
        batches += [batch for one in outcome.pictures for batch in batcher.add(one)]
    for batch in reversed([*batches, *batcher.flush()]):
        encoder.encode(batch)
        work.write(work.take_done())
    work.finish()
    keys = list(dict.fromkeys(name.partition(".")[0] for name in read_tar(tmp_path / "out.tar")))
    assert keys == [sample.key for sample in work.raw.samples]


def test_work_that_is_given_up_leaves_nothing(shard: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    begin(shard, tmp_path / "out.tar").close()
    assert sorted(tmp_path.iterdir()) == before


def test_too_many_bad_samples_stop_the_run_and_leave_no_shard(tmp_path: Path) -> None:
    bad = [(f"bad{number}.png", png(0)) for number in range(5)]
    path = write_tar(tmp_path / "a.tar", [*pair(0), *pair(1), *bad])
    shown = [part for number in range(3) for part in (f"bad{number}", "--allow-missing-text")]
    with pytest.raises(ValueError, match=naming(path, 5, 7, "--max-bad", 0.5, *shown, 2, "--max-bad")):
        run([path], tmp_path / "out", max_bad=0.5)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["settings.json"]
    assert run([path], tmp_path / "out", max_bad=0.72).quarantined == 5


def test_a_file_that_is_no_tar_stops_the_run(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"not a tar" * 1000)
    with pytest.raises(ValueError, match=naming(path, 0, 0)):
        run([path], tmp_path / "out", max_bad=1.0)


def sample_of(mean: np.ndarray, std: np.ndarray) -> PreparedSample:
    picture = Picture(name="0", pixels=np.zeros((4, 4, 3), dtype=np.uint8), view=None)
    picture.posteriors["npy"] = (mean.astype(np.float32), std.astype(np.float32))
    return PreparedSample(key="k", members=[picture])


def test_a_latent_that_cannot_be_stored_is_refused() -> None:
    zeros = np.zeros((1, 2, 2))
    for mean, std, named in (
        (zeros + np.nan, zeros, ("0.npy", 4, 8, "float16")),
        (zeros + 1e6, zeros, ("0.npy", 4, 8, "float16")),
        (zeros, zeros - 0.5, ("0.npy", -0.5)),
    ):
        with pytest.raises(ValueError, match=naming(*named)):
            encode_sample(sample_of(mean, std), "float16")
    (file,) = encode_sample(sample_of(zeros + 1e6, zeros), "float32")
    assert file[0] == "0.npy"
    assert np.load(io.BytesIO(file[1])).max() == 1e6


def test_checks_pass_what_is_good() -> None:
    check_finite(np.zeros(3), "x")
    check_posterior(np.zeros((2, 1, 1, 1)), "x")
