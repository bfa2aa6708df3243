"""In which interval a number lies."""

from __future__ import annotations


def check_range(name: str, value: float, interval: str) -> None:
    """Refuse a number outside of an interval, or of several joined by " or ".

    Args:
        interval: as "[0, 1)" or "(0, inf]"; "[" and "]" belong to it, "(" and ")" do not.

    Raises:
        ValueError: says the name, the value and the interval.
    """
    if not any(_contains(part, value) for part in interval.split(" or ")):
        raise ValueError(f"{name}: {value} must lie in {interval}")


def _contains(interval: str, value: float) -> bool:
    """Whether it does; NaN lies in none."""
    low, high = (_bound(text) for text in interval[1:-1].split(", "))
    is_above = value >= low if interval[0] == "[" else value > low
    return is_above and (value <= high if interval[-1] == "]" else value < high)


def _bound(text: str) -> float:
    base, _, exponent = text.partition("^")
    return float(base) ** int(exponent or 1)
