"""How likely a text is by the trigrams of others: a judge that has learnt nothing of the models that it judges."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Tokens = Sequence[int]
Context = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trigrams:
    """Interpolated trigrams of texts of token ids, each ended by `end`, which is also what stands before them.

    After a context that was followed n times, by t different tokens, a token that followed it c times has

        p(token | context) = (c + t p(token | shorter context)) / (n + t)

    where the shortest context is none, and behind it all of `vocab_size` tokens are as likely.

    Source: Witten and Bell (1991), method C, interpolated.
    """

    followers: dict[Context, Counter[int]]
    vocab_size: int
    end: int

    @classmethod
    def of(cls, texts: Sequence[Tokens], vocab_size: int, end: int) -> Trigrams:
        """Those of some texts."""
        followers: dict[Context, Counter[int]] = defaultdict(Counter)
        for text in texts:
            for context, token in _places(text, end):
                for start in range(3):
                    followers[context[start:]][token] += 1
        return cls(dict(followers), vocab_size, end)

    def prob(self, token: int, context: Context) -> float:
        """Of a token after the two before it, or after fewer."""
        shorter = self.prob(token, context[1:]) if context else 1.0 / self.vocab_size
        found = self.followers.get(context)
        if found is None:
            return shorter
        return (found[token] + len(found) * shorter) / (found.total() + len(found))

    def bits(self, texts: Sequence[Tokens]) -> float:
        """Cross-entropy of all texts in bits per token, of which the end of each is one.

        Raises:
            ValueError: there are no texts.
        """
        if not texts:
            raise ValueError("texts: none to measure; ask for at least one")
        probs = [self.prob(token, context) for text in texts for context, token in _places(text, self.end)]
        return -math.fsum(map(math.log2, probs)) / len(probs)


def share_repeated(texts: Sequence[Tokens], n: int = 3) -> float:
    """Of all n-grams, those that their text has had before; 0 where there is none."""
    grams = [grams_of(text, n) for text in texts]
    total = sum(map(len, grams))
    return sum(len(own) - len(set(own)) for own in grams) / total if total else 0.0


def share_known(texts: Sequence[Tokens], known: set[Context], n: int) -> float:
    """Of all n-grams, those that are known; 0 where there is none."""
    grams = [gram for text in texts for gram in grams_of(text, n)]
    return sum(gram in known for gram in grams) / len(grams) if grams else 0.0


def grams_of(text: Tokens, n: int) -> list[Context]:
    """All runs of n tokens of a text, in their order."""
    return [tuple(text[start : start + n]) for start in range(len(text) - n + 1)]


def _places(text: Tokens, end: int) -> Iterator[tuple[Context, int]]:
    """Every token of a text and its end, after the two before it."""
    padded = [end, end, *text, end]
    return (((padded[at - 2], padded[at - 1]), padded[at]) for at in range(2, len(padded)))
