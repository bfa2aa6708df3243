from __future__ import annotations

import math

import pytest

from tools.experiments.trigram import Trigrams, grams_of, share_known, share_repeated

A, B, END = 0, 1, 9


def test_probabilities_are_those_of_the_closed_form() -> None:
    judge = Trigrams.of([[A, B], [A, A]], vocab_size=10, end=END)
    # a, b, end and a, a, end: after nothing a 3, b 1, end 2; after a: b 1, a 1, end 1; after the start: a 2.
    none = {A: (3 + 3 / 10) / 9, B: (1 + 3 / 10) / 9, END: (2 + 3 / 10) / 9, 5: (3 / 10) / 9}
    after_a = {token: (1 + 3 * none[token]) / 6 for token in (A, B, END)}
    for token, prob in none.items():
        assert judge.prob(token, ()) == pytest.approx(prob)
    for token, prob in after_a.items():
        assert judge.prob(token, (A,)) == pytest.approx(prob)
    assert judge.prob(B, (END, A)) == pytest.approx((1 + 2 * after_a[B]) / 4)
    assert judge.prob(A, (END, END)) == pytest.approx((2 + (2 + none[A]) / 3) / 3)


def test_after_what_was_never_seen_the_shorter_context_decides() -> None:
    judge = Trigrams.of([[A, B], [A, A]], vocab_size=10, end=END)
    assert judge.prob(A, (7, 8)) == judge.prob(A, ())
    assert judge.prob(B, (7, A)) == judge.prob(B, (A,))


@pytest.mark.parametrize("context", [(), (A,), (B,), (END, END), (END, A), (A, B), (7, 7)])
def test_probabilities_sum_to_one(context: tuple[int, ...]) -> None:
    judge = Trigrams.of([[A, B, A], [B], [A, A, 4]], vocab_size=10, end=END)
    assert math.fsum(judge.prob(token, context) for token in range(10)) == pytest.approx(1.0)


def test_bits_are_the_mean_of_all_tokens_and_ends() -> None:
    judge = Trigrams.of([[A, B], [A, A]], vocab_size=10, end=END)
    probs = [judge.prob(A, (END, END)), judge.prob(END, (END, A)), judge.prob(END, (END, END))]
    assert judge.bits([[A], []]) == pytest.approx(-math.log2(math.prod(probs)) / 3)
    assert judge.bits([[A, B]]) < judge.bits([[B, B]]) < judge.bits([[5, 6]])


def test_without_training_every_token_is_as_likely() -> None:
    assert Trigrams.of([], vocab_size=8, end=7).bits([[1, 2], [3]]) == pytest.approx(3.0)


def test_no_texts_have_no_bits() -> None:
    with pytest.raises(ValueError, match="texts: none to measure; ask for at least one"):
        Trigrams.of([[A]], vocab_size=8, end=7).bits([])


def test_a_gram_is_repeated_within_its_own_text_alone() -> None:
    assert share_repeated([[1, 2, 3, 1, 2, 3]], 3) == 1 / 4
    assert share_repeated([[1, 2, 3], [1, 2, 3]], 3) == 0.0
    assert share_repeated([[1, 1, 1, 1], [1, 2]], 3) == 1 / 2
    assert share_repeated([[1, 2], []], 3) == 0.0


def test_runs_are_counted_over_all_texts() -> None:
    known = set(grams_of([1, 2, 3, 4, 5], 4))
    assert known == {(1, 2, 3, 4), (2, 3, 4, 5)}
    assert share_known([[1, 2, 3, 4], [2, 3, 4, 5, 6], [1]], known, 4) == 2 / 3
    assert share_known([[1, 2]], known, 4) == 0.0
