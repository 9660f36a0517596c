"""`portrait-diffusion evaluate` as a whole: real photos, meshes and reports around an ellipsoid in place of the trained stages."""

from __future__ import annotations

import csv
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from portrait_backend import stages
from portrait_backend.cli import main
from portrait_backend.context import Context
from portrait_backend.evaluation import ablations
from portrait_backend.evaluation.photo_files import subjects_of
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.head import Head
from portrait_shared.settings import Settings
from tests.evaluation.balls import write_balls
from tests.evaluation.test_results_page import TEXT

EXAMPLE = Path(__file__).parents[2] / "examples/astronaut.png"
SMALL = ["--mesh-resolution", "48", "--faces", "2000", "--texture-size", "256", "--turntable", "none"]
Runs = list[tuple[int, bool]]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """What the stand-in for stage 1 was asked: (fit steps, fit shape) of each run."""
    asked: Runs = []

    def prior(head: Head | None, portrait: Portrait, settings: Any, context: Context) -> Head:
        context.report(1, 1)
        asked.append((settings.fit_steps, settings.fit_shape))
        return ellipsoid_head(size=32)

    monkeypatch.setattr(stages, "RUNNERS", {"prior": prior, "restoration": lambda head, *others: head})
    return asked


def scores_of(report: Path) -> dict[tuple[str, str, str], set[str]]:
    """{(section, subject, method): metrics} of scores.csv."""
    found: dict[tuple[str, str, str], set[str]] = {}
    for row in csv.DictReader((report / "scores.csv").read_text().splitlines()):
        found.setdefault((row["section"], row["subject"], row["method"]), set()).add(row["metric"])
    return found


@pytest.mark.slow
def test_photos_jobs_and_other_tools(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, report, peer = tmp_path / "photos", tmp_path / "report", tmp_path / "peer"
    photos.mkdir()
    shutil.copy(EXAMPLE, photos / "eileen.png")
    (photos / "broken.jpg").write_bytes(b"no photo")
    for name in ("front", "left"):
        (peer / "eileen").mkdir(parents=True, exist_ok=True)
        Image.open(EXAMPLE).resize((128, 128)).save(peer / f"eileen/{name}.png")
    (tmp_path / "RESULTS.md").write_text(TEXT)
    common = ["--photos", str(photos), "--models", str(tmp_path / "no-models"), *SMALL]
    assert main(["evaluate", *common, "-o", str(report), "--compare", f"tool={peer}", "--results", str(tmp_path / "RESULTS.md")]) == 0
    out, err = capsys.readouterr()
    assert "report.html" in out and "left out: broken: " in err and "LPIPS (AlexNet)" in err
    found = scores_of(report)
    assert set(found) == {("photos", "eileen", method) for method in ("field", "mesh", "tool")}
    own = {"landmark_error", "matte_iou", "reference_psnr", "reference_ssim", "sharpness", "consistency", "consistency_seen"}
    assert own <= found["photos", "eileen", "field"] == found["photos", "eileen", "mesh"]
    assert "sharpness" in found["photos", "eileen", "tool"] and not found["photos", "eileen", "tool"] & (own - {"sharpness"})
    assert (report / "heads/eileen/head.glb").is_file() and not (report / "heads/broken").exists()
    assert "| field |" in (tmp_path / "RESULTS.md").read_text()
    data = json.loads((report / "report.json").read_text())
    assert data["subjects"]["eileen"]["photo"]["name"] == "eileen.png" and len(data["subjects"]["eileen"]["photo"]["sha256"]) == 64

    again = tmp_path / "again"
    made = len(runs)
    assert main(["evaluate", str(report / "heads/eileen"), *common, "-o", str(again), "--json"]) == 0
    reply = json.loads(capsys.readouterr().out)
    assert len(runs) == made, "a job that is there is not made again"
    assert reply["means"]["photos"]["field"] == data["means"]["photos"]["field"]
    assert main(["evaluate", str(report / "heads/eileen"), "-o", str(tmp_path / "lost")]) == 2
    assert "error[photo-not-found]" in capsys.readouterr().err and not (tmp_path / "lost").exists()


@pytest.mark.slow
def test_the_truth_and_the_ablations_on_it(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [row for row in ablations.ABLATIONS if row.name.startswith(("prior network", "+ restoration", "fixed noise"))]
    monkeypatch.setattr(ablations, "split", partial(ablations.split, rows=tuple(chosen)))
    write_balls(tmp_path / "data")
    arguments = ["evaluate", "--ground-truth", str(tmp_path / "data"), "--ablations", "--models", str(tmp_path / "none"), *SMALL]
    assert main([*arguments, "-o", str(tmp_path / "report")]) == 0
    found = scores_of(tmp_path / "report")
    truth = {"psnr", "foreground_psnr", "ssim", "iou", "depth_error", "normal_error", "chamfer"}
    assert found["ground_truth", "id000000", "field"] == found["ground_truth", "id000000", "mesh"] == truth
    rows = {method: metrics for (section, _, method), metrics in found.items() if section == "ablations"}
    data = json.loads((tmp_path / "report/report.json").read_text())
    assert rows == {"stages: prior network alone": truth, "stages: + restoration (stage 2)": truth}
    assert [row["name"] for row in data["unavailable_ablations"]] == ["fixed noise"], "it needs a stage that isn't there"
    assert runs == [(Settings().prior.fit_steps, True), (0, True)], "equal stages are run once"
    assert data["problems"] == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], "evaluation-empty"),
        (["--photos", "empty"], "photos-empty"),
        (["--photos", "nowhere"], "data-not-found"),
        (["--ground-truth", "empty"], "data-empty"),
        (["empty"], "job-not-found"),
        (["--photos", "photos", "--compare", "tool=nowhere"], "peer-missing"),
        (["--photos", "photos", "--compare", "mesh=photos"], "peer-name-taken"),
        (["--photos", "photos", "--results", "photos/a.png"], "results-unreadable"),
        (["--photos", "photos", "--identities", "0"], "usage"),
    ],
)
def test_what_can_not_be_evaluated_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], code: str
) -> None:
    for name in ("empty", "photos"):
        (tmp_path / name).mkdir()
    (tmp_path / "photos/a.png").write_bytes(b"\x89PNG")
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *arguments, "-o", "report", "--models", "none"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith(f"error[{code}]: ") and not (tmp_path / "report").exists()


def test_nothing_that_could_be_measured_is_an_error(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(b"\x89PNG")
    assert main(["evaluate", "--photos", str(tmp_path / "photos"), "-o", str(tmp_path / "report"), "--models", str(tmp_path)]) == 2
    assert "error[evaluation-empty]: a: " in capsys.readouterr().err and not (tmp_path / "report").exists() and runs == []


def test_another_tool_s_result_in_the_place_of_a_job_is_told_where_it_belongs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path / "head.glb"), "-o", str(tmp_path / "report"), "--models", str(tmp_path)]) == 2
    assert "--compare" in capsys.readouterr().err


def test_names_of_subjects_are_distinct(tmp_path: Path) -> None:
    for folder in ("one/out", "two/out", "three"):
        (tmp_path / folder).mkdir(parents=True)
    folders = [tmp_path / name for name in ("one/out", "two/out", "three", "one/../two/out")]
    assert subjects_of(folders) == ["out", "out-2", "three", "out-3"]
    assert subjects_of([Path("a.jpg"), Path("a.png"), Path("v1.2.jpg")]) == ["a", "a-2", "v1.2"]
