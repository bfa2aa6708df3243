"""Orders as canvases: text to tokens, pictures to what the model sees of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from oneflow_dist.canvas import Canvas, Prompt, PromptPart, blank_canvas, parse_prompt, prompt_of
from oneflow_dist.config import Config
from oneflow_dist.containers import Document, PiecePart, TextPart
from oneflow_dist.data.conversations import clean
from oneflow_dist.data.mixture import load_mixture
from oneflow_dist.data.samples import make_sample
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.flow.noising import keyed_generator
from oneflow_dist.modality import first_picture
from oneflow_dist.photos import encode_latent, encode_photo
from oneflow_dist.sampling import SamplingConfig
from oneflow_dist.serving.orders import Hole, Latent, Make, Order, Part, Picture, Text, Tokens, Turn
from oneflow_dist.trained import progress_of


def begin_order(
    order: Order, key: str, tokenizer: Tokenizer, config: Config, knows_turns: bool
) -> tuple[Canvas, SamplingConfig]:
    """The canvas of an order, on which nothing has been written, and how it is to be written.

    Args:
        knows_turns: whether conversations are laid out as in the task `instruct`.

    Raises:
        ValueError: the model cannot begin so, or there is no room for what is asked.
    """
    config = replace(config, sampling=order.sampling)
    if order.turns and knows_turns:
        prompt = lay_out_turns(order.turns, order.seed, tokenizer, config)
    else:  # a model that was not trained on conversations goes on behind what was said last
        parts = order.turns[-1].parts if order.turns else order.parts
        prompt = [each for part in parts for each in read_part(part, tokenizer, config)]
    canvas = replace(blank_canvas(prompt, tokenizer, config.modality, order.seed, index=0), key=key)
    sampling = order.sampling
    if order.max_new_rows:
        sampling = replace(sampling, max_rows=min(sampling.max_rows, canvas.num_rows + order.max_new_rows))
    if canvas.num_rows > sampling.max_rows or (canvas.num_rows == sampling.max_rows and canvas.is_writing):
        raise ValueError(
            f"parts: take {canvas.num_rows} rows, of at most {sampling.max_rows} with what is to be written; shorten "
            "them, or raise settings.max_rows"
        )
    return canvas, sampling


def knows_turns(folder: Path, config: Config, tokenizer: Tokenizer) -> bool:
    """Whether a model was trained on conversations, as far as one can tell.

    Its mixture tells; where that is no longer there, whether its vocabulary has room for the tokens of turns.
    """
    if tokenizer.vocab_size > config.model.vocab_size:
        return False
    mixture = Path(progress_of(folder).data.get("working_folder", "")) / config.data.mixture
    return not mixture.is_file() or any("instruct" in source.tasks for source in load_mixture(str(mixture)))


def read_part(part: Part, tokenizer: Tokenizer, config: Config) -> Prompt:
    """What `blank_canvas` takes.

    Raises:
        ValueError: this model cannot be given that.
    """
    match part:
        case Text():
            return parse_prompt(part.text, tokenizer)
        case Hole():
            return [...]
        case Make():
            return [(_known(part.modality, config), None)]
        case Tokens():
            return _checked(part.tokens, tokenizer)
        case Latent():
            return [(_known(part.modality, config), _shaped(part, config))]
        case Picture(time=None):
            return [*encode_photo(part.data, config, "image", is_told=False)]
        case Picture():
            kind = first_picture(config.modality, "image")
            latent = encode_latent(part.data, config.modality[kind], "image", "image", is_told=False)
            return [(kind, latent, float(part.time or 0.0))]


def lay_out_turns(turns: tuple[Turn, ...], seed: int, tokenizer: Tokenizer, config: Config) -> list[PromptPart]:
    """A conversation and the beginning of its answer, as in the task `instruct`."""
    parts: list[TextPart | PiecePart] = []
    for turn in turns:
        for part in turn.parts:
            if isinstance(part, Text):
                text = clean(part.text).strip()
                parts += [TextPart(tokens=tokenizer.encode(text), role=turn.role)] if text else []
                continue
            for kind, latent in encode_photo(part.data, config, "image_url", is_told=False):
                parts.append(PiecePart.exact(kind, latent, turn.role))
    document = Document(key="chat", parts=(*parts, TextPart(tokens=[], role="assistant")))
    rng = keyed_generator(seed, 0, "chat")
    sample = make_sample(document, "answer", "latents", [], tokenizer, config.modality, rng)
    return prompt_of(sample, config.modality)


def _known(kind: str, config: Config) -> str:
    if kind not in config.modality:
        raise ValueError(f"{kind!r}: no modality of this model; it has {', '.join(config.modality) or 'text alone'}")
    return kind


def _checked(tokens: tuple[int, ...], tokenizer: Tokenizer) -> list[int]:
    pieces = {token: kind for kind, token in tokenizer.piece_of.items()}
    for token in tokens:
        if token in pieces:
            raise ValueError(
                f'tokens: {token} stands for a piece; write it as a "latent" or {{"make": "{pieces[token]}"}}'
            )
        if not 0 <= token < tokenizer.vocab_size or token == tokenizer.bos:
            raise ValueError(f"tokens: {token} is no token of a prompt; they go from 0 to {tokenizer.vocab_size - 1}")
    return [*tokens]


def _shaped(part: Latent, config: Config) -> np.ndarray:
    modality = config.modality[part.modality]
    if modality.understanding == "live":
        raise ValueError(f"latent: modality.{part.modality} is seen as a picture; give it as an image")
    if part.latent.ndim != 1 + modality.dimensions:
        raise ValueError(
            f"latent: has the shape {list(part.latent.shape)}, but a piece of modality.{part.modality} has "
            f"{1 + modality.dimensions} sides, channels first"
        )
    if not np.isfinite(part.latent).all():
        raise ValueError("latent: has numbers that are not finite; send those that a document said")
    return part.latent
