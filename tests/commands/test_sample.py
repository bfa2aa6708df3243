from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.data.tokenizer import Tokenizer
from tests.launching import Finished, Launcher, Run, oneflow, only_error
from tools.digits.grammar import load_split

ROOT = Path(__file__).parents[2]
Sample = Callable[..., Finished]


@pytest.fixture(scope="module")
def sample(launcher: Launcher, unbroken: Run) -> Sample:
    """oneflow sample on a checkpoint of 20 steps."""

    def run(output: Path, *arguments: str | Path) -> Finished:
        return launcher.run(*oneflow("sample"), unbroken.folder, output, "--steps", "6", *arguments)

    return run


@pytest.fixture(scope="module")
def digit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the image of a held-out digit."""
    path = tmp_path_factory.mktemp("digit") / "digit.png"
    Image.fromarray(load_split("heldout")[0][0]).save(path)
    return path


def read_trace(folder: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((folder / "trace.json").read_text())
    return table


def test_documents_continue_the_given_text_and_image(
    sample: Sample, digit: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    prompt = ["--text", "zero", "--image", digit, "--text", "count up:"]
    options = ["--firing", "independent", "--guidance", "gate=1.5", "--guidance", "tokens=0.5"]
    end = sample(tmp_path / "out", *prompt, "--count", "24", "--seed", "2", "--time-power", "1.25", *options)
    assert end.code == 0, end.stderr
    table = read_trace(tmp_path / "out")
    assert (table["settings"]["time_power"], table["settings"]["firing"]) == (1.25, "independent")
    assert table["seed"] == 2
    assert table["settings"]["steps"] == 6
    assert table["settings"]["guidance"] == {
        "image": 2.0,
        "gate": 1.5,
        "tokens": 0.5,
    }  # that of configs/debug.toml, too
    assert [document["index"] for document in table["documents"]] == list(range(24))
    given = [tokenizer.bos, *tokenizer.encode("zero"), tokenizer.piece_of["image"], *tokenizer.encode("count up:")]
    names = {"trace.json", "documents.png"}
    num_painted = 0
    for index, document in enumerate(table["documents"]):
        tokens = document["tokens"]
        assert [entry["token"] for entry in tokens[: len(given)]] == given
        assert all(entry["step"] == 0 for entry in tokens[: len(given)])
        assert all(1 <= entry["step"] <= 6 for entry in tokens[len(given) :])
        assert all(entry["text"] == tokenizer.decode([entry["token"]]) for entry in tokens)

        images = [entry for entry in tokens if "image" in entry]
        assert [entry["image"] for entry in images] == [f"{index:04d}-image-{n}.png" for n in range(len(images))]
        assert all(entry["token"] == tokenizer.piece_of["image"] for entry in images)
        assert images[0]["last_step"] == 0  # it was given
        assert all(entry["step"] + 6 <= entry["last_step"] <= 12 for entry in images[1:])

        num_painted += len(images) - 1

        lengths = [(entry["tokens"], entry["expected"]) for entry in document["lengths"]]
        assert len(lengths) == 6  # before each step of the text
        assert lengths[0][0] == len(given)
        assert all(there <= expected for there, expected in lengths)
        assert [there for there, _ in lengths] == [
            sum(entry["step"] < step for entry in tokens) for step in range(1, 7)
        ]

        text = (tmp_path / "out" / f"{index:04d}.txt").read_text()
        assert text == words_of(tokens, tokenizer) + "\n"
        names |= {f"{index:04d}.txt", *(entry["image"] for entry in images)}
        with Image.open(tmp_path / "out" / images[0]["image"]) as own, Image.open(digit) as original:
            assert (np.asarray(own) == np.asarray(original)).all()
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert num_painted > 0


def words_of(tokens: list[dict[str, Any]], tokenizer: Tokenizer) -> str:
    """A document as its text file has it: stretches of text, and images by name."""
    parts: list[str] = []
    stretch: list[int] = []
    for entry in [*tokens[1:], {"token": 0, "image": ""}]:
        if "image" not in entry:
            stretch.append(entry["token"])
            continue
        parts += [tokenizer.decode(stretch).strip(), f"[{entry['image']}]"]
        stretch = []
    return " ".join(part for part in parts[:-1] if part)


def test_the_same_seed_gives_the_same_files_and_another_seed_others(sample: Sample, tmp_path: Path) -> None:
    for name, seed in (("first", "3"), ("second", "3"), ("other", "4")):
        end = sample(tmp_path / name, "--text", "count up:", "--count", "2", "--seed", seed)
        assert end.code == 0, end.stderr
    first, second, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("first", "second", "other")
    )
    assert first == second
    assert first["0000.txt"] != first["0001.txt"]
    assert first["trace.json"].replace(b'"seed": 3', b'"seed": 4') != other["trace.json"]


def test_text_is_written_in_the_holes_while_images_are_painted(
    sample: Sample, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    end = sample(tmp_path / "out", "--hole", "--paint", "--text", "seven", "--count", "8")
    assert end.code == 0, end.stderr
    given = [tokenizer.bos, tokenizer.piece_of["image"], *tokenizer.encode("seven")]
    num_written = 0
    for document in read_trace(tmp_path / "out")["documents"]:
        tokens = document["tokens"]
        assert [entry["token"] for entry in tokens if entry["step"] == 0] == given
        (painted,) = [entry for entry in tokens if "image" in entry and entry["step"] == 0]
        assert painted["last_step"] >= 6
        assert [entry["token"] for entry in tokens[tokens.index(painted) :]] == given[1:]  # nothing but before it
        num_written += len(tokens) - len(given)
    assert num_written > 0


def test_an_image_to_paint_at_the_end_is_all_that_is_made(sample: Sample, tokenizer: Tokenizer, tmp_path: Path) -> None:
    end = sample(tmp_path / "out", "--text", "a handwritten seven", "--paint")
    assert end.code == 0, end.stderr
    assert (tmp_path / "out/0000.txt").read_text() == "a handwritten seven [0000-image-0.png]\n"
    assert end.stdout.splitlines()[1] == "a handwritten seven [0000-image-0.png]"
    (document,) = read_trace(tmp_path / "out")["documents"]
    assert document["tokens"][-1] == {
        "token": tokenizer.piece_of["image"],
        "text": "<|image|>",
        "step": 0,
        "image": "0000-image-0.png",
        "last_step": 6,
    }
    with Image.open(tmp_path / "out/0000-image-0.png") as picture:
        assert picture.size == (8, 8)
        assert np.asarray(picture).std() > 0.0


def test_a_document_that_is_full_says_so(sample: Sample, tmp_path: Path) -> None:
    end = sample(tmp_path / "out", "--text", "count up:", "--max-rows", "5", "--count", "8")
    assert end.code == 0, end.stderr
    is_full = [document["hit_cap"] for document in read_trace(tmp_path / "out")["documents"]]
    assert any(is_full)
    printed = end.stdout.splitlines()[1:9]
    assert [line.endswith(" (stopped at max_rows)") for line in printed] == is_full


def test_a_single_checkpoint_can_be_named(launcher: Launcher, unbroken: Run, tmp_path: Path) -> None:
    step = unbroken.folder / "checkpoints/step-00000010"
    end = launcher.run(*oneflow("sample"), step, tmp_path / "out", "--steps", "2")
    assert end.code == 0, end.stderr
    assert (tmp_path / "out/0000.txt").exists()


def test_sampling_prints_its_documents_and_only_a_progress_bar_to_stderr(
    sample: Sample, unbroken: Run, tmp_path: Path
) -> None:
    end = sample(tmp_path / "out")
    assert end.code == 0, end.stderr
    assert end.stdout.splitlines() == [
        f"loading {unbroken.folder}",
        (tmp_path / "out/0000.txt").read_text().rstrip("\n"),
        f"wrote 1 documents to {tmp_path / 'out'}; all of them in documents.png, their history in trace.json",
    ]
    bars = [line for line in end.stderr.replace("\r", "\n").splitlines() if line]
    assert all(line.startswith("generating: ") for line in bars), end.stderr
    assert re.search(r" 100% (\d+)/\1 ", bars[-1])


def test_marks_in_a_text_are_images_to_paint_and_holes(sample: Sample, tmp_path: Path) -> None:
    for name, prompt in (
        ("marks", ["--text", "<|hole|><|image|>one"]),
        ("parts", ["--hole", "--paint", "--text", "one"]),
    ):
        end = sample(tmp_path / name, *prompt, "--count", "2")
        assert end.code == 0, end.stderr
    marks, parts = ((tmp_path / name / "trace.json").read_text() for name in ("marks", "parts"))
    assert marks == parts


def test_a_call_with_fewer_documents_leaves_none_of_the_call_before(sample: Sample, tmp_path: Path) -> None:
    for count in ("3", "1"):
        end = sample(tmp_path, "--paint", "--count", count, "--steps", "2")
        assert end.code == 0, end.stderr
        (tmp_path / "note.txt").touch()
    names = {"0000.txt", "0000-image-0.png", "trace.json", "documents.png", "note.txt"}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "nowhere.png"], "--image: no such file nowhere.png"),
        (["--count", "0"], "--count: 0 must lie in [1, inf)"),
        (["--seed", str(2**63)], f"--seed: {2**63} must lie in [0, 2^63)"),
        (["--steps", "0"], "--steps: 0 must lie in [1, inf)"),
        (["--temperature", "0"], "--temperature: 0.0 must lie in [1e-30, inf)"),
        (["--guidance", "3"], "--guidance: '3' is not NAME=WEIGHT, as image=3"),
        (["--guidance", "image=much"], "--guidance: 'image=much' is not NAME=WEIGHT, as image=3"),
        (["--guidance", "image=nan"], "sampling.guidance.image: nan must lie in (-inf, inf)"),
        (
            ["--guidance", "sound=2"],
            "sampling.guidance.sound: nothing that is generated; known are gate, rate, tokens, image",
        ),
        (
            ["--guidance-from", "0.75", "--guidance-until", "0.5"],
            "sampling.guidance_from (0.75) is later than sampling.guidance_until (0.5); swap them",
        ),
        (
            ["--solver", "heun", "--churn", "1"],
            'sampling.churn: is 1.0, but sampling.solver is "heun"; set it to 0, or take "euler"',
        ),
        (["--top-p", "0"], "--top-p: 0.0 must lie in (0, 1]"),
        (["--blocks", "-1"], "--blocks: -1 must lie in [0, inf)"),
        (
            ["--text", "<|hole|>one", "--blocks", "2"],
            "the prompt: has a hole or a piece to make before its end, but sampling.blocks is 2; remove it, or take 0",
        ),
        (["--piece-steps", "image=few"], "--piece-steps: 'image=few' is not NAME=N, as image=16"),
        (["--piece-steps", "image=0"], "sampling.piece_steps.image: 0 must lie in [1, inf)"),
        (["--piece-steps", "sound=2"], "sampling.piece_steps.sound: nothing that is generated; known are image"),
        (["--vary", "seven.png"], "--vary: 'seven.png' is not TIME=FILE, as 0.6=photo.jpg"),
        (["--vary", "0.5"], "--vary: '0.5' is not TIME=FILE, as 0.6=photo.jpg"),
        (["--vary", "1=seven.png"], "--vary: 1.0 must lie in (0, 1)"),
        (["--vary", "nan=seven.png"], "--vary: nan must lie in (0, 1)"),
        (["--vary", "0.5=nowhere.png"], "--vary: no such file nowhere.png"),
        (["--prompts", "nowhere.txt"], "--prompts: no such file nowhere.txt"),
        (
            ["--prompts", "nowhere.txt", "--paint"],
            "--prompts: is given beside --paint; write all of the prompt into its lines",
        ),
        (["--format", "jsonl,png"], "--format: 'png' is not one of jsonl, gif"),
        (
            ["--format", "gif", "--compare", "top_k=1,2"],
            "--format: gif is not written with --compare; leave one of them out",
        ),
        (["--compare", "tpo_k=1,2"], "--compare: 'tpo_k' is no key; did you mean top_k?"),
        (["--compare", "guidance=1,2"], "--compare: 'guidance' is no key; did you mean guidance.NAME?"),
        (["--compare", "top_k=1,"], "--compare: top_k takes a whole number, not ''; write several as top_k=1,2"),
        (["--compare", "top_k=1,0.5"], "--compare: top_k takes a whole number, not '0.5'; write several as top_k=1,2"),
        (
            ["--compare", "guidance.image=much"],
            "--compare: guidance.image takes a number, not 'much'; write several as guidance.image=1,2",
        ),
        (["--compare", "top_k=1,-1"], "--compare top_k: -1 must lie in [0, inf)"),
        (["--compare", "solver=rk4"], "--compare: solver is one of euler, heun, not 'rk4'"),
        (["--compare", "steps=3,4"], "--compare: steps has been given already; leave one of them out"),
        (
            ["--guidance", "image=2", "--compare", "guidance.image=1,3"],
            "--compare: guidance.image has been given already; leave one of them out",
        ),
        (
            ["--compare", "top_k=1,2", "--compare", "top_k=3"],
            "--compare: top_k has been given already; leave one of them out",
        ),
        (
            ["--compare", "top_k=1", "--compare", "top_p=1", "--compare", "churn=0"],
            "--compare: a page has rows and columns, but top_k, top_p, churn are 3 keys; take two",
        ),
        (
            ["--compare", "guidance.sound=1,2"],
            "sampling.guidance.sound: nothing that is generated; known are gate, rate, tokens, image",
        ),
        (
            ["--compare", "max_rows=64,2", "--text", "one"],
            "the prompt: takes 3 rows alone, more than sampling.max_rows (2); raise --max-rows, or shorten it",
        ),
        (
            ["--text", "a" * 20, "--max-rows", "4"],
            "the prompt: takes 21 rows alone, more than sampling.max_rows (4); raise --max-rows, or shorten it",
        ),
        (["--codec", "image=nowhere"], 'nowhere: no such folder; name one with a saved AutoencoderKL, or "pixels"'),
        (["--codec", "smell=pixels"], "--codec: 'smell=pixels' is not NAME=FOLDER of a modality (image)"),
        (
            ["--given", "features", "--image", str(ROOT / "docs/gallery.png")],
            "--given: wants features, but no [modality.*] has `understanding`; add one, or take latents",
        ),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_anything_is_written(
    arguments: list[str], message: str, sample: Sample, tmp_path: Path
) -> None:
    end = sample(tmp_path / "out", *arguments)
    assert (end.code, only_error(end)) == (2, f"error: {message}")
    assert "generating" not in end.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"one\n\n" + b"a" * 20,
            "{path}, line 3: takes 21 rows alone, more than sampling.max_rows (10); raise --max-rows, or shorten it",
        ),
        (b" \n\n", "--prompts: {path} has no prompt in it; write one in each line"),
        (b"\xff\xfe", "--prompts: {path} is no UTF-8; save it as text"),
    ],
)
def test_a_prompt_of_a_file_that_cannot_be_used_is_named_by_its_line(
    content: bytes, message: str, sample: Sample, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    end = sample(tmp_path / "out", "--prompts", path, "--max-rows", "10")
    assert (end.code, only_error(end)) == (2, f"error: {message.format(path=path)}")
    assert not (tmp_path / "out").exists()


def test_a_variation_stays_near_its_picture_and_leaves_the_rest_to_the_bit(
    sample: Sample, digit: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    other = tmp_path / "other.png"
    Image.fromarray(load_split("heldout")[0][1]).save(other)
    away = {}
    for time in ("0.99", "0.1"):
        out = tmp_path / time
        end = sample(out, "--text", "zero", "--image", digit, "--text", "one", "--vary", f"{time}={other}")
        assert end.code == 0, end.stderr
        (document,) = read_trace(out)["documents"]
        zero, one, image = tokenizer.encode("zero"), tokenizer.encode("one"), tokenizer.piece_of["image"]
        assert [entry["token"] for entry in document["tokens"]] == [tokenizer.bos, *zero, image, *one, image]
        given, varied, original, first = (
            np.asarray(Image.open(path)).astype(int)
            for path in (out / "0000-image-0.png", out / "0000-image-1.png", other, digit)
        )
        assert (given == first).all()
        away[time] = np.abs(varied - original).mean()
        assert (varied != original).any()
        assert document["tokens"][-1]["last_step"] == (1 if time == "0.99" else 6)  # of the six that it would take
    assert away["0.99"] < 5.0 < away["0.1"]


def test_pieces_have_steps_of_their_own(sample: Sample, tmp_path: Path) -> None:
    end = sample(tmp_path / "out", "--paint", "--piece-steps", "image=3")
    assert end.code == 0, end.stderr
    table = read_trace(tmp_path / "out")
    assert table["settings"]["piece_steps"] == {"image": 3}
    assert table["documents"][0]["tokens"][-1]["last_step"] == 3


def test_documents_are_written_block_by_block(sample: Sample, tmp_path: Path) -> None:
    end = sample(tmp_path / "out", "--text", "count up:", "--blocks", "2", "--count", "4", "--piece-steps", "image=1")
    assert end.code == 0, end.stderr
    steps = [len(document["lengths"]) for document in read_trace(tmp_path / "out")["documents"]]
    assert set(steps) <= {6, 12}  # of the text of each block
    assert 12 in steps


def test_each_line_of_a_file_is_a_prompt_of_so_many_documents(
    sample: Sample, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("count up:\n\n<|hole|>seven<|image|>\n", encoding="utf-8")
    for name, prompt in (("file", ["--prompts", path]), ("text", ["--text", "count up:"])):
        end = sample(tmp_path / name, *prompt, "--count", "2")
        assert end.code == 0, end.stderr
    documents = read_trace(tmp_path / "file")["documents"]
    assert [document["index"] for document in documents] == [0, 1, 2, 3]
    assert documents[:2] == read_trace(tmp_path / "text")["documents"]  # the others beside them change nothing
    given = [tokenizer.bos, *tokenizer.encode("seven"), tokenizer.piece_of["image"]]
    for document in documents[2:]:
        assert [entry["token"] for entry in document["tokens"] if entry["step"] == 0] == given
    assert documents[2]["tokens"] != documents[3]["tokens"] or documents[2]["lengths"] != documents[3]["lengths"]


def replay(path: Path) -> dict[int, list[int]]:
    """The tokens of each document, as whoever follows steps.jsonl has them in the end."""
    documents: dict[int, list[int]] = {}
    for line in map(json.loads, path.read_text().splitlines()):
        tokens = documents.setdefault(line["document"], line.get("tokens", []))
        for entry in line.get("inserted", []):
            tokens.insert(entry["place"], entry["token"])
        for place in reversed(line.get("removed", [])):
            del tokens[place]
    return documents


def test_the_steps_of_a_call_replay_to_its_documents(sample: Sample, tokenizer: Tokenizer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--count", "4", "--corrections", "2", "--format", "jsonl", "--format", "gif"]
    end = sample(out, "--text", "one<|image|><|hole|>", *options)
    assert end.code == 0, end.stderr
    documents = read_trace(out)["documents"]
    expected = {document["index"]: [entry["token"] for entry in document["tokens"]] for document in documents}
    assert replay(out / "steps.jsonl") == expected
    lines = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    prompt = [tokenizer.bos, *tokenizer.encode("one"), tokenizer.piece_of["image"]]
    text = tokenizer.decode(prompt)
    assert lines[:4] == [
        {"document": index, "tokens": prompt, "text": text, "pieces": {"image": 1}} for index in range(4)
    ]
    steps = [(line["step"], line["document"]) for line in lines[4:]]
    assert steps == sorted(set(steps))
    assert any(line["removed"] for line in lines[4:])
    assert all(entry["text"] == tokenizer.decode([entry["token"]]) for line in lines[4:] for entry in line["inserted"])
    assert all(0.0 < entry["prob"] <= 1.0 for line in lines[4:] for entry in line["inserted"])
    last = {line["document"]: line for line in lines}
    assert all(line["text_time"] == 1.0 and set(line["times"]["image"]) == {1.0} for line in last.values())

    with Image.open(out / "documents.gif") as film:
        assert film.n_frames == max(step for step, _ in steps) + 1  # fewer than it would have to leave out
        times = []
        for frame in range(film.n_frames):
            film.seek(frame)
            times.append(film.info["duration"])
        assert times[-1] > 2 * max(times[:-1])

    assert end.stdout.splitlines()[-1].endswith(
        "trace.json, what each step changed in steps.jsonl, how they came about in documents.gif"
    )
    end = sample(out, "--paint")
    assert end.code == 0, end.stderr
    assert {path.name for path in out.iterdir()} == {"0000.txt", "0000-image-0.png", "trace.json", "documents.png"}


def test_settings_are_compared_on_the_same_documents(sample: Sample, tmp_path: Path) -> None:
    prompt = ["--text", "count up:", "--count", "3", "--seed", "5"]
    end = sample(tmp_path / "alone", *prompt, "--top-k", "1", "--guidance", "image=0")
    assert end.code == 0, end.stderr
    out = tmp_path / "out"
    end = sample(out, "--paint", "--format", "jsonl")  # files that go
    assert end.code == 0, end.stderr
    end = sample(out, *prompt, "--compare", "top_k=0,1", "--compare", "guidance.image=0,1,3")
    assert end.code == 0, end.stderr
    assert {path.name for path in out.iterdir()} == {"compare.png", "compare.json"}
    report = json.loads((out / "compare.json").read_text())
    assert (report["seed"], report["compared"]) == (5, {"top_k": [0, 1], "guidance.image": [0.0, 1.0, 3.0]})
    cells = report["cells"]
    assert [[*cell["values"].values()] for cell in cells] == [[k, w] for k in (0, 1) for w in (0.0, 1.0, 3.0)]
    assert [(c["settings"]["top_k"], c["settings"]["guidance"]["image"]) for c in cells] == [
        (cell["values"]["top_k"], cell["values"]["guidance.image"]) for cell in cells
    ]
    assert all(len(cell["documents"]) == 3 and cell["rows"] > 0 and cell["seconds"] > 0.0 for cell in cells)
    alone = [(tmp_path / f"alone/{index:04d}.txt").read_text().rstrip("\n") for index in range(3)]
    assert cells[3]["documents"] == [re.sub(r"\[\d+-image-\d+\.png\]", "[image]", text) for text in alone]
    printed = end.stdout.splitlines()
    assert printed[-1] == f"wrote 6 settings of the same 3 documents to {out}/compare.png"
    assert printed[1].startswith(f"top_k = 0, guidance.image = 0: {cells[0]['rows']:,} rows, ")
    end = sample(out, "--paint")
    assert end.code == 0, end.stderr
    assert {path.name for path in out.iterdir()} == {"0000.txt", "0000-image-0.png", "trace.json", "documents.png"}


def test_what_a_model_sees_of_pictures_is_compared_too(sample: Sample, digit: Path, tmp_path: Path) -> None:
    end = sample(tmp_path / "out", "--image", digit, "--compare", "given=latents,features")
    what = "--given: wants features, but no [modality.*] has `understanding`; add one, or take latents"
    assert (end.code, only_error(end)) == (2, f"error: {what}")
    assert not (tmp_path / "out").exists()


def test_two_ranks_write_what_one_process_does(
    sample: Sample, launcher: Launcher, unbroken: Run, tmp_path: Path
) -> None:
    options = ["--text", "count up:", "--count", "3", "--corrections", "1", "--format", "jsonl,gif"]
    assert sample(tmp_path / "one", *options).code == 0
    ends = launcher.run_ranks(2, *oneflow("sample"), unbroken.folder, tmp_path / "two", "--steps", "6", *options)
    assert [end.code for end in ends] == [0, 0], ends
    assert ends[1].stdout == ends[1].stderr == ""  # the first speaks for all
    assert read_trace(tmp_path / "one") == read_trace(tmp_path / "two")
    assert {path.name for path in (tmp_path / "one").iterdir()} == {path.name for path in (tmp_path / "two").iterdir()}
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "steps.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    for line in (*one, *two):
        for entry in line.get("inserted", []):
            entry["prob"] = pytest.approx(entry["prob"], rel=1e-3)
    assert one == two
    with Image.open(tmp_path / "one/documents.gif") as film, Image.open(tmp_path / "two/documents.gif") as other:
        assert (film.n_frames, film.size) == (other.n_frames, other.size)


def test_more_ranks_than_documents_are_no_error(launcher: Launcher, unbroken: Run, tmp_path: Path) -> None:
    options = ["--steps", "2", "--paint", "--format", "gif"]
    ends = launcher.run_ranks(2, *oneflow("sample"), unbroken.folder, tmp_path / "out", *options)
    assert [end.code for end in ends] == [0, 0], ends
    assert (tmp_path / "out/0000-image-0.png").exists()


def test_all_ranks_end_with_what_is_wrong(launcher: Launcher, unbroken: Run, tmp_path: Path) -> None:
    for options, message in (
        (["--count", "0"], "--count: 0 must lie in [1, inf)"),
        (["--image", "nowhere.png"], "--image: no such file nowhere.png"),
    ):
        ends = launcher.run_ranks(2, *oneflow("sample"), unbroken.folder, tmp_path / "out", *options)
        assert [(end.code, end.stderr) for end in ends] == [
            (2, f"error: {message}\n"),
            (2, f"error (rank 1): {message}\n"),
        ]
    assert not (tmp_path / "out").exists()


def test_without_a_checkpoint_there_is_nothing_to_sample_from(launcher: Launcher, tmp_path: Path) -> None:
    end = launcher.run(*oneflow("sample"), tmp_path, tmp_path / "out")
    assert (end.code, end.stderr) == (
        2,
        f"error: {tmp_path}: no complete checkpoint here or in its checkpoints/; train first, or name another folder\n",
    )
    assert list(tmp_path.iterdir()) == []
