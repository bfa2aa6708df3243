"""Talk with a trained model: text and pictures in, text and pictures out, turn by turn.

What it is asked is what stands before an answer in the task `instruct`.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneflow_dist.commands.sample import add_sampling, check_sampling, with_arguments
from oneflow_dist.commands.sample_files import encode_files, file_name
from oneflow_dist.commands.screen import FAINT, NEW, Run, Screen, half_blocks, printable
from oneflow_dist.files import naming
from oneflow_dist.runtime import run_program, share_cores

if TYPE_CHECKING:
    from oneflow_dist.canvas import Canvas
    from oneflow_dist.config import Config
    from oneflow_dist.containers import PiecePart, TextPart
    from oneflow_dist.data.tokenizer import Tokenizer

HELP = """\
/image FILE    attach a picture to the next message (PNG, JPEG or WebP); an empty line sends pictures alone
/system TEXT   what the model is told before everything; without TEXT nothing
/reset         forget all that was said, also by /system
/seed N        of what is drawn at random from now on
/help          these lines
/quit          end, as the end of the input does"""
LEAST_ROOM = 0.25  # of sampling.max_rows, for an answer: older turns are left out until there is


def main() -> None:
    """Entry point."""
    args = parse_arguments()
    print(f"loading {args.checkpoint}", file=sys.stderr, flush=True)
    chat = open_chat(args)
    is_shown = sys.stdout.isatty()
    for line in read_lines():
        try:
            if not chat.obey(line):
                break
        except ValueError as error:
            if not sys.stdin.isatty():
                raise
            print(f"error: {error}", flush=True)
            continue
        if chat.message is not None:
            answer(chat, is_shown)


def parse_arguments() -> argparse.Namespace:
    """The command line; numbers out of their ranges are refused here."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"In a terminal new tokens are bright. From a pipe each line is a message, or one of these:\n{HELP}",
    )
    parser.add_argument("checkpoint", type=Path, help="run folder (its last checkpoint), or one checkpoint's folder")
    parser.add_argument("--output", type=Path, help="folder for what it draws; default: chat-TIME, here")
    parser.add_argument("--seed", type=int, default=0)
    add_sampling(parser)
    args = parser.parse_args()
    check_sampling(args)
    return args


def read_lines() -> Iterator[str]:
    """Of the terminal, where one can edit and go back; else of the standard input."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    import readline  # noqa: F401 # input() uses it

    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


def open_chat(args: argparse.Namespace) -> Chat:
    """A chat that has not begun.

    Raises:
        ValueError: no checkpoint, or one whose vocabulary has no turns.
    """
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from oneflow_dist.data.tokenizer import load_tokenizer
    from oneflow_dist.pictures import check_decoders
    from oneflow_dist.trained import config_at_home, find_checkpoint, load_weights, progress_of

    share_cores(others=1)  # with whatever else runs here
    folder = find_checkpoint(args.checkpoint)
    config = with_arguments(config_at_home(folder), args)
    check_decoders(config, progress_of(folder).data)
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise ValueError(
            f"{folder}: model.vocab_size is {config.model.vocab_size}, but with the tokens of turns there are "
            f"{tokenizer.vocab_size}; take a model that was trained on the task instruct"
        )
    output = args.output or Path(time.strftime("chat-%Y%m%d-%H%M%S"))
    return Chat(model=load_weights(folder, config), config=config, tokenizer=tokenizer, output=output, seed=args.seed)


@dataclass(kw_only=True)
class Chat:
    """A conversation with a model, and what is said next."""

    model: Any
    config: Config
    tokenizer: Tokenizer
    output: Path  # folder for pictures and other pieces, made with the first
    seed: int
    system: list[TextPart | PiecePart] = field(default_factory=list)
    turns: list[list[TextPart | PiecePart]] = field(default_factory=list)  # the user's and the assistant's, in turn
    attached: list[PiecePart] = field(default_factory=list)
    message: list[TextPart | PiecePart] | None = None  # waits for its answer

    def obey(self, line: str) -> bool:
        """Do what a line says, or make it the message; false: it is the end.

        Raises:
            ValueError: no such command, or not what it needs.
        """
        command, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if command == "/quit":
            return False
        if command == "/help":
            print(HELP, flush=True)
        elif command == "/reset":
            self.system, self.turns, self.attached = [], [], []
        elif command == "/system":
            self.system = self._say(rest, "system")
        elif command == "/seed":
            if not rest.isdecimal() or int(rest) >= 2**63:
                raise ValueError(f"/seed: {rest!r} is not a whole number from 0 on; write one, as /seed 7")
            self.seed = int(rest)
        elif command == "/image":
            self._attach(rest)
        elif command.startswith("/"):
            raise ValueError(f"{command}: no such command; /help lists them")
        else:
            message = [*self.attached, *self._say(line, "user")]
            self.message, self.attached = message or None, []
        return True

    def blank(self) -> tuple[Canvas, int]:
        """The canvas of the next answer, and how many tokens of it after BOS are prompt.

        The oldest turns are left out, and forgotten, where an answer would have too little room.

        Raises:
            ValueError: the message alone leaves no room.
        """
        from oneflow_dist.canvas import blank_canvas, prompt_of
        from oneflow_dist.containers import Document, TextPart
        from oneflow_dist.data.samples import make_sample
        from oneflow_dist.flow.noising import keyed_generator

        assert self.message is not None
        max_rows, num_left_out = self.config.sampling.max_rows, 0
        while True:
            said = [*self.system, *(part for turn in self.turns for part in turn), *self.message]
            parts = [*said, TextPart(tokens=[], role="assistant")]
            document, rng = Document(key="chat", parts=tuple(parts)), keyed_generator(self.seed, 0, "chat")
            sample = make_sample(document, "answer", "latents", [], self.tokenizer, self.config.modality, rng)
            room = max_rows - sample.num_rows
            if not self.turns or room >= LEAST_ROOM * max_rows:
                break
            self.turns, num_left_out = self.turns[2:], num_left_out + 1
        if room < 1:
            self.message = None
            raise ValueError(
                f"the message takes {sample.num_rows} rows, of at most {max_rows} with its answer; shorten it, "
                "/reset, or start with a larger --max-rows"
            )
        if num_left_out:
            what = f"{num_left_out} oldest message{'s' * (num_left_out > 1)}"
            print(f"(left out, for lack of room: the {what} and what was answered)", file=sys.stderr)
        prompt = prompt_of(sample, self.config.modality)
        canvas = blank_canvas(prompt, self.tokenizer, self.config.modality, self.seed, len(self.turns))
        return canvas, sample.front - 1

    def close_turn(self, canvas: Canvas, num_given: int) -> list[str | Path]:
        """The answer becomes a turn, its pieces files: its texts and the files' paths. An empty one is forgotten."""
        from oneflow_dist.containers import PiecePart

        found: list[str | Path] = []
        turn: list[TextPart | PiecePart] = []
        drawn = {kind: replace(m, pieces=m.pieces.select(m.is_target)) for kind, m in canvas.making.items()}
        files = {kind: [*encode_files(making)] for kind, making in drawn.items()}  # of those that were not given
        index = 0
        while any(self.output.glob(f"{index:04d}-*")):
            index += 1
        for part in canvas.parts(self.tokenizer, num_given):
            if isinstance(part, str):
                found.append(part)
                turn += self._say(part, "assistant")
                continue
            kind, number = part
            making = canvas.making[kind]
            content = files[kind][number - len(making.pieces)]  # counted from the end: given ones come first
            path = self.output / file_name(index, kind, sum(isinstance(each, Path) for each in found), making.modality)
            with naming(path):
                self.output.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            found.append(path)
            is_seen_anew = making.modality.dimensions == 2 and self.config.sampling.given != "latents"
            seen = self._look(content, str(path)) if is_seen_anew else [(kind, making.latents()[number])]
            turn += [PiecePart.exact(name, latent, "assistant") for name, latent in seen]
        if turn:
            assert self.message is not None
            self.turns += [self.message, turn]
        self.message = None
        return found

    def _say(self, text: str, role: str) -> list[TextPart | PiecePart]:
        """Special tokens that it spells stay text."""
        from oneflow_dist.containers import TextPart
        from oneflow_dist.data.conversations import clean

        text = clean(text).strip()
        return [TextPart(tokens=self.tokenizer.encode(text), role=role)] if text else []

    def _attach(self, name: str) -> None:
        from oneflow_dist.containers import PiecePart

        path = Path(name).expanduser()
        if not path.is_file():
            raise ValueError(f"/image: no such file {name!r}; write its path, as /image photo.jpg")
        self.attached += [PiecePart.exact(kind, latent, "user") for kind, latent in self._look(path.read_bytes(), name)]

    def _look(self, data: bytes, name: str) -> list[tuple[str, Any]]:
        """What the model sees of a picture."""
        from oneflow_dist.photos import encode_photo

        return encode_photo(data, self.config, name)


def answer(chat: Chat, is_shown: bool) -> None:
    """Write the answer to the message: in a terminal while it appears, else when it is there."""
    from oneflow_dist.sampler import generate_steps

    try:
        canvas, num_given = chat.blank()
    except ValueError as error:
        if not sys.stdin.isatty():
            raise
        print(f"error: {error}", flush=True)
        return
    size = shutil.get_terminal_size()
    screen = Screen(size.columns, size.lines)
    for step in generate_steps(chat.model, [canvas], chat.config, chat.tokenizer):
        if is_shown:
            screen.draw(appearing(canvas, num_given, step.number, chat.tokenizer))
    if is_shown:
        screen.clear()
    found = chat.close_turn(canvas, num_given)
    for part in found:
        if is_shown and isinstance(part, Path) and part.suffix == ".png":
            print(preview(part.read_bytes()))
        print(printable(part) if isinstance(part, str) else f"[{part}]", flush=True)
    if not found:
        print("(no answer)", flush=True)
    if canvas.hit_cap:
        print(f"(stopped at --max-rows {chat.config.sampling.max_rows})", file=sys.stderr, flush=True)


def appearing(canvas: Canvas, num_given: int, step: int, tokenizer: Tokenizer) -> list[Run]:
    """The answer as it stands: tokens of this step bright, pieces by how far they are."""
    runs: list[Run] = []
    waiting: list[int] = []
    color, piece_at = "", canvas.piece_at

    def write() -> None:
        if waiting:
            runs.append((printable(tokenizer.decode(waiting)), color))
            waiting.clear()

    for place in range(1 + num_given, len(canvas.tokens)):
        own = NEW if int(canvas.born[place]) == step else ""
        if own != color or place in piece_at:
            write()
        color = own
        if place in piece_at:
            kind, number = piece_at[place]
            runs.append((f"[{kind} {min(1.0, float(canvas.making[kind].pieces.time[number])):.0%}]", FAINT))
        else:
            waiting.append(int(canvas.tokens[place]))
    write()
    return runs


def preview(data: bytes) -> str:
    """A picture for the terminal."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        return half_blocks(picture)


if __name__ == "__main__":
    run_program(main)
