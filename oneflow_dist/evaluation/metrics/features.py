"""What a frozen network sees in pictures, as a row of numbers each, and whether its distances may be called FID."""

# Shapes: n pictures, k in a batch, d features, s side.

from __future__ import annotations

import hashlib
import importlib
import io
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image

from oneflow_dist.evaluation.metrics.resizing import resize
from oneflow_dist.modality import EFFICIENTNET

BATCH = 64
INCEPTION_SIDE, INCEPTION_FEATURES = 299, 2048
OFFICIAL = {  # the Inception of December 2015: as torch-fidelity has it, and as TorchScript
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
}
Rows = Callable[[Sequence[Image.Image]], Float32[np.ndarray, "k d"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extractor:
    """A frozen network with what is done to a picture before it."""

    name: str  # for reports
    sha256: str  # of its weights
    size: int  # pixels a side that it is shown
    dim: int  # features
    is_official: bool  # the Inception that FID is of
    _rows: Rows = field(repr=False)

    def __call__(self, pictures: Sequence[Image.Image]) -> Float32[np.ndarray, "n {self.dim}"]:
        """The features of each picture, which depend on no other picture."""
        rows = [self._rows(batch) for batch in _batches(pictures)]
        return np.concatenate([np.empty((0, self.dim), dtype=np.float32), *rows])

    def title(self, metric: str) -> str:
        """What a report calls "FID" or "KID": nothing is FID but of the official Inception."""
        if self.is_official:
            return metric
        return f"{metric.replace('FID', 'Frechet distance')} ({self.name})"


def load_extractor(name_or_path: str, device: str, sha256: str | None = None) -> Extractor:
    """EfficientNet-Lite0 by its name, a SigLIP by its folder, or Inception by its file; nothing is fetched.

    Args:
        name_or_path: "efficientnet-lite0"; a folder as `load_understanding` reads; torch-fidelity's
            weights-inception-2015-12-05-6726825d.pth; or inception-2015-12-05.pt, TorchScript, as clean-fid's.
        sha256: what a file must have. TorchScript that is not the official one is a program, and runs only if stated.

    Raises:
        ValueError: as `load_understanding`; no such file, damaged or another one; torch-fidelity is missing.
    """
    if name_or_path == EFFICIENTNET or Path(name_or_path).is_dir():
        return _load_maps(name_or_path, device, sha256)
    return _load_inception(Path(name_or_path), device, sha256)


def _load_maps(folder: str, device: str, sha256: str | None) -> Extractor:
    import torch

    from oneflow_dist.model.understanding import load_understanding

    encoder = load_understanding(folder, device, torch.float32)
    _compare(folder, encoder.sha256, sha256)

    def rows(pictures: Sequence[Image.Image]) -> Float32[np.ndarray, "k d"]:
        seen = [np.asarray(encoder.view.resize(picture.convert("RGB"))) for picture in pictures]
        maps = encoder.encode(torch.from_numpy(np.stack(seen)))
        return np.asarray(maps.mean(dim=(2, 3)).cpu().numpy())

    return Extractor(
        name=encoder.name,
        sha256=encoder.sha256,
        size=encoder.view.width,
        dim=encoder.channels,
        is_official=False,
        _rows=rows,
    )


def _load_inception(path: Path, device: str, sha256: str | None) -> Extractor:
    if not path.is_file():
        raise ValueError(f'{path}: no such file or folder; name Inception\'s weights, a SigLIP or "{EFFICIENTNET}"')
    content = path.read_bytes()  # once, so that what is hashed is what is loaded
    found = hashlib.sha256(content).hexdigest()
    _compare(path, found, sha256)
    is_official = found in OFFICIAL
    if not _is_script(content):
        network = _read_state(content, path, device)
    elif is_official or sha256:
        network = _read_script(content, path, device)
    else:
        raise ValueError(f"{path}: TorchScript of unknown sha256 {found}; state it, if the file is to be trusted")
    return Extractor(
        name="inception-2015-12-05" if is_official else path.stem,
        sha256=found,
        size=INCEPTION_SIDE,
        dim=INCEPTION_FEATURES,
        is_official=is_official,
        _rows=_inception_rows(network, path, device),
    )


def _inception_rows(network: Callable[[Any], Any], path: Path, device: str) -> Rows:
    import torch

    from oneflow_dist.model.autoencoder import repeatable_convolutions

    @torch.no_grad()
    def rows(pictures: Sequence[Image.Image]) -> Float32[np.ndarray, "k d"]:
        seen = np.stack([resize(picture, INCEPTION_SIDE) for picture in pictures])
        colours = torch.from_numpy(seen).to(device).permute(0, 3, 1, 2)
        with repeatable_convolutions():
            found = network((colours - 128.0) / 128.0).flatten(1).float().cpu().numpy()
        if found.shape[1] != INCEPTION_FEATURES:
            raise ValueError(f"{path}: {found.shape[1]} features, not {INCEPTION_FEATURES}; name Inception's file")
        return np.asarray(found)

    return rows


def _is_script(content: bytes) -> bool:
    """Whether a file has code beside its numbers."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return False
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return any("/code/" in name for name in archive.namelist())


def _read_script(content: bytes, path: Path, device: str) -> Callable[[Any], Any]:
    """Its layers alone: what stands before them resizes once more."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript: the official file is nothing else
            return torch.jit.load(io.BytesIO(content), map_location=device).eval().layers
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"{path}: not Inception as TorchScript ({_reason(error)}); copy the file again") from error


def _read_state(content: bytes, path: Path, device: str) -> Callable[[Any], Any]:
    """All layers of torch-fidelity's network up to the features: its forward would take whole numbers only."""
    import torch

    try:
        module: Any = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except ImportError as error:
        raise ValueError(f"{path}: needs torch-fidelity ({error}); pip install torch-fidelity") from error
    try:
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        own = io.BytesIO()  # the package unpickles what it is given: it is given what has just been written
        torch.save(weights, own)
        own.seek(0)
        model = module.FeatureExtractorInceptionV3("inception", [str(INCEPTION_FEATURES)], own)
    except Exception as error:  # of pickles anything is raised
        raise ValueError(f"{path}: not Inception's weights ({_reason(error)}); copy the file again") from error
    return torch.nn.Sequential(*list(model.children())[:-1]).eval().to(device)


def _compare(path: object, found: str, stated: str | None) -> None:
    if stated not in (None, found):
        raise ValueError(f"{path}: sha256 is {found}, not {stated}; name the file that was meant")


def _batches(pictures: Sequence[Image.Image]) -> list[Sequence[Image.Image]]:
    return [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
