"""The files of oneflow sample: prompts that are read; text, pieces, trace and steps of documents that are written."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneflow_dist.sampling import SamplingConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

    from oneflow_dist.canvas import Canvas
    from oneflow_dist.data.tokenizer import Tokenizer
    from oneflow_dist.making import Making
    from oneflow_dist.modality import ModalityConfig
    from oneflow_dist.writers.writer import Change

TRACE, COMPARISON = "trace.json", "compare.json"  # either tells that the other files are of an earlier call
STEPS, FILM = "steps.jsonl", "documents.gif"
PAGES = ("documents.png", STEPS, FILM, "compare.png")
OWN_FILE = re.compile(r"\d{4,}(-[a-z0-9_]+-\d+\.(png|gif|wav|npy)|\.txt)")
FRAME_MILLISECONDS, LAST_MILLISECONDS = 120, 2500


def read_lines(path: Path) -> list[tuple[str, str]]:
    """The lines of a file of prompts that are not blank, each behind its place.

    Raises:
        ValueError: no such file, no text, or nothing in it.
    """
    if not path.is_file():
        raise ValueError(f"--prompts: no such file {path}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"--prompts: {path} is no UTF-8; save it as text") from None
    found = [(f"{path}, line {number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise ValueError(f"--prompts: {path} has no prompt in it; write one in each line")
    return found


def claim(folder: Path, name: str, report: dict[str, Any]) -> None:
    """Make the folder that of this call: files of a call before go, and the first new one tells whose the next are."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_old(folder)
    write_json(folder / name, report)


def remove_old(folder: Path) -> None:
    """The files of an earlier call go, also those of a longer one; without its trace or comparison they are not ours.

    These two go last: a call that is killed here leaves nothing that the next does not know.
    """
    markers = [folder / name for name in (TRACE, COMPARISON) if (folder / name).exists()]
    if markers:
        for path in folder.iterdir():
            if path.name in PAGES or OWN_FILE.fullmatch(path.name):
                path.unlink()
    for marker in markers:
        marker.unlink()


def write_json(path: Path, report: dict[str, Any]) -> None:
    """A report for programs and for people."""
    path.write_text(json.dumps(report, indent=2) + "\n")


def describe_call(sampling: SamplingConfig, seed: int) -> dict[str, Any]:
    """What documents were made with."""
    return {"seed": seed, "settings": dataclasses.asdict(sampling)}


def write_documents(
    folder: Path,
    canvases: list[Canvas],
    sampling: SamplingConfig,
    seed: int,
    tokenizer: Tokenizer,
) -> None:
    """Text and pieces of each document, a picture of all of them, and the trace."""
    from oneflow_dist.pictures import draw_page

    documents = [trace(canvas, index, tokenizer) for index, canvas in enumerate(canvases)]
    write_json(folder / TRACE, {**describe_call(sampling, seed), "documents": documents})
    for index, canvas in enumerate(canvases):
        for kind, making in canvas.making.items():
            for number, content in enumerate(encode_files(making)):
                (folder / file_name(index, kind, number, making.modality)).write_bytes(content)
        text = text_of(canvas, index, tokenizer)
        (folder / f"{index:04d}.txt").write_text(text + "\n", encoding="utf-8")
        print(text + (" (stopped at max_rows)" if canvas.hit_cap else ""))
    draw_page(canvases, tokenizer).save(folder / "documents.png")


def text_of(canvas: Canvas, index: int, tokenizer: Tokenizer) -> str:
    """A document with the names of files where its pieces are."""
    return " ".join(
        part if isinstance(part, str) else f"[{file_name(index, *part, canvas.making[part[0]].modality)}]"
        for part in canvas.parts(tokenizer)
    )


def encode_files(making: Making) -> Iterator[bytes]:
    """The content of a file of each piece: of pictures as their codec decodes them."""
    from oneflow_dist.data.media import decode_file
    from oneflow_dist.pictures import draw_pieces

    if making.modality.dimensions != 2:
        yield from (decode_file(latent, making.modality) for latent in making.latents())
        return
    for picture in draw_pieces(making.latents(), making.modality):
        file = io.BytesIO()
        picture.save(file, "PNG")
        yield file.getvalue()


def file_name(index: int, kind: str, number: int, modality: ModalityConfig) -> str:
    """Of a piece: pictures are PNG, what moves is GIF, sounds are WAV, and what has no file is an array."""
    extension = {2: "png", 3: "gif"}.get(modality.dimensions, "wav" if modality.has_sound else "npy")
    return f"{index:04d}-{kind}-{number}.{extension}"


def trace(canvas: Canvas, index: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """Every token of a document with the step at which it appeared (0: it was given), pieces with their last step."""
    entries: list[dict[str, Any]] = []
    piece_at = canvas.piece_at
    for row, (token, born) in enumerate(zip(canvas.tokens.tolist(), canvas.born.tolist(), strict=True)):
        entry = {"token": token, "text": tokenizer.decode([token]), "step": born}
        if row in piece_at:
            kind, number = piece_at[row]
            making = canvas.making[kind]
            entry |= {kind: file_name(index, kind, number, making.modality), "last_step": int(making.end[number])}
        entries.append(entry)
    lengths = [{"tokens": there, "expected": round(expected, 3)} for there, expected in canvas.lengths]
    return {"index": index, "hit_cap": canvas.hit_cap, "lengths": lengths, "tokens": entries}


def prompt_line(canvas: Canvas, index: int, tokenizer: Tokenizer) -> str:
    """The line of steps.jsonl that says what a document begins with."""
    tokens = canvas.tokens.tolist()
    pieces = {kind: len(making.pieces) for kind, making in canvas.making.items()}
    return json.dumps({"document": index, "tokens": tokens, "text": tokenizer.decode(tokens), "pieces": pieces}) + "\n"


def change_line(step: int, change: Change, index: int, tokenizer: Tokenizer) -> str:
    """The line of steps.jsonl that says what a step did to a document.

    Who inserts `inserted` at their places, one after the other, and then takes out those at the places `removed`, has
    the document as it is after the step.
    """
    inserted = zip(change.place.tolist(), change.token.tolist(), change.prob.tolist(), strict=True)
    line = {
        "step": step,
        "document": index,
        "inserted": [
            {"place": place, "token": token, "text": tokenizer.decode([token]), "prob": float(f"{prob:.4g}")}
            for place, token, prob in inserted
        ],
        "removed": change.removed.tolist(),
        "text_time": round(change.text_time, 6),
        "times": {kind: [round(time, 6) for time in times.tolist()] for kind, times in change.piece_times.items()},
    }
    return json.dumps(line) + "\n"


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Lines that whoever follows the file can read from now on."""
    with path.open("a") as file:
        file.writelines(lines)


def write_film(path: Path, frames: list[Image.Image]) -> None:
    """Frames of one size as a GIF that begins anew after a pause."""
    times = [FRAME_MILLISECONDS] * (len(frames) - 1) + [LAST_MILLISECONDS]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0)
