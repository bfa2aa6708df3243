"""The command `oneflow`: one name for every program of the project, with completion for shells."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from oneflow_dist.runtime import run_program
from oneflow_dist.version import current_commit, package_version

ROOT = Path(__file__).parents[1]
SHELLS = ("bash", "zsh", "fish")

# Name of a command, the module whose `main` it is, and what it does. Modules are loaded when they are called.
COMMANDS = {
    "train": ("oneflow_dist.train", "train a model, or go on with a run"),
    "sample": ("oneflow_dist.commands.sample", "write documents: text, images, films of how they came about"),
    "chat": ("oneflow_dist.commands.chat", "talk with a model, turn by turn"),
    "serve": ("oneflow_dist.commands.serve", "a page and an API for many users at once"),
    "evaluate": ("oneflow_dist.commands.evaluate", "ask a checkpoint the questions of a suite"),
    "score": ("oneflow_dist.commands.score", "score answers without the model"),
    "experiment": ("tools.experiment", "what is claimed of the method, tested: trained, measured, drawn"),
    "report": ("oneflow_dist.commands.report", "one page about a run, or several, live while they go on"),
    "curves": ("oneflow_dist.commands.curves", "losses of runs as one picture"),
    "plan": ("oneflow_dist.commands.plan", "memory, traffic and time of a layout, without devices"),
    "inspect": ("oneflow_dist.commands.inspect", "what a step trains on"),
    "prepare": (
        "oneflow_dist.commands.prepare",
        "a folder of your pictures and texts becomes data and a config to train on",
    ),
    "precompute": ("oneflow_dist.commands.precompute", "pictures to latents, once, before training"),
    "index": ("oneflow_dist.commands.index", "an index beside each shard"),
    "autoencoder": ("oneflow_dist.commands.autoencoder", "an autoencoder for pictures, from scratch"),
    "tokenizer": ("oneflow_dist.commands.tokenizer", "a vocabulary from texts"),
    "export": ("oneflow_dist.commands.export", "a model as a folder that others load, with a card"),
    "bound": ("oneflow_dist.commands.bound", "bits a token of held-out texts"),
    "benchmark": ("tools.benchmark.__main__", "all benchmarks"),
    "doctor": ("oneflow_dist.commands.doctor", "what this machine has, which paths are slow, and why"),
}


def main() -> None:
    """Entry point."""
    if "_ARGCOMPLETE" in os.environ:
        complete()
        return
    words = sys.argv[1:]
    if not words or words[0].startswith("-"):
        make_parser().parse_args(words or ["--help"])
    elif words[0] == "completion":
        run_program(print_completion)
    else:
        run_program(lambda: start(words[0], words[1:]))


def make_parser() -> argparse.ArgumentParser:
    """Of the command alone."""
    lines = "\n".join(f"  {name:<12}{what}" for name, (_, what) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="oneflow",
        description="Train OneFlow models, and everything around it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"commands, each with --help of its own:\n{lines}\n\n"
        "`oneflow completion bash` (or zsh, fish) prints what makes a shell complete all this.",
    )
    parser.add_argument("--version", action="version", version=describe_version() if "--version" in sys.argv else "")
    parser.add_argument("command", choices=[*COMMANDS, "completion"], metavar="command", help="see below")
    return parser


def start(name: str, words: list[str]) -> None:
    """Run a command as if its program had been called.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        advice = f"did you mean {near[0]}?" if near else "oneflow --help lists them"
        raise ValueError(f"oneflow {name}: no such command; {advice}")
    module = load(name)
    sys.argv = [f"oneflow {name}", *words]
    module.main()


def load(name: str) -> ModuleType:
    """The module of a command.

    Raises:
        ValueError: it is in the checkout, and only the package is installed.
    """
    module, _ = COMMANDS[name]
    path = f"{module.replace('.', '/')}.py"
    if module.startswith("tools."):
        if not (ROOT / path).is_file():
            raise ValueError(
                f"oneflow {name}: {path} is not part of the installed package; clone the repository and "
                "`pip install -e .` there"
            )
        sys.path.insert(0, str(ROOT))  # the checkout, before whatever else has a package of the name `tools`
    return importlib.import_module(module)


def describe_version() -> str:
    """Of the package, with the commit of a checkout or an image."""
    commit = current_commit(ROOT)
    return f"oneflow_dist {package_version()}" + (f", commit {commit}" if commit else "")


def print_completion() -> None:
    """What a shell has to read, as `eval "$(oneflow completion bash)"`."""
    shell = completion_parser().parse_args(sys.argv[2:]).shell
    from argcomplete.shell_integration import shellcode

    sys.stdout.write(shellcode(["oneflow"], shell=shell))


def completion_parser() -> argparse.ArgumentParser:
    """Of `oneflow completion`."""
    line = 'eval "$(oneflow completion bash)", in fish: oneflow completion fish | source'
    parser = argparse.ArgumentParser(
        prog="oneflow completion",
        description="Print what makes a shell complete.",
        epilog=f"In its startup file: {line}",
    )
    parser.add_argument("shell", choices=SHELLS, nargs="?", default=SHELLS[0])
    return parser


def complete() -> None:
    """Tell the shell what may come next: of a command what its own parser knows.

    A program makes its parser where it reads its words, so that is where it is asked.
    """
    import argcomplete

    typed = os.environ["COMP_LINE"].encode()[: int(os.environ["COMP_POINT"])].decode(errors="ignore")
    try:
        words = shlex.split(typed)
    except ValueError:  # within quotes
        words = typed.split()
    has_ended = typed.endswith(" ")  # the last word
    name = words[1] if len(words) > 2 or (len(words) == 2 and has_ended) else ""
    if name in (*COMMANDS, "completion"):
        os.environ["_ARGCOMPLETE"] = "2"  # what is completed begins with the second word
    if name not in COMMANDS:
        argcomplete.autocomplete(completion_parser() if name == "completion" else make_parser())
        return
    sys.argv = [f"oneflow {name}", *words[2:3]]
    readers = {own: getattr(argparse.ArgumentParser, own) for own in ("parse_args", "parse_intermixed_args")}

    def ask(parser: argparse.ArgumentParser, given: list[str] | None = None) -> Any:
        is_past = len(words) > 3 or has_ended
        if given and given == words[2:3] and is_past:  # a program that has programs: it goes on
            os.environ["_ARGCOMPLETE"] = "3"
            return readers["parse_args"](parser, given)
        for own, reader in readers.items():
            setattr(argparse.ArgumentParser, own, reader)
        return argcomplete.autocomplete(parser)

    for reader in readers:
        setattr(argparse.ArgumentParser, reader, ask)
    load(name).main()


if __name__ == "__main__":
    main()
