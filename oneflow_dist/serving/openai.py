"""What OpenAI's clients ask for, as orders, and what they are told.

A chat is a conversation whose answer is written; text goes out when it is final, pictures in it as data: URLs of
Markdown. Where a document is written as a whole, all of its text is final at its end; in blocks, a block at a time.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from oneflow_dist.config import Config
from oneflow_dist.modality import first_picture
from oneflow_dist.serving.answers import describe_error, event_bytes
from oneflow_dist.serving.orders import Limits, Make, Order, Picture, Text, Turn
from oneflow_dist.serving.pictures import PREFIX
from oneflow_dist.serving.requests import Seed, check_count, check_picture, check_pixels, check_text, decode_base64
from oneflow_dist.serving.scheduler import Ticket
from oneflow_dist.serving.settings import read_settings
from oneflow_dist.serving.telling import Event


class Lenient(BaseModel):
    """Clients send much that means nothing here, as `user`; it is left out."""

    model_config = ConfigDict(extra="ignore")


class TextContent(Lenient):
    """A text in a message."""

    type: Literal["text"]
    text: str


class ImageUrl(Lenient):
    """Of a picture: a data: URL."""

    url: str


class ImageContent(Lenient):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class ChatMessage(Lenient):
    """What one side said."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextContent | ImageContent, Field(discriminator="type")]] | None = None


class StreamOptions(Lenient):
    """What else a stream says."""

    include_usage: bool = False


class ChatBody(Lenient):
    """POST /v1/chat/completions."""

    model: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: Seed | None = None
    n: Literal[1] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    settings: dict[str, int | float | str] = Field(default_factory=dict)  # ours, as of /v1/generate


class ImagesBody(Lenient):
    """POST /v1/images/generations."""

    model: str | None = None
    prompt: str
    n: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=16)] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    seed: Seed | None = None
    settings: dict[str, int | float | str] = Field(default_factory=dict)


def read_chat(body: ChatBody, config: Config, limits: Limits) -> Order:
    """The order of a chat.

    Raises:
        ValueError: what it asks for cannot be, or is more than the server allows.
    """
    turns = tuple(
        Turn("system" if message.role == "developer" else message.role, tuple(_parts(message)))
        for message in body.messages
    )
    parts = [part for turn in turns for part in turn.parts]
    check_count("messages", [*turns, *parts], limits.parts)
    pictures = [part.data for part in parts if isinstance(part, Picture)]
    check_count("images", pictures, limits.pictures)
    check_pixels("images", pictures, limits)
    check_text("messages", [part.text for part in parts if isinstance(part, Text)], limits)
    own = {name: getattr(body, name) for name in ("temperature", "top_p") if getattr(body, name) is not None}
    if own.get("temperature") == 0.0:  # of whom the likeliest token is wanted
        own = {**own, "temperature": 1.0, "top_k": 1}
    return Order(
        turns=turns,
        sampling=read_settings({**own, **body.settings}, config, limits),
        seed=body.seed or 0,
        follows="text" if body.stream else "end",
        max_new_rows=body.max_completion_tokens or body.max_tokens or 0,
    )


def read_images(body: ImagesBody, config: Config, limits: Limits) -> list[Order]:
    """An order for each picture; their seeds follow each other.

    Raises:
        ValueError: the model makes no pictures, or it asks for more than the server allows.
    """
    count, kind = body.n or 1, first_picture(config.modality, "model")
    if count > limits.documents:
        raise ValueError(f"n: is {count}, more than this server allows, {limits.documents}; ask again for more")
    check_text("prompt", [body.prompt], limits)
    sampling = read_settings(dict(body.settings), config, limits)
    shown = body.partial_images or 0
    first = Order(
        parts=(Text(body.prompt), Make(kind)),
        sampling=sampling,
        seed=body.seed or 0,
        follows="steps" if body.stream else "end",
        preview_steps=max(1, sampling.steps_of(kind) // (shown + 1)) if shown else 0,
    )
    return [replace(first, seed=(first.seed + number) % 2**63) for number in range(count)]


def _parts(message: ChatMessage) -> list[Text | Picture]:
    if message.content is None:
        return []
    if isinstance(message.content, str):
        return [Text(message.content)]
    return [
        Text(part.text)
        if isinstance(part, TextContent)
        else Picture(check_picture(decode_base64(part.image_url.url, "image_url"), "image_url"))
        for part in message.content
    ]


def chat_answer(ticket: Ticket, event: Event) -> dict[str, Any]:
    """A whole chat completion."""
    content = _markdown(event["written"]).strip()
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "logprobs": None}
    choice |= {"finish_reason": event["finish_reason"]}
    return {**_head(ticket, "chat.completion"), "choices": [choice], "usage": _usage(event)}


async def chat_chunks(
    ticket: Ticket, events: AsyncIterator[tuple[str, Event]], with_usage: bool
) -> AsyncIterator[bytes]:
    """The same as it becomes final."""
    head = {**_head(ticket, "chat.completion.chunk")}

    def chunk(delta: dict[str, str], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event_bytes({**head, "choices": [choice]})

    yield chunk({"role": "assistant", "content": ""})
    is_first = True
    async for name, event in events:
        if name == "text":
            content = _markdown(event["parts"])
            content = content.lstrip() if is_first else content
            is_first = is_first and not content
            if content:
                yield chunk({"content": content})
        elif name == "done":
            yield chunk({}, event["finish_reason"])
            if with_usage:
                yield event_bytes({**head, "choices": [], "usage": _usage(event)})
            yield event_bytes("[DONE]")
        elif name in ("refused", "failed"):
            yield event_bytes(describe_error(event["message"], 400 if name == "refused" else 500))


def images_answer(tickets: list[Ticket], events: list[Event], wants_urls: bool) -> dict[str, Any]:
    """All pictures."""
    key = "url" if wants_urls else "b64_json"
    found = [_picture(event) for event in events]
    data = [{key: picture if wants_urls else picture.removeprefix(PREFIX)} for picture in found]
    return {"created": int(time.time()), "data": data, "output_format": "png", "usage": _image_usage(events)}


async def image_chunks(events: AsyncIterator[tuple[str, Event]], most: int) -> AsyncIterator[bytes]:
    """One picture while it is made: at most so many times before it is done."""
    number, about = 0, {"created_at": int(time.time()), "output_format": "png", "background": "opaque"}
    about |= {"quality": "auto", "size": "auto"}
    async for name, event in events:
        if name == "step" and number < most and event["steps_left"]:
            for shown in event["pictures"].values():
                picture = [*shown.values()][-1].removeprefix(PREFIX)
                own = {"type": "image_generation.partial_image", "partial_image_index": number, "b64_json": picture}
                yield event_bytes({**own, **about}, own["type"])
                number += 1
        elif name == "done":
            own = {"type": "image_generation.completed", "b64_json": _picture(event).removeprefix(PREFIX)}
            yield event_bytes({**own, **about, "usage": _image_usage([event])}, own["type"])
        elif name in ("refused", "failed"):
            yield event_bytes(describe_error(event["message"], 400 if name == "refused" else 500), "error")


def _head(ticket: Ticket, kind: str) -> dict[str, Any]:
    return {"id": ticket.key, "object": kind, "created": int(time.time()), "model": ticket.model}


def _markdown(parts: list[Event]) -> str:
    return "".join(part["text"] if "text" in part else f"![{part['modality']}]({part['picture']})" for part in parts)


def _picture(event: Event) -> str:
    """The piece that was made."""
    return str(next(piece["picture"] for own in event["pieces"].values() for piece in own if not piece["is_given"]))


def _usage(event: Event) -> dict[str, int]:
    given, all_tokens = event["num_given"], event["num_tokens"]
    return {"prompt_tokens": given, "completion_tokens": all_tokens - given, "total_tokens": all_tokens}


def _image_usage(events: list[Event]) -> dict[str, Any]:
    own = [_usage(event) for event in events]
    text = sum(usage["prompt_tokens"] for usage in own)
    details = {"text_tokens": text, "image_tokens": 0}
    return {"input_tokens": text, "output_tokens": len(events), "total_tokens": text + len(events)} | {
        "input_tokens_details": details
    }
