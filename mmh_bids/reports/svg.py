"""A drawing surface for picture sheets: a few SVG elements, written in the order they are added.

Written by hand and not by matplotlib, which embeds rasters as RGBA PNG only: JPEG makes the files five times
smaller.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

#: Okabe and Ito's colours, which people with any common colour vision tell apart.
ORANGE, SKY, BLUE, VERMILLION = "#E69F00", "#56B4E9", "#0072B2", "#D55E00"
_FONT = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif"


@dataclass
class Sheet:
    """A black sheet of `width` by `height` user units (mm of anatomy)."""

    width: float
    height: float
    parts: list[str] = field(default_factory=list)

    def image(self, x: float, y: float, width: float, height: float, uri: str) -> None:
        """A raster stretched to the given size: voxels need not be square."""
        self.parts.append(
            f'<image x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'preserveAspectRatio="none" href="{uri}"/>'
        )

    def path(self, x: float, y: float, data: str, colour: str, width: float = 1.0) -> None:
        """An outline moved to (x, y)."""
        if data:
            self.parts.append(
                f'<path transform="translate({x:.1f} {y:.1f})" d="{data}" fill="none" stroke="{colour}" '
                f'stroke-width="{width:g}" stroke-linejoin="round"/>'
            )

    def text(self, x: float, y: float, words: str, size: float = 14, anchor: str = "start") -> None:
        """Light words with a dark rim, so that they can be read on any grey."""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}" fill="#fff" '
            f'stroke="#000" stroke-width="{size / 5:g}" paint-order="stroke">{escape(words)}</text>'
        )

    def open_group(self, **attributes: str) -> None:
        """Start a group; underscores in attribute names become hyphens."""
        pairs = "".join(f' {name.replace("_", "-")}="{escape(value)}"' for name, value in attributes.items())
        self.parts.append(f"<g{pairs}>")

    def close_group(self) -> None:
        """End the group."""
        self.parts.append("</g>")

    def render(self, title: str, **attributes: str) -> str:
        """The whole file; `title` is what a screen reader says."""
        pairs = "".join(f' {name.replace("_", "-")}="{escape(value)}"' for name, value in attributes.items())
        size = f"{self.width:.1f} {self.height:.1f}"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" role="img" '
            f'font-family="{_FONT}"{pairs}>\n<title>{escape(title)}</title>\n'
            f'<rect width="100%" height="100%" fill="#000"/>\n' + "\n".join(self.parts) + "\n</svg>\n"
        )
