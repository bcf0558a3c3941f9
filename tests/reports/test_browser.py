"""Every page in headless Chromium: nothing from elsewhere, no scrolling sideways, accessible, usable by keyboard.

Needs playwright, a Chromium on the PATH (or in MMH_CHROMIUM) or in build/chromium, and axe-core in build/axe-core:
`make browser-test` fetches what is missing.
"""

import os
from pathlib import Path

import pages
import pytest
from fetch_browser import AXE, find_chromium

from mmh_bids.reports.page import _environment

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "build" / "screenshots"
WIDTHS = (390, 1280)
#: Kinds of pages, by the function of pages.py that makes one.
KINDS = ("participant", "clean_participant", "failed_participant", "group", "evaluation")

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

SORTABLE = """{% extends "base.html.j2" %}{% block title %}Sorting{% endblock %}{% block main %}
<section id="summary">
<div class="scroll" role="region" aria-label="Table" tabindex="0">
<table class="sortable">
<thead><tr><th scope="col">Name</th><th scope="col" class="number">Size</th><th class="unsorted">Note</th></tr></thead>
<tbody><tr><td>b10</td><td>9.5</td><td>x</td></tr><tr><td>a</td><td>n/a</td><td>y</td></tr>
<tr><td>b9</td><td>10</td><td>z</td></tr><tr><td>c</td><td data-value="-1">minus one</td><td>w</td></tr></tbody>
</table></div>
<pre id="words">To paste: α &lt; β</pre>
<button type="button" class="copy" data-copies="words" hidden>Copy</button>
</section>
{% endblock %}"""


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install mmh_bids[browser]")
    found = find_chromium()
    if found is None:
        pytest.skip("no Chromium on the PATH and none in build/; name one in MMH_CHROMIUM, or run make browser-test")
    path, environment = found
    with playwright.sync_playwright() as driver:
        # Containers mostly run as root, for whom Chromium has no sandbox; the pages are our own.
        browser = driver.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"], env=os.environ | environment
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """``made(kind)``: path of an example page, made once."""
    paths = {}

    def make(kind):
        maker = getattr(pages, f"make_{kind}_page", None)
        if maker is None:
            pytest.skip(f"there is no example of a page of the kind {kind} yet")
        if kind not in paths:
            paths[kind] = maker(tmp_path_factory.mktemp(kind))
        return paths[kind]

    return make


@pytest.fixture
def visit(chromium):
    """``visit(path, width=, dark=, ...)``: the page, opened offline; what went wrong is in ``page.trouble``."""
    contexts = []

    def go(path, width=1280, dark=False, **options):
        context = chromium.new_context(
            viewport={"width": width, "height": 844 if width < 600 else 900},
            color_scheme="dark" if dark else "light",
            offline=True,
            **options,
        )
        contexts.append(context)
        page = context.new_page()
        page.trouble = []
        page.on("console", lambda message: page.trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: page.trouble.append(f"error: {error}"))
        page.on("requestfailed", lambda request: page.trouble.append(f"missing: {request.url[:100]}"))
        address = Path(path).as_uri()
        page.on(
            "request",
            lambda request: (
                request.url.split("#")[0] == address
                or request.url.startswith("data:")
                or page.trouble.append(f"asks for {request.url[:100]}")
            ),
        )
        page.goto(address, wait_until="load")
        return page

    yield go
    for context in contexts:
        context.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_opens_offline_without_trouble_and_never_scrolls_sideways(made, visit, kind, width):
    page = visit(made(kind), width)
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    broken = "Array.from(document.images).filter(i => !i.complete || i.naturalWidth === 0).length"
    assert page.evaluate(broken) == 0
    assert page.trouble == []
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.evaluate("window.scrollTo(0, 0)")
    page.screenshot(path=SHOTS / f"{kind}-{width}-first.png")
    page.screenshot(path=SHOTS / f"{kind}-{width}.png", full_page=True)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_nothing_serious(made, visit, kind, dark):
    if not AXE.is_file():
        pytest.skip("no axe-core in build/: make browser-test fetches it")
    for width in WIDTHS:
        page = visit(made(kind), width, dark)
        for folded in page.locator("details").all():
            folded.evaluate("each => { each.open = true; }")
        page.evaluate(AXE.read_text(encoding="utf-8"))
        result = page.evaluate("axe.run(document, { preload: false })")
        found = [
            f"{each['id']} ({each['impact']}): {node['html'][:150]} {node['failureSummary'][:200]}"
            for each in result["violations"]
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"][:3]
        ]
        assert found == []
        assert any(each["id"] == "color-contrast" for each in result["passes"])  # it did look
    if dark:
        page.screenshot(path=SHOTS / f"{kind}-dark.png", full_page=True)


@pytest.mark.parametrize("kind", KINDS)
def test_print_shows_all_and_no_buttons(made, visit, kind):
    page = visit(made(kind))
    page.emulate_media(media="print", color_scheme="light")
    assert page.locator(".toggle:visible, .copy:visible, .skip:visible").count() == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.pdf(path=SHOTS / f"{kind}.pdf", format="A4")
    assert (SHOTS / f"{kind}.pdf").stat().st_size > 5_000


@pytest.mark.parametrize("width", WIDTHS)
def test_the_first_screen_names_the_images_that_did_not_work(made, visit, width):
    page = visit(made("participant"), width)
    height = page.viewport_size["height"]
    words = page.locator(".verdict").inner_text()
    assert words.startswith(
        "3 of 6 images were harmonized; 1 of them needs a look; 1 of them has a quality value beyond"
    )
    for name in ("sub-01_ses-E_T2w", "sub-01_ses-C_T1w", "sub-01_ses-B_T1w"):
        box = page.locator(".call a", has_text=name).bounding_box()
        assert box["y"] + box["height"] < height


def shown(page):
    """What the first before/after picture shows: both, before or after."""
    return page.locator("figure svg").first.evaluate(  # in one go: it may change in between
        """svg => {
            const visible = ["before", "after"].filter(
                name => getComputedStyle(svg.querySelector(`[data-show=${name}]`)).display !== "none");
            return visible.length === 2 ? "both" : visible.join();
        }"""
    )


def test_flicker_by_keyboard_and_by_tap(made, visit):
    page = visit(made("clean_participant"), 390, has_touch=True)
    assert shown(page) == "both"
    button = page.get_by_role("button", name="Before")
    for _ in range(60):  # only Tab leads there
        page.keyboard.press("Tab")
        if button.evaluate("each => each === document.activeElement"):
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert shown(page) == "before" and button.get_attribute("aria-pressed") == "true"
    page.keyboard.press("ArrowRight")
    assert shown(page) == "after"
    page.keyboard.press("ArrowLeft")
    assert shown(page) == "before"
    for wanted in ("after", "before"):
        page.locator("figure svg").first.tap()
        assert shown(page) == wanted
    page.get_by_role("button", name="Swap").tap()
    assert shown(page) == "after"
    page.get_by_role("button", name="Alternate").focus()
    page.keyboard.press("Space")
    seen = set()
    for _ in range(12):
        seen.add(shown(page))
        page.wait_for_timeout(200)
    assert seen == {"before", "after"}
    page.get_by_role("button", name="Both").press("Enter")
    page.wait_for_timeout(1200)
    assert shown(page) == "both" and page.trouble == []


def test_who_asked_for_less_motion_gets_none(made, visit):
    page = visit(made("clean_participant"), reduced_motion="reduce")
    assert page.get_by_role("button", name="Alternate").count() == 0
    page.get_by_role("button", name="Swap").press("Enter")
    assert shown(page) == "before"
    page.wait_for_timeout(1200)
    assert shown(page) == "before"
    page.emulate_media(reduced_motion="no-preference")
    page.get_by_role("button", name="Alternate").click()
    page.emulate_media(reduced_motion="reduce")  # while it runs
    page.wait_for_timeout(1200)
    assert shown(page) == "both"


def test_without_scripts_both_pictures_are_there_and_no_button(made, visit):
    page = visit(made("participant"), java_script_enabled=False)
    assert page.locator("button:visible").count() == 0
    for name in ("before", "after"):
        box = page.locator(f"figure svg [data-show={name}]").first.bounding_box()
        assert box["width"] > 300 and box["height"] > 100


@pytest.fixture
def sorting(tmp_path):
    path = tmp_path / "sorting.html"
    path.write_text(_environment().from_string(SORTABLE).render(version="0.1.0", sloppy=False), encoding="utf-8")
    return path


def column(table, number):
    return table.locator(f"tbody tr > :nth-child({number})").all_inner_texts()


def test_tables_sort_by_keyboard_numbers_by_size_and_gaps_last(sorting, visit):
    page = visit(sorting, 390)
    table = page.locator("table.sortable")
    assert page.get_by_role("button", name="Note").count() == 0
    size = page.get_by_role("button", name="Size")
    size.focus()
    page.keyboard.press("Enter")
    assert column(table, 2) == ["minus one", "9.5", "10", "n/a"]
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("Size")
    page.keyboard.press("Space")
    assert column(table, 2) == ["10", "9.5", "minus one", "n/a"]
    page.get_by_role("button", name="Name").press("Enter")
    assert column(table, 1) == ["a", "b9", "b10", "c"]
    assert page.locator("th[aria-sort]").count() == 1 and page.trouble == []


def test_the_group_page_sorts_by_keyboard(made, visit):
    for table in visit(made("group")).locator("table.sortable").all():
        button = table.locator("thead button").first
        button.press("Enter")
        rising = column(table, 1)
        button.press("Enter")
        assert len(set(rising)) > 1 and column(table, 1) == rising[::-1]


def test_the_copy_button_copies_offline(sorting, visit):
    page = visit(sorting, permissions=["clipboard-read"])
    page.get_by_role("button", name="Copy").press("Enter")
    assert page.get_by_role("button", name="Copied").count() == 1
    page.locator("#summary").evaluate("each => each.insertAdjacentHTML('beforeend', '<textarea></textarea>')")
    page.locator("textarea").press("Control+v")
    assert page.locator("textarea").input_value() == "To paste: α < β"
