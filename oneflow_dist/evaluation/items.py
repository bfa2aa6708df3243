"""What is asked: items with their pictures, and what is known of the truth."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneflow_dist.evaluation.suite import OFFICIAL, TaskConfig

if TYPE_CHECKING:
    from oneflow_dist.containers import ShardRecord
    from oneflow_dist.data.shards import ShardSet


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that is read when it is wanted: sets are larger than memory."""

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A question. Its fields fill the prompt and hold the truth, as `references`, a list of texts."""

    key: str  # a name of a file, of one task
    fields: dict[str, Any]
    pictures: tuple[Picture, ...] = ()
    prompt: str = ""  # its own, where the task has none

    @property
    def sha256(self) -> str:
        """Of all that it says and shows."""
        digest = hashlib.sha256(json.dumps([self.key, self.prompt, self.fields], sort_keys=True).encode())
        for picture in self.pictures:
            digest.update(hashlib.sha256(picture.read()).digest())
        return digest.hexdigest()


def read_items(name: str, task: TaskConfig) -> list[Item]:
    """The items of a task, in an order that is always the same.

    Raises:
        ValueError: what they are read from is missing or damaged, or no item is left.
    """
    if task.source in OFFICIAL:
        from oneflow_dist.evaluation.official_items import read_official

        found = read_official(task)
    else:
        readers = {
            "prompts": read_lines,
            "shards": read_shards,
            "conversations": read_conversations,
            "items": read_list,
        }
        found = readers[task.source](task)
    wanted = (item for item in found if all(str(item.fields.get(k)) == v for k, v in task.where.items()))
    items = list(itertools.islice(wanted, task.count or None))
    if not items:
        raise ValueError(f"task.{name}: {task.path or 'prompts'} has no item for it; mend path or where")
    key, times = Counter(item.key for item in items).most_common(1)[0]
    if times > 1:
        raise ValueError(f"task.{name}: {task.path} has {times} items called {key}; give each its own key")
    return items


def read_lines(task: TaskConfig) -> Iterator[Item]:
    """An item for each of the task's own prompts."""
    for number, prompt in enumerate(task.prompts):
        yield Item(key=f"{number:04d}", fields={}, prompt=prompt)


def read_shards(task: TaskConfig) -> Iterator[Item]:
    """The samples of shards: fields of their .json, `caption` of their .txt, and `references`, that caption alone."""
    from oneflow_dist.data.decoding import read_fields
    from oneflow_dist.data.shards import open_shards
    from oneflow_dist.data.tar import IMAGE_EXTENSIONS

    shards = open_shards("task", task.path)
    for index in range(len(shards)):
        record = shards.read(index)
        fields = dict(read_fields(record))
        if "txt" in record.files:
            fields["caption"] = record.files["txt"].decode("utf-8-sig").strip()
            fields.setdefault("references", [fields["caption"]])
        names = [name for name in record.files if name.rpartition(".")[2] in IMAGE_EXTENSIONS]
        pictures = tuple(Picture(f"{record.key}.{name}", partial(_read, shards, index, name)) for name in names)
        yield Item(key=shards.key(index), fields=fields, pictures=pictures)


def _read(shards: ShardSet, index: int, name: str) -> bytes:
    return shards.read(index).files[name]


def read_conversations(task: TaskConfig) -> Iterator[Item]:
    """What the user says last in each conversation of shards, with all before it; `references`: the answer there."""
    from oneflow_dist.data.decoding import read_fields, read_segments
    from oneflow_dist.data.shards import open_shards

    shards = open_shards("task", task.path)
    for index in range(len(shards)):
        record = shards.read(index)
        fields = dict(read_fields(record))
        segments = read_segments(record, fields)
        first = max((n for n, s in enumerate(segments) if s.role != "assistant"), default=-1) + 1
        answer = [segment.text for segment in segments[first:] if segment.text is not None]
        if first == 0 or not answer:
            raise ValueError(f"sample {record.key}: no question with an answer of text after it; name other shards")
        prompt, role, pictures = "", "", list[Picture]()
        for number, segment in enumerate(segments[:first]):
            prompt += "" if segment.role == role else f"<|{segment.role}|>"
            role = segment.role
            if segment.piece is None:
                prompt, fields[f"text_{number}"] = f"{prompt}{{text_{number}}}", segment.text
            else:
                name = picture_file(record, segment.piece)
                prompt += f"{{picture_{len(pictures)}}}"
                pictures.append(Picture(f"{record.key}.{name}", partial(_read, shards, index, name)))
        fields["references"] = ["\n\n".join(answer)]
        yield Item(key=shards.key(index), prompt=f"{prompt}<|assistant|>", fields=fields, pictures=tuple(pictures))


def picture_file(record: ShardRecord, piece: str) -> str:
    """The file of a record that holds a picture, which has no name of its own in a pair.

    Raises:
        ValueError: there is none.
    """
    from oneflow_dist.data.tar import IMAGE_EXTENSIONS

    for name in record.files:
        stem, _, extension = name.rpartition(".")
        if stem == piece and extension in IMAGE_EXTENSIONS:
            return name
    raise ValueError(f"sample {record.key}: no picture {piece}; only pictures and texts are asked here")


def read_list(task: TaskConfig) -> Iterator[Item]:
    """The lines of a .jsonl file: `key`, `prompt`, `pictures` (files beside it), and whatever else is known."""
    path = Path(task.path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file of items; make it, or name another in path")
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), start=1):
        try:
            fields = json.loads(line)
            key, prompt, names = str(fields.pop("key")), str(fields.pop("prompt", "")), fields.pop("pictures", [])
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not a table with a key ({error}); write it again") from error
        yield Item(key=key, prompt=prompt, fields=fields, pictures=tuple(picture_of(path.parent / n) for n in names))


def picture_of(path: Path) -> Picture:
    """A picture in a file.

    Raises:
        ValueError: there is no such file.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such picture; put it there, or mend what names it")
    return Picture(path.name, path.read_bytes)
