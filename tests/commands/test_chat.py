from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.commands.chat import HELP, Chat, answer, appearing, open_chat
from oneflow_dist.commands.sample import CHOICES, NUMBERS
from oneflow_dist.config import Config
from oneflow_dist.containers import Document, PiecePart, TextPart
from oneflow_dist.data.samples import make_sample
from oneflow_dist.modality import TAKEN_TOKENS
from tests.launching import Finished, Launcher, Run, oneflow, only_error
from tests.messages import names, refused
from tools.digits.grammar import load_split

Say = Callable[..., Finished]
NOTHING: dict[str, Any] = {**dict.fromkeys((*dict(NUMBERS), *CHOICES)), "guidance": [], "piece_steps": [], "codec": []}


@pytest.fixture(scope="module")
def say(launcher: Launcher, unbroken: Run) -> Say:
    """oneflow chat on a checkpoint of 20 steps, from a pipe."""

    def run(typed: str, output: Path, *options: str) -> Finished:
        return launcher.run(
            *oneflow("chat"),
            unbroken.folder,
            "--steps",
            "6",
            "--output",
            output,
            *options,
            stdin=typed,
            folder=output.parent,
        )

    return run


@pytest.fixture(scope="module")
def opened(unbroken: Run) -> Chat:
    options = {**NOTHING, "steps": 6, "max_rows": 300, "seed": 0, "output": None}
    return open_chat(argparse.Namespace(checkpoint=unbroken.folder, **options))


@pytest.fixture
def chat(opened: Chat, tmp_path: Path) -> Chat:
    """One that has not begun, on a trained model."""
    return Chat(
        model=opened.model, config=opened.config, tokenizer=opened.tokenizer, output=tmp_path / "out", seed=opened.seed
    )


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    path = tmp_path / "digit.png"
    Image.fromarray(load_split("heldout")[0][0]).save(path)
    return path


def reply(chat: Chat, *parts: TextPart | PiecePart) -> None:
    """As if the model had answered so."""
    assert chat.message is not None
    chat.turns += [chat.message, list(parts)]
    chat.message = None


def test_what_is_asked_is_what_stands_before_the_answer_in_training(chat: Chat, digit: Path) -> None:
    """Over several turns, with pictures in questions and in answers."""
    tokenizer, modalities = chat.tokenizer, chat.config.modality
    latent = np.linspace(-1, 1, 784, dtype=np.float32).reshape(1, 28, 28)
    for line in ("/system Be brief.", f"/image {digit}", "What is this?"):
        assert chat.obey(line)
    said = TextPart(tokens=tokenizer.encode("Seven."), role="assistant")
    drawn = PiecePart(modality="image", posterior=latent[None], mirrored=latent[None][:0], role="assistant")
    reply(chat, said, drawn)
    assert chat.obey("  And now? ")
    canvas, num_given = chat.blank()

    pixels = np.asarray(Image.open(digit), dtype=np.float32)[None] / 127.5 - 1.0
    asked = (
        TextPart(tokens=tokenizer.encode("Be brief."), role="system"),
        PiecePart(modality="image", posterior=pixels[None], mirrored=pixels[None][:0]),
        TextPart(tokens=tokenizer.encode("What is this?")),
        said,
        drawn,
        TextPart(tokens=tokenizer.encode("And now?")),
        TextPart(tokens=tokenizer.encode("Eight."), role="assistant"),
    )
    rngs = (np.random.default_rng(seed) for seed in range(20))
    samples = [
        make_sample(Document(key="x", parts=asked), "instruct", "latents", [], tokenizer, modalities, rng)
        for rng in rngs
    ]
    sample = max(samples, key=lambda each: len(each.tokens))  # that of the last turn
    assert canvas.tokens.tolist() == sample.tokens[~sample.is_target].tolist()
    assert num_given == len(canvas.tokens) - 1
    assert canvas.is_open.tolist() == [False] * num_given + [True]
    pieces = canvas.making["image"].pieces
    assert pieces.token.tolist() == sample.pieces[0].token.tolist()
    np.testing.assert_allclose(pieces.patches, sample.pieces[0].patches, atol=1e-6)
    assert not canvas.is_moving


@pytest.mark.parametrize("token", [*TAKEN_TOKENS, "<|image|>"])
def test_no_one_can_spell_a_special_token(chat: Chat, token: str) -> None:
    """Not the user, not the system's text, and not an answer that goes into the next prompt."""
    tokenizer = chat.tokenizer
    for line in (f"/system {token}", f"a {token} b"):
        assert chat.obey(line)
    canvas, num_given = chat.blank()
    spelled = np.array(tokenizer.encode(f"so {token}"))
    if token not in ("<|hole|>", "<|image|>"):
        spelled = np.append(spelled, tokenizer.encoding.encode_single_token(token))  # as one token, too
    canvas.insert(np.full(len(spelled), num_given), spelled, 1)
    chat.close_turn(canvas, num_given)
    assert chat.obey(token)
    canvas, _ = chat.blank()
    special = [number for number in canvas.tokens[1:].tolist() if number >= tokenizer.bos]
    roles = [tokenizer.role_of[role] for role in ("system", "user", "assistant", "user", "assistant")]
    assert special == roles
    assert len(canvas.making["image"].pieces) == 0
    assert canvas.is_open.sum() == 1


def test_answers_and_their_pictures_are_the_next_prompt_and_files(chat: Chat) -> None:
    image = chat.tokenizer.piece_of["image"]
    for turn in range(2):
        assert chat.obey("paint")
        canvas, num_given = chat.blank()
        at = np.full(3, num_given)
        canvas.insert(at, np.array([*chat.tokenizer.encode("a"), image, *chat.tokenizer.encode("b")]), 1)
        found = chat.close_turn(canvas, num_given)
        assert found == ["a", chat.output / f"{turn:04d}-image-0.png", "b"]
    assert len(list(chat.output.iterdir())) == 2
    assert chat.obey("again")
    canvas, _ = chat.blank()
    assert canvas.tokens.tolist().count(image) == 2
    assert canvas.making["image"].is_target.tolist() == [False, False]


def test_an_empty_answer_is_forgotten_with_its_question(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat.obey("hello")
    canvas, num_given = chat.blank()
    assert chat.close_turn(canvas, num_given) == []
    assert (chat.turns, chat.message) == ([], None)


def test_the_oldest_turns_are_left_out_where_an_answer_has_no_room(
    chat: Chat, capsys: pytest.CaptureFixture[str]
) -> None:
    max_rows = chat.config.sampling.max_rows
    long = "x" * (max_rows // 2)
    for line in ("first", long, "last"):
        assert chat.obey(line)
        chat.blank()
        if line != "last":
            reply(chat, TextPart(tokens=chat.tokenizer.encode("yes " * 3), role="assistant"))
    canvas, _ = chat.blank()
    assert max_rows - canvas.num_rows >= max_rows // 4
    assert chat.tokenizer.decode(canvas.tokens.tolist()).endswith("<|user|>last<|assistant|>")
    assert chat.obey("y" * max_rows)
    message = refused(chat.blank)
    assert names(message, max_rows, "/reset", "--max-rows")
    assert chat.message is None
    assert chat.turns == []


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("/image", ["/image", "''"]),
        ("/image no such.png", ["/image", "'no such.png'"]),
        ("/seed x", ["/seed", "'x'"]),
        ("/seed -1", ["/seed", "'-1'"]),
        ("/nothing", ["/nothing", "/help"]),
    ],
)
def test_a_command_that_cannot_be_is_refused(chat: Chat, line: str, named: list[object]) -> None:
    assert names(refused(chat.obey, line), *named)


def test_commands_do_what_help_says(chat: Chat, digit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat.obey("/help")
    assert capsys.readouterr().out == HELP + "\n"
    assert set(re.findall(r"^/\w+", HELP, re.MULTILINE)) == {"/image", "/system", "/reset", "/seed", "/help", "/quit"}
    assert chat.obey("/seed 7")
    assert chat.seed == 7
    assert chat.obey("/system x")
    assert chat.obey("/system")
    assert chat.system == []
    assert chat.obey("")
    assert chat.message is None
    assert chat.obey(f"/image {digit}")
    assert chat.obey("")
    assert chat.message is not None
    assert [type(part) for part in chat.message] == [PiecePart]
    reply(chat, TextPart(tokens=[1], role="assistant"))
    assert chat.obey("/reset")
    assert (chat.turns, chat.attached, chat.system) == ([], [], [])
    assert not chat.obey("/quit")


def test_tokens_are_bright_when_they_appear(chat: Chat) -> None:
    assert chat.obey("hello")
    canvas, num_given = chat.blank()
    image = chat.tokenizer.piece_of["image"]
    canvas.insert(np.array([num_given, num_given]), np.array([*chat.tokenizer.encode("a")[:1], image]), 1)
    canvas.insert(np.array([num_given]), np.array(chat.tokenizer.encode("b")[:1]), 2)
    texts = [(text, bool(color)) for text, color in appearing(canvas, num_given, 2, chat.tokenizer)]
    assert texts == [("b", True), ("a", False), ("[image 0%]", True)]


def test_in_a_terminal_the_answer_is_drawn_while_it_appears(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat.obey("count up:")
    answer(chat, is_shown=True)
    assert capsys.readouterr().out.count("\r") >= 6


def test_from_a_pipe_each_line_is_a_message_and_the_same_seed_says_the_same(
    say: Say, digit: Path, tmp_path: Path
) -> None:
    typed = f"/image {digit}\nwhat is it?\ncount up:\n/reset\ncount up:\n/quit\nnever\n"
    first, second = (say(typed, tmp_path / name, "--seed", "3") for name in ("a", "b"))
    assert first.code == 0, first.stderr
    assert "\033" not in first.stdout
    assert first.stdout.replace(f"{tmp_path}/a", "") == second.stdout.replace(f"{tmp_path}/b", "")
    assert first.stdout.strip()
    pictures = re.findall(r"\[(\S+\.png)\]", first.stdout)
    for path in pictures:
        Image.open(path).verify()


def test_a_mistake_in_a_pipe_ends_it(say: Say, tmp_path: Path) -> None:
    end = say("/image nothing.png\nhello\n", tmp_path / "out")
    assert end.code == 2
    assert names(only_error(end), "nothing.png")


def test_a_checkpoint_without_the_tokens_of_turns_is_refused(
    opened: Chat, unbroken: Run, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oneflow_dist.trained.config_at_home", lambda folder: make_config("model.vocab_size=256"))
    options = argparse.Namespace(checkpoint=unbroken.folder, output=None, seed=0, **NOTHING)
    assert names(refused(open_chat, options), "model.vocab_size", 256, opened.tokenizer.vocab_size)


@pytest.mark.parametrize("option", ["--seed=-1", "--max-rows=0", "--temperature=0"])
def test_numbers_out_of_range_are_refused_before_anything_is_read(launcher: Launcher, option: str) -> None:
    end = launcher.run(*oneflow("chat"), "nothing", option)
    assert end.code == 2
    assert names(only_error(end), option.partition("=")[0])
