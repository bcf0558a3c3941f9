import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mmh_bids.reports.participant import ImageRecord, write_participant_report

PICTURE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 4" data-one="0 0 4 2" data-both="0 0 4 4">'
    '<title>t</title><g data-show="before"><image href="data:image/jpeg;base64,AAAA"/></g></svg>'
)
QC = {
    "MappedGradientCorrelation": 0.91,
    "BrainMaskVolume": 1400.0,
    "Finite": True,
    "Novelty": 0.5,
    "RangeMax": None,
}
VOID = {"meta", "link", "img", "br", "image"}


class Page(HTMLParser):
    """Collects what tests ask of a page, and that every element that opens closes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.attributes, self.words = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words += data


def write(tmp_path, records, errors=(), **changes):
    arguments = {
        "methods_text": "Methods [@x].",
        "version": "0.1.0",
        "command": "mmh a b participant",
    } | changes
    path = write_participant_report(tmp_path, "01", records, errors=errors, **arguments)
    return path, path.read_text(encoding="utf-8")


def figures(tmp_path, content=PICTURE):
    names = ("beforeafter", "histogram", "mask")  # as a sorted folder has them
    paths = [tmp_path / "sub-01" / "figures" / f"sub-01_desc-{name}_T1w.svg" for name in names]
    paths[0].parent.mkdir(parents=True)
    for path in paths:
        path.write_text(content)
    return tuple(paths)


def test_the_page_stands_alone_and_is_the_same_twice(tmp_path):
    outputs = (Path("sub-01/anat/a b.nii.gz"),)
    record = ImageRecord("sub-01_T1w", "T1w", qc=QC, figures=figures(tmp_path), outputs=outputs)
    path, text = write(tmp_path, [record], software={"numpy": "2.4.6"})
    assert path == tmp_path / "sub-01.html"
    page = Page(text)
    for tag, name, value in page.attributes:
        if name in ("src", "href") and tag != "a":
            assert value.startswith("data:")
    assert {value for tag, name, value in page.attributes if (tag, name) == ("a", "href")} == {
        "#summary", "#sub-01_T1w", "sub-01/anat/a%20b.nii.gz",
    }  # fmt: skip
    assert {"summary", "sub-01_T1w"} <= set(page.ids) and len(page.ids) == len(set(page.ids))
    assert "default-src 'none'" in text
    assert write(tmp_path, [record], software={"numpy": "2.4.6"})[1] == text
    assert [file.name for file in tmp_path.glob("*.html")] == ["sub-01.html"]


def test_the_first_screen_says_what_worked_and_what_did_not(tmp_path):
    records = [
        ImageRecord("sub-01_ses-A_T1w", "T1w", site="Köln"),
        ImageRecord("sub-01_ses-B_T1w", "T1w", qc=QC),
        ImageRecord("sub-01_ses-C_T1w", "T1w", status="failed", reason="c.nii.gz: truncated; copy it again"),
        ImageRecord("sub-01_ses-D_T1w", "T1w", status="skipped", reason="a phase image", qc={"Finite": False}),
    ]
    page = Page(write(tmp_path, records, ["c.nii.gz: truncated; copy it again\nTraceback: line 1"])[1])
    summary = page.words.split("Errors")[0]
    assert "2 of 4 images were harmonized; 1 of them needs a look; 1 failed; 1 skipped." in summary
    assert "Köln" in summary and "c.nii.gz: truncated; copy it again" in summary
    assert "gradient correlation of output and input seen through the map: 0.910" in summary
    assert "Traceback: line 1" in page.words
    assert page.words.count("non-finite") == 0 and page.words.count("1 value to look at") == 2


def test_quality_table_flags_known_keys_and_shows_unknown_ones(tmp_path):
    text = write(tmp_path, [ImageRecord("sub-01_T1w", "T1w", qc=QC)])[1]
    table = text.split("Quality values")[1]
    rows = {}
    for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL):
        name, *cells = (cell.strip() for cell in re.sub(r"<[^>]+>", "|", row).split("|") if cell.strip())
        rows[name] = cells
    edges = "Edges kept: gradient correlation of output and input seen through the map"
    assert rows[edges] == ["0.910", "at least 0.95", "at least 0.90", "⚠ look"]
    assert rows["Volume of the brain mask"] == ["1400 mL", "900 to 1900 mL", "600 to 2200 mL", "✓ fine"]
    assert rows["Novelty"] == ["0.5"]
    assert rows["Largest output value"] == ["not measured"]
    assert "Compare the two pictures closely" in text


def test_nothing_a_user_wrote_becomes_markup(tmp_path):
    evil = "<script>alert(1)</script>\"'&"
    record = ImageRecord(
        evil, "T1w", session=evil, site=evil, site_source=evil, reason=evil, qc={evil: evil, "Finite": False},
        harmonization={"Method": evil, "Warnings": [evil], "Details": {"warnings": [evil]}},
        figures=(Path(f"{evil}_desc-mask_T1w.svg"),), outputs=(Path(evil),),
    )  # fmt: skip
    text = write(
        tmp_path,
        [record],
        [evil + "\n" + evil],
        methods_text=evil,
        version=evil,
        command=evil,
        software={evil: evil},
    )[1]
    assert text.count("<script>") == 1  # the page's own
    assert "alert(1)" in Page(text).words


def test_pictures_are_shown_and_the_toggle_gets_its_svg_inline(tmp_path):
    text = write(tmp_path, [ImageRecord("sub-01_T1w", "T1w", figures=figures(tmp_path))])[1]
    assert text.count(PICTURE) == 1
    assert text.count('src="data:image/svg+xml,') == 2
    headings = re.findall(r"<h3>(.*?)</h3>", text)
    assert headings[1:4] == ["Brain mask", "Before and after", "Histograms and intensity map"]


def test_a_picture_with_a_script_is_never_put_into_the_page(tmp_path):
    harmful = PICTURE.replace("<title>", "<script>steal()</script><title>")
    text = write(tmp_path, [ImageRecord("sub-01_T1w", "T1w", figures=figures(tmp_path, harmful))])[1]
    assert "<script>steal" not in text
    assert text.count('src="data:image/svg+xml,') == 3


@pytest.mark.parametrize("sloppy", [True, False])
def test_a_sloppy_run_is_stamped(tmp_path, sloppy):
    assert ("Made with --sloppy" in write(tmp_path, [], sloppy=sloppy)[1]) is sloppy


def test_a_missing_picture_and_bare_records_do_not_stop_the_page(tmp_path):
    record = ImageRecord("sub-01_T1w", "T1w", figures=(Path("sub-01/figures/sub-01_desc-mask_T1w.svg"),))
    page = Page(write(tmp_path, [record])[1])
    assert "sub-01/figures/sub-01_desc-mask_T1w.svg is not there" in page.words
    assert "No image was found." in Page(write(tmp_path, [])[1]).words
