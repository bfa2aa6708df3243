"""Which files of a suite are missing, and where each is to be had; before a model is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from oneflow_dist.data.shards import is_remote, list_shards
from oneflow_dist.evaluation.items import read_items
from oneflow_dist.evaluation.official_items import PictureFile, annotation_paths
from oneflow_dist.evaluation.suite import OFFICIAL, Suite, SuiteConfig, TaskConfig

SHOWN = 3  # missing pictures by name
PACKAGED = SuiteConfig()  # weights that come in packages, which say themselves what is missing
COCO = "https://cocodataset.org/#download"
WHERE = {  # the first pattern that fits the name of a file or folder
    "captions_*2014.json": f"{COCO}: annotations_trainval2014.zip, 241 MB",
    "captions_*2017.json": f"{COCO}: annotations_trainval2017.zip, 241 MB",
    "val2014": f"{COCO}: val2014.zip, 40,504 pictures, 6 GB",
    "train2014": f"{COCO}: train2014.zip, 82,783 pictures, 13 GB",
    "test2015": f"{COCO}: test2015.zip, 81,434 pictures, 12 GB",
    "dataset_*.json": "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
    "v2_*.json": "https://visualqa.org/download.html",
    "OpenEnded_mscoco_*.json": "https://okvqa.allenai.org/download.html",
    "mscoco_*_annotations.json": "https://okvqa.allenai.org/download.html",
    "*pope*.json": "https://github.com/AoiDragon/POPE: output/coco, 3,000 questions a file",
    "evaluation_metadata.jsonl": "https://github.com/djghosh13/geneval: prompts, 553 lines",
    "*inception-2015-12-05*.pth": "https://github.com/toshas/torch-fidelity: a file of its releases",
    "*inception-2015-12-05*.pt": "https://github.com/GaParmar/clean-fid: it downloads this file",
    "clip-*": "https://huggingface.co/openai: the folder of that name, its weights as model.safetensors",
}
SOURCES = {  # what else a benchmark consists of
    "coco_captions": COCO,
    "vqa": "https://visualqa.org/download.html",
    "dpg": "https://github.com/TencentQQGYLab/ELLA: dpg_bench/prompts, 1,065 files",
    "wise": "https://github.com/PKU-YuanGroup/WISE: data, 1,000 prompts in three files",
}
OURS = "make it, as the suite may say how, or name another"


def check_suite_files(suite: Suite) -> list[str]:
    """A line for everything that a suite names and is not there, or is damaged, with where it comes from.

    Nothing is loaded but annotations; pictures are looked for, not read.
    """
    lines = [f"task.{name}.{line}" for name, task in suite.task.items() for line in _check_task(name, task)]
    return [*lines, *(f"suite.{line}" for line in _check_weights(suite.suite))]


def _check_task(name: str, task: TaskConfig) -> Iterator[str]:
    if task.source in OFFICIAL:
        yield from _check_official(name, task)
    elif task.source == "items":
        yield from _check_items(task)
    elif task.path:
        yield from _check_shards("path", task.path)
    if task.trained_on:
        yield from _check_shards("trained_on", task.trained_on)
    if task.labelled and not Path(task.labelled).is_dir():
        yield _missing("labelled", task.labelled)
    if task.objects and not Path(task.objects).is_file():
        yield _missing("objects", task.objects)


def _check_official(name: str, task: TaskConfig) -> Iterator[str]:
    absent = [path for path in annotation_paths(task) if not path.exists()]
    for path in absent:
        yield _missing("path", path, task.source)
    has_folder = not task.pictures or Path(task.pictures).is_dir()
    if not has_folder:
        yield _missing("pictures", task.pictures, task.source)
    if absent:
        return
    try:
        items = read_items(name, task)
    except ValueError as error:
        yield f"path: {error}"
        return
    if has_folder:
        files = [picture.read for item in items for picture in item.pictures]
        yield from _count(task.pictures, [file.path for file in files if isinstance(file, PictureFile)], task.source)


def _check_items(task: TaskConfig) -> Iterator[str]:
    path = Path(task.path)
    if not path.is_file():
        yield _missing("path", path)
        return
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found += [path.parent / name for name in json.loads(line).get("pictures", [])]
        except (ValueError, AttributeError, TypeError) as error:
            yield f"path: {path}, line {number}: not a table ({error}); write it again"
    yield from _count(str(path.parent), found)


def _check_shards(key: str, pattern: str) -> Iterator[str]:
    try:
        found = [shard for shard in list_shards(key, pattern) if not is_remote(shard)]
    except ValueError as error:
        yield f"{key}: {error}"
        return
    for shard in found:
        if not Path(shard).is_file():
            yield _missing(key, shard)


def _check_weights(config: SuiteConfig) -> Iterator[str]:
    if config.features != PACKAGED.features and not Path(config.features).exists():
        yield _missing("features", config.features)
    weights = Path(config.aligner) / "model.safetensors"
    if config.aligner != PACKAGED.aligner and not weights.is_file():
        yield f"aligner: {weights} is missing; {_origin(weights.parent)}"


def _count(folder: str, paths: list[Path], source: str = "") -> Iterator[str]:
    distinct = list(dict.fromkeys(paths))  # questions share pictures
    absent = [path for path in distinct if not path.is_file()]
    if absent:
        shown = ", ".join(path.name for path in absent[:SHOWN])
        what = f"pictures: {len(absent)} of {len(distinct)} are missing in {folder}, as {shown}"
        yield f"{what}; {_origin(Path(folder), source)}"


def _missing(key: str, path: str | Path, source: str = "") -> str:
    return f"{key}: {path} is missing; {_origin(Path(path), source)}"


def _origin(path: Path, source: str = "") -> str:
    fitting = (where for pattern, where in WHERE.items() if fnmatch(path.name, pattern))
    return next(fitting, SOURCES.get(source, OURS))
