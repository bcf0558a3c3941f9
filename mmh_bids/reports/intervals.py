"""Drawings of a number and its interval for several rows, as SVG in the page: they follow its light or dark colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite

from markupsafe import Markup

#: Width and heights in user units: narrow, so that words can be read on a phone.
_WIDTH, _ROW, _TOP, _BOTTOM, _SIDE = 360.0, 34.0, 8.0, 30.0, 10.0


@dataclass(frozen=True)
class Mark:
    """One row of a drawing.

    Attributes
    ----------
    label
        Words above it.
    value, low, high
        Dot and line; NaN are not drawn.
    band
        Ends of a grey band behind, such as a null interval.
    floor
        A hollow mark, such as the scan-rescan floor.
    control
        Drawn in the controls' colour and shape.
    """

    label: str
    value: float
    low: float = float("nan")
    high: float = float("nan")
    band: tuple[float, float] | None = None
    floor: float | None = None
    control: bool = False


def draw(title: str, marks: Sequence[Mark], lines: Sequence[tuple[float, str]] = ()) -> Markup:
    """Draw rows over one axis.

    Parameters
    ----------
    title
        What a screen reader says first.
    marks
        From top to bottom.
    lines
        Values with a dashed line through all rows, and what each is.

    Returns
    -------
    An ``svg`` element; empty where there is nothing finite to draw.

    Examples
    --------
    >>> text = draw("MAE", [Mark("none", 0.5, 0.4, 0.6)], [(0.0, "no difference")])
    >>> text.startswith("<svg"), "none: 0.5 (0.4 to 0.6)" in text, draw("x", [])
    (True, True, Markup(''))
    """
    numbers = [number for mark in marks for number in _numbers(mark)] + [value for value, _ in lines]
    if not any(isfinite(mark.value) for mark in marks):
        return Markup("")
    low, high = min(numbers), max(numbers)
    room = 0.05 * (high - low) or 0.5
    low, high = low - room, high + room

    def x(value: float) -> float:
        return _SIDE + (value - low) / (high - low) * (_WIDTH - 2 * _SIDE)

    height = _TOP + _ROW * len(marks) + _BOTTOM
    parts = []
    for value, words in lines:
        parts.append(
            f'<line x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{_TOP}" y2="{height - _BOTTOM:.1f}" '
            f'style="stroke:var(--soft)" stroke-dasharray="3 3"><title>{escape(words)}</title></line>'
        )
    for place, mark in enumerate(marks):
        parts += _row(mark, _TOP + place * _ROW, x)
    parts += _axis(low, high, height - _BOTTOM, x)
    said = "; ".join(_said(mark) for mark in marks)
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH:g} {height:g}" role="img" aria-label="{escape(f"{title}. {said}")}" '
        f'style="max-width:30rem" font-size="12">{"".join(parts)}</svg>'
    )


def _numbers(mark: Mark) -> list[float]:
    found = [mark.value, mark.low, mark.high, *(mark.band or ()), *((mark.floor,) if mark.floor is not None else ())]
    return [number for number in found if isfinite(number)]


def _said(mark: Mark) -> str:
    if not isfinite(mark.value):
        return f"{mark.label}: not known"
    text = f"{mark.label}: {mark.value:.3g}"
    return f"{text} ({mark.low:.3g} to {mark.high:.3g})" if isfinite(mark.low + mark.high) else text


def _row(mark: Mark, top: float, x) -> list[str]:  # noqa: ANN001 (the scale of `draw`)
    middle = top + 24
    parts = [f'<text x="{_SIDE}" y="{top + 13:.1f}" style="fill:var(--ink)">{escape(mark.label)}</text>']
    if mark.band and all(map(isfinite, mark.band)):
        start, end = (x(value) for value in mark.band)
        parts.append(
            f'<rect x="{start:.1f}" y="{middle - 6:.1f}" width="{max(end - start, 1):.1f}" height="12" '
            'style="fill:var(--line)"/>'
        )
    if not isfinite(mark.value):
        return parts
    colour = f"var(--series-{2 if mark.control else 1})"
    if isfinite(mark.low + mark.high):
        parts.append(
            f'<line x1="{x(mark.low):.1f}" x2="{x(mark.high):.1f}" y1="{middle:.1f}" y2="{middle:.1f}" '
            f'style="stroke:{colour}" stroke-width="2"/>'
        )
    at = x(mark.value)
    if mark.control:
        parts.append(f'<rect x="{at - 4:.1f}" y="{middle - 4:.1f}" width="8" height="8" style="fill:{colour}"/>')
    else:
        parts.append(f'<circle cx="{at:.1f}" cy="{middle:.1f}" r="4.5" style="fill:{colour}"/>')
    if mark.floor is not None and isfinite(mark.floor):
        parts.append(
            f'<circle cx="{x(mark.floor):.1f}" cy="{middle:.1f}" r="4.5" '
            'style="fill:none;stroke:var(--ink)" stroke-width="1.5"/>'
        )
    return parts


def _axis(low: float, high: float, y: float, x) -> list[str]:  # noqa: ANN001 (the scale of `draw`)
    parts = [f'<line x1="{_SIDE}" x2="{_WIDTH - _SIDE}" y1="{y:.1f}" y2="{y:.1f}" style="stroke:var(--soft)"/>']
    step = _round_step((high - low) / 6)
    first = int(low // step) + 1
    for number in range(first, int(high // step) + 1):
        value = number * step
        parts.append(
            f'<line x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{y:.1f}" y2="{y + 4:.1f}" style="stroke:var(--soft)"/>'
            f'<text x="{x(value):.1f}" y="{y + 17:.1f}" text-anchor="middle" '
            f'style="fill:var(--soft)">{value:.6g}</text>'
        )
    return parts


def _round_step(step: float) -> float:
    """The next 1, 2 or 5 times a power of ten.

    >>> _round_step(0.03), _round_step(1.2), _round_step(10)
    (0.05, 2.0, 10.0)
    """
    from math import floor, log10

    power = 10.0 ** floor(log10(step) + 1e-9)
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))
