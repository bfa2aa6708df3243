"""A document becomes a sample: what of it is prompt, what is target, and one draw of each piece."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from oneflow_dist.containers import Document, PiecePart, Sample, TextPart
from oneflow_dist.data.codec import cut_pieces
from oneflow_dist.data.excerpts import take_block
from oneflow_dist.data.latents import CHECK, draw_latent
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.modality import Modalities

LEFT_OUT = {"text_only": "pieces", "image_only": "text"}  # what a task does not look at
TASKS = (
    "text_to_image",
    "image_to_text",
    "both",
    "interleaved",
    "text_only",
    "image_only",
    "instruct",
    "infill",
    "blocks",
)


def make_sample(
    document: Document,
    task: str,
    given: str,
    prompt: list[int],
    tokenizer: Tokenizer,
    modalities: Modalities,
    rng: np.random.Generator,
    block_rows: int = 0,
) -> Sample:
    """Tokens and latents of a document for one task.

    The first token is BOS, then comes `prompt`, then the document; an empty line separates text from text.

        text_to_image   all text, then the pieces; the pieces are target
        image_to_text   all pieces, then the text; the text is target
        both            in reading order, everything is target, pieces are there from the start
        interleaved     in reading order, everything is target, pieces are inserted like tokens
        text_only, image_only   the other kind is left out
        instruct        in reading order, each turn after the token of its role; one turn of the assistant is target,
                        its pieces inserted like tokens, and what follows it is left out
        answer          the same of the last turn; no mixture has it: an empty turn is where generation begins
        infill          in reading order, everything is target, until `leave_holes` says what is
        blocks          in reading order, `<|eos|>` at the end; one block is target, what follows it is left out

    Args:
        given: what stands for a picture that is no target: its latent, its features, or these and then that.
        block_rows: the most that a block of the task blocks has.
        rng: chooses the turn, draws each piece from its posterior, and whether it is mirrored where both are stored.

    Raises:
        ValueError: the document lacks the text, the images or the answer that the task needs.
    """
    parts, has_turns = _order(document, task), task in ("instruct", "answer")
    first, end = _choose_turn(parts, task, rng) if has_turns else (0, len(parts))
    parts, is_piece = parts[:end], [isinstance(part, PiecePart) for part in parts[:end]]
    if task in ("text_to_image", "image_to_text"):
        is_target = [piece == (task == "text_to_image") for piece in is_piece]
    else:
        is_target = [False] * first + [True] * (end - first)
    sample = _lay_out(document.key, parts, is_target, has_turns, given, prompt, tokenizer, modalities, rng)
    if task == "blocks":
        return take_block(sample, block_rows, tokenizer, rng)
    return replace(sample, is_interleaved=task == "interleaved" or (has_turns and any(is_piece[first:])))


def _lay_out(
    key: str,
    parts: Sequence[TextPart | PiecePart],
    is_target_part: Sequence[bool],
    has_turns: bool,
    given: str,
    prompt: list[int],
    tokenizer: Tokenizer,
    modalities: Modalities,
    rng: np.random.Generator,
) -> Sample:
    """The parts one after another. The empty line before a target is target, the token of a role never is."""
    tokens = [tokenizer.bos, *prompt]
    is_target = [False] * len(tokens)
    at: dict[str, list[int]] = {kind: [] for kind in modalities}
    latents: dict[str, list[np.ndarray]] = {kind: [] for kind in modalities}
    follows_text, role = False, ""
    for part, target in zip(parts, is_target_part, strict=True):
        if has_turns and part.role != role:
            follows_text, role = False, part.role
            tokens.append(tokenizer.role_of[role])
            is_target.append(False)
        if isinstance(part, PiecePart):
            follows_text = False
            for seen in [part] if target else _as_given(part, given):
                at[seen.modality].append(len(tokens))
                latents[seen.modality].append(draw_latent(seen, rng))
                tokens.append(tokenizer.piece_of[seen.modality])
        else:
            if follows_text:
                tokens += tokenizer.separator
            tokens += part.tokens
            follows_text = True
        is_target += [target] * (len(tokens) - len(is_target))
    pieces = tuple(cut_pieces(latents[kind], at[kind], modality) for kind, modality in modalities.items())
    if not all(np.isfinite(np.vdot(of_kind.patches, of_kind.patches)) for of_kind in pieces):
        raise ValueError(f"sample {key}: a latent is not finite; {CHECK}")
    return Sample(
        key=key,
        tokens=np.array(tokens, dtype=np.int64),
        is_target=np.array(is_target),
        pieces=pieces,
        is_interleaved=False,
    )


def _choose_turn(parts: Sequence[TextPart | PiecePart], task: str, rng: np.random.Generator) -> tuple[int, int]:
    """First part, and the part after the last, of one of the assistant's turns."""
    runs = [(role, len(list(run))) for role, run in itertools.groupby(part.role for part in parts)]
    ends = list(itertools.accumulate(count for _, count in runs))
    turns = [(end - count, end) for (role, count), end in zip(runs, ends, strict=True) if role == "assistant"]
    return turns[int(rng.integers(len(turns))) if task == "instruct" else -1]


def _as_given(part: PiecePart, given: str) -> list[PiecePart]:
    """What the model sees of a piece that is no target; only pictures have features."""
    if given == "latents" or part.features is None:
        return [part]
    return [part.features] if given == "features" else [part.features, part]


def _order(document: Document, task: str) -> list[TextPart | PiecePart]:
    """The parts that the task uses, in the order in which it does."""
    texts: list[TextPart | PiecePart] = [part for part in document.parts if isinstance(part, TextPart)]
    pieces: list[TextPart | PiecePart] = [part for part in document.parts if isinstance(part, PiecePart)]
    if task in ("instruct", "answer"):
        has_all = any(part.role == "assistant" for part in document.parts)
        parts, needed = list(document.parts), "an answer"
    elif task in ("text_to_image", "image_to_text"):
        parts = texts + pieces if task == "text_to_image" else pieces + texts
        has_all, needed = bool(texts and pieces), "text and an image"
    elif task in ("text_only", "image_only"):
        parts, needed = (texts, "text") if task == "text_only" else (pieces, "an image")
        has_all = bool(parts)
    else:
        parts, has_all, needed = list(document.parts), bool(document.parts), "text or an image"
    if not has_all:
        raise ValueError(
            f"sample {document.key}: it lacks {needed}, which task {task!r} needs; "
            "give its source another task or remove the sample"
        )
    return parts
