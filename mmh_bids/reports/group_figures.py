"""Drawings of the group report: plain SVG that takes its colours from the page, so that it suits light, dark and print.

Sites differ by colour and by shape (of marks) or dashes (of lines): colour alone never tells anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from mmh_bids.evaluation.group_distances import contrast_unit, site_means
from mmh_bids.evaluation.group_table import WHEN, GroupImage, stacked
from mmh_bids.evaluation.matrix import CannotSayError, complete
from mmh_bids.evaluation.measured import AFTER, BEFORE

WIDTH, HEIGHT = 440.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 14.0, 426.0, 12.0, 262.0
_RATIO = (_RIGHT - _LEFT) / (_BOTTOM - _TOP)
_COLOURS = 6
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 4")
_BINS = 40
#: With more, lines between the scans of a person would hide the points.
_MOST_LINES = 40


def site_styles(images: Sequence[GroupImage]) -> dict[str, tuple[int, int]]:
    """Colour (1 to 6) and shape (0 to 5) of each site, in the order of the labels; 36 differ.

    >>> site_styles([])
    {}
    """
    labels = sorted({image.site or "" for image in images}, key=lambda site: (not site, site))
    return {
        site: (place % _COLOURS + 1, (place + place // _COLOURS) % len(_DASHES)) for place, site in enumerate(labels)
    }


def histograms(images: Sequence[GroupImage], when: str, styles: Mapping[str, tuple[int, int]]) -> Markup:
    """Mean histogram of each site, one line each; of all images together where no site is known."""
    quantiles = stacked(images, when, "quantiles")
    means = site_means(quantiles, [image.site for image in images]) or {"": quantiles.mean(axis=0)}
    low = min(0.0, min(float(mean[0]) for mean in means.values()))
    high = max(float(mean[-1]) for mean in means.values())
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    shares = {site: _density(mean, edges) for site, mean in means.items()}
    top = max(float(share.max()) for share in shares.values()) or 1.0
    parts = [_axis(low, edges[-1], "intensity in the brain")]
    x = _place((edges[:-1] + edges[1:]) / 2, low, edges[-1], _LEFT, _RIGHT)
    for site, share in shares.items():
        y = _place(share, 0, top, _BOTTOM, _TOP + 6)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        colour, shape = styles.get(site, (1, 0))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke-width="2" stroke-linejoin="round" '
            f'stroke-dasharray="{_DASHES[shape]}" style="stroke:var(--series-{colour})"><title>{escape(site)}</title>'
            "</polyline>"
        )
    sites = ", ".join(site or "site not known" for site in means)
    return _svg(parts, f"Mean histogram of each site {_WORDS[when]}: {sites}")


def embeddings(images: Sequence[GroupImage], styles: Mapping[str, tuple[int, int]]) -> dict[str, Markup]:
    """First two principal components of the blocks' means, before and after, on the same axes and scale.

    Raises
    ------
    CannotSayError
        Fewer than three images, or nothing differs.
    """
    if len(images) < 3:
        raise CannotSayError("needs three images at least")
    table = [stacked(images, when, "regions") / contrast_unit(images, when) for when in WHEN]
    # a block may be nobody's brain
    seen = np.array([np.isfinite(values).any(axis=0) for values in table]).all(axis=0)
    table = [values[:, seen] for values in table]
    both = complete(np.concatenate([values - np.nanmean(values, axis=0) for values in table]))
    left, sizes, _ = np.linalg.svd(both, full_matrices=False)
    scores = left[:, :2] * sizes[:2] / np.sqrt(both.shape[1])
    if scores.shape[1] < 2:
        scores = np.column_stack([scores, np.zeros(len(scores))])
    # the sign of a component is the library's choice: the largest value is made positive
    scores *= np.where(scores[np.abs(scores).argmax(axis=0), [0, 1]] < 0, -1, 1)
    reach = np.abs(scores).max(axis=0) * 1.06
    # one unit is as long in both directions, or sites would lie farther apart one way than the other
    tall = float(max(reach[1], reach[0] / _RATIO)) or 1.0
    halves = dict(zip(WHEN, np.split(scores, 2), strict=True))
    return {when: _scatter(images, part, tall, when, styles) for when, part in halves.items()}


def legend(styles: Mapping[str, tuple[int, int]], lines: bool) -> list[tuple[str, Markup]]:
    """Site and its sample, as a dashed line or a mark."""
    out = []
    for site, (colour, shape) in styles.items():
        if lines:
            drawn = (
                f'<line x1="1" y1="8" x2="35" y2="8" stroke-width="2.5" stroke-dasharray="{_DASHES[shape]}" '
                f'style="stroke:var(--series-{colour})"/>'
            )
        else:
            drawn = _mark(18, 8, colour, shape, 5)
        sample = f'<svg viewBox="0 0 36 16" width="36" height="16" aria-hidden="true">{drawn}</svg>'
        out.append((site or "not known", Markup(sample)))  # noqa: S704 - numbers and constants only
    return out


_WORDS = {BEFORE: "before harmonization", AFTER: "after harmonization"}


def _scatter(
    images: Sequence[GroupImage],
    scores: NDArray[np.float64],
    tall: float,
    when: str,
    styles: Mapping[str, tuple[int, int]],
) -> Markup:
    """Points by their two scores; `tall` is half the height in their units."""
    wide = tall * _RATIO
    x = (_LEFT + _RIGHT) / 2 + scores[:, 0] / wide * (_RIGHT - _LEFT) / 2
    y = (_TOP + _BOTTOM) / 2 - scores[:, 1] / tall * (_BOTTOM - _TOP) / 2
    parts = [
        f'<rect x="{_LEFT}" y="{_TOP}" width="{_RIGHT - _LEFT}" height="{_BOTTOM - _TOP}" fill="none" '
        'stroke="currentColor" stroke-opacity=".35"/>',
        _ruler(wide),
    ]
    parts += _person_lines(images, x, y)
    for image, a, b in zip(images, x, y, strict=True):
        colour, shape = styles[image.site or ""]
        words = escape(f"{image.source.key}, {image.site or 'site not known'}")
        parts.append(f"<g>{_mark(a, b, colour, shape, 4.5)}<title>{words}</title></g>")
    label = f"Images {_WORDS[when]} by their first two principal components, {len(images)} points"
    return _svg(parts, label)


def _ruler(wide: float) -> str:
    """A line of a round length below the drawing, with its length."""
    target = wide / 2
    length = 10 ** np.floor(np.log10(target))
    length = float(max(step * length for step in (1, 2, 5) if step * length <= target))
    pixels = length / wide * (_RIGHT - _LEFT) / 2
    return (
        f'<path d="M{_LEFT:.1f} {_BOTTOM + 14:.1f}h{pixels:.1f}" stroke="currentColor" stroke-width="2"/>'
        f'<text x="{_LEFT + pixels + 8:.1f}" y="{_BOTTOM + 18:.1f}" fill="currentColor" font-size="13">'
        f"{length:g} white-grey difference{'' if length == 1 else 's'}</text>"
    )


def _person_lines(images: Sequence[GroupImage], x: NDArray[np.float64], y: NDArray[np.float64]) -> list[str]:
    """Thin lines through the scans of each person who was at several sites."""
    own: dict[str, list[int]] = {}
    for place, image in enumerate(images):
        own.setdefault(image.person, []).append(place)
    several = [places for places in own.values() if len({images[place].site for place in places}) > 1]
    if len(several) > _MOST_LINES:
        return []
    return [
        '<polyline fill="none" stroke="currentColor" stroke-opacity=".45" points="'
        + " ".join(f"{x[place]:.1f},{y[place]:.1f}" for place in places)
        + '"/>'
        for places in several
    ]


def _mark(x: float, y: float, colour: int, shape: int, size: float) -> str:
    """A circle, square, triangle, diamond, cross or plus around a point."""
    style = f'style="fill:var(--series-{colour});stroke:var(--paper)" stroke-width=".8"'
    line = f'style="stroke:var(--series-{colour})" stroke-width="2.4" fill="none"'
    r = size
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:g}" {style}/>',
        f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r:g}" height="{2 * r:g}" {style}/>',
        f'<path d="M{x:.1f} {y - r - 1:.1f}l{r + 1:g} {2 * r:g}h{-2 * r - 2:g}z" {style}/>',
        f'<path d="M{x:.1f} {y - r - 1:.1f}l{r + 1:g} {r + 1:g}l{-r - 1:g} {r + 1:g}l{-r - 1:g} {-r - 1:g}z" {style}/>',
        f'<path d="M{x - r:.1f} {y - r:.1f}l{2 * r:g} {2 * r:g}m{-2 * r:g} 0l{2 * r:g} {-2 * r:g}" {line}/>',
        f'<path d="M{x - r:.1f} {y:.1f}h{2 * r:g}m{-r:g} {-r:g}v{2 * r:g}" {line}/>',
    )[shape]


def _density(quantiles: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share in each bin of a distribution given by quantiles at (i + 0.5) / n.

    >>> _density(np.linspace(0, 1, 256), np.array([0.0, 0.25, 1.0])).round(2)
    array([0.25, 0.75])
    """
    steps = (np.arange(quantiles.size) + 0.5) / quantiles.size
    return np.diff(np.interp(edges, np.maximum.accumulate(quantiles), steps, left=0.0, right=1.0))


def _place(values: NDArray[np.float64], low: float, high: float, start: float, end: float) -> NDArray[np.float64]:
    return start + (np.asarray(values) - low) / (high - low) * (end - start)


def _axis(low: float, high: float, words: str) -> str:
    """A line with three numbers and what they are."""
    parts = [f'<path d="M{_LEFT} {_BOTTOM}H{_RIGHT}" stroke="currentColor" stroke-opacity=".6"/>']
    for place, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        x, value = _LEFT + place * (_RIGHT - _LEFT), low + place * (high - low)
        parts.append(
            f'<text x="{x:.1f}" y="{_BOTTOM + 16:.1f}" text-anchor="{anchor}" fill="currentColor" font-size="13">'
            f"{value:.2g}</text>"
        )
    middle = (_LEFT + _RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{_BOTTOM + 33:.1f}" text-anchor="middle" fill="currentColor" font-size="13">'
        f"{escape(words)}</text>"
    )
    return "".join(parts)


def _svg(parts: Sequence[str], label: str) -> Markup:
    return Markup(  # noqa: S704 - all words in it are escaped
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(label)}">' + "".join(parts) + "</svg>"
    )
