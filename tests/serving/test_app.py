"""What the server answers, from the page to a model's process that dies."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from oneflow_dist.serving.app import PAGE
from oneflow_dist.version import package_version
from tests.messages import names
from tests.serving.conftest import SMALL, Service, read_events

PROMPT = [{"text": "count up:"}]


def picture(size: int = 8, shade: int = 200) -> bytes:
    file = io.BytesIO()
    Image.new("L", (size, size), shade).save(file, "PNG")
    return file.getvalue()


def wait_until(is_so: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def content(document: dict[str, Any]) -> dict[str, Any]:
    return {key: document[key] for key in ("text", "tokens", "parts", "pieces", "finish_reason", "steps")}


# The page and what is told of models.


def test_the_page_and_its_files_are_served_as_what_they_are(service: Service) -> None:
    types = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
    assert service.client.get("/").content == (PAGE / "index.html").read_bytes()
    for path in PAGE.iterdir():
        answer = service.client.get(f"/page/{path.name}")
        assert answer.content == path.read_bytes()
        assert answer.headers["content-type"].startswith(types[path.suffix])
        assert "script-src 'self'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/nothing", "/page/../app.py", "/page/%2e%2e/app.py", "/docs"])
def test_what_is_not_there_is_404(path: str, service: Service) -> None:
    answer = service.client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_another_method_is_405_and_says_which_there_are(service: Service) -> None:
    answer = service.client.get("/v1/generate")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert service.client.post("/v1/models").status_code == 405


def test_models_are_told_with_the_settings_of_their_configs(service: Service) -> None:
    (model,) = service.client.get("/v1/models").json()["data"]
    config = service.server.scheduler.cards["tiny"].config
    own = model["oneflow"]
    assert (model["id"], own["objective"], own["version"]) == ("tiny", "insertion", package_version())
    assert own["settings"]["steps"]["default"] == config.sampling.steps
    assert own["settings"]["guidance.image"]["default"] == config.sampling.guidance.get("image", 1.0)
    assert own["max_rows"] == config.sampling.max_rows
    assert [each["name"] for each in own["modalities"]] == list(config.modality)


def test_the_report_of_the_runs_is_served(service: Service) -> None:
    answer = service.client.get("/report")
    assert answer.status_code == 200
    assert "</html>" in answer.text
    assert "script-src 'unsafe-inline'" in answer.headers["content-security-policy"]


def test_a_report_that_many_ask_for_is_made_once(
    serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def render(runs: list[Path], seconds: float) -> str:
        calls.append(runs)
        time.sleep(0.3)
        return "<html></html>"

    monkeypatch.setattr("oneflow_dist.serving.app.render", render)
    service = serve()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: service.client.get("/report").text, range(4)))
    assert answers == ["<html></html>"] * 4
    assert len(calls) == 1


def test_health_and_measures_say_what_was_done(service: Service) -> None:
    def value(name: str) -> float:
        families = text_string_to_metric_families(service.client.get("/metrics").text)
        return sum(s.value for family in families for s in family.samples if s.name == name)

    before = value("oneflow_documents_total")
    service.generate()
    assert value("oneflow_documents_total") == before + 1
    assert value("oneflow_step_seconds_count") > 0
    assert value("oneflow_rows_total") > 0
    assert service.client.get("/healthz").json() == {
        "status": "ok",
        "models": {"tiny": "ok"},
        "waiting": 0,
        "writing": 0,
    }


# Documents.


def replay(events: list[tuple[str, dict[str, Any]]]) -> list[int]:
    """Ids of tokens after all steps, as a reader of the stream has them."""
    tokens: list[int] = []
    for name, event in events:
        if name == "begin":
            tokens = [token["id"] for token in event["tokens"]]
        elif name == "step":
            for inserted in event["inserted"]:
                tokens.insert(inserted["place"], inserted["id"])
            tokens = [token for place, token in enumerate(tokens) if place not in event["removed"]]
    return tokens


@pytest.mark.parametrize("settings", [SMALL, {**SMALL, "corrections": 1}])
def test_a_stream_replayed_is_the_document_and_that_of_an_answer_without_stream(
    settings: dict[str, Any], service: Service
) -> None:
    whole = service.generate(parts=PROMPT, settings=settings, seed=3)
    events = service.stream(parts=PROMPT, settings=settings, seed=3, preview_steps=1)
    names = [name for name, _ in events]
    assert names[0] == "begin"
    assert set(names[1:-1]) == {"step"}
    done = events[-1][1]
    assert replay(events) == [token["id"] for token in done["tokens"]]
    assert content(done) == content(whole)
    assert any(event["pictures"] for name, event in events if name == "step") == bool(done["pieces"]["image"])


def test_a_document_is_the_same_alone_and_among_others(service: Service) -> None:
    bodies = [{"parts": PROMPT if seed % 2 else [], "seed": seed} for seed in range(8)]
    bodies[3]["settings"] = {**SMALL, "steps": 7, "temperature": 0.8, "guidance.tokens": 2.0}
    alone = [service.generate(**body) for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda body: service.generate(**body), bodies))
    assert [content(each) for each in together] == [content(each) for each in alone]


def test_what_is_kept_comes_back_to_the_bit(service: Service) -> None:
    document = next(
        made for seed in range(20) if (made := service.generate(parts=PROMPT, seed=seed))["pieces"]["image"]
    )
    parts: list[dict[str, Any]] = []
    for token in document["tokens"]:
        kept = (
            {"latent": document["pieces"]["image"][token["number"]]["latent"]}
            if "modality" in token
            else {"tokens": [token["id"]]}
        )
        parts.append(kept)
    again = service.generate(parts=[*parts[:2], {"hole": True}, *parts[2:]], seed=99)
    old, new = [t["id"] for t in document["tokens"]], [t["id"] for t in again["tokens"] if t["step"] == 0]
    assert new == old
    given = [piece["latent"] for piece in again["pieces"]["image"] if piece["is_given"]]
    assert given == [piece["latent"] for piece in document["pieces"]["image"]]


def test_a_picture_is_made_where_it_is_asked_for_and_a_variation_begins_at_its_time(service: Service) -> None:
    made = service.generate(parts=[{"text": "seven"}, {"make": "image"}])
    assert [piece["is_given"] for piece in made["pieces"]["image"]] == [False]
    with Image.open(io.BytesIO(base64.b64decode(made["pieces"]["image"][0]["picture"].partition(",")[2]))) as shown:
        assert shown.size == (8, 8)
    data = base64.b64encode(picture()).decode()
    events = service.stream(parts=[{"image": data, "time": 0.5}])
    assert events[0][1]["pieces"]["image"][0]["time"] == 0.5
    given = service.generate(parts=[{"image": f"data:image/png;base64,{data}"}])
    assert given["pieces"]["image"][0]["is_given"]


def test_files_come_in_a_form(service: Service) -> None:
    asked = json.dumps({"parts": [{"image": {"upload": "photo"}}], "settings": SMALL})
    files = {"request": (None, asked), "photo": ("../../x.png", picture(), "image/png")}
    answer = service.client.post("/v1/generate", files=files)
    by_json = service.generate(parts=[{"image": base64.b64encode(picture()).decode()}])
    assert content(answer.json()) == content(by_json)


FORM = b'--b\r\nContent-Disposition: form-data; name="request"\r\n\r\n{}\r\n'
FILE = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\nabc\r\n'


@pytest.mark.parametrize(
    ("form", "named"),
    [
        (FILE + b"--b--\r\n", ("request", "field")),
        (FORM + FORM + b"--b--\r\n", ("request", "fields")),
        (FORM + FILE * 17 + b"--b--\r\n", ("request", "files")),
        (b"no form", ("request",)),
        (FORM[:40], ("request",)),
    ],
    ids=["no request", "two requests", "too many files", "no form", "cut off"],
)
def test_what_is_no_form_of_a_request_is_400(form: bytes, named: tuple[str, ...], service: Service) -> None:
    answer = service.client.post(
        "/v1/generate", content=form, headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert answer.status_code == 400
    assert names(answer.json()["error"]["message"], *named)


# Refusals.


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"parts": [{"nothing": 1}]}, "parts.0"),
        ({"parts": [{"make": "video"}]}, None),
        ({"settings": {"steps": 0}}, "settings.steps"),
        ({"settings": {"stepz": 3}}, "settings.stepz"),
        ({"settings": {"max_rows": 10**6}}, "settings.max_rows"),
        ({"settings": {"guidance.tokens": 1e308}, "parts": PROMPT}, "settings.guidance.tokens"),
        ({"parts": [{"tokens": [5] * 1000}]}, "tokens"),
        ({"parts": [{"text": "\ud800"}]}, None),
        ({"parts": [{"text": "one " * 200}]}, "parts"),
        ({"parts": [{"image": "x"}]}, "image"),
        ({"seed": -1}, "seed"),
        ({"unknown": 1}, "unknown"),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_what_cannot_be_is_400_and_says_where(
    body: dict[str, Any], param: str | None, is_streamed: bool, service: Service
) -> None:
    asked = json.dumps({**body, "stream": is_streamed})
    answer = service.client.post("/v1/generate", content=asked, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert "\n" not in error["message"]
    if param is not None:
        assert error["param"] == param


def test_another_model_is_404_and_another_type_415(service: Service) -> None:
    assert service.client.post("/v1/generate", json={"model": "other"}).status_code == 404
    assert service.client.post("/v1/generate", content="{}", headers={"Content-Type": "text/plain"}).status_code == 415


def test_a_body_that_is_no_json_is_400(service: Service) -> None:
    answer = service.client.post("/v1/generate", content="{", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


def test_limits_of_a_server_hold(serve: Callable[..., Service]) -> None:
    service = serve(body_bytes=2000, body_seconds=0.5, documents=1)
    assert service.client.post("/v1/generate", json={"parts": [{"text": "a" * 3000}]}).status_code == 413
    chunks = (b" " * 500 for _ in range(10))
    assert (
        service.client.post("/v1/generate", content=chunks, headers={"Content-Type": "application/json"}).status_code
        == 413
    )
    host, _, port = service.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as own:
        head = "POST /v1/generate HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Content-Length: 9"
        own.sendall("\r\n".join([*head, "", "{"]).encode())
        assert own.recv(100).startswith(b"HTTP/1.1 408")
    assert service.generate()["finish_reason"] in ("stop", "length")


# Many users, and some that go.


def test_who_waits_is_told_where_they_stand(serve: Callable[..., Service]) -> None:
    service = serve(writing=1, waiting=2)
    slow = {"settings": {"steps": 300, "max_rows": 48}, "stream": True}
    with service.client.stream("POST", "/v1/generate", json=slow) as first:
        reading = read_events(first.iter_lines())  # kept, since an iterator that is dropped closes the stream
        next(reading)
        with service.client.stream("POST", "/v1/generate", json={"settings": SMALL, "stream": True}) as second:
            events = read_events(second.iter_lines())
            name, event = next(events)
            assert (name, event.get("position")) == ("queued", 1)
            with service.client.stream("POST", "/v1/generate", json={"settings": SMALL, "stream": True}):
                full = service.client.post("/v1/generate", json={})
                assert full.status_code == 503
                assert int(full.headers["retry-after"]) >= 1
            first.close()  # and makes room
            assert [name for name, _ in events][-1] == "done"
    wait_until(service.is_idle)


def test_pictures_that_cannot_all_wait_leave_none_behind(serve: Callable[..., Service]) -> None:
    service = serve(writing=1, waiting=1)
    asked = {"prompt": "seven", "n": 4, "settings": {"steps": 900}}
    assert service.client.post("/v1/images/generations", json=asked).status_code == 503
    wait_until(service.is_idle, seconds=3.0)


def test_a_client_that_goes_frees_its_place(service: Service) -> None:
    slow = {"settings": {"steps": 900, "max_rows": 48}}
    with service.client.stream("POST", "/v1/generate", json={**slow, "stream": True}) as answer:
        reading = read_events(answer.iter_lines())
        next(reading)
        assert not service.is_idle()
    wait_until(service.is_idle)
    with pytest.raises(httpx.ReadTimeout):
        service.client.post("/v1/generate", json=slow, timeout=0.5)
    wait_until(service.is_idle, seconds=3.0)


def test_a_model_whose_process_dies_says_so_to_everybody(serve: Callable[..., Service]) -> None:
    service = serve()
    with service.client.stream("POST", "/v1/generate", json={"settings": {"steps": 900}, "stream": True}) as answer:
        events = read_events(answer.iter_lines())
        next(events)
        (engine,) = service.server.scheduler.engines
        assert engine.process.pid is not None
        os.kill(engine.process.pid, signal.SIGKILL)
        name, event = list(events)[-1]
    assert name == "error"
    assert "process has ended" in event["error"]["message"]
    assert service.client.get("/healthz").status_code == 503
    refused = service.client.post("/v1/generate", json={})
    assert refused.status_code == 503
    assert refused.json()["error"]["type"] == "overloaded_error"
    assert service.client.get("/").status_code == 200
