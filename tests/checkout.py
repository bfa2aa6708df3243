"""Documented commands in small: each in a folder like a checkout, on data that other documented commands have made."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch.distributed.run import parse_args

from oneflow_dist.config import load_config
from oneflow_dist.data.loader import packs_of_rank
from oneflow_dist.data.tokenizer import write_ranks
from oneflow_dist.model.llama import to_llama_config
from oneflow_dist.parallel.mesh import check_axes, mesh_shape
from tests.documents import ROOT, Command, read_command
from tests.launching import ENVIRONMENT, Finished, Launcher
from tests.precompute.making import document, encode, picture, write_tar
from tools.stages.report import STAGES

EMOJI = ("fish", "mouse face", "rabbit", "penguin", "butterfly", "rooster")  # of stories
NUM_RANKS = 2  # of what torchrun starts
WORDS = {
    "$HEAD": "localhost",
    "${OUT:-results}": "results",
    "CONFIG": "configs/oneflow_1b.toml",
    "FOLDER": "indexes",
}  # for a user to fill in
WORDS |= {"ADDRESS": "file://data/digits/single-train-000000.tar", "~/": ""}  # the folder of a checkout is at home

# What the sizes of a cluster are cut to. What its ranks have to divide stays as it is: heads, rows and packs of plans.
BIG = {f"configs/oneflow_{size}.toml" for size in ("1b", "3b", "8b")}
MODEL = ("model.width=256", "model.num_layers=2", "model.mlp_width=256", "model.vocab_size=1024")
CUT = {  # the config of a trunk that has nine heads
    "configs/smollm2.toml": (
        *("model.width=36", "model.num_layers=2", "model.mlp_width=48", "model.vocab_size=512"),
        *("validation.samples=2", "validation.every_steps=2"),
    )
}
PACKS = ("data.rows_per_pack=1024", "data.tokens_per_pack=512", "data.bag_tokens_per_pack=512")
PACKS += ("modality.image.per_pack=4", "data.window_samples=8", "data.workers=0")
RUN = (*MODEL, *PACKS, "data.packs_per_step=2", "train.compile=false", "metrics.wandb=off")


@dataclass(frozen=True)
class Way:
    """How the commands of a program run in small."""

    adds: tuple[str, ...] = ()  # to their arguments
    adds_if_big: tuple[str, ...] = ()  # for the configs of BIG
    reads_data: bool = True  # that a config names
    code: int = 0
    says: str = ""
    needs: str = ""  # what has to be there, although no command names it
    how: Literal["forked", "afresh", "here"] = "forked"  # from a process that has torch loaded; here: in this one


WAYS = {
    "launch/node.sh": Way(reads_data=False, how="afresh"),
    "launch/torchrun.sh": Way(reads_data=False, how="afresh"),
    "launch/slurm.sbatch": Way(reads_data=False, how="afresh"),
    "launch.hosts": Way(("--help",), reads_data=False, says="usage"),  # it would look for its hosts
    "oneflow_dist.train": Way(("train.steps=2", "data.workers=0"), RUN),
    # It forks itself from a server, which stays.
    "oneflow_dist.commands.plan": Way((), MODEL, reads_data=False, how="here"),
    "oneflow_dist.commands.export": Way((), MODEL, reads_data=False),
    "oneflow_dist.commands.inspect": Way(("--steps=2:4",), (*PACKS, "data.packs_per_step=8")),
    "oneflow_dist.commands.sample": Way(("--steps=2",), needs="data/digits"),
    "oneflow_dist.commands.chat": Way(("--steps=2",)),  # nobody says anything
    "tools/digits/evaluate.py": Way(("--samples=2", "--steps=2"), needs="data/digits"),
    "tools/digits/make.py": Way(("--documents=1025",)),
    "tools/experiment.py": Way(("--help",), reads_data=False, says="usage"),  # it trains for long; tests/tools has more
    "tools/boards/make.py": Way(("--documents=1025",)),
    "tools/counting/evaluate.py": Way(("--samples=2", "--steps=2")),
    "oneflow_dist.commands.bound": Way(("--documents=2", "--instants=2"), needs="data/stages"),
    "tools/sounds/make.py": Way(("--documents=1025",)),
    "tools/sounds/evaluate.py": Way(("--samples=2",), needs="data/sounds data/digits"),
    "tools/styles/make.py": Way(("--documents=1025",)),
    "tools/styles/evaluate.py": Way(("--captions=2", "--weights", "1", "2")),
    "tools/styles/lengths.py": Way(("--captions=2", "--steps", "4")),
    "tools/vqa/evaluate.py": Way(("--questions=2",)),
    "tools/interleaved/make.py": Way(("--stories=64", "--items=8"), needs="data/emoji data/openstax"),
    "oneflow_dist.commands.evaluate": Way(("--limit=2",), needs="data/digits data/interleaved"),
    "oneflow_dist.commands.score": Way(code=2, says="suite.toml"),  # nothing is evaluated there
    "tools/ladder.py": Way(code=2, says="runs/"),
    "oneflow_dist.commands.curves": Way(),
    "oneflow_dist.commands.report": Way(),
    "oneflow_dist.commands.serve": Way(("--help",), says="usage"),  # it would serve for ever; tests/tools has more
    "oneflow_dist.commands.doctor": Way(),
    "tools/vqa/make.py": Way(("--questions=16",)),
    "tools/stages/make.py": Way(("--samples=16",), needs="data/openstax data/emoji data/nlvr"),
    "tools/stages/report.py": Way(
        ("--questions=2",), needs=" ".join(["data/stages", *(f"runs/stages/{stage}" for stage in STAGES)])
    ),
    "tools/smollm2.py": Way(code=2, says="pip install gguf"),  # neither package is installed for tests
    "oneflow_dist.commands.tokenizer": Way(),
    "oneflow_dist.commands.autoencoder": Way(("--steps=2",)),
    "oneflow_dist.commands.precompute": Way(("--size=64",)),
    "oneflow_dist.commands.prepare": Way(),
    "tools/pictures/learn_judge.py": Way(),
    "oneflow_dist.commands.index": Way(needs="data/digits"),
    "tools.comparison.plans": Way(("--help",), reads_data=False, says="usage"),  # tests/tools has small ones
    "tools.benchmark balance": Way(("--help",), reads_data=False, says="usage"),  # tests/tools has a small one
    "tools.benchmark train": Way(("--steps=2", "--warmup=1", "data.workers=0"), RUN),
    "tools.benchmark flops": Way(("--documents=64",), MODEL, reads_data=False),
    "tools.benchmark data": Way(("--samples=256", "--rounds=1")),
    "tools.benchmark sample": Way(("--rounds=1",), needs="data/digits"),
    "tools.benchmark prompts": Way(("--rows=8", "--documents=1", "--lengths=70", "--steps=2"), needs="data/digits"),
    "tools.benchmark serving": Way(("--users=2", "--documents=2", "--rounds=1", "--requests=2"), how="afresh"),
    "tools.benchmark latency": Way(
        ("--texts=8", "--images=1", "--documents=1", "--steps=2", "--rounds=1"), needs="data/digits"
    ),
    "tools.benchmark kernels": Way(("--only=no such job", "--config=configs/debug.toml")),  # tests/tools has small ones
    "tools.benchmark checkpoint": Way(
        ("--rounds=1", "--steps=1", "model.width=64", "model.num_layers=2", "run.folder=runs/measured")
    ),
    "tools.benchmark compare": Way(reads_data=False),
    "tools/measure_gpu.py": Way(("--only=no such job", "--config=configs/debug.toml")),  # tests/tools has small ones
    "tests/torture/signals.py": Way(
        ("--signals=SIGTERM", "--receivers=worker", "--moments=start"), needs="data/digits", how="afresh"
    ),
    "tests/torture/machines.py": Way(
        ("--machine=this machine", "tests/planning/test_gpus.py", "--", "--noconftest"), how="afresh"
    ),
    "oneflow_kernels.resources": Way(("--target=cuda:90", "--only=bag logits, bf16"), how="afresh"),
    "oneflow_kernels.tune": Way(code=2, says="no GPU is here"),  # and none is looked for
    ".venv/bin/pre-commit": Way(needs=".git", how="afresh"),
}


@dataclass(frozen=True)
class Outcome:
    """Where a command ran, and what it printed."""

    folder: Path
    printed: str


class Checkouts:
    """Runs each command in a folder of its own, once.

    Args:
        commands: all that are documented: they make each other's data.
    """

    def __init__(self, folder: Path, launcher: Launcher, commands: Sequence[str]):
        self.folder = folder
        self.launcher = launcher
        self.commands = [typed(text) for text in commands]
        self.outcomes: dict[str, Outcome] = {}

    def run(self, command: Command) -> Outcome:
        """The outcome of a command; an assertion fails where it does not end as it should."""
        if str(command) not in self.outcomes:
            way, started, num_ranks = in_small(command)
            here = self.new_folder()
            for path in dict.fromkeys([*self.needed_by(command, here, way.reads_data), *way.needs.split()]):
                self.put(path, here)
            printed = self._start(started, way, num_ranks, here)
            self.outcomes[str(command)] = Outcome(here, printed)
        return self.outcomes[str(command)]

    def new_folder(self) -> Path:
        """All of the project but its data: `configs` with two shards for many, the rest as links."""
        here = self.folder / str(len(list(self.folder.iterdir())))
        (here / ".venv").mkdir(parents=True)
        (here / ".venv/bin").symlink_to(Path(sys.executable).parent)
        (here / "kernels").mkdir()  # results are written into it
        (here / "kernels/oneflow_kernels").symlink_to(ROOT / "kernels/oneflow_kernels")
        (here / "docs").mkdir()  # and into docs/results
        for path in [*ROOT.iterdir(), *(ROOT / "docs").iterdir()]:
            own = here / path.relative_to(ROOT)
            if path.name not in (".git", ".venv", "configs", "data", "docs", "kernels", "results", "runs", "wheels"):
                own.symlink_to(path)
        for path in (path for path in (ROOT / "configs").rglob("*") if path.is_file()):
            copy = here / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(two_shards(path.read_text()))
        (here / ".venv/installed").touch()
        return here

    def needed_by(self, command: Command, here: Path, reads_data: bool) -> list[str]:
        """The data that a command, its configs or their mixtures name, without what it makes itself."""
        said = " ".join(command.arguments)
        for pattern in (r"configs/[\w/]+\.toml", r"configs/data/[\w/]+\.yaml") if reads_data else ():
            said += " ".join((here / path).read_text() for path in re.findall(pattern, said))
        return [
            path
            for path, maker in DATA.items()
            if re.search(rf"(?<![\w./-]){re.escape(path)}(?![\w.-])", said)
            and not (isinstance(maker, str) and re.search(maker, str(command)))
            and path != MAKES.get(command.program)
        ]

    def put(self, path: str, here: Path) -> None:
        """Make or copy the data of a path of DATA."""
        maker = DATA[path]
        (here / path).parent.mkdir(parents=True, exist_ok=True)
        if callable(maker):
            maker(here / path)
            return
        command = next(command for command in self.commands if re.search(maker, str(command)))
        made = self.run(command).folder / SAME_AS.get(path, path)
        (shutil.copytree if made.is_dir() else shutil.copy)(made, here / path)

    def _start(self, command: Command, way: Way, num_ranks: int, here: Path) -> str:
        start = [command.program] if "/" in command.program else ["-m", command.program]
        # The same everywhere: no GPU, and no cache but in this folder.
        env = {"CUDA_VISIBLE_DEVICES": "", "HOME": str(here), **dict(command.environment)}
        if way.how == "forked":
            ends = self.launcher.start(*start, *command.arguments, num_ranks=num_ranks, env=env, folder=here).wait()
        elif way.how == "afresh":
            ends = [run_afresh([*start, *command.arguments], env, here)]
        else:
            ends = [run_here(command, here)]
        printed = "\n".join(end.stdout + end.stderr for end in ends)
        assert [end.code for end in ends] == [way.code] * len(ends), printed
        assert "Traceback" not in printed, printed
        assert way.says in printed, printed
        return printed


def in_small(command: Command) -> tuple[Way, Command, int]:
    """How a command runs, what is started for it, and on how many ranks (0: without torchrun)."""
    num_ranks = 0
    if command.program == "torchrun":
        command, num_ranks = without_torchrun(command), NUM_RANKS
    words, program = command.arguments, command.program
    program = f"{program} {words[0]}" if program == "tools.benchmark" else program  # each is a program of its own
    assert program in WAYS, f"{program}: give it a place in WAYS of tests/checkout.py"
    way = WAYS[program]
    if program.startswith("launch/"):
        words = tuple(word.replace("%a", "0") for word in words)  # the task of an array
        check_ranks(words, ranks_of_job(words))
        first = words[:1] if program == "launch/node.sh" else ()  # train or health
        words = (*first, "--dry-run", *(word for word in words[len(first) :] if word != "--dry-run"))
        command = dataclasses.replace(command, environment=(("ONEFLOW_PROCESSES", "8"),))
    added = way.adds
    if "--world-size" in words and (way.reads_data or "--search" in words):
        check_ranks(words, int(words[words.index("--world-size") + 1]))
    if {"--dry-run", "--made-up"} & set(words):
        way = dataclasses.replace(way, reads_data=False)
    elif BIG & set(words):
        added += way.adds_if_big
    if "--check" in words and program == "oneflow_dist.commands.evaluate":
        way = dataclasses.replace(way, code=2, says="is missing")
    if "--check" in words and program == "tools.benchmark kernels":
        way = dataclasses.replace(way, code=1)  # no job, so nothing is found right
    added += tuple(cut for path in CUT.keys() & set(words) for cut in CUT[path])
    if "--search" in words:  # of all layouts, in as many steps each as a rank has packs
        added += (f"--world-size={NUM_RANKS}", f"data.packs_per_step={NUM_RANKS}")
    return way, Command(command.program, (*words, *added), command.environment), num_ranks


def ranks_of_job(words: Sequence[str]) -> int:
    """Of nodes of eight GPUs."""
    return 8 * (int(words[words.index("--nodes") + 1]) if "--nodes" in words else 1)


def without_torchrun(command: Command) -> Command:
    """What torchrun starts on every rank, with axes as long as NUM_RANKS."""
    asked = parse_args(list(command.arguments))
    words = asked.training_script_args
    check_ranks(words, int(asked.nnodes.split(":")[-1]) * int(asked.nproc_per_node))
    cut = [re.sub(r"^(parallel\.\w+)=\d+$", rf"\1={NUM_RANKS}", word) for word in words]
    return Command(asked.training_script, tuple(cut), command.environment)


def check_ranks(words: Sequence[str], world_size: int) -> None:
    """Refuse, in small too, what a run on all the ranks of a command would refuse."""
    for path in (word for word in words if word.endswith(".toml") and not word.startswith("configs/suites/")):
        config = load_config(ROOT / path, [word for word in words if re.match(r"[a-z]+(\.\w+)+=", word)])
        replicate, shard, *_ = mesh_shape(config.parallel, world_size)
        check_axes(config)
        packs_of_rank(config, replicate * shard)


def run_afresh(words: list[str], env: dict[str, str], here: Path) -> Finished:
    """A program in a process of its own, which compiles kernels where this one interprets them."""
    is_python = words[0] == "-m" or words[0].endswith(".py")
    inherited = {key: value for key, value in ENVIRONMENT.items() if key != "TRITON_INTERPRET"}
    end = subprocess.run(
        [sys.executable, *words] if is_python else words,
        cwd=here,
        env={**inherited, "PYTHONPATH": f".{os.pathsep}kernels", **env},
        capture_output=True,
        text=True,
        check=False,
    )
    return Finished(end.returncode, end.stdout, end.stderr)


def run_here(command: Command, here: Path) -> Finished:
    """A tool in this process; what it refuses is raised."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(here)
        patch.setattr("sys.argv", [command.program, *command.arguments])
        importlib.import_module(command.program).main()
    return Finished(0, printed.getvalue(), "")


def typed(text: str) -> Command:
    """A command with everything filled in, and two shards for many."""
    for word, value in WORDS.items():
        text = re.sub(rf"(?<![\w/]){re.escape(word)}", value, text)
    return read_command(two_shards(text))


def two_shards(text: str) -> str:
    """`{00000..01242}` as `{00000..00001}`."""
    return re.sub(r"\{(0+)\.\.\d+\}", lambda found: f"{{{found[1]}..{1:0{len(found[1])}}}}", text)


def write_pairs(folder: Path) -> None:
    """Pictures with captions: two shards under a number alone, and under the folder's name, others held out."""
    folder.mkdir()
    samples = 28 if folder.name == "fluent" else 4  # a judge is learnt from no fewer
    own = folder.name
    for shard in range(2):
        for name, first in ((f"{shard:05d}", 0), (f"{own}-train-{shard:06d}", 0), (f"{own}-val-{shard:06d}", 100)):
            members = []
            for number in range(first + samples * shard, first + samples * (shard + 1)):
                members.append((f"{number:03d}.json", b'{"group": "animals"}'))
                members.append((f"{number:03d}.png", encode(picture(number, 64, 64))))
                caption = EMOJI[number] if number < len(EMOJI) else f"picture number {number}"
                members.append((f"{number:03d}.txt", caption.encode()))
            write_tar(folder / f"{name}.tar", members)


def write_photos(folder: Path) -> None:
    """Pictures with captions beside them, as people have them."""
    folder.mkdir()
    for number in range(24):
        (folder / f"{number:02d}.png").write_bytes(encode(picture(number, 48, 40)))
        (folder / f"{number:02d}.txt").write_text(f"a kite, number {number}")


def write_pages(folder: Path) -> None:
    """Pages with pictures between their texts, as a manual has them."""
    folder.mkdir()
    for number in range(24):
        (folder / f"{number:02d}.png").write_bytes(encode(picture(number, 48, 40)))
        text = f"<h1>Tool {number}</h1><p>It paints.</p><img src='{number:02d}.png'><p>Number {number}.</p>"
        (folder / f"{number:02d}.html").write_text(f"<html><body>{text}</body></html>")


def write_documents(folder: Path) -> None:
    """Documents with figures: two shards, and one that is held out."""
    folder.mkdir()
    for number, name in enumerate(("train-000000", "train-000001", "val-000000")):
        members = [document(4 * number + place, text=f"Part {{}} of {number}. It goes on.") for place in range(4)]
        write_tar(folder / f"openstax-{name}.tar", [file for files in members for file in files])


def write_statements(folder: Path) -> None:
    """Two shards of statements about wide pictures, true or false."""
    folder.mkdir()
    for shard in range(2):
        members = []
        for number in range(4):
            fields = {"sentence": f"statement {shard} {number}", "label": number % 2 == 0}
            members.append((f"{number}.png", encode(picture(4 * shard + number, 100, 400))))
            members.append((f"{number}.json", json.dumps(fields).encode()))
        write_tar(folder / f"nlvr-dev-{shard:06d}.tar", members)


def write_llama(folder: Path) -> None:
    """A Llama as transformers writes it, of the size that the 1B config is cut to."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = load_config(ROOT / "configs/oneflow_1b.toml", list(MODEL))
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**to_llama_config(config, torch.float32))).save_pretrained(folder)


def write_smollm2(folder: Path) -> None:
    """What tools/smollm2.py writes, of the size that its config is cut to, with a vocabulary of bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = load_config(ROOT / "configs/smollm2.toml", list(CUT["configs/smollm2.toml"]))
    LlamaForCausalLM(LlamaConfig(**to_llama_config(config, torch.float32))).save_pretrained(folder)
    write_ranks(folder / "words.tiktoken", {bytes([value]): value for value in range(256)})


def init_git(folder: Path) -> None:
    """An empty repository."""
    subprocess.run(["git", "init", "--quiet", folder.parent], check=True)


PREPARED = ("photos", "stamps", "gimp-help", "noto")
# What comes from outside is written by a function; the rest by the first documented command that matches.
DATA: dict[str, str | Callable[[Path], None]] = {
    "cc12m": write_pairs,
    "photos": write_photos,
    "stamps": write_photos,
    "gimp-help": write_pages,
    "noto": write_pairs,
    **{f"data/{name}": rf"commands\.prepare {name} data/{name}( |$)" for name in PREPARED},
    **{f"runs/{name}": rf"^oneflow_dist\.train data/{name}/config\.toml$" for name in PREPARED},
    "data/emoji": write_pairs,
    "data/openstax": write_documents,
    "data/nlvr": write_statements,
    "data/fluent": write_pairs,
    "data/clipart": write_pairs,
    "Llama-3.2-1B": write_llama,
    "data/smollm2": write_smollm2,
    ".git": init_git,
    "data/sd3-vae": r"oneflow_dist\.commands\.autoencoder data/emoji-autoencoder",
    "data/llama3.tiktoken": r"oneflow_dist\.commands\.tokenizer",
    "data/digits": r"digits/make\.py data/digits$",
    "data/interleaved": r"interleaved/make\.py data/interleaved$",
    "runs/stories": r"^oneflow_dist\.train configs/stories\.toml$",
    "data/counting": r"digits/make\.py data/counting ",
    "runs/text_whole": r"^oneflow_dist\.train .* run\.folder=runs/text_whole ",
    "runs/text_blocks": r"^oneflow_dist\.train .* run\.folder=runs/text_blocks ",
    "runs/counting": r"^oneflow_dist\.train configs/counting\.toml$",
    "data/sounds": r"sounds/make\.py data/sounds$",
    "runs/sounds": r"^oneflow_dist\.train configs/sounds\.toml$",
    "data/styles": r"styles/make\.py data/styles$",
    "runs/styles": r"^oneflow_dist\.train configs/styles\.toml$",
    "runs/captions": r"^oneflow_dist\.train .* run\.folder=runs/captions ",
    "runs/captions_timeless": r"^oneflow_dist\.train .* run\.folder=runs/captions_timeless ",
    "data/stages": r"stages/make\.py data/stages$",
    "data/vqa": r"vqa/make\.py data/vqa$",
    "runs/features": r"^oneflow_dist\.train configs/features\.toml$",
    "data/drawings/autoencoder": r"commands\.autoencoder data/drawings/autoencoder ",
    "data/drawings/words.tiktoken": r"commands\.tokenizer .* data/drawings/words\.tiktoken ",
    "data/drawings/emoji": r"commands\.precompute data/emoji/\S+ data/drawings/emoji ",
    "data/drawings/fluent": r"commands\.precompute data/fluent/\S+ data/drawings/fluent ",
    "data/drawings/clipart": r"commands\.precompute data/clipart/\S+ data/drawings/clipart ",
    "data/drawings/questions-train": r"commands\.precompute data/vqa/train\S+ data/drawings/questions-train ",
    "data/drawings/questions-heldout": r"commands\.precompute data/vqa/heldout\S+ data/drawings/questions-heldout ",
    "runs/pictures": r"^oneflow_dist\.train configs/pictures\.toml$",
    "runs/questions": r"^oneflow_dist\.train configs/questions\.toml$",
    "data/drawings/judge": r"learn_judge\.py data/drawings/judge ",
    "data/vqa-latents": r"oneflow_dist\.commands\.precompute data/vqa/",
    "data/pictures/autoencoder": r"oneflow_dist\.commands\.autoencoder data/emoji-autoencoder",
    "data/pictures/words.tiktoken": r"oneflow_dist\.commands\.tokenizer",
    "data/emoji.tiktoken": r"oneflow_dist\.commands\.tokenizer",
    "data/emoji-autoencoder": r"oneflow_dist\.commands\.autoencoder data/emoji-autoencoder",
    "data/emoji-latents": r"oneflow_dist\.commands\.precompute data/emoji/",
    "data/captions": r"oneflow_dist\.commands\.precompute cc12m/",
    "runs/quickstart": r"^oneflow_dist\.train configs/quickstart\.toml$",
    "runs/transfusion_quickstart": r"^oneflow_dist\.train configs/transfusion_quickstart\.toml$",
    "runs/masked_quickstart": r"^oneflow_dist\.train configs/masked_quickstart\.toml$",
    **{f"runs/stages/{stage}": rf"train configs/stages/{stage}\.toml(?! run\.folder=runs/text_)" for stage in STAGES},
    "runs/from_llama": r"oneflow_dist\.train .*=runs/from_llama init\.path=Llama-3\.2-1B$",
    "runs/benchmarks/a": r"tools\.benchmark train .*--output runs/benchmarks/a$",
    "runs/benchmarks/b": r"tools\.benchmark train .*--output runs/benchmarks/b$",
    "for_transformers": r"commands\.export runs/quickstart for_transformers ",
    "for_diffusers": r"commands\.export runs/quickstart for_diffusers ",
    "exported": r"oneflow_dist\.commands\.export runs/from_llama exported$",
}
MAKES = {"tools/smollm2.py": "data/smollm2"}  # a program that is not run, of data that are written here
SAME_AS = {"data/sd3-vae": "data/emoji-autoencoder", "data/llama3.tiktoken": "data/emoji.tiktoken"}
SAME_AS |= {"data/pictures/autoencoder": "data/emoji-autoencoder"}
SAME_AS |= {"data/pictures/words.tiktoken": "data/emoji.tiktoken"}
