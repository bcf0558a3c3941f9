"""The frame that all pages share: one HTML file that holds everything it shows and opens offline.

A page's template starts with ``{% extends "base.html.j2" %}`` and fills the blocks ``title``, ``heading``,
``subtitle``, ``main``, ``footer`` and ``scripts`` (JavaScript, without the tag). The templates, ``style.css``
and ``page.js`` lie in ``mmh_bids/data/reports``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mmh_bids import __version__
from mmh_bids.files import atomic_write


def render(template: str, **values: Any) -> str:
    """Fill a template of ``mmh_bids/data/reports``; the same text for the same values.

    Parameters
    ----------
    template
        File name, e.g. ``"group.html.j2"``.
    values
        What the template names; all text is escaped, so nothing a user wrote becomes markup. `version` (of this
        package) and `sloppy` (False) have defaults.

    Raises
    ------
    jinja2.UndefinedError
        The template names a value that was not given.

    Examples
    --------
    >>> text = render("base.html.j2", version="1 < 2")
    >>> "mmh_bids 1 &lt; 2" in text, text.startswith("<!DOCTYPE html>")
    (True, True)
    """
    return _environment().get_template(template).render(**{"version": __version__, "sloppy": False} | values)


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Render a template into a file, which is whole or not there; return its path."""
    return atomic_write(path, render(template, **values))


def _environment() -> Environment:
    loader = PackageLoader("mmh_bids", "data/reports")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
