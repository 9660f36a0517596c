"""The command line: options from the declaration, one line per error, exit codes, JSON, and clean ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from portrait_backend import __version__
from portrait_backend.cli import main
from portrait_shared.settings import walk
from tests.cli import fake_parts

SMALL = ["--view-size", "64", "--output-turntable-frames", "4", "--output-turntable-size", "64"]
SCRIPT = Path(__file__).with_name("run_with_fakes.py")


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fake_parts.install(monkeypatch)
    path = tmp_path / "someone.png"
    path.write_bytes(b"photo")
    return path


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_generate_makes_the_folder_and_says_so(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(photo), "-o", str(tmp_path / "out"), "--seed", "7", *SMALL]) == 0
    out, err = capsys.readouterr()
    assert "out/head.glb: 1 triangles" in out and "seed 7" in out
    assert "warning: two faces: the largest was taken" in err and "prior: 4/4" in err


def test_generate_json_is_one_object_on_stdout(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(photo), "-o", str(tmp_path / "out"), "--json", *SMALL]) == 0
    reply = json.loads(capsys.readouterr().out)
    assert reply["output"] == str(tmp_path / "out") and reply["settings"]["output"]["view_size"] == 64
    assert "head.glb" in reply["files"]


def test_every_setting_is_an_option_and_arrives(photo: Path, tmp_path: Path) -> None:
    arguments, expected = [], {}
    for info in walk():
        if info.path in ("device", "stages", "output.turntable"):
            continue
        name = info.options[0]
        value = info.choices[-1] if info.choices else int(info.minimum or 0) + 1
        if info.type is str and not info.choices:
            value = "some text"
        if info.type is float:
            value = ((info.minimum or 0) + (info.maximum or 1)) / 2
        if info.type is bool:
            arguments.append("--no-" + name[2:])
            expected[info.path] = False
        else:
            arguments += [name, str(value)]
            expected[info.path] = value
    assert main(["generate", str(photo), "-o", str(tmp_path / "out"), *arguments]) == 0
    settings = json.loads((tmp_path / "out/job.json").read_text())["settings"]
    for path, value in expected.items():
        group, _, name = path.rpartition(".")
        assert (settings[group] if group else settings)[name] == value, path


@pytest.mark.parametrize("kind", ["obj", "ply"])
def test_format_names_the_mesh_file(photo: Path, tmp_path: Path, kind: str) -> None:
    assert main(["generate", str(photo), "-o", str(tmp_path / "out"), "--format", kind, "--turntable", "none", *SMALL]) == 0
    assert (tmp_path / f"out/head.{kind}").exists() and not list((tmp_path / "out").glob("turntable*"))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["generate", "PHOTO"], "usage"),
        (["generate", "PHOTO", "-o", "out", "--faces", "many"], "usage"),
        (["generate", "PHOTO", "-o", "out", "--preset", "best"], "usage"),
        (["generate", "PHOTO", "-o", "out", "--colour", "red"], "usage"),
        (["generat", "PHOTO"], "usage"),
        (["generate", "nobody.jpg", "-o", "out"], "image-missing"),
        (["generate", "PHOTO", "-o", "out", "--faces=-1"], "setting-invalid"),
        (["generate", "PHOTO", "-o", "out", "--stages", "prior,polish"], "setting-invalid"),
        (["generate", "PHOTO", "-o", "out", "--stages", "prior, refinement, restoration"], "setting-invalid"),
        (["generate", "PHOTO", "-o", "."], "output-in-use"),
        (["render", "nowhere", "--cameras", "c.json", "-o", "out"], "job-not-found"),
        (["train", "prior", "--data", "nowhere"], "data-not-found"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], code: str
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(photo) if a == "PHOTO" else a for a in arguments]
    assert main(given) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and lines[-1].startswith(f"error[{code}]: ")
    assert all(": " in line and line.split(":")[0] in ("portrait", "prior", "mesh") for line in lines[:-1])
    assert [p.name for p in tmp_path.iterdir()] == ["someone.png"]
    if arguments[0] in ("generate", "render"):
        assert main([*given, "--json"]) == 2
        reply = json.loads(capsys.readouterr().out)
        assert reply["code"] == code and reply["message"] and reply["hint"] and reply["retryable"] is False


def test_a_fault_of_ours_is_one_line_and_a_log(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("a bug\nwith more lines")

    monkeypatch.setattr(sys.modules["portrait_backend.mesh.build"], "build_mesh", broken)
    assert main(["generate", str(photo), "-o", str(tmp_path / "out"), "--json", *SMALL]) == 1
    out, err = capsys.readouterr()
    reply = json.loads(out)
    assert reply["code"] == "internal-error" and reply["message"] == "ZeroDivisionError: a bug" and "Traceback" not in err
    assert "in broken" in Path(reply["log"]).read_text() and not (tmp_path / "out").exists()
    assert main(["generate", str(photo), "-o", str(tmp_path / "out"), "--debug", *SMALL]) == 1
    assert "in broken" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, "cancelled"), (signal.SIGTERM, 143, "")])
def test_a_signal_ends_the_job_and_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int, word: str) -> None:
    (tmp_path / "someone.png").write_bytes(b"photo")
    command = [sys.executable, str(SCRIPT), "generate", str(tmp_path / "someone.png"), "-o", str(tmp_path / "out")]
    env = {"PAUSE": "0.2", "PYTHONPATH": ":".join(p for p in sys.path if p)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("prior: started"):
                break
        time.sleep(0.3)
        assert len(list(tmp_path.iterdir())) == 2, "the working folder is there"
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(60) == code
    assert word in rest and "Traceback" not in rest
    assert [p.name for p in tmp_path.iterdir()] == ["someone.png"]


def test_help_and_version_load_nothing_heavy() -> None:
    code = (
        "import sys; from portrait_backend.cli import main; code = main({args!r}); "
        "heavy = {{'torch', 'numpy', 'mediapipe', 'scipy', 'PIL', 'numba'}} & set(sys.modules); assert not heavy, heavy; sys.exit(code)"
    )
    for arguments, expected in ((["--help"], "generate"), (["generate", "--help"], "--mesh-resolution"), (["--version"], __version__)):
        done = python("-c", code.format(args=arguments))
        assert done.returncode == 0 and expected in done.stdout, done.stderr
    done = python("-c", code.format(args=["generate", "x.jpg"]))
    assert done.returncode == 2 and done.stderr.startswith("error[usage]: ")


def test_help_names_ranges_defaults_and_presets(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["generate", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for expected in (
        "48 to 512, default 224; draft 160; fine 320; full 320",
        "--texture-size",
        "draft|standard|fine|full",
        "--no-prior-fit-shape",
    ):
        assert expected in text


def test_without_arguments_it_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "generate" in capsys.readouterr().out


def test_as_a_module() -> None:
    done = python("-m", "portrait_backend", "--version")
    assert done.returncode == 0 and done.stdout.strip() == f"portrait-diffusion {__version__}"


@pytest.mark.parametrize("prior", ["panohead", "portrait4d"])
def test_a_prior_without_weights_is_refused_before_anything_is_computed(
    prior: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORTRAIT_DIFFUSION_MODELS", str(tmp_path / "models"))
    assert main(["generate", str(tmp_path / "nobody.png"), "-o", str(tmp_path / "out"), "--prior", prior]) == 2
    said = capsys.readouterr().err
    command = "models convert FILE --as panohead" if prior == "panohead" else "models convert --as portrait4d"
    assert f"the weights of the prior {prior} are not there" in said and command in said and "no file" not in said
    assert not (tmp_path / "out").exists()
