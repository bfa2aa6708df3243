"""How OneFlow writes: text by insertion and pictures by flow matching, at once, in one document."""

# Shapes: n tokens, p patches of E elements, F slots that fire, V tokens of the vocabulary, D width.

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 1e-9  # clocks are sums of 1/N
HOLE = "<|hole|>"


@dataclass
class Piece:
    """A picture or the like: given, in the making, or done."""

    kind: str
    token: int  # its place in the document
    grid: tuple[int, int, int]  # patches along time, height and width
    patches: np.ndarray  # [p, E] float32
    time: float  # 1: clean
    is_target: bool

    @property
    def is_moving(self) -> bool:
        """Whether it is still being made."""
        return self.is_target and self.time < 1.0 - TOLERANCE


@dataclass
class Document:
    """Tokens that stand, and pieces on their own clocks."""

    rng: np.random.Generator
    tokens: np.ndarray
    is_open: np.ndarray  # may tokens be inserted after this one?
    pieces: list[Piece]
    front: int  # tokens of the prompt before whatever is made
    text_time: float
    parts: list[Any] = field(default_factory=list)  # what a reader sees, when it is done

    @property
    def is_writing(self) -> bool:
        """Whether text can still appear."""
        return self.text_time < 1.0 - TOLERANCE


class Writing:
    """The loop that writes documents, for a model that says what is missing and where pieces go."""

    config: Any
    forward: Any
    logits: Any
    autoencoders: dict[str, Any]  # by modality, those that have been loaded

    @torch.no_grad()
    def write(self, tokenizer: Any, prompt: Any, seed: int = 0, index: int = 0, **settings: Any) -> Document:
        """Write one document.

        Args:
            prompt: text, or a list of text and of pieces that are given, pixels or latents [C, H, W] in float32 in the
                range the model knows ((modality, array)). In text "<|image|>" is a picture to make, "<|hole|>" a place
                to write text in; without either, text is written behind it.
            seed: with `index` the key of everything random.
            settings: in place of those in `config.sampling`.
        """
        sampling = {**self.config.sampling, **settings}
        document = self._begin(tokenizer, [prompt] if isinstance(prompt, str) else prompt, seed, index)
        while document.is_writing or any(piece.is_moving for piece in document.pieces):
            self._step(document, sampling)
        document.parts = self._read(tokenizer, document)
        return document

    def _begin(self, tokenizer: Any, prompt: list[Any], seed: int, index: int) -> Document:
        rng = np.random.Generator(np.random.Philox(key=[seed, index]))
        tokens, is_open, pieces = [self.config.bos], [False], []
        for part in [found for one in prompt for found in self._parse(tokenizer, one)]:
            if part is ...:
                is_open[-1] = True
                continue
            if isinstance(part, tuple):
                pieces.append(self._piece(part[0], part[1], len(tokens), rng))
                part = self.config.modalities[part[0]]["token_id"]
            tokens.append(part)
            is_open.append(False)
        if not any(is_open):
            is_open[-1] = not any(piece.is_target for piece in pieces)
        targets = {piece.token for piece in pieces if piece.is_target}
        made = [i for i in range(1, len(tokens) + 1) if is_open[i - 1] or i in targets]
        pieces.sort(key=lambda piece: (list(self.config.modalities).index(piece.kind), piece.token))
        time = 0.0 if any(is_open) else 1.0
        return Document(rng, np.array(tokens), np.array(is_open), pieces, made[0], time)

    def _parse(self, tokenizer: Any, part: Any) -> list[Any]:
        """Token ids, `...` for holes, and (modality, array or None)."""
        if not isinstance(part, str):
            return [part]
        marks = {one["token"]: (name, None) for name, one in self.config.modalities.items()}
        found: list[Any] = []
        for piece in re.split("|".join(f"({re.escape(mark)})" for mark in (*marks, HOLE)), part):
            if piece == HOLE:
                found.append(...)
            elif piece in marks:
                found.append(marks[piece])
            elif piece:
                found += tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return found

    def _piece(self, kind: str, latent: np.ndarray | None, token: int, rng: np.random.Generator) -> Piece:
        modality = self.config.modalities[kind]
        is_target = latent is None
        if latent is None:
            latent = gaussian(rng, (modality["channels"], *modality["shape"]))
        patches, grid = to_patches(np.asarray(latent, dtype=np.float32), modality)
        return Piece(kind, token, grid, patches, 0.0 if is_target else 1.0, is_target)

    def _step(self, document: Document, sampling: dict[str, Any]) -> None:
        """Pieces move along their velocity, open slots get a token or none: Algorithms 1 and 2."""
        zero, log_rate, hidden, velocity = self.forward(
            document.tokens, document.pieces, document.text_time, document.front
        )
        velocity = self._guide(document, velocity, sampling)
        left = sampling["steps"] * (1.0 - document.text_time) ** (1.0 / sampling["time_power"])
        size = 1.0 - (max(0.0, left - 1.0) / sampling["steps"]) ** sampling["time_power"] - document.text_time
        slots = np.flatnonzero(self._fires(document, zero, log_rate, size, sampling))
        tokens = self._draw(hidden[torch.from_numpy(slots).to(hidden.device)], document.rng, sampling)
        was_writing = document.is_writing
        for piece, along in zip(document.pieces, velocity, strict=True):
            if piece.is_moving:
                own = size if was_writing else 1.0 / sampling["piece_steps"].get(piece.kind, sampling["steps"])
                way = min(own, 1.0 - piece.time)
                piece.patches = piece.patches + np.float32(way) * along
                piece.time += way
        document.text_time = min(1.0, document.text_time + size)
        fits = self._find_room(document, tokens, sampling["max_rows"])
        self._insert(document, slots[fits], tokens[fits])

    def _guide(self, document: Document, velocity: list[np.ndarray], sampling: dict[str, Any]) -> list[np.ndarray]:
        """Velocities u + w (v - u), with u the velocity of the moving pieces alone."""
        moving = [piece for piece in document.pieces if piece.is_moving]
        weights = {id(piece): sampling["guidance"].get(piece.kind, 1.0) for piece in moving}
        if all(weight == 1.0 for weight in weights.values()):
            return velocity
        in_order = sorted(moving, key=lambda piece: piece.token)
        places = {id(piece): place for place, piece in enumerate(in_order, start=1)}
        alone = [Piece(p.kind, places[id(p)], p.grid, p.patches, p.time, True) for p in moving]
        tokens = np.concatenate([document.tokens[:1], document.tokens[[piece.token for piece in in_order]]])
        weak = dict(zip(map(id, moving), self.forward(tokens, alone, 1.0, 1)[-1], strict=True))
        guided = []
        for piece, told in zip(document.pieces, velocity, strict=True):
            if id(piece) in weak:
                pair = torch.from_numpy(weak[id(piece)]), torch.from_numpy(told)
                told = torch.lerp(*pair, weights[id(piece)]).numpy()
            guided.append(told)
        return guided

    def _fires(
        self, document: Document, zero: Tensor, log_rate: Tensor, size: float, sampling: dict[str, Any]
    ) -> np.ndarray:
        """Which slots get a token: systematic draws keep neighbours from firing together."""
        if not document.is_writing:
            return np.zeros(len(document.tokens), dtype=bool)
        filled = torch.sigmoid(-zero.double()).cpu().numpy()
        rate = log_rate.double().clamp(0.0, 80.0).exp().cpu().numpy()
        end, keep = min(1.0, document.text_time + size), self._keep_prob
        q = 1.0 if end >= 1.0 else 1.0 - (1.0 - keep(end)) / (1.0 - keep(document.text_time))
        prob = np.where(document.is_open, filled * np.minimum(1.0, q * rate), 0.0)
        if sampling["firing"] == "independent":
            return document.rng.random(len(prob)) < prob
        teeth = np.floor(np.cumsum(np.append(document.rng.random(), prob)))
        return np.diff(teeth) > 0.0

    def _keep_prob(self, time: float) -> float:
        """Chance that a token is there at a text time."""
        kind = self.config.keep_schedule
        if kind == "linear":
            return time
        return 1.0 - math.cos(0.5 * math.pi * time) if kind == "cosine" else time**self.config.keep_exponent

    def _draw(self, hidden: Tensor, rng: np.random.Generator, sampling: dict[str, Any]) -> np.ndarray:
        """A token for each slot that fires, by the inverse of its cumulative distribution."""
        if len(hidden) == 0:
            return np.zeros(0, dtype=np.int64)
        logits = self.logits(hidden)
        logits[:, self.config.num_tokens :] = -torch.inf
        if sampling["top_k"] == 0 and sampling["top_p"] >= 1.0:
            keys = np.array([rng.integers(2**63) for _ in range(len(hidden))], dtype=np.int64)
            return (logits / sampling["temperature"] + gumbel(keys, logits)).argmax(-1).cpu().numpy()
        draws = torch.tensor([rng.random() for _ in range(len(hidden))], dtype=torch.float64, device=logits.device)
        probs = (logits.double() / sampling["temperature"]).softmax(-1)
        if sampling["top_k"]:
            floor = probs.topk(min(sampling["top_k"], probs.shape[1])).values[:, -1:]
            probs = torch.where(probs >= floor, probs, 0.0)
        if sampling["top_p"] < 1.0:
            descending = probs.sort(-1, descending=True).values
            cumulative = descending.cumsum(-1)
            is_kept = F.pad(cumulative[:, :-1], (1, 0)) < sampling["top_p"] * cumulative[:, -1:]
            floor = descending.where(is_kept, 1.0).amin(-1, keepdim=True)
            probs = torch.where(probs >= floor, probs, 0.0)
        cumulative = probs.cumsum(-1)
        total = cumulative[:, -1]
        target = torch.minimum(draws * total, torch.nextafter(total, torch.zeros_like(total)))
        return torch.searchsorted(cumulative, target[:, None], right=True).squeeze(-1).cpu().numpy()

    def _find_room(self, document: Document, tokens: np.ndarray, max_rows: int) -> np.ndarray:
        """Which tokens the document has room for, in random order, so that no side is favoured."""
        rows = np.ones(len(tokens), dtype=np.int64)
        for modality in self.config.modalities.values():
            rows[tokens == modality["token_id"]] += modality["num_rows"]
        room = max_rows - len(document.tokens) - sum(len(piece.patches) for piece in document.pieces)
        fits = np.zeros(len(tokens), dtype=bool)
        for i in document.rng.permutation(len(tokens)):
            fits[i] = rows[i] <= room
            room -= rows[i] * fits[i]
        return fits

    def _insert(self, document: Document, slots: np.ndarray, tokens: np.ndarray) -> None:
        """A token after each of `slots`; that of a piece spawns noise."""
        if len(slots) == 0:
            return
        document.tokens = np.insert(document.tokens, slots + 1, tokens)
        document.is_open = np.insert(document.is_open, slots + 1, True)
        for piece in document.pieces:
            piece.token += int(np.searchsorted(slots, piece.token))
        for kind, modality in self.config.modalities.items():
            places = (slots + 1 + np.arange(len(slots)))[tokens == modality["token_id"]]
            if len(places):
                noise = gaussian(document.rng, (len(places), modality["channels"], *modality["shape"]))
                for latent, place in zip(noise, places.tolist(), strict=True):
                    patches, grid = to_patches(latent, modality)
                    document.pieces.append(Piece(kind, place, grid, patches, 0.0, True))
        document.pieces.sort(key=lambda piece: (list(self.config.modalities).index(piece.kind), piece.token))

    def _read(self, tokenizer: Any, document: Document) -> list[Any]:
        """Stretches of text, and (modality, number) of pieces in reading order."""
        at, counts = {}, dict.fromkeys(self.config.modalities, 0)
        for piece in document.pieces:
            at[piece.token] = (piece.kind, counts[piece.kind])
            counts[piece.kind] += 1
        parts: list[Any] = []
        places = [0, *sorted(at), len(document.tokens)]
        for before, after in itertools.pairwise(places):
            parts += [at[before]] if before in at else []
            between = document.tokens[before + 1 : after]
            text = tokenizer.decode(
                between[between != self.config.eos].tolist(), clean_up_tokenization_spaces=False
            ).strip()
            parts += [text] if text else []
        return parts

    def latents(self, document: Document, kind: str = "image") -> list[np.ndarray]:
        """The pieces of a modality, [C, ...] each."""
        modality = self.config.modalities[kind]
        return [to_latent(p.patches, p.grid, modality) for p in document.pieces if p.kind == kind]

    @torch.no_grad()
    def pixels(self, document: Document, kind: str = "image") -> list[np.ndarray]:
        """Pictures, uint8 [height, width] or [height, width, 3]; latents pass through the autoencoder of the folder.

        Raises:
            ImportError: there is one, and diffusers is not installed.
        """
        pictures = []
        for latent in self.latents(document, kind):
            if self.config.modalities[kind]["autoencoder"]:
                network = self._autoencoder(kind)
                raw = latent / network.config.scaling_factor + (network.config.shift_factor or 0.0)
                latent = network.decode(torch.from_numpy(raw)[None].to(network.dtype)).sample[0].float().numpy()
            values = np.clip(np.rint((latent + 1.0) * 127.5), 0, 255).astype(np.uint8)
            pictures.append(values[0] if len(values) < 3 else values[:3].transpose(1, 2, 0))
        return pictures

    def _autoencoder(self, kind: str) -> Any:
        if kind not in self.autoencoders:
            from diffusers import AutoencoderKL

            folder = Path(self.config._name_or_path) / self.config.modalities[kind]["autoencoder"]
            self.autoencoders[kind] = AutoencoderKL.from_pretrained(folder)
        return self.autoencoders[kind]


def to_patches(latent: np.ndarray, modality: dict[str, Any]) -> tuple[np.ndarray, tuple[int, int, int]]:
    """A latent [C, ...] cut into patches [p, E], and how many there are along time, height and width."""
    (t, h, w), (pt, ph, pw) = on_axes(latent.shape[1:]), on_axes(modality["patch"])
    parts = latent.reshape(-1, t // pt, pt, h // ph, ph, w // pw, pw).transpose(1, 3, 5, 2, 4, 6, 0)
    grid = (t // pt, h // ph, w // pw)
    return np.ascontiguousarray(parts.reshape(math.prod(grid), -1)), grid


def to_latent(patches: np.ndarray, grid: tuple[int, int, int], modality: dict[str, Any]) -> np.ndarray:
    """The inverse of `to_patches`."""
    (t, h, w), (pt, ph, pw) = grid, on_axes(modality["patch"])
    latent = patches.reshape(t, h, w, pt, ph, pw, -1).transpose(6, 0, 3, 1, 4, 2, 5)
    sides = {0: (), 1: (t * pt,), 2: (h * ph, w * pw), 3: (t * pt, h * ph, w * pw)}
    return latent.reshape(modality["channels"], *sides[len(modality["patch"])])


def on_axes(sides: Any) -> tuple[int, int, int]:
    """Along time, height and width; 1 along those that are not there."""
    match tuple(sides):
        case (time, height, width):
            return time, height, width
        case (height, width):
            return 1, height, width
        case (time,):
            return time, 1, 1
    return 1, 1, 1


def gaussian(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32: Box and Muller, from 32 bits of radius and 32 of angle for each two."""
    count = math.prod(shape)
    bits = rng.bit_generator.random_raw(-(-count // 2)).view(np.uint32).reshape(2, -1)
    radius, angle = bits.astype(np.float32)
    radius = np.sqrt(np.log((radius + np.float32(0.5)) * np.float32(2.0**-32)) * np.float32(-2.0))
    angle = angle * np.float32(2.0 * math.pi * 2.0**-32)
    return (np.stack([np.cos(angle), np.sin(angle)]) * radius).reshape(-1)[:count].reshape(shape)


def gumbel(keys: np.ndarray, logits: Tensor) -> Tensor:
    """Standard Gumbel noise [F, V] of each (key, token), from the words of Philox4x32-10."""
    key = torch.from_numpy(keys).to(logits.device)[:, None]
    token, mask = torch.arange(logits.shape[1], device=logits.device), 0xFFFFFFFF
    first, second = key & mask, key >> 32 & mask
    a, b, c, d = (token // 4).expand(len(key), -1), *(torch.zeros_like(token),) * 3
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (q >> 32 & mask) ^ b ^ first, q & mask, (p >> 32 & mask) ^ d ^ second, p & mask
        first, second = (first + 0x9E3779B9) & mask, (second + 0xBB67AE85) & mask
    word = torch.stack([a, b, c, d]).gather(0, (token % 4).expand(1, len(key), -1)).squeeze(0)
    u = (word.float() * 2.0**-32 + 2.0**-33).clamp(max=1.0 - 2.0**-24)
    return -(-torch.log1p(-u)).log()
