"""What must never happen: bytes from outside that run as code, and secrets in what a run writes or prints."""

from __future__ import annotations

import ast
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launching import Launcher
from tools.benchmark.machine import describe_machine

ROOT = Path(__file__).parents[1]
FOLDERS = ("kernels", "launch", "oneflow_dist", "tools")
SOURCE = [path for name in FOLDERS for path in sorted((ROOT / name).rglob("*.py"))]

# They run what they are given, or build objects of any kind from it.
RUNS_CODE = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "marshal.loads",
}
RUNS_CODE |= {"shelve.open", "joblib.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load"}
# A keyword with which the call is safe, and one with which it is not.
ASKED = {"torch.load": ("weights_only", True)}
FORBIDDEN = [("shell", True), ("allow_pickle", True), ("trust_remote_code", True), ("weights_only", False)]
FORBIDDEN += [("local_files_only", False)]
ALLOWED = {
    # Shapes of a checkpoint without torch: whatever it names becomes an inert stand-in, nothing of it is called.
    ("oneflow_dist/reporting/runs.py", "pickle.Unpickler"): "finds no class but stand-ins",
    ("oneflow_dist/data/mixture.py", "yaml.load"): "its loader is a SafeLoader that knows less",
    ("oneflow_dist/data/workers.py", "pickle.loads"): "of what a child has sent through its socket",
    ("oneflow_dist/stored_tensors.py", "pickle.Unpickler"): "as a base: it finds a few classes and nothing else",
}
SECRETS = {
    "WANDB_API_KEY": "local-5eced0123456789abcdef0123456789abcdef012",
    "HF_TOKEN": "hf_pLaNtEdToKeNpLaNtEdToKeNpLaNtEd",
    "AWS_SECRET_ACCESS_KEY": "pLaNtEdKeY0123456789pLaNtEdKeY0123456789",
}


def dangers_of(code: str) -> list[str]:
    """Calls, base classes and keywords of a file that let data run as code."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ClassDef):
            found += [ast.unparse(base) for base in node.bases if ast.unparse(base) in RUNS_CODE]
        if isinstance(node, ast.ImportFrom):
            found += [name for alias in node.names if (name := f"{node.module}.{alias.name}") in RUNS_CODE | set(ASKED)]
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            needed, value = ASKED.get(name, ("", None))
            if name in RUNS_CODE or (needed and keywords.get(needed) != str(value)):
                found.append(name)
            found += [f"{word}={value}" for word, value in FORBIDDEN if keywords.get(word) == str(value)]
    return found


def test_no_bytes_run_as_code_but_where_it_is_said_why() -> None:
    found = {(str(path.relative_to(ROOT)), name) for path in SOURCE for name in dangers_of(path.read_text())}
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    ("code", "danger"),
    [
        ("torch.load(path)", "torch.load"),
        ("torch.load(path, weights_only=False)", "torch.load"),
        ("from pickle import loads", "pickle.loads"),
        ("subprocess.run(f'ls {path}', shell=True)", "shell=True"),
        ("np.load(path, allow_pickle=True)", "allow_pickle=True"),
        ("class Reader(pickle.Unpickler): pass", "pickle.Unpickler"),
    ],
)
def test_a_danger_is_found(code: str, danger: str) -> None:
    assert danger in dangers_of(code)
    assert dangers_of("torch.load(path, weights_only=True); np.load(path); subprocess.run(['ls', path])") == []


def test_a_run_writes_and_prints_no_secret_of_its_environment(
    launcher: Launcher, train_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    overrides = ("train.steps=2", "metrics.profile_step=2", "metrics.wandb=offline")
    end = launcher.run(*train_command(tmp_path / "run", *overrides), env={"HOME": str(tmp_path), **SECRETS})
    assert end.code == 0, end.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {".wandb", ".gz", ".distcp", ".jsonl"} <= {path.suffix for path in files}
    written = {str(path): read(path) for path in files} | {"output": (end.stdout + end.stderr).encode()}
    for name, value in SECRETS.items():
        assert [path for path, content in written.items() if value.encode() in content] == [], name


def read(path: Path) -> bytes:
    """The content of a file, unpacked."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def test_what_a_measurement_says_of_its_machine_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    said = json.dumps(describe_machine(commit=""))
    assert not any(value in said for value in SECRETS.values())
