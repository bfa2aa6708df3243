"""What a server tells of a document while it is written: the data of the events of docs/serving.md.

A place is the index of a token among those that a reader knows: BOS and a masked model's masks are left out.
Pictures are arrays of pixels here, and latents arrays: whoever sends them encodes them.
"""

# Shapes: n tokens of one document.

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from oneflow_dist.canvas import Canvas
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.pictures import draw_pieces
from oneflow_dist.serving.orders import Order
from oneflow_dist.writers.writer import Change

Event = dict[str, Any]


@dataclass(kw_only=True)
class Telling:
    """A document that is being written, and what has been told of it."""

    order: Order
    canvas: Canvas
    tokenizer: Tokenizer
    began: float = field(default_factory=time.monotonic)
    probs: list[float | None] = field(init=False)  # of each token, BOS left out; None: it was given
    num_given: int = field(init=False)
    num_told: int = field(init=False)  # tokens whose text has been told as final, BOS with them

    def __post_init__(self) -> None:
        self.num_given = int((self.canvas.tokens != self.tokenizer.mark).sum()) - 1
        self.probs = [None] * self.num_given
        self.num_told = _num_final(self.canvas, self.tokenizer)

    def begin(self) -> Event:
        """What stands there before anything is written."""
        is_known = self.canvas.tokens != self.tokenizer.mark
        place = is_known.cumsum() - 2
        return {
            "tokens": self._tokens(),
            "open": sorted({int(place[token]) for token in np.flatnonzero(self.canvas.is_open)}),
            "pieces": {
                kind: [
                    {"time": round(own, 4), "is_given": not target, "picture": picture}
                    for own, target, picture in zip(
                        making.pieces.time.tolist(),
                        making.is_target.tolist(),
                        self._pictures(kind, range(len(making.pieces))),
                        strict=True,
                    )
                ]
                for kind, making in self.canvas.making.items()
            },
        }

    def step(self, change: Change, steps_left: int) -> Event:
        """What one step did."""
        canvas, preview = self.canvas, self.order.preview_steps
        pictures: dict[str, dict[int, Any]] = {}
        for kind, making in canvas.making.items():
            is_due = bool(preview) and canvas.num_steps % preview == 0
            shown = np.flatnonzero((making.is_moving & is_due) | (making.end == canvas.num_steps))
            if preview and len(shown):
                pictures[kind] = dict(zip(shown.tolist(), self._pictures(kind, shown.tolist()), strict=True))
        inserted = zip(change.place.tolist(), change.token.tolist(), change.prob.tolist(), strict=True)
        return {
            "step": canvas.num_steps,
            "inserted": [
                {"place": place - 1, "id": token, "text": self.tokenizer.decode([token]), "prob": float(f"{prob:.4g}")}
                for place, token, prob in inserted
            ],
            "removed": (change.removed - 1).tolist(),
            "text_time": round(change.text_time, 4),
            "times": {kind: [round(own, 4) for own in times.tolist()] for kind, times in change.piece_times.items()},
            "pictures": pictures,
            "expected": round(canvas.expected_length - 1.0, 1),
            "steps_left": steps_left,
        }

    def follow(self, change: Change) -> None:
        """Remember how probable the tokens of a step were."""
        for place, prob in zip(change.place.tolist(), change.prob.tolist(), strict=True):
            self.probs.insert(place - 1, prob)
        for place in sorted(change.removed.tolist(), reverse=True):
            del self.probs[place - 1]

    def final_parts(self) -> list[Event]:
        """Text and pieces that will not change any more and have not been told, in reading order."""
        canvas, tokens, found = self.canvas, self.canvas.tokens.tolist(), list[Event]()
        end, piece_at = _num_final(canvas, self.tokenizer), canvas.piece_at
        first = self.num_told
        for place in range(first, end + 1):
            if place < end and place not in piece_at:
                continue
            text, told = self._whole_text(tokens[first:place], is_last=canvas.is_done or place < end)
            found += [{"text": text}] if text else []
            first += told
            if place < end:
                kind, number = piece_at[place]
                found.append({"modality": kind, "number": number, "picture": self._pictures(kind, [number])[0]})
                first = place + 1
        self.num_told = first
        return found

    def done(self) -> Event:
        """The document."""
        canvas = self.canvas
        text = self.tokenizer.decode([token for token in canvas.tokens[1:].tolist() if token != self.tokenizer.eos])
        parts: list[Event] = [
            {"text": part} if isinstance(part, str) else {"modality": part[0], "number": part[1]}
            for part in canvas.parts(self.tokenizer)
        ]
        return {
            "text": text,
            "finish_reason": "length" if canvas.hit_cap else "stop",
            "tokens": self._tokens(),
            "parts": parts,
            "written": self.final_parts() if self.order.turns else [],
            "pieces": {
                kind: [
                    {
                        "is_given": not target,
                        "last_step": end,
                        "picture": picture,
                        "latent": {"modality": kind, "data": latent},
                    }
                    for target, end, picture, latent in zip(
                        making.is_target.tolist(),
                        making.end.tolist(),
                        self._pictures(kind, range(len(making.pieces))),
                        making.latents(),
                        strict=True,
                    )
                ]
                for kind, making in canvas.making.items()
            },
            "steps": canvas.num_steps,
            "seconds": round(time.monotonic() - self.began, 4),
            "num_given": self.num_given,
            "num_tokens": len(canvas.tokens) - 1,
        }

    def _tokens(self) -> list[Event]:
        """Every token with the step at which it appeared, and of which piece it is."""
        canvas, found = self.canvas, []
        piece_at, probs = canvas.piece_at, iter(self.probs)
        for place, (token, born) in enumerate(zip(canvas.tokens.tolist(), canvas.born.tolist(), strict=True)):
            if place == 0 or token == self.tokenizer.mark:
                continue
            prob = next(probs)
            entry: Event = {"id": token, "text": self.tokenizer.decode([token]), "step": born}
            entry["prob"] = None if prob is None else float(f"{prob:.4g}")
            if place in piece_at:
                entry |= dict(zip(("modality", "number"), piece_at[place], strict=True))
            found.append(entry)
        return found

    def _pictures(self, kind: str, numbers: Any) -> list[Any]:
        """Pieces as pixels; None of what only an encoder sees."""
        making = self.canvas.making[kind]
        if not making.modality.is_target:
            return [None for _ in numbers]
        latents = making.latents()
        drawn = draw_pieces([latents[number] for number in numbers], making.modality)
        return [np.asarray(picture) for picture in drawn]

    def _whole_text(self, tokens: list[int], is_last: bool) -> tuple[str, int]:
        """Text of tokens, and of how many: those that end within a character wait for more."""
        end = len(tokens)
        while True:
            text = self.tokenizer.decode([token for token in tokens[:end] if token != self.tokenizer.eos])
            if is_last or not text.endswith("\ufffd") or end == 0:
                return text, end
            end -= 1


def _num_final(canvas: Canvas, tokenizer: Tokenizer) -> int:
    """How many tokens, from the start, will neither move nor change, and stand before any piece that is moving."""
    ends = [len(canvas.tokens)]
    if not canvas.is_done and canvas.is_writing and canvas.is_open.any():
        first = int(canvas.is_open.argmax())
        ends.append(first if canvas.tokens[first] == tokenizer.mark else first + 1)
    ends += [int(token) for making in canvas.making.values() for token in making.pieces.token[making.is_moving]]
    return min(ends)
