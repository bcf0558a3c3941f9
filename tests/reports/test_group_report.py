"""The group page: what its first screen says, that it stands alone, and that nothing of a name becomes markup."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mmh_bids.bids.inventory import OutputImage
from mmh_bids.bids.run import Run
from mmh_bids.evaluation.features import ImageFeatures, template_regions
from mmh_bids.evaluation.group_distances import compare
from mmh_bids.evaluation.group_probes import Answer
from mmh_bids.evaluation.group_spread import Change, Spread
from mmh_bids.evaluation.group_summary import Summary, summarize
from mmh_bids.evaluation.group_table import GroupImage
from mmh_bids.evaluation.probes import ProbeResult
from mmh_bids.reports.group import findings, headline, write_group_report
from mmh_bids.reports.group_figures import embeddings, site_styles

FACTS = {"Method": "mmh-light", "Model": "mmh-light", "Target": "unified", "QC": {"MappedGradientCorrelation": 0.99}}
VOID = {"meta", "link", "img", "br", "rect", "circle", "path", "line", "polyline"}


class Page(HTMLParser):
    """Elements must close; collects ids, addresses and words."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.tags, self.words = [], [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in ("href", "src")]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words += f" {data}"


def features(rng, gain):
    count = int(template_regions().max()) + 1
    return ImageFeatures(
        quantiles=(gain * np.linspace(0.1, 1, 256)).astype(np.float32),
        regions=(gain * rng.uniform(0.5, 0.7, count)).astype(np.float32),
        levels=(gain * np.array([0.3, 0.6, 0.9])).astype(np.float32),
        volumes_ml=np.array([200, 600, 500], np.float32),
        sharpness=np.float32(0.3),
        brain_share=np.ones(count, np.float32),
    )


def image(label, site, status="done", message="", **qc):
    rng = np.random.default_rng(int(label))
    run = Run(Path(f"sub-{label}_T1w.nii.gz"), "T1w", {"sub": label}, {}, site)
    facts = FACTS | {"QC": FACTS["QC"] | qc} if status == "done" else {}
    pair = {"before": features(rng, 1.2 if site == "A" else 0.9), "after": features(rng, 1.0)} if facts else {}
    return GroupImage(OutputImage(run, f"sub-{label}_T1w.nii.gz", status, message, facts), pair)


def write(tmp_path, images, problems=None):
    compared = compare(images)
    path = write_group_report(tmp_path / "group_T1w.html", "T1w", compared, summarize(compared), problems or {})
    return path.read_text(encoding="utf-8")


def test_first_screen_says_for_whom_it_did_not_work(tmp_path):
    images = [image("1", "A"), image("2", "B"), image("3", "B", MappedGradientCorrelation=0.5)]
    images.append(image("4", "A", "failed", "sub-4_T1w.nii.gz: every voxel is 0"))
    page = Page(write(tmp_path, images, {"sub-5_T1w": "x.json: cannot be read (y); delete it"}))
    start = page.words[: page.words.index("Histograms by site")]
    assert "3 of 5 images were harmonized; 1 of them calls for a look; 1 failed; 1 could not be read" in start
    assert "every voxel is 0" in start and "x.json: cannot be read" in start
    assert start.index("sub-4_T1w") < start.index("sub-3_T1w") and "sub-2_T1w" not in start
    assert {"sub-3.html#sub-3_T1w", "sub-4.html#sub-4_T1w", "group_T1w.tsv", "group_T1w.json"} <= set(page.links)


def test_page_stands_alone_and_is_the_same_twice(tmp_path):
    images = [image(str(number), "AB"[number % 2]) for number in range(1, 7)]
    text = write(tmp_path, images)
    page = Page(text)
    outside = [link for link in page.links if not re.match(r"#|data:|sub-\d\.html#|group_T1w\.", link)]
    assert outside == [] and len(page.ids) == len(set(page.ids)) and "url(" not in text
    assert page.tags.count("h1") == 1 and {"images", "probes", "travelling", "sites"} <= set(page.ids)
    assert write(tmp_path, images) == text


def test_names_never_become_markup(tmp_path):
    site = "<script>alert('1')</script> & Genève"
    images = [image(str(number), site if number % 2 else "北京") for number in range(1, 6)]
    text = write(tmp_path, images, {"sub-9_T1w": "<b>no</b>"})
    assert Page(text).tags.count("script") == 1 and "<b>" not in text
    assert text.count("&lt;script&gt;") >= 3 and "北京" in text


def test_an_empty_group_and_one_image_have_a_page(tmp_path):
    page = Page(write(tmp_path, [], {"sub-1_T1w": "broken"}))
    assert "No image was harmonized; 1 could not be read." in page.words and "svg" not in page.tags
    page = Page(write(tmp_path, [image("1", None)]))
    assert "The image was harmonized." in page.words and "needs three images" in page.words
    assert page.words.count("cannot be said") >= 3


def probe(accuracy, high=0.5):
    return ProbeResult("p", accuracy, 0.1, high, 0.01, 20, 20, 2, True)


def found(ratio=0.5, low=0.4, high=0.6, first=0.95, regions=0.9, quantiles=0.3, mask=0.3, within=0.9):
    """The marks and words of a summary with these answers."""
    change = Change(1.0, ratio, low, high, 9)
    spread = {"before": Spread(0.5, 0.1, 1.0), "after": Spread(0.1, 0.1, within)}
    answers = [
        Answer("probe", name, when, (probe(value),))
        for name, when, value in (
            ("regions", "before", first), ("regions", "after", regions), ("quantiles", "after", quantiles),
            ("brain_share", "after", mask),
        )
    ]  # fmt: skip
    summary = Summary([], change, spread, [], change, answers, [])
    said = findings([image("1", "A")], summary)
    return dict(zip(("sites", "probes", "people", "within"), said, strict=True)), summary


@pytest.mark.parametrize(
    ("changes", "which", "mark", "words"),
    [
        ({}, "sites", "good", "0.50 times (95 % interval 0.40 to 0.60)"),
        ({"ratio": 0.95, "high": 1.1}, "sites", "look", "0.95 times"),
        ({"ratio": 1.5, "low": 1.2, "high": 1.7}, "sites", "bad", "1.50 times"),
        ({}, "probes", "look", "can still tell the site of harmonized images (balanced accuracy 0.90"),
        ({"mask": 0.8}, "probes", "look", "brain masks alone"),
        ({"regions": 0.4}, "probes", "good", "None of 1 probes tells"),
        ({"regions": 0.4, "quantiles": 0.8}, "probes", "look", "but one does by their histograms"),
        ({"first": 0.4, "regions": 0.4}, "probes", "plain", "Probes say nothing here"),
        ({"first": 0.4, "regions": 0.4, "quantiles": 0.8}, "probes", "plain", "By the histograms"),
        ({"ratio": 1.5, "low": 1.2, "high": 1.7}, "people", "bad", "Scans of 9 people"),
        ({}, "within", "good", "0.90 times"),
        ({"within": 0.2}, "within", "look", "may have gone"),
    ],
)
def test_findings_follow_the_numbers(changes, which, mark, words):
    said, _ = found(**changes)
    assert said[which].mark == mark and words in said[which].text


def test_headline_says_which_way_sites_went():
    images = [image("1", "A"), image("2", "B")]
    for changes, words in (
        ({}, "closer together"),
        ({"ratio": 1.5, "low": 1.2, "high": 1.7}, "farther apart"),
        ({"high": 1.2}, "did not come measurably closer"),
    ):
        assert words in headline(images, found(**changes)[1], {})


def test_sites_differ_by_colour_and_shape():
    images = [dataclasses.replace(image("1", f"site {number}"), features={}) for number in range(36)]
    styles = site_styles(images)
    assert len(set(styles.values())) == 36
    assert len({shape for _, shape in list(styles.values())[:6]}) == 6


@pytest.mark.filterwarnings("error")
def test_a_block_that_is_nobodys_brain_is_left_out():
    images = [image(str(number), "AB"[number % 2]) for number in range(1, 5)]
    for one in images:
        for features_ in one.features.values():
            features_.regions[7] = np.nan
    drawn = embeddings(compare(images), site_styles(images))
    assert all("nan" not in svg for svg in drawn.values())


def test_both_embeddings_have_one_scale():
    """What is half as wide must look half as wide."""
    images = compare([image(str(number), "AB"[number % 2]) for number in range(1, 9)])
    drawn = embeddings(images, site_styles(images))
    rulers = {re.search(r'<path d="M[\d.]+ 276.0h([\d.]+)"', svg)[1] for svg in drawn.values()}
    assert len(rulers) == 1
    assert all(svg.count("<title>") == 8 for svg in drawn.values())
