"""Is an output whole? Every byte of it is read again and compared with what was said of it when it was written."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from oneflow_dist.containers import ShardRecord
from oneflow_dist.data.decoding import read_fields, read_segments
from oneflow_dist.data.index import ShardIndex, decode_index, edges_sha256, encode_index, file_sha256
from oneflow_dist.data.latents import decode_array, decode_texts
from oneflow_dist.data.tar import scan_tar
from oneflow_dist.model.autoencoder import Autoencoder
from oneflow_dist.precompute.crop import CropPolicy, list_buckets
from oneflow_dist.precompute.manifest import MANIFEST, QUARANTINE, describe_shard, encode_quarantine, read_report
from oneflow_dist.precompute.prepare import is_passed
from oneflow_dist.precompute.settings import SETTINGS, read_json
from oneflow_dist.precompute.shard_work import check_finite, check_posterior, index_path

MAX_PLAUSIBLE = 1000.0  # raw latents of trained autoencoders stay below 50
NUM_DECODED = 2  # latents of each shard that are decoded back to pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is found of one shard."""

    name: str
    samples: int
    images: int
    num_bytes: int
    largest: float  # absolute value of a mean
    problem: str | None


def check_output(folder: Path, autoencoder: Autoencoder | None) -> list[Verdict]:
    """Check every shard of an output, and what the manifest says of all.

    Raises:
        ValueError: the output is not complete, its lists do not agree, or the autoencoder is another.
    """
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder}: no {MANIFEST}, so it is not complete; run the command that writes it again")
    settings, manifest = read_json(folder / SETTINGS), read_json(folder / MANIFEST)
    if manifest.get("settings") != settings:
        raise ValueError(f"{folder}: {MANIFEST} was written with other settings than {SETTINGS}; delete it, run again")
    for key in ("config_sha256", "weights_sha256") if autoencoder else ():
        stored, given = settings["autoencoder"][key], getattr(autoencoder, key)
        if stored != given:
            raise ValueError(f"--autoencoder: {key} is {given}, but {folder} was made with {stored}; name that one")
    names = sorted({shard["name"] for shard in manifest["shards"]} | {path.name for path in folder.glob("*.tar")})
    entries = {shard["name"]: shard for shard in manifest["shards"]}
    verdicts = [_check_shard(folder / name, settings, entries.get(name), autoencoder) for name in names]
    if all(verdict.problem is None for verdict in verdicts):
        _check_lists(folder, manifest, names)
    return verdicts


def _check_shard(
    path: Path, settings: dict[str, Any], entry: dict[str, Any] | None, autoencoder: Autoencoder | None
) -> Verdict:
    reader = ShardReader(path=path, settings=settings, autoencoder=autoencoder)
    try:
        reader.check(entry)
        problem = None
    except ValueError as error:
        problem = str(error)
    return Verdict(
        name=path.name,
        samples=reader.samples,
        images=reader.images,
        num_bytes=path.stat().st_size if path.exists() else 0,
        largest=reader.largest,
        problem=problem,
    )


def _check_lists(folder: Path, manifest: dict[str, Any], names: list[str]) -> None:
    """Compare the totals and the list of bad samples with the reports."""
    for name, total in manifest["totals"].items():
        found = len(names) if name == "shards" else sum(shard[name] for shard in manifest["shards"])
        if found != total:
            raise ValueError(
                f"{folder}: {MANIFEST} says {total} {name}, but its shards have {found}; delete it, run again"
            )
    expected = encode_quarantine([read_report(folder / name) for name in names])
    if not (folder / QUARANTINE).is_file() or (folder / QUARANTINE).read_bytes() != expected:
        raise ValueError(f"{folder}: {QUARANTINE} is not that of the reports; delete {MANIFEST}, run again")


@dataclass(slots=True, kw_only=True)
class ShardReader:
    """Reads one shard of latents from end to end; every check raises ValueError with what it found."""

    path: Path
    settings: dict[str, Any]
    autoencoder: Autoencoder | None
    samples: int = 0
    images: int = 0
    largest: float = 0.0

    def check(self, entry: dict[str, Any] | None) -> None:
        """Check the files, then what they hold, then the counts."""
        if not self.path.exists():
            raise ValueError("missing, but the manifest names it")
        report = read_report(self.path)
        if entry is None or entry != describe_shard(report):
            raise ValueError("the manifest does not say of it what its report says")
        with self.path.open("rb") as file:
            index = self._check_files(file, report)
            for number in range(len(index)):
                self._check_sample(file, index, number)
        found = {"written": self.samples, "images": self.images}
        told = {"written": report["samples"]["written"], "images": report["images"]}
        if found != told:
            raise ValueError(f"it holds {found}, but its report says {told}")
        if report["samples"]["seen"] != self.samples + len(report["quarantined"]):
            raise ValueError(
                f"{report['samples']['seen']} samples were seen, but not all of them were written or listed"
            )

    def _check_files(self, file: BinaryIO, report: dict[str, Any]) -> ShardIndex:
        num_bytes, sha256 = self.path.stat().st_size, file_sha256(file)
        told = report["output"]
        if (num_bytes, sha256) != (told["bytes"], told["sha256"]):
            raise ValueError(
                f"{num_bytes} bytes with sha256 {sha256}, but its report says {told['bytes']} with {told['sha256']}"
            )
        contents = scan_tar(file, num_bytes)
        if contents.faults:
            raise ValueError(f"{contents.faults[0].name}: {contents.faults[0].reason}")
        expected = encode_index(contents, num_bytes, sha256, edges_sha256(file, num_bytes))
        place = index_path(self.path)
        stored = place.read_bytes() if place.is_file() else b""
        if stored != expected:
            raise ValueError(f"{place.name} is {'another' if place.is_file() else 'missing'}")
        header = {key: value for key, value in contents.header.items() if key != "source"}
        differing = [key for key, value in header.items() if self.settings.get(key) != value]
        if differing or contents.header.get("source") != report["source"]:
            raise ValueError(f"its header differs from {SETTINGS} in {(differing or ['source'])[0]}")
        return decode_index(expected, place.name)

    def _check_sample(self, file: BinaryIO, index: ShardIndex, number: int) -> None:
        key, files = index.key(number), {}
        for extension, offset, size in index.members(number):
            file.seek(offset)
            files[extension] = file.read(size)
        record = ShardRecord(key=f"{self.path.name}/{key}", files=files)
        segments = read_segments(record, read_fields(record))
        names = [s.piece for s in segments if s.piece is not None and not is_passed(files, s.piece)]
        for name in names:
            self._check_image(files, f"{name}." if name else "", key)
        self._check_tokens(files, sum(segment.text is not None for segment in segments), key)
        self.samples += 1
        self.images += len(names)

    def _check_image(self, files: dict[str, bytes], stem: str, key: str) -> None:
        expected = ["npy", *["mirrored.npy"] * self.settings["mirror"]]
        expected += ["features.npy"] * (self.settings["features"] is not None)
        for kind in expected:
            name = f"{key}.{stem}{kind}"
            if f"{stem}{kind}" not in files:
                raise ValueError(f"{name} is missing")
            array = decode_array(files[f"{stem}{kind}"], name)
            if kind == "features.npy":
                self._check_features(array, name)
            else:
                self._check_posterior(array, name)

    def _check_features(self, features: np.ndarray, name: str) -> None:
        told = self.settings["features"]
        shape = [told.get("channels"), *told.get("grid", ())]
        if list(features.shape) != shape or features.dtype != np.float16:
            raise ValueError(f"{name}: {features.dtype} {list(features.shape)}, but {SETTINGS} says float16 {shape}")
        check_finite(features, name)

    def _check_posterior(self, posterior: np.ndarray, name: str) -> None:
        crop, autoencoder = self.settings["crop"], self.settings["autoencoder"]
        policy = CropPolicy(**{key: crop[key] for key in ("size", "multiple_of", "max_aspect")})
        side = autoencoder["downsample"]
        shapes = {(2, autoencoder["channels"], h // side, w // side) for h, w in list_buckets(policy)}
        if posterior.shape not in shapes or posterior.dtype != np.dtype(self.settings["dtype"]):
            raise ValueError(f"{name}: {posterior.dtype} {list(posterior.shape)} is the shape of no bucket")
        check_posterior(posterior, name)
        largest = float(np.abs(posterior).max())
        if largest > MAX_PLAUSIBLE:
            raise ValueError(f"{name}: a value of {largest:g} is no latent of an image")
        self.largest = max(self.largest, largest)
        if self.autoencoder is not None and self.images < NUM_DECODED:
            mean = torch.from_numpy(posterior[:1].astype(np.float32))
            check_finite(self.autoencoder.decode(mean)[0].numpy(), f"{name}, decoded")

    def _check_tokens(self, files: dict[str, bytes], num_texts: int, key: str) -> None:
        name = f"{key}.tokens.npy"
        if "tokens.npy" not in files:
            raise ValueError(f"{name} is missing")
        texts = decode_texts(files["tokens.npy"], name)
        if len(texts) != num_texts:
            raise ValueError(f"{name}: tokens of {len(texts)} texts, but the sample has {num_texts}")
        ids, vocab_size = sorted(itertools.chain.from_iterable(texts)), self.settings["tokenizer"]["vocab_size"]
        if ids and not 0 <= ids[0] <= ids[-1] < vocab_size:
            raise ValueError(f"{name}: token ids {ids[0]} to {ids[-1]}, but the vocabulary has {vocab_size}")
