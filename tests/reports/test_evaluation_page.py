"""The evaluation's page and its drawings."""

import re
import xml.etree.ElementTree as ElementTree

from pages import make_evaluation_page

from mmh_bids.reports.intervals import Mark, draw

NAN = float("nan")


def test_the_page_says_who_is_best_and_what_cannot_be_told(tmp_path):
    path = make_evaluation_page(tmp_path)
    page = path.read_text(encoding="utf-8")
    assert "mmh-light brings sites together and passes all checks. 2 of 3 methods are ruled out." in page
    assert "Zürich (2), Graz (1)" in page and "ComBat remains stronger" in page
    assert page.index('row">mmh-light') < page.index('row">preprocessing') < page.index('row">template')
    assert "A known effect is lost (age)" in page and "sub-07_ses-B" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page), "a resource from elsewhere"
    assert path.read_bytes() == make_evaluation_page(tmp_path).read_bytes()


def test_a_drawing_has_a_mark_for_each_known_number():
    marks = [Mark("a <b>", 1.0, 0.5, 1.5, floor=0.2), Mark("b", 2.0, control=True), Mark("c", NAN, band=(0.1, 0.4))]
    root = ElementTree.fromstring(draw("Title", marks, [(1.0, "one")]))
    circles = list(root.iter("circle"))
    assert len(circles) == 2 and root.get("aria-label") == "Title. a <b>: 1 (0.5 to 1.5); b: 2; c: not known"
    places = [float(one.get("cx")) for one in circles]
    assert places[0] > places[1], "the floor of 0.2 lies left of 1.0"
    width, height = (float(one) for one in root.get("viewBox").split()[2:])
    for text in root.iter("text"):
        assert 0 <= float(text.get("x")) <= width and 0 < float(text.get("y")) < height


def test_numbers_of_any_size_have_few_ticks():
    for value in (1e-6, 0.3, 1.0, 7e5):
        root = ElementTree.fromstring(draw("x", [Mark("a", value, 0.5 * value, 2 * value)]))
        assert 2 <= sum(text.get("text-anchor") == "middle" for text in root.iter("text")) <= 7
    assert ElementTree.fromstring(draw("x", [Mark("a", 0.0)])) is not None
    assert draw("x", [Mark("a", NAN)]) == ""
