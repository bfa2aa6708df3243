"""An item as its owner has it becomes samples that can be trained on, or a reason why not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from oneflow_dist.precompute.crop import CropPolicy
from oneflow_dist.prepare.duplicates import Signature, sign_picture
from oneflow_dist.prepare.images import ONE_COLOUR, cut_picture
from oneflow_dist.prepare.items import Blob, Item
from oneflow_dist.prepare.texts import MAX_CAPTION, clean_caption, clean_text, cut_text

Kind = Literal["pairs", "pictures", "documents", "conversations", "texts"]
KINDS: tuple[Kind, ...] = ("pairs", "pictures", "documents", "conversations", "texts")
MAX_CAPTIONS = 5  # of a picture
MAX_DOCUMENT = 2000  # characters; a longer document becomes several, so that small packs hold each
PICTURE_CHARACTERS = 250  # what a picture in a document counts as
Part = str | int  # a text, or the number of a picture of the sample

EMPTY_CAPTION = "empty captions, left out"
LONG_CAPTION = f"captions of more than {MAX_CAPTION} characters, left out"
MORE_CAPTIONS = f"captions beyond the {MAX_CAPTIONS} of a picture, left out"
CUT_DOCUMENT = f"documents of more than {MAX_DOCUMENT} characters, cut into several"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture of a sample; its PNG lies in the file beside the records."""

    offset: int  # of the PNG
    length: int
    sha256: str  # of the PNG
    bits: int | None  # of its signature
    colours: str  # hexadecimal
    width: int  # of all of it, upright
    height: int
    cut: tuple[int, int]  # height and width of the PNG
    done: tuple[str, ...]

    @property
    def signature(self) -> Signature:
        return Signature(self.bits, bytes.fromhex(self.colours))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample, its pictures cut and its texts clean."""

    key: str  # in its shard
    name: str  # of its item
    kind: Kind
    pictures: tuple[Picture, ...] = ()
    captions: tuple[str, ...] = ()
    turns: tuple[tuple[str, tuple[Part, ...]], ...] = ()  # of documents and texts one, of nobody
    fields: dict[str, Any] = field(default_factory=dict)
    done: tuple[str, ...] = ()  # to its texts

    @property
    def texts(self) -> list[str]:
        return [*self.captions, *(part for _, parts in self.turns for part in parts if isinstance(part, str))]

    def content_hash(self) -> str:
        """Of what it shows and says, whatever it is called."""
        digest = hashlib.sha256()
        for content in (*(picture.sha256 for picture in self.pictures), *self.texts):
            digest.update(content.encode("utf-8", "backslashreplace") + b"\0")
        return digest.hexdigest()


def read_sample(record: dict[str, Any]) -> Sample:
    """The sample that `dataclasses.asdict` made a record of, and JSON text of that."""
    pictures = [
        picture | {"cut": tuple(picture["cut"]), "done": tuple(picture["done"])} for picture in record["pictures"]
    ]
    own = {
        "pictures": tuple(Picture(**picture) for picture in pictures),
        "captions": tuple(record["captions"]),
        "turns": tuple((role, tuple(parts)) for role, parts in record["turns"]),
        "done": tuple(record["done"]),
    }
    return Sample(**(record | own))


class Preparation:
    """Prepares the items of one part of the work, one after another."""

    def __init__(self, policy: CropPolicy):
        self.policy = policy
        self.pngs = bytearray()  # of all pictures so far, one behind the other
        self.samples: list[dict[str, Any]] = []
        self.problems: list[dict[str, str]] = []

    def add(self, number: int, item: Item) -> None:
        """Prepare an item; what is wrong with one is noted."""
        size = len(self.pngs)
        try:
            if item.problem is not None:
                raise ValueError(item.problem)
            self.samples += [asdict(sample) for sample in self._prepare(f"{number:08d}", item)]
        except (ValueError, OSError) as error:
            del self.pngs[size:]
            reason = f"cannot be read ({error})" if isinstance(error, OSError) else str(error)
            self.problems.append({"name": item.name, "reason": reason})

    def _prepare(self, key: str, item: Item) -> list[Sample]:
        if item.turns:
            return [self._prepare_conversation(key, item)]
        if item.captions or (len(item.parts) == 1 and isinstance(item.parts[0], Blob)):
            return [self._prepare_pair(key, item)]
        return self._prepare_document(key, item)

    def _prepare_pair(self, key: str, item: Item) -> Sample:
        captions, done = _clean_captions(item.captions)
        pictures = tuple(self._prepare_picture(part, alone=True) for part in item.parts if isinstance(part, Blob))
        if not pictures:
            raise ValueError("has no picture")
        kind: Kind = "pairs" if captions else "pictures"
        fields = dict(item.fields)
        return Sample(
            key=key, name=item.name, kind=kind, pictures=pictures, captions=captions, fields=fields, done=done
        )

    def _prepare_document(self, key: str, item: Item) -> list[Sample]:
        parts: list[str | Picture] = []
        for part in item.parts:
            if isinstance(part, Blob):
                parts.append(self._prepare_picture(part))
            elif text := clean_text(part):
                parts += cut_text(text, MAX_DOCUMENT)
        if not parts:
            raise ValueError("has neither text nor a picture")
        stretches = list(_cut_document(parts))
        done = (CUT_DOCUMENT,) if len(stretches) > 1 else ()
        return [
            self._lay_out(f"{key}-{place:04d}" if done else key, item, [("", stretch)], done if place == 0 else ())
            for place, stretch in enumerate(stretches)
        ]

    def _prepare_conversation(self, key: str, item: Item) -> Sample:
        turns: list[tuple[str, list[str | Picture]]] = []
        for role, parts in item.turns:
            read = [self._prepare_picture(part) if isinstance(part, Blob) else clean_text(part) for part in parts]
            if not (full := [part for part in read if part]):
                if role == "system":
                    continue
                raise ValueError(f"has an empty turn (of the {role})")
            if turns and turns[-1][0] == role:
                turns[-1][1].extend(full)
            else:
                turns.append((role, full))
        if not any(role == "assistant" for role, _ in turns):
            raise ValueError("has no turn of the assistant")
        return self._lay_out(key, item, turns, ())

    def _lay_out(
        self, key: str, item: Item, turns: Sequence[tuple[str, list[str | Picture]]], done: tuple[str, ...]
    ) -> Sample:
        """A sample whose turns name its pictures by number."""
        pictures = [part for _, parts in turns for part in parts if isinstance(part, Picture)]
        numbers = iter(range(len(pictures)))
        named = tuple(
            (role, tuple(part if isinstance(part, str) else next(numbers) for part in parts)) for role, parts in turns
        )
        kind: Kind = "conversations" if item.turns else "documents" if pictures else "texts"
        fields = dict(item.fields)
        return Sample(
            key=key, name=item.name, kind=kind, pictures=tuple(pictures), turns=named, fields=fields, done=done
        )

    def _prepare_picture(self, blob: Blob, alone: bool = False) -> Picture:
        """Read, cut and sign a picture.

        Args:
            alone: it is the item's only one, and need not be named where something is wrong.
        """
        extension = blob.name.rpartition(".")[2].lower()
        try:
            content = blob.read()
            picture = cut_picture(content, extension, self.policy)
        except ValueError as error:
            raise ValueError(str(error) if alone else f"a picture {error} [{blob.name}]") from error
        png = picture.encode()
        signature = sign_picture(picture.whole, ONE_COLOUR in picture.done)
        self.pngs += png
        return Picture(
            offset=len(self.pngs) - len(png),
            length=len(png),
            sha256=hashlib.sha256(png).hexdigest(),
            bits=signature.bits,
            colours=signature.colours.hex(),
            width=picture.width,
            height=picture.height,
            cut=(picture.cut.height, picture.cut.width),
            done=picture.done,
        )


def _clean_captions(captions: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those that can be used, each once; and what was done to the others."""
    done, kept = [], dict[str, None]()
    for caption in map(clean_caption, captions):
        if not caption:
            done.append(EMPTY_CAPTION)
        elif len(caption) > MAX_CAPTION:
            done.append(LONG_CAPTION)
        elif caption not in kept and len(kept) == MAX_CAPTIONS:
            done.append(MORE_CAPTIONS)
        else:
            kept[caption] = None
    if LONG_CAPTION in done and not kept:
        raise ValueError(f"has a caption of more than {MAX_CAPTION} characters")
    return tuple(kept), tuple(done)


def _cut_document(parts: Sequence[str | Picture]) -> Iterator[list[str | Picture]]:
    """Stretches of a document that count no more than MAX_DOCUMENT characters, or hold one part."""
    stretch: list[str | Picture] = []
    total = 0
    for part in parts:
        size = len(part) if isinstance(part, str) else PICTURE_CHARACTERS
        if stretch and total + size > MAX_DOCUMENT:
            yield stretch
            stretch, total = [], 0
        stretch.append(part)
        total += size
    yield stretch
