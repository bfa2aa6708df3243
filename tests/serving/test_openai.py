"""OpenAI's own client, as it is, against this server."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from PIL import Image

from oneflow_dist.config import Config
from oneflow_dist.serving.openai import ChatBody, ImagesBody, chat_chunks, read_chat, read_images
from oneflow_dist.serving.orders import Limits, Make, Picture, Text
from oneflow_dist.serving.scheduler import Ticket
from tests.messages import naming
from tests.serving.conftest import SMALL, Service
from tests.serving.test_app import picture

EXTRA: dict[str, Any] = {"settings": SMALL}
ASKED: Any = [{"role": "user", "content": "count up:"}]


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0) as own:
        yield own


def opened(data: str) -> tuple[int, int]:
    with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
        return shown.size


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_what_is_sent_is_what_other_servers_send(service: Service) -> None:
    """Lines as clients of other languages read them, which know of no more than OpenAI's."""
    body = {"messages": ASKED, "settings": SMALL, "stream": True, "logit_bias": {}, "user": "a", "stop": None}
    with service.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert "usage" not in chunks[-1]  # nobody has asked for it
    whole = service.client.post("/v1/chat/completions", json={**body, "stream": None}).json()
    assert whole["object"] == "chat.completion"


def test_no_more_is_written_than_asked_for(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": ASKED, "extra_body": EXTRA}
    num_cut = 0
    for seed in range(4):
        free = client.chat.completions.create(**asked, seed=seed)
        cut = client.chat.completions.create(**asked, seed=seed, max_completion_tokens=3)
        assert free.usage is not None
        assert cut.usage is not None
        assert cut.usage.completion_tokens <= 3
        if free.usage.completion_tokens > 3:
            num_cut += 1
            assert cut.choices[0].finish_reason == "length"
    assert num_cut > 0


@pytest.mark.parametrize("seed", range(1, 4))
def test_a_streamed_chat_says_what_a_whole_one_does(seed: int, client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=ASKED, seed=seed, extra_body=EXTRA)
    stream = client.chat.completions.create(
        model="tiny", messages=ASKED, seed=seed, extra_body=EXTRA, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said.strip() == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.completion_tokens > 0


def test_blocks_are_sent_when_they_are_final(client: openai.OpenAI) -> None:
    body = {"settings": {"steps": 6, "max_rows": 48, "blocks": 6}}

    def count(seed: int) -> int:
        asked = {"model": "tiny", "messages": ASKED, "extra_body": body, "seed": seed}
        chunks = client.chat.completions.create(**asked, stream=True)
        return sum(bool(chunk.choices[0].delta.content) for chunk in chunks)

    assert max(map(count, range(4))) > 1


def test_a_picture_in_a_question_is_seen(client: openai.OpenAI) -> None:
    def ask(shade: int, seed: int) -> str | None:
        url = f"data:image/png;base64,{base64.b64encode(picture(shade=shade)).decode()}"
        parts: Any = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what?"}]
        messages: Any = [{"role": "user", "content": parts}]
        asked = {"model": "tiny", "messages": messages, "extra_body": EXTRA, "seed": seed}
        return client.chat.completions.create(**asked).choices[0].message.content

    assert [ask(0, seed) for seed in range(4)] != [ask(255, seed) for seed in range(4)]


def test_pictures_are_made_each_with_a_seed_of_its_own(client: openai.OpenAI) -> None:
    made = client.images.generate(model="tiny", prompt="a handwritten seven", n=2, extra_body=EXTRA)
    assert made.data is not None
    one, other = (each.b64_json or "" for each in made.data)
    assert opened(one) == opened(other) == (8, 8)
    assert one != other
    again = client.images.generate(model="tiny", prompt="a handwritten seven", extra_body={**EXTRA, "seed": 1})
    assert again.data is not None
    assert again.data[0].b64_json == other


def test_a_picture_is_streamed_while_it_is_made(client: openai.OpenAI) -> None:
    stream = client.images.generate(
        model="tiny", prompt="a handwritten seven", stream=True, partial_images=2, extra_body=EXTRA
    )
    events = list(stream)
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert all(opened(event.b64_json) == (8, 8) for event in events)
    assert len({event.b64_json for event in events}) == 3
    whole = client.images.generate(model="tiny", prompt="a handwritten seven", extra_body=EXTRA)
    assert whole.data is not None
    assert events[-1].b64_json == whole.data[0].b64_json


def test_errors_are_those_that_the_client_knows(client: openai.OpenAI) -> None:
    url: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://localhost/x.png"}}]}]
    with pytest.raises(openai.BadRequestError, match="address"):
        client.chat.completions.create(model="tiny", messages=url)
    with pytest.raises(openai.BadRequestError, match=r"settings\.temperature"):
        client.chat.completions.create(model="tiny", messages=ASKED, temperature=-1)
    with pytest.raises(openai.NotFoundError, match="other"):
        client.chat.completions.create(model="other", messages=ASKED)
    with pytest.raises(openai.BadRequestError, match="rows"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "one " * 500}], stream=True)


# How requests are read, and what is said of them.


@pytest.mark.parametrize(("name", "kind"), [("refused", "invalid_request_error"), ("failed", "server_error")])
def test_a_stream_that_goes_wrong_says_so_in_a_way_that_clients_raise(name: str, kind: str, config: Config) -> None:
    order = read_chat(ChatBody.model_validate({"messages": ASKED}), config, Limits())
    ticket = Ticket(key="gen-1", model="tiny", order=order, backlog=9)

    async def events() -> AsyncIterator[tuple[str, Any]]:
        yield "text", {"parts": [{"text": " one"}]}
        yield name, {"message": "it went wrong"}

    async def once() -> list[bytes]:
        return [chunk async for chunk in chat_chunks(ticket, events(), with_usage=True)]

    _, text, error = asyncio.run(once())
    assert json.loads(text[6:])["choices"][0]["delta"] == {"content": "one"}  # no blank before the first word
    assert json.loads(error[6:])["error"]["message"] == "it went wrong"
    assert json.loads(error[6:])["error"]["type"] == kind


def test_what_clients_send_for_others_is_left_out(config: Config) -> None:
    body = ChatBody.model_validate(
        {"messages": [{"role": "user", "content": "a", "name": "b"}], "user": "c", "frequency_penalty": 1, "tools": []}
    )
    order = read_chat(body, config, Limits())
    assert [turn.parts for turn in order.turns] == [(Text("a"),)]
    assert order.sampling == config.sampling


def test_the_likeliest_tokens_are_taken_at_temperature_zero(config: Config) -> None:
    body = ChatBody.model_validate({"messages": ASKED, "temperature": 0})
    assert read_chat(body, config, Limits()).sampling.top_k == 1


def test_turns_keep_their_order_and_sides(config: Config) -> None:
    url = {"url": f"data:image/png;base64,{base64.b64encode(picture()).decode()}"}
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "image_url", "image_url": url}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": "a seven"},
        {"role": "user", "content": "and now?"},
    ]
    order = read_chat(ChatBody.model_validate({"messages": messages}), config, Limits())
    assert [turn.role for turn in order.turns] == ["system", "user", "assistant", "user"]
    assert order.turns[1].parts == (Picture(picture()), Text("what?"))


def test_pictures_of_all_turns_count_together(config: Config) -> None:
    url = {"url": f"data:image/png;base64,{base64.b64encode(picture()).decode()}"}
    message = {"role": "user", "content": [{"type": "image_url", "image_url": url}]}
    body = ChatBody.model_validate({"messages": [message] * 3})
    assert len(read_chat(body, config, Limits(pixels=3 * 64)).turns) == 3
    with pytest.raises(ValueError, match=naming("images", 192, 191)):
        read_chat(body, config, Limits(pixels=3 * 64 - 1))


def test_pictures_have_a_prompt_a_place_and_seeds_in_turn(config: Config) -> None:
    orders = read_images(ImagesBody(prompt="seven", n=3, seed=2**63 - 2), config, Limits())
    assert [order.parts for order in orders] == [(Text("seven"), Make("image"))] * 3
    assert [order.seed for order in orders] == [2**63 - 2, 2**63 - 1, 0]
    with pytest.raises(ValueError, match=naming("n", 9, 8)):
        read_images(ImagesBody(prompt="seven", n=9), config, Limits())
