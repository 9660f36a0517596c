"""The report: one page that needs nothing else, draws its heads in a real browser, and the same figures as JSON and CSV."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from portrait_backend.evaluation.mesh_file import MeshHead, from_head_mesh
from portrait_backend.evaluation.photo_scores import TABLE_VIEWS
from portrait_backend.evaluation.plots import line_plot
from portrait_backend.evaluation.report import DATA, PAGE, SCORES, Report, page, summary_table, write_report
from portrait_backend.evaluation.scores import Mean, Score, by_view, mean, show, table
from portrait_backend.evaluation.viewer_mesh import viewer_mesh
from tests.evaluation import browser
from tests.evaluation.balls import ball_mesh
from tests.evaluation.test_mesh_file import textured_ball


def scores() -> list[Score]:
    found = []
    for method, base in (("field", 0.5), ("mesh", 0.4)):
        found += [Score("photos", "anna", method, view, "sharpness", base + 0.01 * k) for k, view in enumerate(TABLE_VIEWS)]
        found += [Score("photos", "anna", method, view, "identity", None if view == "left" else 0.9) for view in TABLE_VIEWS]
        found.append(Score("photos", "anna", method, "reference", "landmark_error", 10 * base))
    return found


@pytest.fixture
def report() -> Report:
    record = {
        "generator": "portrait-diffusion 0", "started": "2026-01-01", "device": "cpu", "problems": ["ben: no <face>"], "settings": {},
        "weights": {}, "versions": {}, "subjects": {"anna": {}}, "unavailable_ablations": [],
        "models": [{"name": "CLIP", "weights": "w", "source": "s", "licence": "MIT", "bytes": 5, "available": False, "reason": "absent"}],
    }  # fmt: skip
    grey = np.full((64, 64, 3), 90, np.uint8)
    against_photo = {("photos", "anna", method): dict.fromkeys(TABLE_VIEWS, grey) for method in ("field", "mesh")}
    return Report(
        record,
        [*scores(), Score("ground_truth", "id000000", "field", "front", "psnr", 25.0)],
        {**against_photo, ("ground_truth", "id000000", "field"): {"strip": np.tile(grey, (1, 5, 1))}},
        {"anna": grey},
        {("anna", "mesh"): from_head_mesh(textured_ball()), ("anna", "painted"): ball_mesh()},
    )


def test_means_count_what_is_missing() -> None:
    rows = table(scores())
    assert rows["field"]["sharpness"].value == pytest.approx(0.52)
    identity = rows["mesh"]["identity"]
    assert (identity.value, identity.count, identity.missing) == (pytest.approx(0.9), 4, 1)
    assert show("identity", identity) == "0.9000 (1 of 5 missing)"
    assert show("identity", Mean(None, 0, 2)) == "– (2 of 2 missing)"
    assert show("identity", mean([])) == show("identity", None) == "–"
    assert by_view(scores(), "sharpness")["field"]["right"].value == 0.5


def test_the_best_of_a_column_stands_out() -> None:
    text = summary_table(scores())
    assert text.count("class='best'") == 1 and "<td class='best'>4.00</td>" in text, "a lower landmark error is better; ties are nobody's"
    assert "<td>0.9000<br><small>1 of 5 missing</small></td>" in text
    easier = [Score("photos", "anna", "easier", view, "identity", 0.95 if view == "front" else None) for view in TABLE_VIEWS]
    other = [*scores(), Score("photos", "ben", "mesh", "front", "sharpness", 0.5)]
    assert "field<br><small>only 1 of 2</small>" in summary_table(other) and "<td>mesh</td>" in summary_table(other)
    assert summary_table(scores() + easier).count("class='best'") == 1, "means over other views are not held against each other"


def test_json_and_csv_hold_every_score(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    data = json.loads((tmp_path / DATA).read_text())
    assert len(data["scores"]) == len(report.scores) and data["means"]["photos"]["mesh"]["identity"]["missing"] == 1
    assert data["metrics"]["identity"]["better"] == "more" and data["models"][0]["reason"] == "absent"
    rows = list(csv.DictReader((tmp_path / SCORES).read_text().splitlines()))
    assert len(rows) == len(report.scores)
    assert [row["value"] for row in rows if row["view"] == "left" and row["metric"] == "identity"] == ["", ""]


def test_the_page_needs_nothing_else(report: Report) -> None:
    text = page(report)
    addresses = re.findall(r"""(?:src|href)=["']?([^"'\s>]+)""", text)
    assert addresses and all(address.startswith("data:image/jpeg;base64,") for address in addresses)
    assert not re.search(r"https?://(?!www\.w3\.org)", text) and "@import" not in text and "url(" not in text
    assert "no &lt;face&gt;" in text and "not available: absent" in text


def test_plots_are_drawn_where_there_is_something_to_see() -> None:
    lines = by_view(scores(), "sharpness")
    root = ElementTree.fromstring(line_plot("sharpness", lines))
    assert len(root.findall("polyline")) == 2 and len(root.findall("circle")) == 10
    assert line_plot("sharpness", {"a": {"front": Mean(0.5, 1, 0)}}) == ""
    assert line_plot("identity", {"a": {"front": Mean(None, 0, 1), "left": Mean(None, 0, 1)}}) == ""


def test_a_packed_mesh_keeps_its_shape() -> None:
    import base64

    mesh = MeshHead(ball_mesh(subdivisions=3).parts)
    (packed,) = json.loads(json.dumps(viewer_mesh(mesh)))
    steps = np.frombuffer(base64.b64decode(packed["position"]["data"]), "<u2").reshape(-1, 3).astype(np.float64)
    low, high = np.array(packed["position"]["low"]), np.array(packed["position"]["high"])
    assert np.abs(low + steps / 65535 * (high - low) - mesh.parts[0].vertices.numpy()).max() < 1e-5
    index = np.frombuffer(base64.b64decode(packed["index"]), "<u4")
    assert np.array_equal(index, mesh.parts[0].faces.reshape(-1).numpy())
    assert packed["texture"] is None and viewer_mesh(from_head_mesh(textured_ball()))[0]["texture"].startswith("data:image/jpeg")


@pytest.mark.slow
def test_a_browser_draws_the_heads(report: Report, tmp_path: Path) -> None:
    found = browser.find()
    if found is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    write_report(report, tmp_path)
    seen = browser.visit(found, tmp_path / PAGE, tmp_path)
    assert seen.console == [] and "data-errors" not in seen.dom and "data-viewer" not in seen.dom
    assert "dialog open" not in seen.dom
    coverage = [float(x) for x in re.findall(r'data-coverage="([\d.]+)"', seen.dom)]
    # the ball of radius 0.3 fills a disc: seen from 2.7 its outline has radius 0.3 / sqrt(2.7^2 - 0.3^2) of tan(18.837 / 2 degrees)
    share = np.pi / 4 * (0.3 / np.sqrt(2.7**2 - 0.3**2) / np.tan(np.radians(18.837 / 2))) ** 2
    assert coverage == pytest.approx([share, share], abs=0.01)
    picture = torch.from_numpy(np.asarray(Image.open(seen.screenshot).convert("RGB")).copy()).float()
    red, green, blue = picture.unbind(-1)
    assert int(((red > 180) & (green < 40) & (blue < 40)).sum()) > 5000, "the left half of the texture"
    assert int(((green > 180) & (red < 40) & (blue < 40)).sum()) > 5000, "the right half of the texture"


@pytest.mark.slow
def test_every_picture_can_be_enlarged(report: Report, tmp_path: Path) -> None:
    """Also those of a section that has no photo to stand beside."""
    found = browser.find()
    if found is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    click = "for (const image of document.querySelectorAll('.views img')) { document.querySelector('dialog').close(); image.click(); }"
    (tmp_path / PAGE).write_text(page(report).replace("</body>", f"<script>{click}</script></body>"))
    dom = browser.visit(found, tmp_path / PAGE, tmp_path).dom
    assert "data-errors" not in dom and re.search(r"<dialog open", dom)
    assert re.search(r"<p>field, strip\. Wheel", dom) and re.search(r"<span hidden", dom)
