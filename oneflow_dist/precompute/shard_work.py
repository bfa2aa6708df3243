"""One shard from its claim to its commit: samples in, a tar of latents with its index and report out."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from oneflow_dist.data.decoding import naming_sample
from oneflow_dist.data.index import edges_sha256, encode_index, file_sha256
from oneflow_dist.data.latents import encode_array, stack_posterior
from oneflow_dist.files import Claim, write_whole
from oneflow_dist.precompute.prepare import Picture, Preparation, PreparedSample, prepare_sample
from oneflow_dist.precompute.source import RawSample, RawShard
from oneflow_dist.precompute.writer import TarWriter

REASONS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample that is left out."""

    name: str
    reason: str


Outcome = PreparedSample | BadSample


@dataclass(slots=True, kw_only=True, eq=False)
class ShardWork:
    """A claimed shard. One thread calls `queue` and `take_done`, one other `write` and `finish`."""

    claim: Claim
    raw: RawShard
    header: dict[str, Any]
    dtype: str
    max_bad: float
    num_written: int = 0
    num_images: int = 0
    _waiting: deque[Outcome] = field(default_factory=deque)  # in source order
    _bad: list[BadSample] = field(default_factory=list)
    _writer: TarWriter = field(init=False)
    _is_committed: bool = False

    def __post_init__(self) -> None:
        self._writer = TarWriter(self.claim.file, self.header)

    def close(self) -> None:
        """Let go of the claim; of work that did not come to its end nothing is left."""
        if self._is_committed:
            self.claim.file.close()
        else:
            self.claim.abandon()
        self.raw.file.close()

    @property
    def num_bad(self) -> int:
        return len(self._bad)

    def queue(self, outcome: Outcome) -> None:
        """Remember the next sample, in source order."""
        self._waiting.append(outcome)

    def take_done(self) -> list[Outcome]:
        """The samples whose turn it is and whose pictures are all encoded."""
        done = []
        while self._waiting and _is_encoded(self._waiting[0]):
            done.append(self._waiting.popleft())
        return done

    def write(self, outcomes: list[Outcome]) -> None:
        """Append samples to the tar, and what is wrong with the others to the report."""
        for outcome in outcomes:
            if isinstance(outcome, PreparedSample):
                self._write_sample(outcome)
            else:
                self._bad.append(outcome)

    def finish(self) -> None:
        """Write index and report, then give the tar its name: a tar that is there is complete.

        Raises:
            ValueError: too many of the samples are bad.
        """
        assert not self._waiting, f"{self.raw.path}: {len(self._waiting)} samples are not encoded"
        self._check_bad()
        self._writer.close()
        file, path = self.claim.file, self.claim.path
        num_bytes = file.seek(0, 2)
        sha256 = file_sha256(file)
        index = encode_index(self._writer.contents, num_bytes, sha256, edges_sha256(file, num_bytes))
        write_whole(index_path(path), index)
        write_whole(report_path(path), encode_json(self._report(num_bytes, sha256)))
        self.claim.commit()
        self._is_committed = True
        self.close()

    def _write_sample(self, sample: PreparedSample) -> None:
        try:
            files = encode_sample(sample, self.dtype)
        except ValueError as error:
            self._bad.append(BadSample(sample.key, str(error)))
            return
        for extension, content in files:
            self._writer.add(sample.key, extension, content)
        self.num_written += 1
        self.num_images += len(sample.pictures)

    def _check_bad(self) -> None:
        num_seen = self.num_written + len(self._bad)
        is_lost = num_seen == 0 and self.raw.damage
        if len(self._bad) <= self.max_bad * num_seen and not is_lost:
            return
        bad = [f"{sample.name}: {sample.reason}" for sample in self._bad]
        reasons = [*bad, *self.raw.damage]
        more = f"; and {len(reasons) - REASONS_SHOWN} more" if len(reasons) > REASONS_SHOWN else ""
        raise ValueError(
            f"{self.raw.path}: {len(bad)} of {num_seen} samples are bad, more than --max-bad {self.max_bad:g} allows "
            f"({'; '.join(reasons[:REASONS_SHOWN])}{more}); mend the shard, leave it out, or raise --max-bad"
        )

    def _report(self, num_bytes: int, sha256: str) -> dict[str, Any]:
        return {
            "source": self.header["source"],
            "output": {"name": self.claim.path.name, "bytes": num_bytes, "sha256": sha256},
            "samples": {"seen": self.num_written + len(self._bad), "written": self.num_written},
            "images": self.num_images,
            "quarantined": [{"name": sample.name, "reason": sample.reason} for sample in self._bad],
            "damage": self.raw.damage,
        }


def prepare(raw: RawShard, sample: RawSample, how: Preparation) -> Outcome:
    """Read a sample and make it ready for the encoder; from any thread."""
    if sample.refusal is not None:
        return BadSample(sample.key, sample.refusal)
    files = raw.read(sample)
    try:
        with naming_sample(sample.key):
            return prepare_sample(sample.key, files, how)
    except ValueError as error:
        return BadSample(sample.key, str(error).removeprefix(f"sample {sample.key}: "))


def encode_sample(sample: PreparedSample, dtype: str) -> list[tuple[str, bytes]]:
    """The files of an encoded sample by extension, as they are written.

    Raises:
        ValueError: a latent cannot be stored.
    """
    files: list[tuple[str, bytes]] = []
    for member in sample.members:
        if not isinstance(member, Picture):
            files.append(member)
            continue
        stem = f"{member.name}." if member.name else ""
        for kind, (mean, std) in member.posteriors.items():
            with np.errstate(over="ignore"):  # found by the check
                posterior = stack_posterior(mean, std, dtype)
            check_posterior(posterior, f"{stem}{kind}")
            files.append((f"{stem}{kind}", encode_array(posterior)))
        if member.features is not None:
            check_finite(member.features, f"{stem}features.npy")
            files.append((f"{stem}features.npy", encode_array(member.features)))
    return files


def check_posterior(posterior: np.ndarray, name: str) -> None:
    """Raise ValueError where a stored posterior cannot be drawn from."""
    check_finite(posterior, name)
    if (posterior[1] < 0).any():
        raise ValueError(f"{name}: a standard deviation of {posterior[1].min():g} is negative")


def check_finite(array: np.ndarray, name: str) -> None:
    """Raise ValueError where an array holds infinity or NaN, as after a cast to float16."""
    finite = np.isfinite(array)
    if not finite.all():
        raise ValueError(f"{name}: {(~finite).sum()} of {array.size} values are not finite in {array.dtype}")


def index_path(path: Path) -> Path:
    """Where the index of a tar lies."""
    return path.with_name(f"{path.name}.index")


def report_path(path: Path) -> Path:
    """Where the report on a tar lies."""
    return path.with_name(f"{path.name}.report.json")


def encode_json(value: Any) -> bytes:
    """JSON as it is written to files; what is no UTF-8 in a name becomes an escape."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _is_encoded(outcome: Outcome) -> bool:
    return isinstance(outcome, BadSample) or all(picture.posteriors for picture in outcome.pictures)
