"""docs/RESULTS.md: the blocks are renewed, the rest is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from portrait_backend.evaluation.report import Report
from portrait_backend.evaluation.results_page import BLOCK, check_page, renew
from portrait_backend.evaluation.scores import Score
from portrait_shared.errors import PortraitDiffusionError

TEXT = """# Results

By hand.

<!-- figures: photos -->
old
<!-- end -->

What is good: everything.

<!-- figures: ground_truth -->
kept
<!-- end -->
"""


@pytest.fixture
def report() -> Report:
    record = {
        "generator": "portrait-diffusion 1", "device": "cpu", "settings": {"preset": "draft"}, "unavailable_ablations": [],
        "weights": {"prior": "0123456789abcdef"},
        "subjects": {"b": {"seconds": 12.3}},
        "models": [{"name": "CLIP", "available": False, "reason": "absent"}],
    }  # fmt: skip
    return Report(record, [Score("photos", name, "field", "reference", "matte_iou", value) for name, value in (("a", 0.9), ("b", 0.8))])


def test_only_what_was_measured_is_renewed(report: Report, tmp_path: Path) -> None:
    page = tmp_path / "RESULTS.md"
    page.write_text(TEXT)
    check_page(page)
    renew(page, report)
    text = page.read_text()
    assert "old" not in text and "kept" in text and "By hand." in text and "What is good" in text
    assert "| field | 0.850 |" in text and "| b | field | 0.800 | 12 | – |" in text
    assert "2 photos, preset draft, portrait-diffusion 1, cpu, weights prior 01234567. Not measured: CLIP: absent." in text
    renew(page, report)
    assert page.read_text() == text, "the same figures give the same page"


def test_a_page_without_blocks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("nothing")
    for name in ("page.md", "absent.md"):
        with pytest.raises(PortraitDiffusionError) as caught:
            check_page(tmp_path / name)
        assert caught.value.code == "results-unreadable"


def test_the_project_s_own_page_has_its_blocks() -> None:
    text = (Path(__file__).parents[2] / "docs/RESULTS.md").read_text(encoding="utf-8")
    assert [match[2] for match in BLOCK.finditer(text)] == ["photos", "ground_truth", "ablations"]
