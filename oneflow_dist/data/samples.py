"""A document becomes a sample: what of it is prompt, what is target, and one draw of each image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from oneflow_dist.config import ImageConfig
from oneflow_dist.containers import Document, ImagePart, Sample, TextPart
from oneflow_dist.data.codec import cut_images
from oneflow_dist.data.latents import CHECK, draw_latent
from oneflow_dist.data.tokenizer import Tokenizer

LEFT_OUT = {"text_only": "images", "image_only": "text"}  # what a task does not look at
TASKS = ("text_to_image", "image_to_text", "both", "interleaved", "text_only", "image_only", "instruct")


def make_sample(
    document: Document, task: str, prompt: list[int], tokenizer: Tokenizer, image: ImageConfig, rng: np.random.Generator
) -> Sample:
    """Tokens and latents of a document for one task.

    The first token is BOS, then comes `prompt`, then the document; an empty line separates text from text.

        text_to_image   all text, then the images; the images are target
        image_to_text   all images, then the text; the text is target
        both            in reading order, everything is target, images are there from the start
        interleaved     in reading order, everything is target, images are inserted like tokens
        text_only, image_only   the other kind is left out
        instruct        in reading order, the answers are target

    Args:
        rng: draws each image from its posterior, and whether it is mirrored where both are stored.

    Raises:
        ValueError: the document lacks the text, the images or the answers that the task needs.
    """
    tokens = [tokenizer.bos, *prompt]
    is_target = [False] * len(tokens)
    image_at, image_parts = [], []
    follows_text = False
    for part in _order(document, task):
        if isinstance(part, ImagePart):
            image_at.append(len(tokens))
            image_parts.append(part)
            tokens.append(tokenizer.image)
            target, follows_text = task not in ("image_to_text", "instruct"), False
        else:
            if follows_text:
                tokens += tokenizer.separator
            tokens += part.tokens
            target, follows_text = part.is_answer if task == "instruct" else task != "text_to_image", True
        is_target += [target] * (len(tokens) - len(is_target))
    images = cut_images([draw_latent(part, rng) for part in image_parts], image_at, image)
    if not np.isfinite(np.vdot(images.patches, images.patches)):
        raise ValueError(f"sample {document.key}: a latent is not finite; {CHECK}")
    return Sample(
        key=document.key,
        tokens=np.array(tokens, dtype=np.int64),
        is_target=np.array(is_target),
        images=images,
        is_interleaved=task == "interleaved",
    )


def cut_window(sample: Sample, max_rows: int, rng: np.random.Generator) -> Sample:
    """A random stretch of the targets of an overlong sample, after its prompt, of at most `max_rows` rows."""
    rows = np.ones(len(sample.tokens), dtype=np.int64)  # of each token, with its patches
    rows[sample.images.token] += sample.images.num_patches
    targets = np.flatnonzero(sample.is_target)
    room = max_rows - int(rows[~sample.is_target].sum())
    if room < 1:
        raise ValueError(f"sample {sample.key}: its prompt alone needs {max_rows - room} rows, the limit is {max_rows}")
    rows_to_end = np.cumsum(rows[targets][::-1])[::-1]
    num_starts = int((rows_to_end > room).sum()) + 1  # the last one reaches the end, later ones leave room unused
    start = int(rng.integers(num_starts))
    fits = np.cumsum(rows[targets][start:]) <= room
    keep = ~sample.is_target
    keep[targets[start:][fits]] = True
    images = sample.images.select(keep[sample.images.token])
    return Sample(
        key=sample.key,
        tokens=sample.tokens[keep],
        is_target=sample.is_target[keep],
        images=replace(images, token=(np.cumsum(keep) - 1)[images.token]),
        is_interleaved=sample.is_interleaved,
    )


def num_rows(sample: Sample) -> int:
    """Trunk rows of the complete sample."""
    return len(sample.tokens) + len(sample.images.patches)


def _order(document: Document, task: str) -> list[TextPart | ImagePart]:
    """The parts that the task uses, in the order in which it does."""
    texts: list[TextPart | ImagePart] = [part for part in document.parts if isinstance(part, TextPart)]
    images: list[TextPart | ImagePart] = [part for part in document.parts if isinstance(part, ImagePart)]
    if task == "instruct":
        has_all = any(isinstance(part, TextPart) and part.is_answer for part in document.parts)
        parts, needed = list(document.parts), "an answer"
    elif task in ("text_to_image", "image_to_text"):
        parts = texts + images if task == "text_to_image" else images + texts
        has_all, needed = bool(texts and images), "text and an image"
    elif task in ("text_only", "image_only"):
        parts, needed = (texts, "text") if task == "text_only" else (images, "an image")
        has_all = bool(parts)
    else:
        parts, has_all, needed = list(document.parts), bool(document.parts), "text or an image"
    if not has_all:
        raise ValueError(
            f"sample {document.key}: it lacks {needed}, which task {task!r} needs; "
            "give its source another task or remove the sample"
        )
    return parts
