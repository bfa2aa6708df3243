"""From answers to figures: what each score of a suite makes of the files that a model has written."""

from __future__ import annotations

import functools
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from PIL import Image

from oneflow_dist.evaluation.answers import Answer, read_png
from oneflow_dist.evaluation.bootstrap import Measure
from oneflow_dist.evaluation.interleaved.judge import Judge
from oneflow_dist.evaluation.interleaved.parts import score_documents, score_figures
from oneflow_dist.evaluation.items import Item, Picture
from oneflow_dist.evaluation.suite import SuiteConfig, TaskConfig

if TYPE_CHECKING:
    from oneflow_dist.evaluation.metrics.alignment import Aligner


@dataclass(slots=True)
class Scored:
    """The figures of a task, and what is to be said beside them."""

    measures: dict[str, Measure] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Answers beside their items, one item for each answer."""

    name: str
    task: TaskConfig
    suite: SuiteConfig
    items: Sequence[Item]
    answers: Sequence[Answer]

    @property
    def references(self) -> list[list[str]]:
        """The texts that each answer may be."""
        found = []
        for item in self.items:
            value = item.fields.get(self.task.truth)
            values = value if isinstance(value, list) else [value]
            if not values or None in values:
                raise ValueError(
                    f"task.{self.name}: item {item.key} has no {self.task.truth} to compare with; name a field in truth"
                )
            found.append([str(text) for text in values])
        return found

    @property
    def made(self) -> list[Pictures]:
        """The pictures of each answer."""
        return [pictures_of(answer) for answer in self.answers]

    @property
    def given(self) -> list[Pictures]:
        """The pictures of each item."""
        return [Pictures([*map(reader_of, item.pictures)]) for item in self.items]

    @property
    def device(self) -> str:
        """Where networks look at pictures."""
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"


class Pictures(Sequence[Image.Image]):
    """Pictures that are read when they are looked at, since sets are larger than memory."""

    def __init__(self, readers: Sequence[Callable[[], Image.Image]]):
        self.readers = readers

    def __len__(self) -> int:
        return len(self.readers)

    @overload
    def __getitem__(self, place: int) -> Image.Image: ...
    @overload
    def __getitem__(self, place: slice) -> list[Image.Image]: ...
    def __getitem__(self, place: int | slice) -> Image.Image | list[Image.Image]:
        if isinstance(place, slice):
            return [read() for read in self.readers[place]]
        return self.readers[place]()

    @classmethod
    def join(cls, sets: Iterable[Pictures]) -> Pictures:
        """All of several sets."""
        return cls([read for own in sets for read in own.readers])


def pictures_of(answer: Answer) -> Pictures:
    """What an answer shows."""
    return Pictures([functools.partial(read_png, answer.folder / name) for name in answer.images])


def reader_of(picture: Picture) -> Callable[[], Image.Image]:
    """What reads a picture of an item."""
    return lambda: decode(picture.read(), picture.name)


def decode(content: bytes, name: str) -> Image.Image:
    """A picture of an item.

    Raises:
        ValueError: it is none.
    """
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{name}: no picture ({error}); copy it again") from error


def match(name: str, task: TaskConfig, suite: SuiteConfig, items: Sequence[Item], answers: Sequence[Answer]) -> Asked:
    """Each answer beside its item.

    Raises:
        ValueError: an item has too few answers, or there is one of another item: the pairs would be wrong.
    """
    by_key = {item.key: item for item in items}
    expected = {(item.key, number) for item in items for number in range(task.repeats)}
    found = {(answer.key, answer.number) for answer in answers}
    if unlike := sorted(expected ^ found):
        what = "has no answer" if unlike[0] in expected else "was answered, but is not asked"
        raise ValueError(
            f"task.{name}: item {unlike[0][0]} {what}, as are {len(unlike) - 1} others; write the answers of this "
            "suite first, in a folder of their own"
        )
    return Asked(name=name, task=task, suite=suite, items=[by_key[a.key] for a in answers], answers=answers)


def score(asked: Asked) -> Scored:
    """All that the task's scores say, and what is told of every text and picture."""
    from oneflow_dist.evaluation.originality import score_originality

    scored = Scored()
    for name in asked.task.scores:
        SCORES[name](asked, scored)
    score_originality(asked, scored)
    if full := sum(answer.hit_cap for answer in asked.answers):
        scored.notes.append(f"{full} of {len(asked.answers)} documents reached max_rows")
    return scored


def score_captions(asked: Asked, scored: Scored) -> None:
    """BLEU, ROUGE-L and CIDEr."""
    from oneflow_dist.evaluation.metrics.captions import measure_captions

    scored.measures |= measure_captions([answer.text for answer in asked.answers], asked.references)


def score_meteor(asked: Asked, scored: Scored) -> None:
    """METEOR."""
    from oneflow_dist.evaluation.metrics.meteor import measure_meteor

    scored.measures["meteor"] = measure_meteor([answer.text for answer in asked.answers], asked.references)


def score_vqa(asked: Asked, scored: Scored) -> None:
    """Accuracy beside several humans."""
    from oneflow_dist.evaluation.metrics.vqa import measure_vqa

    scored.measures["vqa_accuracy"] = measure_vqa([answer.text for answer in asked.answers], asked.references)


def score_exact(asked: Asked, scored: Scored) -> None:
    """Equality with the first reference; where there are choices, what a blind choice has."""
    from oneflow_dist.evaluation.metrics.vqa import measure_exact

    truth = [references[0] for references in asked.references]
    scored.measures["accuracy"] = measure_exact([answer.text for answer in asked.answers], truth)
    choices = [item.fields.get("choices") or asked.task.choices for item in asked.items]
    if chances := [1.0 / len(own) for own in choices if own]:
        scored.notes.append(f"a blind choice is right in {sum(chances) / len(chances):.3f}")


def score_yes_no(asked: Asked, scored: Scored) -> None:
    """POPE's figures."""
    from oneflow_dist.evaluation.metrics.yes_no import measure_yes_no, read_yes_no

    truth = [read_yes_no(references[0]) for references in asked.references]
    if None in truth:
        item = asked.items[truth.index(None)]
        raise ValueError(
            f"task.{asked.name}: {asked.task.truth} of item {item.key} is neither yes nor no; name a field in truth"
        )
    said = [read_yes_no(answer.text) for answer in asked.answers]
    if neither := said.count(None):
        scored.notes.append(
            f"{neither} of {len(said)} say neither yes nor no, which counts as yes, as in POPE's program"
        )
    scored.measures |= measure_yes_no([answer is not False for answer in said], [bool(label) for label in truth])


def score_chair(asked: Asked, scored: Scored) -> None:
    """Objects that captions name and pictures do not show."""
    from oneflow_dist.evaluation.metrics.hallucination import measure_chair

    table = read_objects(Path(asked.task.objects))
    keys = [str(item.fields.get("image_id", item.key)) for item in asked.items]
    if missing := [key for key in keys if key not in table["objects"]]:
        raise ValueError(f"{asked.task.objects}: no objects of picture {missing[0]}; name the file of this set")
    objects = [table["objects"][key] for key in keys]
    scored.measures |= measure_chair([answer.text for answer in asked.answers], objects, table["synonyms"])


def read_objects(path: Path) -> dict[str, Any]:
    """`objects`, a list for each picture, and `synonyms`, the object of each word.

    Raises:
        ValueError: it is no such file.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return {"objects": dict(table["objects"]), "synonyms": dict(table["synonyms"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not JSON with objects and synonyms ({error}); docs/evaluation.md has it") from error


def score_distance(asked: Asked, scored: Scored) -> None:
    """Fréchet's and the kernel distance of made pictures from the first one of each item, by the suite's features."""
    from oneflow_dist.evaluation.metrics.distances import frechet_bias_note, measure_frechet, measure_kernel
    from oneflow_dist.evaluation.metrics.features import load_extractor

    extractor = load_extractor(asked.suite.features, asked.device, asked.suite.features_sha256 or None)
    made = Pictures.join(asked.made)
    firsts = {item.key: reader_of(item.pictures[0]) for item in asked.items if item.pictures}
    real = Pictures([*firsts.values()])
    if min(len(made), len(real)) < 2:
        raise ValueError(
            f"task.{asked.name}: a distance of {len(made)} made pictures from {len(real)} real ones; ask for more"
        )
    ours, theirs = extractor(made), extractor(real)
    kernel = measure_kernel(ours, theirs)
    scored.measures[extractor.title("FID")] = measure_frechet(ours, theirs)
    scored.measures[extractor.title("KID")] = kernel.measure
    scored.notes.append(f"KID differs by {kernel.std:.5f} between its subsets (standard deviation)")
    scored.notes.append(f"{extractor.title('FID')}: {frechet_bias_note(len(made), len(real), extractor.dim)}")
    scored.notes.append(f"features: {extractor.name}, sha256 {extractor.sha256}")


def score_alignment(asked: Asked, scored: Scored) -> None:
    """How well pictures go with their captions: made ones with the items', or the items' with made captions."""
    from oneflow_dist.evaluation.metrics.alignment import measure_alignment

    pairs = [
        (made.readers[0], str(item.fields.get("caption") or answer.text)) if made else (given.readers[0], answer.text)
        for item, answer, made, given in zip(asked.items, asked.answers, asked.made, asked.given, strict=True)
        if made or given
    ]
    if not pairs:
        raise ValueError(f"task.{asked.name}: no answer and no item has a picture to be aligned with its caption")
    aligner = aligner_of(asked.suite.aligner, asked.device)
    measures = measure_alignment(Pictures([read for read, _ in pairs]), [caption for _, caption in pairs], aligner)
    scored.notes += [f"{name}: {measures.pop(name).value:.4f}" for name in [*measures] if name.startswith("chance")]
    scored.measures |= measures
    scored.notes.append(f"alignment: {aligner.name}, sha256 {aligner.sha256}; {len(pairs)} pairs")


@functools.cache  # loading takes as long as looking at a hundred pictures
def aligner_of(folder: str, device: str) -> Aligner:
    """What `load_aligner` loads, once."""
    from oneflow_dist.evaluation.metrics.alignment import load_aligner

    return load_aligner(folder, device)


def score_labels(asked: Asked, scored: Scored) -> None:
    """How many answers are what is named: pictures by the judge, texts by the one label that they contain.

    What is named stands in the item's caption, or where it has none in the answer's own text.
    """
    judge = Judge.of(Path(asked.task.labelled))
    rows: dict[str, list[bool]] = {"valid_text": [], "one_picture": [], "agreement": []}
    for item, answer, made in zip(asked.items, asked.answers, asked.made, strict=True):
        caption = item.fields.get("caption")
        wanted, said = find_label(str(caption or answer.text), judge), find_label(answer.text, judge)
        if made or caption is None:
            rows["one_picture"].append(len(made) == 1)
            shown = judge.read(made)[0] if len(made) == 1 else None
        else:
            shown = said
        if not (made and caption):  # an answer that should be a text
            rows["valid_text"].append(said is not None)
        rows["agreement"].append(wanted is not None and shown == wanted)
    scored.measures |= {name: Measure.mean_of(values) for name, values in rows.items() if values}


def find_label(text: str, judge: Judge) -> str | None:
    """The only label that a text contains, as whole words."""
    found = {label for label in set(judge.labels) if re.search(rf"\b{re.escape(label)}\b", text)}
    return found.pop() if len(found) == 1 else None


def score_interleaved(part: str, asked: Asked, scored: Scored) -> None:
    """Documents of the interleaved benchmark."""
    fields = [item.fields for item in asked.items]
    scored.measures |= score_documents(part, fields, asked.answers, Judge.of(Path(asked.task.labelled)))


def score_painted(asked: Asked, scored: Scored) -> None:
    """The rank of painted figures among others."""
    from oneflow_dist.evaluation.interleaved.figures import chance

    scored.measures |= score_figures(asked.given, asked.answers)
    blind = chance(min(map(len, asked.given)))
    scored.notes.append(", ".join(f"{name} of a blind choice: {value:.3f}" for name, value in blind.items()))


SCORES: dict[str, Callable[[Asked, Scored], None]] = {
    "captions": score_captions,
    "meteor": score_meteor,
    "vqa": score_vqa,
    "exact": score_exact,
    "yes_no": score_yes_no,
    "chair": score_chair,
    "distance": score_distance,
    "alignment": score_alignment,
    "labels": score_labels,
    "counting": lambda asked, scored: score_interleaved("counting", asked, scored),
    "stories": lambda asked, scored: score_interleaved("stories", asked, scored),
    "figures": score_painted,
}
