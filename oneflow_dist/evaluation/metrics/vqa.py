"""Is a short answer what people answered, spelling aside: the accuracy of VQA v2, and plain equality?"""

from __future__ import annotations

import re
from collections.abc import Sequence

from oneflow_dist.evaluation.bootstrap import Measure

AGREED = 3  # people who must have said the same for a full score
MARKS = ';/[]"{}()=+\\_-><@`,?!'
COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
FIGURES = {word: str(number) for number, word in enumerate(COUNTED)} | {"none": "0"}
ARTICLES = frozenset({"a", "an", "the"})
CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""

_COMPLETED = {
    word[:place] + word[place + 1 :]: word
    for word in CONTRACTIONS.split()
    for place, sign in enumerate(word)
    if sign == "'"
} | {"somebody'd": "somebodyd"}  # the other way round, in the official table
_STOP = re.compile(r"\.(?!\d)")
_THOUSANDS = re.compile(r"\d,\d")


def normalize_answer(text: str) -> str:
    """An answer as the official evaluation compares it.

    Marks go, or become a blank where none of their kind stands beside one; full stops go, but before a figure; letters
    are small, zero to ten are figures, articles go, and an apostrophe that was forgotten is put back.

    Source: arXiv:1505.00468, vqaEval.py of its repository GT-Vision-Lab/VQA, with the marks of EvalAI.
    """
    text = _STOP.sub("", _without_marks(text.replace("\n", " ").replace("\t", " ").strip()))
    words = [FIGURES.get(word, word) for word in text.lower().split()]
    return " ".join(_COMPLETED.get(word, word) for word in words if word not in ARTICLES)


def measure_vqa(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """The accuracy of VQA v2: min(1, people who said the same / 3), the mean over all choices of all people but one.

    Both sides are normalized, whether or not people agree: vqaEval.py leaves theirs as they are where all agree.

    Args:
        references: what people answered to each question: ten there, two or more.

    Raises:
        ValueError: no answer, fewer than two people, or lists that do not belong together.

    Source: arXiv:1505.00468.
    """
    _check(answers, references)
    for question, people in enumerate(references):
        if isinstance(people, str) or len(people) < 2:
            raise ValueError(f"vqa, question {question}: people said {people!r}; give the answers of two or more")
    return Measure.mean_of([_agreement(*pair) for pair in zip(answers, references, strict=True)])


def measure_exact(answers: Sequence[str], references: Sequence[str]) -> Measure:
    """The share of answers that equal the one that is right, both normalized.

    Raises:
        ValueError: no answer, or lists that do not belong together.
    """
    _check(answers, references)
    pairs = zip(answers, references, strict=True)
    return Measure.mean_of([normalize_answer(answer) == normalize_answer(right) for answer, right in pairs])


def _check(answers: Sequence[str], references: Sequence[object]) -> None:
    if len(answers) != len(references) or len(answers) == 0:
        raise ValueError(
            f"vqa: {len(answers)} answers to {len(references)} questions; give one to each, of one or more"
        )


def _without_marks(text: str) -> str:
    has_thousands = _THOUSANDS.search(text) is not None
    without = text
    for mark in MARKS:
        is_beside_blank = f"{mark} " in text or f" {mark}" in text
        without = without.replace(mark, "" if is_beside_blank or has_thousands else " ")
    return without


def _agreement(answer: str, people: Sequence[str]) -> float:
    said = normalize_answer(answer)
    same = [normalize_answer(other) == said for other in people]
    return sum(min(1.0, (sum(same) - one) / AGREED) for one in same) / len(same)
