"""`portrait-diffusion models`: what it prints, asks and refuses; exit codes and JSON."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from portrait_backend.cli import main
from portrait_backend.cli.models_progress import json_lines, lines
from portrait_backend.models import catalogue
from portrait_backend.models.catalogue import ModelFile
from tests.models.tiny_model import FILES, HEAVY, MODEL

PUBLISHED = catalogue.CATALOGUE


@pytest.fixture(autouse=True)
def _only_the_tiny_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(catalogue, "CATALOGUE", (MODEL,))
    monkeypatch.setenv("PORTRAIT_DIFFUSION_MODELS", str(tmp_path / "m"))


def answer(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, object]:
    assert main([*arguments, "--json"]) == code
    reply: dict[str, object] = json.loads(capsys.readouterr().out)
    return reply


def test_the_life_of_a_model(mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["models", "list"], capsys)["models"][0]["state"] == "absent"  # type: ignore[index]
    assert answer(["models", "path", "tiny"], capsys, 2)["code"] == "model-missing"
    assert main(["models", "download", "tiny", "--from", str(mirror), "--yes"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'm/tiny'}: Tiny\n"
    for word in (
        "licence: none (https://example.org)",
        "commercial use: unclear",
        "size unknown",
        "sha256 known here beforehand: 0 of 2 files",
    ):
        assert word in err
    listed = answer(["models", "list"], capsys)
    assert listed["models"][0]["state"] == "installed" and listed["folder"] == str(tmp_path / "m")  # type: ignore[index]
    assert listed["models"][0]["files"][0]["sha256"] == "unknown"  # type: ignore[index]
    assert {w["name"] for w in listed["shipped"]} >= {"prior.safetensors"}  # type: ignore[attr-defined]
    assert answer(["models", "verify"], capsys)["ok"] is True
    assert main(["models", "path", "tiny"]) == 0 and capsys.readouterr().out == f"{tmp_path / 'm/tiny'}\n"
    (tmp_path / "m/tiny/unet/weights.safetensors").write_bytes(HEAVY[::-1])
    assert main(["models", "verify", "tiny"]) == 2
    out = capsys.readouterr().out
    assert "altered  tiny/unet/weights.safetensors" in out and "models remove tiny && portrait-diffusion models download tiny" in out
    found = answer(["models", "verify", "tiny"], capsys, 2)
    assert found["ok"] is False and [f["state"] for f in found["models"]["tiny"]] == ["ok", "altered"]  # type: ignore[index]
    assert answer(["models", "remove", "tiny"], capsys)["removed"] == "tiny"
    assert not (tmp_path / "m/tiny").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["models", "download", "huge"], "model-unknown"),
        (["models", "verify", "tiny"], "model-missing"),
        (["models", "remove", "tiny"], "model-missing"),
        (["models", "download", "tiny"], "licence-not-accepted"),
        (["models", "download", "tiny", "--from", "nowhere", "--yes"], "mirror-incomplete"),
        (["models", "convert", "nothing.pkl", "--as", "eg3d", "-o", "x.safetensors"], "checkpoint-unreadable"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], code: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert answer(arguments, capsys, 2)["code"] == code
    assert main(arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error[{code}]: ")
    assert list(tmp_path.iterdir()) == []


def test_the_licence_is_asked_for_on_a_terminal(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import typer

    answers = iter((False, True))
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr(typer, "confirm", lambda question, err: next(answers))
    assert main(["models", "download", "tiny", "--from", str(mirror)]) == 2
    assert not (tmp_path / "m").exists()
    assert main(["models", "download", "tiny", "--from", str(mirror)]) == 0
    assert {p.name for p in (tmp_path / "m/tiny").iterdir()} == {"model.json", *(name.split("/")[0] for name in FILES)}


def test_the_list_is_for_people_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["models", "list"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"tiny +absent +size unknown: Tiny; tests", text) and str(tmp_path / "m") in text


def test_progress_lines_come_now_and_then() -> None:
    printed: list[str] = []
    now = iter(float(n) for n in range(100))
    report = lines(printed.append, lambda: next(now))
    for done in range(0, 20_000_000, 1_000_000):
        report("a", done, 40_000_000)
    report("b", 3_000_000, 0)
    assert printed[0] == "a: 0 of 40 MB" and printed[-1] == "b: 3 MB" and 3 <= len(printed) <= 6


def test_json_progress_counts_the_files_together_and_goes_on_after_finished_ones() -> None:
    printed: list[str] = []
    now = 0.0
    model = replace(MODEL, files=(ModelFile("a", 100), ModelFile("b", 800), ModelFile("c", 100)))
    report = json_lines(printed.append, model, lambda: now)
    report("b", 200, 800)  # a was there already
    report("b", 300, 800)  # too soon after the last line
    now = 1.0
    report("b", 400, 800)
    report("b", 800, 800)
    report("c", 50, 200)  # larger than the catalogue's rounded size
    report("checking a", 100, 100)
    assert [tuple(json.loads(line).values()) for line in printed] == [
        ("fetching", "b", 300, 1000),
        ("fetching", "b", 500, 1000),
        ("fetching", "b", 900, 1000),
        ("fetching", "c", 950, 1100),
        ("checking", "a", 100, 1100),
    ]
    assert list(json.loads(printed[0])) == ["step", "file", "done", "total"]


def test_json_progress_goes_to_stderr_and_the_answer_to_stdout(mirror: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "download", "tiny", "--from", str(mirror), "--yes", "--json", "--json-progress"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["state"] == "installed" and json.loads(out)["manual"] is False
    reports = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    total = sum(map(len, FILES.values()))
    assert [r["step"] for r in reports] == sorted((r["step"] for r in reports), reverse=True), "fetched, then checked"
    assert (reports[-1]["done"], reports[-1]["total"]) == (total, total) and {r["file"] for r in reports} == set(FILES)
    assert main(["models", "verify", "tiny", "--json", "--json-progress"]) == 0
    assert '"step": "checking"' in capsys.readouterr().err


def test_convert_takes_the_downloaded_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from portrait_backend.models import conversion

    asked: list[tuple[Path, str, Path]] = []

    def converted(*given: Path | str) -> conversion.Converted:
        asked.append(given)  # type: ignore[arg-type]
        return conversion.Converted(1, 2, "G_ema", "0")

    monkeypatch.setattr(conversion, "convert_checkpoint", converted)
    monkeypatch.setattr(catalogue, "CATALOGUE", (replace(MODEL, name="eg3d", files=(ModelFile("net.pkl"),), convert="eg3d"),))
    assert answer(["models", "convert", "--as", "eg3d"], capsys, 2)["code"] == "model-missing" and not asked
    (tmp_path / "net.pkl").write_bytes(b"pickled")
    assert main(["models", "download", "eg3d", "--from", str(tmp_path), "--yes"]) == 0
    assert capsys.readouterr().out.endswith("convert it: portrait-diffusion models convert --as eg3d\n")
    answer(["models", "convert", "--as", "eg3d"], capsys)
    assert asked == [(tmp_path / "m/eg3d/net.pkl", "eg3d", tmp_path / "m/converted/eg3d.safetensors")]


def test_the_catalogue_is_complete() -> None:
    models = PUBLISHED
    assert {m.name for m in models} >= {"sd15", "sd15-normal", "brushnet", "portrait4d", "panohead", "eg3d"}
    assert len({m.name for m in models}) == len(models)
    for model in models:
        assert model.licence and model.licence_page.startswith("https://") and model.purpose and model.files, model.name
        for file in model.files:
            assert not file.sha256 or re.fullmatch(r"[0-9a-f]{64}", file.sha256), file.path
            assert not file.exact or file.size, file.path
            assert not file.path.startswith("/") and ".." not in file.path, file.path
        if isinstance(model.source, catalogue.Hub):
            assert model.source.pinned or model.source.revision == "main", model.name
        assert bool(model.convert) == any(f.path.endswith(".pkl") for f in model.files), model.name
