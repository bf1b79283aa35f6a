"""Numbers as the reports print them."""

import math


def number(value: float | None) -> str:
    """A value in three or four digits, with thousands separated; an en dash for None and NaN."""
    if value is None or value != value:
        return "–"
    size = abs(value)
    if size == 0:
        text = "0"
    elif size >= 1000:
        text = f"{value:,.0f}"
    elif size >= 1e-4:
        # Three decimals below 10, two below 100, one below 1000; more where all three would be zeros.
        decimals = 3 - (size >= 10) - (size >= 100)
        text = f"{value:.{decimals}f}" if size >= 0.0095 else f"{value:.{1 - math.floor(math.log10(size))}f}"
    else:
        digits, exponent = f"{value:.1e}".split("e")
        text = f"{digits}e{int(exponent)}"
    return text.replace("-", "−")


def signed(value: float) -> str:
    """A difference with its sign."""
    return number(value) if value < 0 else f"+{number(value)}"


def counted(count: int, word: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"
