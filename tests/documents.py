"""What the documents say that can rot: commands, code, paths, links and keys of configs."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from oneflow_dist.command import COMMANDS

ROOT = Path(__file__).parents[1]
NAMED = ("README.md", "CONTRIBUTING.md", "configs/README.md")
DOCUMENTS = [*(ROOT / name for name in NAMED), *sorted((ROOT / "docs").glob("*.md"))]
PYTHON = re.compile(r"python3?|\.venv/bin/python")
PROGRAM = re.compile(
    r"(?:[A-Z_]+=\S+ +)*"  # its environment
    r"(?:python3?|oneflow|torchrun|make|pip3?|pytest|git|bash|sh|nvidia-smi|srun|sbatch|docker|podman|apptainer|launch/\S+|\.venv/bin/\S+|\.ci/\S+|(?:tests|tools)/\S+\.py)"
    r"(?=\s|$)"
)
TOP = (".ci", "configs", "docs", "kernels", "launch", "oneflow_dist", "tests", "tools")  # folders of the repository


@dataclass(frozen=True)
class Block:
    """An indented or fenced stretch of a document."""

    document: Path
    line: int
    text: str

    @property
    def place(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    @property
    def holds_commands(self) -> bool:
        return PROGRAM.match(self.text) is not None

    def commands(self) -> list[str]:
        """Its commands as they are typed, on one line each, without what is said of them."""
        lines = [re.sub(r"(^|\s+)# .*", "", line) for line in self.text.splitlines()]
        return _split("\n".join(lines).replace("\\\n", " "))


@dataclass(frozen=True)
class Command:
    """A program with its arguments and its environment."""

    program: str  # "-m" is left out: a module, a file of tools/ or another program
    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """The same for the same program, however it is started."""
        return " ".join([*(f"{key}={value}" for key, value in self.environment), self.program, *self.arguments])


def read_command(text: str) -> Command:
    """A command as a shell splits it."""
    words = shlex.split(text)
    environment = []
    while re.match(r"[A-Z_]+=", words[0]):
        key, _, value = words.pop(0).partition("=")
        environment.append((key, value))
    first, *rest = words
    if first == "oneflow" and rest[0] in COMMANDS:
        module, _ = COMMANDS[rest.pop(0)]
        is_file = module.startswith("tools.") and not module.endswith("__main__")
        first = f"{module.replace('.', '/')}.py" if is_file else module.removesuffix(".__main__")
    if PYTHON.fullmatch(first):
        first, *rest = rest[1:] if rest[0] == "-m" else rest
    return Command({"pip3": "pip"}.get(first, first), tuple(rest), tuple(environment))


def blocks_of(document: Path) -> list[Block]:
    """Fenced blocks, and stretches of lines that are indented by four."""
    blocks: list[Block] = []
    lines: list[str] = []
    is_fenced = False
    for number, line in enumerate([*document.read_text().splitlines(), "end"], start=1):
        is_fence = line.startswith("```")
        if is_fenced and not is_fence:
            lines.append(line)
        elif line.startswith("    ") or (lines and not line):
            lines.append(line[4:])
        elif lines:
            blocks.append(Block(document, number - len(lines), "\n".join(lines).rstrip()))
            lines = []
        is_fenced ^= is_fence
    return blocks


def prose_of(document: Path) -> str:
    """A document without its blocks; paragraphs stand apart."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^ {4}.*", "", text, flags=re.MULTILINE)


def spans_of(document: Path) -> list[str]:
    """What stands between backticks in the prose, on one line each."""
    return [" ".join(span.split()) for span in re.findall(r"`((?:[^`\n]|\n(?!\n))+)`", prose_of(document))]


def commands_of(document: Path) -> list[str]:
    """Every command of its blocks and, with arguments, of its prose."""
    typed = [command for block in blocks_of(document) if block.holds_commands for command in block.commands()]
    named = [span for span in spans_of(document) if PROGRAM.match(span) and _has_arguments(span)]
    return typed + [command for span in named for command in _split(span)]


def _has_arguments(command: str) -> bool:
    """Whether it is to be typed; `oneflow plan` alone is a program's name."""
    return len(command.split()) > (2 if command.startswith("oneflow ") else 1)


def links_of(document: Path) -> list[str]:
    """What its links lead to, without addresses."""
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose_of(document)) if "://" not in link]


def paths_of(document: Path) -> list[str]:
    """Paths of the repository that it names: from a top folder anywhere, by any part of their end in backticks."""
    text = document.read_text()
    rooted = re.findall(rf"(?<![\w./~-])((?:{'|'.join(map(re.escape, TOP))})/[\w./*-]*[\w*/])", text)
    named = [span for span in spans_of(document) if re.fullmatch(r"(?:[\w-]+/)*[\w-]+\.(?:py|md|toml|yaml|lock)", span)]
    return list(dict.fromkeys([*rooted, *named]))


def keys_of(document: Path, sections: list[str]) -> list[str]:
    """Every `section.key` that it names, and neither names of files nor attributes of modules.

    Of `modality.image.patch` and `modality.*.patch` it is `modality.patch`.
    """
    named = rf"(?<![\w./-])({'|'.join(sections)})\.(?:(?<=modality\.)(?:\*|\w+)\.)?([a-z]\w*)\b(?![(/])"
    found = re.findall(named, document.read_text())
    files = {"py", "md", "toml", "yaml", "json", "jsonl", "safetensors", "index"}
    return list(dict.fromkeys(f"{section}.{key}" for section, key in found if key not in files))


def _split(text: str) -> list[str]:
    parts = [" ".join(part.split()) for line in text.splitlines() for part in line.split("&&")]
    return [part for part in parts if part]
