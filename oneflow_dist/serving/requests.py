"""Bodies of requests as orders: strictly read, with nothing in them that could become a path or an address."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from oneflow_dist.config import Config
from oneflow_dist.data.picture import BROKEN, FORMATS
from oneflow_dist.serving.orders import Hole, Latent, Limits, Make, Order, Part, Picture, Text, Tokens
from oneflow_dist.serving.pictures import read_latent
from oneflow_dist.serving.settings import read_settings

KINDS = ("text", "hole", "make", "image", "tokens", "latent")
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Uploads = Mapping[str, bytes]  # content of the files of a form, by the name of their field


class Strict(BaseModel):
    """Nothing else, and nothing of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(Strict):
    """Given text."""

    text: str


class HolePart(Strict):
    """A place to write text in."""

    hole: Literal[True]


class MakePart(Strict):
    """A piece to make."""

    make: Annotated[str, Field(max_length=64)]


class Upload(Strict):
    """The file of a form's field."""

    upload: Annotated[str, Field(max_length=256)]


class ImagePart(Strict):
    """A given picture: base64, or a data: URL; with a time one to make anew."""

    image: str | Upload
    time: Annotated[float, Field(gt=0.0, lt=1.0, strict=False)] | None = None


class TokensPart(Strict):
    """Given tokens."""

    tokens: list[int]


class LatentBody(Strict):
    """Little-endian float32."""

    modality: Annotated[str, Field(max_length=64)]
    shape: Annotated[list[Annotated[int, Field(gt=0, lt=2**31)]], Field(min_length=1, max_length=4)]
    data: str


class LatentPart(Strict):
    """A given piece."""

    latent: LatentBody


def _kind(value: Any) -> str | None:
    own = value if isinstance(value, dict) else {}
    return next((kind for kind in KINDS if kind in own), None)


AnyPart = Annotated[
    Annotated[TextPart, Tag("text")]
    | Annotated[HolePart, Tag("hole")]
    | Annotated[MakePart, Tag("make")]
    | Annotated[ImagePart, Tag("image")]
    | Annotated[TokensPart, Tag("tokens")]
    | Annotated[LatentPart, Tag("latent")],
    Discriminator(_kind, custom_error_type="part", custom_error_message=f"is none of {', '.join(KINDS)}"),
]


class GenerateBody(Strict):
    """POST /v1/generate."""

    model: str | None = None
    parts: list[AnyPart] = Field(default_factory=list)
    settings: dict[str, int | float | str] = Field(default_factory=dict)
    seed: Seed = 0
    stream: bool = False
    preview_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0


Body = TypeVar("Body", bound=BaseModel)


def read_body(kind: type[Body], content: bytes) -> Body:
    """JSON of a kind of request.

    Raises:
        ValueError: no JSON, or not what is asked for; the message begins with the name of what is wrong.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = _place(first["loc"])
        value = repr(first["input"])
        shown = value if len(value) <= 60 else value[:57] + "..."
        raise ValueError(
            f"{place}: {_lower(first['msg'])}, but it is {shown}; see /v1/models and docs/serving.md"
        ) from None


def read_generate(body: GenerateBody, uploads: Uploads, config: Config, limits: Limits) -> Order:
    """The order of a request.

    Raises:
        ValueError: what it asks for cannot be, or is more than the server allows.
    """
    check_count("parts", body.parts, limits.parts)
    check_count("images", [part for part in body.parts if isinstance(part, ImagePart)], limits.pictures)
    check_text("parts", [part.text for part in body.parts if isinstance(part, TextPart)], limits)
    sampling = read_settings(dict(body.settings), config, limits)
    num_tokens = sum(len(part.tokens) for part in body.parts if isinstance(part, TokensPart))
    if num_tokens > sampling.max_rows:  # laying them out would keep the model's process from its other documents
        raise ValueError(f"tokens: there are {num_tokens}, beyond settings.max_rows, {sampling.max_rows}; send fewer")
    parts = tuple(read_part(part, uploads, limits) for part in body.parts)
    check_pixels("images", [part.data for part in parts if isinstance(part, Picture)], limits)
    return Order(
        parts=parts,
        sampling=sampling,
        seed=body.seed,
        follows="steps" if body.stream else "end",
        preview_steps=body.preview_steps,
    )


def read_part(part: Any, uploads: Uploads, limits: Limits) -> Part:
    """A part of an order.

    Raises:
        ValueError: a picture or a latent that cannot be read, or is too large.
    """
    match part:
        case TextPart():
            return Text(part.text)
        case HolePart():
            return Hole()
        case MakePart():
            return Make(part.make)
        case TokensPart():
            return Tokens(tuple(part.tokens))
        case LatentPart():
            latent = read_latent(part.latent.shape, part.latent.data)
            if (size := np.abs(latent).max()) > limits.latent:  # a forward that overflows is lost to all in it
                raise ValueError(f"latent.data: has numbers as {size:.3g}, beyond {limits.latent:.3g}; scale them")
            return Latent(part.latent.modality, latent)
        case ImagePart():
            source = part.image
            if isinstance(source, Upload):
                if source.upload not in uploads:
                    raise ValueError(
                        f"image.upload: the form has no file {source.upload!r}; send it as a field of that name"
                    )
                return Picture(check_picture(uploads[source.upload], "image"), part.time)
            return Picture(check_picture(decode_base64(source, "image"), "image"), part.time)
    raise AssertionError(part)


def decode_base64(text: str, name: str) -> bytes:
    """Base64, or a data: URL of it.

    Raises:
        ValueError: an address, a path or anything else.
    """
    head, comma, data = text.partition(",")
    if text.startswith("data:"):
        if not comma or not head.endswith(";base64"):
            raise ValueError(f"{name}: a data: URL without base64; write data:image/png;base64,...")
        text = data
    elif "://" in text[:32]:
        raise ValueError(f"{name}: an address ({text[:40]}), which this server does not open; send the picture itself")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{name}: is no base64; send the picture as base64 or as a data: URL") from None


def check_picture(data: bytes, name: str) -> bytes:
    """The same bytes: the head of a PNG, JPEG or WebP, of which nothing was decoded.

    Raises:
        ValueError: another file.
    """
    count_pixels(data, name)
    return data


def check_pixels(name: str, pictures: list[bytes], limits: Limits) -> None:
    """Refuse more pixels than allowed in all pictures of a request: decoding them keeps a model's other users waiting.

    Args:
        pictures: that `check_picture` has let through.
    """
    if (count := sum(count_pixels(data, name) for data in pictures)) > limits.pixels:
        raise ValueError(
            f"{name}: have {count} pixels together, more than this server allows in a request, {limits.pixels}; send "
            "fewer or smaller ones"
        )


def count_pixels(data: bytes, name: str) -> int:
    """What the head of a picture says.

    Raises:
        ValueError: no picture that can be read.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
    except BROKEN:
        raise ValueError(f"{name}: is no readable PNG, JPEG or WebP ({len(data)} bytes); send another") from None
    if width * height == 0:
        raise ValueError(f"{name}: has no pixels ({width}x{height}); send another")
    return width * height


def check_count(name: str, things: list[Any], largest: int) -> None:
    """Refuse too many of something."""
    if len(things) > largest:
        raise ValueError(f"{name}: there are {len(things)}, more than this server allows, {largest}; send fewer")


def check_text(name: str, texts: list[str], limits: Limits) -> None:
    """Refuse too much text."""
    if (length := sum(map(len, texts))) > limits.characters:
        raise ValueError(
            f"{name}: {length} characters of text, more than this server allows, {limits.characters}; shorten it"
        )


def _place(path: tuple[int | str, ...]) -> str:
    """Where in a request: the kind of a part, which stands behind its number, is no place."""
    steps = [
        step
        for before, step in zip((None, *path), path, strict=False)
        if not (isinstance(before, int) and step in KINDS)
    ]
    return ".".join(map(str, steps)) or "request"


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
