"""Stories on request: who comes, in which colour, how many of them and in which order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oneflow_dist.evaluation.interleaved.scenes import COLOURS, COUNTS, NOUNS, say_scene

MOST_SCENES = 4
AGAIN = 0.5  # of the stories of three scenes and more end with their first scene


@dataclass(frozen=True, slots=True)
class Story:
    """What is asked for, and the scenes that are to come."""

    prompt: str
    scenes: tuple[str, ...]  # labels, as "two red fish"

    @property
    def leads(self) -> list[str]:
        """The first word of each scene's text."""
        is_again = len(self.scenes) > 1 and self.scenes[-1] == self.scenes[0]
        return ["first", *["then"] * (len(self.scenes) - 2), "again" if is_again else "then"][: len(self.scenes)]

    @property
    def texts(self) -> list[str]:
        """What is said before each picture."""
        return [say_scene(lead, label) for lead, label in zip(self.leads, self.scenes, strict=True)]


def draw_story(rng: np.random.Generator) -> Story:
    """A story of one to four scenes; no two are of the same kind of animal, unless the last is the first again."""
    number = int(rng.integers(1, MOST_SCENES + 1))
    is_again = number > 2 and rng.random() < AGAIN
    nouns = rng.choice([*NOUNS], size=number - is_again, replace=False)
    labels = [f"{rng.choice(COUNTS)} {rng.choice(COLOURS)} {noun}" for noun in nouns]
    asked = [say_scene("then", label).removeprefix("then ") for label in labels]
    if is_again:
        noun = str(nouns[0])
        asked.append(f"again the {noun if labels[0].startswith('one') else NOUNS[noun]}")
    return Story(f"tell of {', '.join(asked)}", (*labels, *labels[:1]) if is_again else tuple(labels))
