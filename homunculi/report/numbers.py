"""Numbers as people read them."""

from __future__ import annotations

import math
from typing import Any

_SCALES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
# Between a number and its unit, where no line may end.
_GAP = "\u00a0"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: Any) -> float | None:
    """A finite float that can be drawn, or None: for text, truth values, NaN, infinities and giants."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    if abs(converted) < 1e-300:
        return 0.0
    return converted if math.isfinite(converted) and abs(converted) < 1e300 else None


def brief(value: Any) -> str:
    """Three figures and a suffix: 17.7 M (k thousand, M million, B billion, T trillion); beyond them a power of ten."""
    size = number(value)
    if size is None:
        return "–"
    if abs(size) >= 1e15 or 0 < abs(size) < 1e-3:
        exponent = math.floor(math.log10(abs(size)))
        return f"{size / 10.0**exponent:.3g}{_GAP}×{_GAP}10{power(exponent)}"
    for scale, suffix in _SCALES:
        if abs(size) >= scale * 0.9995:
            return f"{size / scale:#.3g}".rstrip(".") + _GAP + suffix
    return f"{size:.3g}" if abs(size) < 1000 and size != int(size) else f"{size:,.0f}"


def power(exponent: int) -> str:
    return str(exponent).translate(_SUPERSCRIPT)


def exact(value: Any) -> str:
    """Whole numbers with thousands marked; others with six figures."""
    size = number(value)
    if size is None:
        return "–"
    return f"{int(size):,}" if size == int(size) and abs(size) < 1e15 else f"{size:.6g}"


def decimals(value: Any) -> str:
    """A loss: four significant figures or three decimals, whichever shows less noise."""
    size = number(value)
    if size is None:
        return "–"
    return f"{size:.3f}" if 0.01 <= abs(size) < 100 else f"{size:.4g}"


def duration(seconds: Any) -> str:
    size = number(seconds)
    if size is None or size < 0:
        return "–"
    if size < 60:
        return f"{size:.1f}{_GAP}s" if size < 10 else f"{size:.0f}{_GAP}s"
    minutes, rest = divmod(round(size), 60)
    if minutes < 60:
        return f"{minutes}{_GAP}min {rest}{_GAP}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{_GAP}h {minutes}{_GAP}min" if hours < 48 else f"{hours // 24}{_GAP}d {hours % 24}{_GAP}h"


def bytes_of(size: Any) -> str:
    amount = number(size)
    if amount is None:
        return "–"
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(amount) < 1024:
            return f"{amount:.0f}{_GAP}{unit}" if unit == "bytes" else f"{amount:.3g}{_GAP}{unit}"
        amount /= 1024
    return f"{amount:.3g}{_GAP}TiB"
