from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneflow_dist.containers import Document, PiecePart, Sample, TextPart
from oneflow_dist.data.codec import to_patches
from oneflow_dist.data.excerpts import cut_window
from oneflow_dist.data.latents import CHECK
from oneflow_dist.data.samples import TASKS, make_sample
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.flow.noising import keyed_generator
from oneflow_dist.modality import TAKEN_TOKENS
from tests.messages import Message
from tests.pieces import SOUND, VISION, modality

GREY = modality()
IMAGES = {"image": GREY}
TOKENIZER = load_tokenizer("bytes", IMAGES)
BOS, IMAGE, BREAK = TOKENIZER.bos, TOKENIZER.piece_of["image"], [*b"\n\n"]
KEY = "pets/cats-000/0001"
WHOLE = [task for task in TASKS if task != "blocks"]  # nothing of the document is left out at random


def text(content: str, role: str = "user") -> TextPart:
    return TextPart(tokens=TOKENIZER.encode(content), role=role)


def answer(content: str) -> TextPart:
    return text(content, "assistant")


def painted(mean: float) -> PiecePart:
    """A picture in an answer."""
    return replace(image(mean), role="assistant")


def image(
    mean: float, std: float | None = None, grid: tuple[int, int] = (2, 2), mirrored: float | None = None
) -> PiecePart:
    """Of one value: exact pixels, or a posterior; `mirrored` is the mean of its twin."""

    def stack(*values: float) -> np.ndarray:
        shape = (len(values), 1, 4 * grid[0], 4 * grid[1])
        return np.broadcast_to(np.array(values, dtype=np.float32).reshape(-1, 1, 1, 1), shape)

    rest = () if std is None else (std,)
    return PiecePart(
        modality="image", posterior=stack(mean, *rest), mirrored=stack() if mirrored is None else stack(mirrored, *rest)
    )


def document(*parts: TextPart | PiecePart) -> Document:
    return Document(key=KEY, parts=parts)


PAIR = document(text("a cat"), image(1.0))
STORY = document(text("one"), image(2.0), text("two"), text("three"), image(3.0))
TURNS = document(
    *[text("be brief", "system"), image(4.0), text("q1"), answer("a1"), text("q2"), text("q3")],
    *[answer("a2"), painted(5.0), answer("a3"), text("q4")],
)
FIRST, SECOND = "{S}be brief{U}#q1{A}[a1]", "{S}be brief{U}#q1{A}a1{U}q2\n\nq3{A}[a2#a3]"
ROLE_SIGNS = {TOKENIZER.role_of[role]: f"{{{role[0].upper()}}}" for role in TOKENIZER.role_of}


def make(source: Document, task: str, prompt: str = "", seed: int = 0) -> Sample:
    rng = np.random.default_rng(seed)
    return make_sample(source, task, "latents", TOKENIZER.encode(prompt), TOKENIZER, IMAGES, rng, block_rows=8)


def images(sample: Sample) -> Pieces:
    """Its only modality's."""
    (of_kind,) = sample.pieces
    return of_kind


def spell(sample: Sample) -> str:
    """All after BOS, an image as #; what is target in brackets."""
    assert sample.tokens[0] == BOS
    assert not sample.is_target[0]
    spelled = ""
    was_target = False
    for token, is_target in zip(sample.tokens[1:].tolist(), sample.is_target[1:].tolist(), strict=True):
        spelled += "[" * (is_target and not was_target) + "]" * (was_target and not is_target)
        spelled += "#" if token == IMAGE else ROLE_SIGNS.get(token) or TOKENIZER.decode([token])
        was_target = is_target
    return spelled + "]" * was_target


# What of a document is prompt and what is target.


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("text_to_image", "a cat[#]"),
        ("image_to_text", "#[a cat]"),
        ("both", "[a cat#]"),
        ("interleaved", "[a cat#]"),
        ("text_only", "[a cat]"),
        ("image_only", "[#]"),
    ],
)
def test_a_task_decides_what_of_a_pair_is_prompt_and_what_is_target(task: str, expected: str) -> None:
    assert spell(make(PAIR, task)) == expected


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("text_to_image", "one\n\ntwo\n\nthree[##]"),
        ("image_to_text", "##[one\n\ntwo\n\nthree]"),
        ("both", "[one#two\n\nthree#]"),
        ("interleaved", "[one#two\n\nthree#]"),
        ("text_only", "[one\n\ntwo\n\nthree]"),
        ("image_only", "[##]"),
    ],
)
def test_a_task_decides_the_order_of_a_document(task: str, expected: str) -> None:
    """Text after text is parted by an empty line; nothing stands beside an image."""
    assert spell(make(STORY, task)) == expected


def test_one_turn_of_the_assistant_is_the_target_of_instructions_and_nothing_follows_it() -> None:
    """What follows would tell the answer to a model that sees both ways."""
    spelled = [spell(make(TURNS, "instruct", seed=seed)) for seed in range(40)]
    assert set(spelled) == {FIRST, SECOND}
    assert 10 < spelled.count(FIRST) < 30
    assert {spell(make(TURNS, "instruct", "now: ", seed)) for seed in range(9)} == {f"now: {FIRST}", f"now: {SECOND}"}
    assert spell(make(document(answer("a")), "instruct")) == "{A}[a]"
    assert spell(make(document(answer("a"), answer("b")), "instruct")) == "{A}[a\n\nb]"
    assert spell(make(document(text("paint"), painted(1.0)), "instruct")) == "{U}paint{A}[#]"


def test_pieces_of_the_answer_are_inserted_and_those_before_it_are_given() -> None:
    """So are those of earlier answers."""
    for seed in range(9):
        sample = make(TURNS, "instruct", seed=seed)
        assert sample.is_interleaved == (spell(sample) == SECOND)
        assert sample.is_target[images(sample).token].tolist() == ([False, True] if sample.is_interleaved else [False])
    earlier = document(text("paint"), painted(1.0), text("what is it?"), answer("a cat"))
    found = {spell(make(earlier, "instruct", seed=seed)) for seed in range(9)}
    assert found == {"{U}paint{A}[#]", "{U}paint{A}#{U}what is it?{A}[a cat]"}


def test_other_tasks_know_no_turns() -> None:
    whole = "be brief#q1\n\na1\n\nq2\n\nq3\n\na2#a3\n\nq4"
    assert spell(make(TURNS, "interleaved")) == f"[{whole}]"
    assert spell(make(TURNS, "text_only")) == f"[{whole.replace('#q', chr(10) * 2 + 'q').replace('#', chr(10) * 2)}]"


def test_a_conversation_that_goes_on_has_the_tokens_before_an_answer() -> None:
    """What is asked in a chat is what stands before the target in training."""
    asked = document(*TURNS.parts[:6], TextPart(tokens=[], role="assistant"))
    for seed in range(9):
        sample = make(TURNS, "instruct", "now: ", seed)
        if sample.is_interleaved:
            break
    opened = make(asked, "answer", "now: ")
    assert opened.tokens.tolist() == sample.tokens[~sample.is_target].tolist()
    assert not opened.is_target.any()
    assert images(opened).token.tolist() == images(sample).token[:1].tolist()


@pytest.mark.parametrize("token", [*TAKEN_TOKENS, "<|image|>"])
def test_a_text_that_spells_a_special_token_is_no_such_token(token: str) -> None:
    said = document(text(token, "system"), text(f"see {token}"), answer(token), text("so"), answer(token))
    for seed in range(9):
        sample = make(said, "instruct", token, seed)
        special = [ROLE_SIGNS[number] for number in sample.tokens[1:].tolist() if number >= BOS]
        assert special in (["{S}", "{U}", "{A}"], ["{S}", "{U}", "{A}", "{U}", "{A}"])
        assert len(images(sample)) == 0


def test_every_task_is_tested() -> None:
    tested = {"text_to_image", "image_to_text", "both", "interleaved", "text_only", "image_only", "instruct"}
    assert set(TASKS) == tested | {"infill", "blocks"}  # of which test_excerpts.py tests what is target


def test_the_tokens_of_a_sample_in_closed_form() -> None:
    sample = make(STORY, "both", "say:")
    expected = [BOS, *b"say:", *b"one", IMAGE, *b"two", *BREAK, *b"three", IMAGE]
    assert sample.tokens.tolist() == expected
    assert sample.tokens.dtype == np.int64
    assert sample.is_target.tolist() == [False] * 5 + [True] * (len(expected) - 5)
    assert images(sample).token.tolist() == [8, 19]
    assert images(sample).grid.tolist() == [[1, 2, 2], [1, 2, 2]]
    assert images(sample).patches[:, 0].tolist() == [2.0] * 4 + [3.0] * 4
    assert sample.key == KEY
    assert sample.num_rows == len(expected) + 8


parts = st.lists(st.text("abc ", min_size=1, max_size=5) | st.none(), min_size=1, max_size=8)


@given(parts, st.sampled_from(["both", "interleaved"]), st.text("xyz:", max_size=4))
def test_a_whole_document_is_its_parts_with_an_empty_line_between_texts(
    contents: list[str | None], task: str, prompt: str
) -> None:
    sample = make(document(*(image(0.0) if c is None else text(c) for c in contents)), task, prompt)
    expected = [BOS, *prompt.encode()]
    for before, content in zip([None, *contents], contents, strict=False):
        if content is None:
            expected.append(IMAGE)
        else:
            expected += (BREAK if before is not None else []) + [*content.encode()]
    assert sample.tokens.tolist() == expected
    assert sample.is_target.tolist() == [False] * (1 + len(prompt)) + [True] * (len(expected) - 1 - len(prompt))
    assert images(sample).token.tolist() == [i for i, token in enumerate(expected) if token == IMAGE]


@given(parts, st.sampled_from(TASKS))
def test_a_task_uses_each_part_at_most_once_and_prompts_nothing_it_generates(
    contents: list[str | None], task: str
) -> None:
    """Or names what is missing."""
    source = document(
        *(image(i) if c is None else text(c, ("user", "assistant")[i % 2]) for i, c in enumerate(contents))
    )
    sample = None
    try:
        sample = make(source, task)
    except ValueError as error:
        message = str(error)
    if sample is None:
        assert message.startswith(f"sample {KEY}: it lacks ")
        return
    assert sample.is_target.any()
    shown = images(sample).patches[::4, 0].tolist() if len(images(sample).patches) else []
    held = [] if task == "text_only" else [i for i, content in enumerate(contents) if content is None]
    assert shown == (held[: len(shown)] if task in ("instruct", "blocks") else held)
    assert (sample.tokens[images(sample).token] == IMAGE).all()


@pytest.mark.parametrize("task", WHOLE)
def test_images_are_inserted_in_the_interleaved_task_alone(task: str) -> None:
    assert make(document(*PAIR.parts, answer("yes")), task).is_interleaved == (task == "interleaved")


@pytest.mark.parametrize("task", WHOLE)
def test_a_prompt_comes_first_and_is_no_target(task: str) -> None:
    sample = make(document(*PAIR.parts, answer("yes")), task, "say:")
    assert sample.tokens[:5].tolist() == [BOS, *b"say:"]
    assert not sample.is_target[:5].any()


def test_images_keep_their_own_grids() -> None:
    sample = make(document(image(0.0, grid=(3, 1)), text("x"), image(1.0, grid=(1, 2))), "both")
    assert images(sample).grid.tolist() == [[1, 3, 1], [1, 1, 2]]
    assert images(sample).patches[:, 0].tolist() == [0.0] * 3 + [1.0] * 2
    assert sample.num_rows == 1 + 1 + 3 + 1 + 1 + 2


def test_text_alone_has_no_patches() -> None:
    sample = make(PAIR, "text_only")
    assert (images(sample).patches.shape, images(sample).grid.shape, images(sample).token.shape) == (
        (0, 16),
        (0, 3),
        (0,),
    )


@pytest.mark.parametrize(
    ("task", "source", "needed"),
    [
        ("text_only", document(image(0.0)), "text"),
        ("image_only", document(text("one")), "an image"),
        ("both", document(), "text or an image"),
        ("interleaved", document(), "text or an image"),
        ("text_to_image", document(text("one")), "text and an image"),
        ("image_to_text", document(image(0.0)), "text and an image"),
        ("instruct", PAIR, "an answer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_document_without_what_the_task_needs_is_named(task: str, source: Document, needed: str) -> None:
    with pytest.raises(ValueError) as error:
        make(source, task)
    assert Message(error.value) == (
        f"sample {KEY}: it lacks {needed}, which task {task!r} needs; give its source another task or remove the sample"
    )


# Draws from the posterior.

LATENT = document(image(0.5, std=2.0, grid=(4, 4)))


def test_an_image_is_mean_plus_std_times_noise() -> None:
    """In closed form over many draws: 1,000 x 256 values."""
    draws = np.stack([images(make(LATENT, "image_only", seed=seed)).patches for seed in range(1_000)])
    assert draws.mean() == pytest.approx(0.5, abs=5 * 2.0 / draws.size**0.5)
    assert draws.std() == pytest.approx(2.0, rel=5 / (2 * draws.size) ** 0.5)
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 5 * 2.0 / 1_000**0.5
    assert np.corrcoef(draws[:, 0, 0], draws[:, 0, 1])[0, 1] == pytest.approx(0.0, abs=5 / 1_000**0.5)


def test_one_generator_gives_one_draw() -> None:
    """A sample is drawn alike whenever (seed, pass, key) are, and anew in each pass."""
    one, again, later, other = (
        images(make_sample(LATENT, "image_only", "latents", [], TOKENIZER, IMAGES, keyed_generator(*of))).patches
        for of in ((0, 0, KEY), (0, 0, KEY), (0, 1, KEY), (0, 0, "other"))
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, later)
    assert not np.array_equal(one, other)


def test_a_draw_leaves_the_document_as_it_is() -> None:
    """It may lie in a cache."""
    stored = [np.full((2, 1, 8, 8), value, dtype=np.float32) for value in (0.5, 1.5)]
    source = document(PiecePart(modality="image", posterior=stored[0], mirrored=stored[1], shift=0.25, scale=2.0))
    for seed in range(5):
        make(source, "image_only", seed=seed)
    assert (stored[0] == 0.5).all()
    assert (stored[1] == 1.5).all()


def test_pixels_are_exact_and_draw_nothing() -> None:
    rng = np.random.default_rng(0)
    state = rng.bit_generator.state
    sample = make_sample(PAIR, "both", "latents", [], TOKENIZER, IMAGES, rng)
    assert (images(sample).patches == 1.0).all()
    assert rng.bit_generator.state == state


def test_a_standard_deviation_of_zero_gives_the_mean() -> None:
    assert (images(make(document(image(0.25, std=0.0)), "image_only")).patches == 0.25).all()


def test_each_image_is_mirrored_half_the_time_by_itself() -> None:
    source = document(*(image(1.0, std=0.0, mirrored=-1.0) for _ in range(2)))
    shown = np.array([images(make(source, "image_only", seed=seed)).patches[[0, 4], 0] for seed in range(800)])
    assert (np.abs(shown) == 1.0).all()
    bound = 4.5 / 800**0.5
    assert np.abs(shown.mean(axis=0)).max() < bound
    assert abs((shown[:, 0] * shown[:, 1]).mean()) < bound


def test_images_become_patches_row_by_row() -> None:
    pixels = np.arange(96, dtype=np.float32).reshape(1, 8, 12)
    part = PiecePart(modality="image", posterior=pixels[None], mirrored=pixels[None][:0])
    sample = make(document(image(5.0), text("x"), part), "both")
    assert np.array_equal(images(sample).patches[:4], np.full((4, 16), 5.0))
    assert np.array_equal(images(sample).patches[4:], to_patches(pixels, (1, 4, 4)))
    assert images(sample).grid.tolist() == [[1, 2, 2], [1, 2, 3]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("which", [0, 1], ids=["mean", "std"])
@pytest.mark.parametrize("values", [(np.nan,), (np.inf,), (-np.inf,), (np.inf, -np.inf)])
def test_a_latent_that_is_not_finite_is_named(dtype: type, which: int, values: tuple[float, ...]) -> None:
    stored = np.ones((2, 1, 8, 8), dtype=dtype)
    stored[which, 0, 7, 8 - len(values) :] = values
    source = document(text("a cat"), image(0.0), PiecePart(modality="image", posterior=stored, mirrored=stored[:0]))
    with pytest.raises(ValueError) as error:
        make(source, "both")
    assert Message(error.value) == f"sample {KEY}: a latent is not finite; {CHECK}"


def test_large_values_are_finite() -> None:
    """The largest that float16 holds, in every element."""
    stored = np.full((2, 1, 64, 64), 65504.0, dtype=np.float16)
    source = document(PiecePart(modality="image", posterior=stored, mirrored=stored[:0]))
    assert np.isfinite(images(make(source, "image_only")).patches).all()


# Pieces of several modalities, and what stands for a given picture.

MIXED = {"image": GREY, "sound": SOUND, "vision": VISION}
ALL = load_tokenizer("bytes", MIXED)
SIGNS = dict(zip(ALL.piece_of.values(), "#~?", strict=True))


def piece(kind: str, value: float, features: PiecePart | None = None) -> PiecePart:
    stored = np.full((1, MIXED[kind].channels, *MIXED[kind].shape), value, dtype=np.float32)
    return PiecePart(modality=kind, posterior=stored, mirrored=stored[:0], features=features)


SEEN = piece("image", 1.0, features=piece("vision", 2.0))
HEARD = document(SEEN, text("meow"), piece("sound", 3.0), answer("a cat"))


def make_mixed(source: Document, task: str, given: str) -> tuple[str, Sample]:
    sample = make_sample(source, task, given, [], ALL, MIXED, np.random.default_rng(0))
    spelled = "".join(SIGNS.get(token) or ALL.decode([token]) for token in sample.tokens[1:].tolist())
    return spelled, sample


def test_each_piece_is_a_token_of_its_modality_and_patches_among_its_own() -> None:
    spelled, sample = make_mixed(HEARD, "both", "latents")
    assert spelled == "#meow~a cat"
    assert [of_kind.token.tolist() for of_kind in sample.pieces] == [[1], [6], []]
    assert [of_kind.grid.tolist() for of_kind in sample.pieces] == [[[1, 2, 2]], [[3, 1, 1]], []]
    for of_kind, value in zip(sample.pieces[:2], (1.0, 3.0), strict=True):
        assert (of_kind.patches == value).all()
    assert [of_kind.is_given_only for of_kind in sample.pieces] == [False, False, True]
    assert sample.num_rows == len(sample.tokens) + 4 + 3


@pytest.mark.parametrize(("given_as", "sign"), [("latents", "#"), ("features", "?"), ("both", "?#")])
@pytest.mark.parametrize(
    ("task", "expected"), [("image_to_text", "{}~meow\n\na cat"), ("instruct", "<|user|>{}meow~<|assistant|>a cat")]
)
def test_a_given_picture_is_its_latent_its_features_or_these_and_then_that(
    given_as: str, sign: str, task: str, expected: str
) -> None:
    """A sound has no features, so it stays what it is."""
    spelled, sample = make_mixed(HEARD, task, given_as)
    assert spelled == expected.format(sign)
    shown = dict(zip(MIXED, sample.pieces, strict=True))
    assert len(shown["image"]) == sign.count("#")
    assert len(shown["vision"]) == sign.count("?")
    assert (shown["vision"].patches == 2.0).all()
    assert not sample.is_target[: len(sign) + 1].any()


@pytest.mark.parametrize("task", ["both", "interleaved", "text_to_image", "image_only"])
def test_a_picture_that_is_to_be_made_is_its_latent_whatever_is_given(task: str) -> None:
    for given_as in ("latents", "features", "both"):
        spelled, _ = make_mixed(HEARD, task, given_as)
        assert ("#" in spelled, "?" in spelled) == (True, False)


def test_a_window_keeps_the_pieces_of_each_modality_with_their_tokens() -> None:
    _, sample = make_mixed(document(*[SEEN, piece("sound", 3.0), text("abc")] * 4), "both", "latents")
    seen: set[tuple[int, ...]] = set()
    for seed in range(40):
        window = cut_window(sample, 20, np.random.default_rng(seed))
        assert window.num_rows <= 20
        for (kind, token), of_kind in zip(ALL.piece_of.items(), window.pieces, strict=True):
            assert np.flatnonzero(window.tokens == token).tolist() == of_kind.token.tolist(), kind
        seen.add(tuple(map(len, window.pieces)))
    assert {(1, 1, 0), (1, 2, 0), (2, 1, 0)} <= seen
