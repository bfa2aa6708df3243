"""The README.md of an exported folder: what the model is, what it was trained on, what it is worth, how to use it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneflow_dist.config import Config

MOST_FIGURES = 48  # of one report


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a card tells."""

    name: str
    config: Config
    origin: Mapping[str, Any]  # as in oneflow.json
    num_parameters: int
    format: str  # "oneflow", "transformers" or "diffusers"
    licence: str
    about: str  # Markdown


def write_card(folder: Path, facts: Facts, run: Path) -> None:
    """Write README.md, and copy the pictures that it shows.

    Args:
        run: whose reports and pictures these are.
    """
    picture = _find_picture(run)
    if picture is not None:
        shutil.copy(picture, folder / "samples.png")
    parts = [
        _front_matter(facts),
        f"# {facts.name}",
        facts.about.strip(),
        "![what this model writes](samples.png)" if picture is not None else "",
        _use(facts),
        _model(facts),
        _data(facts),
        *(_report(path, path.relative_to(run)) for path in _find_reports(run)),
        f"## Licence\n\n{facts.licence}" if facts.licence else "",
    ]
    (folder / "README.md").write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _front_matter(facts: Facts) -> str:
    """What hubs read."""
    library = {"oneflow": "oneflow_dist"}.get(facts.format, facts.format)
    tags = ["oneflow", "edit-flows", "flow-matching", "text-to-image", "image-to-text"]
    lines = [f"library_name: {library}", "tags:", *(f"- {tag}" for tag in tags)]
    lines += [f"license: {facts.licence.lower()}"] if facts.licence else []
    return "\n".join(["---", *lines, "---"])


def _use(facts: Facts) -> str:
    """The shortest ways from the folder to a document."""
    prompt = next((prompt for prompt in facts.config.sampling.prompts if prompt), "")
    place = f"{facts.name}/transformer" if facts.format == "diffusers" else facts.name
    sample = f'oneflow sample {place} out --text "{prompt}"' if prompt else f"oneflow sample {place} out"
    blocks = [f"## Use\n\nWith oneflow_dist:\n\n    {sample}\n    oneflow serve {place}"]
    picture = next((name for name, own in facts.config.modality.items() if own.dimensions == 2), "")
    if facts.format == "transformers":
        needs = "; pictures come out of latents by diffusers" if facts.origin["autoencoders"] else ""
        blocks.append(f"With torch and transformers alone{needs}:\n\n{_as_code(_loading(facts.name, prompt, picture))}")
    if facts.format == "diffusers":
        text = prompt.replace(facts.config.modality[picture].token, "") if picture else prompt
        blocks.append(f"With diffusers and transformers:\n\n{_as_code(_piping(facts.name, text))}")
    return "\n\n".join(blocks)


def _loading(name: str, prompt: str, picture: str) -> list[str]:
    return [
        "from transformers import AutoModel, AutoTokenizer",
        "",
        f'model = AutoModel.from_pretrained("{name}", trust_remote_code=True)',
        f'tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)',
        f"document = model.write(tokenizer, {prompt!r}, seed=0)",
        "print(document.parts)",
        *([f"pixels = model.pixels(document, {picture!r})"] if picture else []),
    ]


def _piping(name: str, text: str) -> list[str]:
    return [
        "from diffusers import DiffusionPipeline",
        "",
        f'pipeline = DiffusionPipeline.from_pretrained("{name}", trust_remote_code=True)',
        f'pipeline({text!r}).images[0].save("picture.png")',
    ]


def _as_code(lines: list[str]) -> str:
    return "\n".join(f"    {line}".rstrip() for line in lines)


def _model(facts: Facts) -> str:
    config = facts.config
    model, rows = config.model, []
    rows.append(("parameters", f"{facts.num_parameters:,}"))
    rows.append(("trunk", f"{model.num_layers} blocks, width {model.width}, {model.num_attention_heads} heads"))
    rows.append(("text", f"{config.objective.kind}; {model.vocab_size:,} tokens"))
    for name, own in config.modality.items():
        shape = "x".join(map(str, (own.channels, *own.shape)))
        rows.append((name, f"{shape} in patches of {'x'.join(map(str, own.patch))}, codec {own.codec}"))
    for name, made_by in facts.origin["autoencoders"].items():
        rows.append(
            (f"autoencoder of {name}", f"{made_by['name']}, sha256 of its weights `{made_by['weights_sha256']}`")
        )
    steps, data = facts.origin["step"], config.data
    rows.append(
        ("trained for", f"{steps:,} steps of {data.packs_per_step * data.rows_per_pack:,} rows, seed {config.run.seed}")
    )
    rows.append(("weights", {"ema": "averaged", "model": "as last trained"}[facts.origin["weights"]]))
    rows.append(("written by", f"oneflow_dist {facts.origin['oneflow_dist']}; config.toml has every knob"))
    return "## Model\n\n" + _table(("", ""), rows)


def _data(facts: Facts) -> str:
    """What it was trained on, by source."""
    sources = facts.origin["data"].get("sources", {})
    if not sources:
        return ""
    rows = [
        (name, f"{of['samples']:,}", f"{of['weight']:.0%}", f"`{of['sha256'][:16]}`") for name, of in sources.items()
    ]
    return "## Training data\n\n" + _table(("source", "samples", "share of draws", "sha256 of its shards"), rows)


def _report(path: Path, name: Path) -> str:
    """The figures of a report of an evaluation, those of a suite with their intervals."""
    rows = [(figure, value) for figure, value in _figures(json.loads(path.read_text()))][:MOST_FIGURES]
    return f"## Measured: {name}\n\n" + _table(("figure", "value"), rows) if rows else ""


def _figures(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if key in ("protocol", "libraries", "notes", "sampling", "settings"):
            continue
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and "value" in value:
            shown = f" [{value['low']:.3f}, {value['high']:.3f}]" if "low" in value else ""
            yield name, f"{value['value']:.4g}{shown}"
        elif isinstance(value, Mapping):
            yield from _figures(value, f"{name.removesuffix('figures').rstrip()} ".replace("tasks ", ""))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def _find_reports(run: Path) -> list[Path]:
    """What evaluations have left in a run folder: of each suite the newest."""
    newest = {path.parents[1]: path for path in sorted(run.glob("evaluation/*/step-*/report.json"))}
    return [*sorted(run.glob("*.json")), *newest.values()]


def _find_picture(run: Path) -> Path | None:
    """What an evaluation has drawn, or the newest samples of training."""
    return next(iter([*sorted(run.glob("*.png")), *sorted(run.glob("samples/step-*.png"), reverse=True)]), None)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
