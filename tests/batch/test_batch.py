"""A batch as a whole, in real processes: one bad photo costs one head, the same command goes on, Ctrl-C leaves what is finished."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from portrait_backend.batch import run as batch_run
from portrait_backend.cli import main
from tests.batch.fake_engine import LIGHT, PIPELINE
from tests.server.harness import alive
from tests.server.harness import wait_for as wait_until

SCRIPT = Path(__file__).with_name("run_batch.py")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(batch_run, "ENGINE", LIGHT)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "photos").mkdir()
    return tmp_path


def photos(folder: Path, **contents: str) -> list[str]:
    paths = [folder / f"photos/{name}.jpg" for name in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        path.write_text(content)
    return [str(path) for path in paths]


def run(folder: Path, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    """Run a batch into `out` and return the rows of its summary."""
    assert main(["batch", *arguments, "-o", str(folder / "out")]) == code
    return json.loads((folder / "out/summary.json").read_text())["photos"]


def record(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "out" / name / "job.json").read_text())


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "out").iterdir())


def test_one_bad_photo_never_stops_the_rest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = photos(folder, a="fine", b="no-face", c="fault", d="die", e="memory", f="blurred")
    rows = run(folder, *given, str(folder / "photos/gone.jpg"), code=1)
    found = {row["name"]: (row["state"], row.get("error", {}).get("code")) for row in rows}
    assert found == {
        "a": ("completed", None),
        "b": ("failed", "no-face"),
        "c": ("failed", "internal-error"),
        "d": ("failed", "worker-died"),
        "e": ("failed", "out-of-memory"),
        "f": ("completed", None),
        "gone": ("failed", "image-missing"),
    }
    assert left(folder) == [".batch.lock", "a", "f", "summary.csv", "summary.json"], "nothing half-written, not even by the killed process"
    errors = {row["name"]: row.get("error", {}) for row in rows}
    assert (
        "in light" in errors["c"]["log"] and errors["c"]["message"] == "ZeroDivisionError: a bug" and "signal 9" in errors["d"]["message"]
    )
    out, err = capsys.readouterr()
    assert "7 heads: 2 completed, 5 failed" in out and "there is no face. Take another photo" in " ".join(out.split()) and "blurred" in out
    assert "[2/7] b: failed: there is no face. Take another photo" in err.splitlines()
    with (folder / "out/summary.csv").open(newline="") as stream:
        table = {row["name"]: row for row in csv.DictReader(stream)}
    assert table["b"]["code"] == "no-face" and table["b"]["hint"] == "Take another photo" and table["f"]["warnings"] == "blurred"
    pids = {name: record(folder, name)["pid"] for name in ("a", "f")}
    assert pids["a"] != pids["f"], "a process that died or ran out of memory is replaced"


def test_the_same_command_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = photos(folder, a="fine", b="no-face", c="fine too")
    run(folder, *given, code=1)
    before = (folder / "out/a/job.json").stat().st_mtime_ns
    (folder / "photos/b.jpg").write_text("mended")
    assert [row["state"] for row in run(folder, *given)] == ["skipped", "completed", "skipped"]
    assert (folder / "out/a/job.json").stat().st_mtime_ns == before
    (folder / "photos/c.jpg").write_text("another photo under the same name")
    assert [row["state"] for row in run(folder, *given)] == ["skipped", "skipped", "completed"]
    assert [row["state"] for row in run(folder, *given, "--seed", "5")] == ["completed"] * 3
    assert [row["state"] for row in run(folder, *given, "--seed", "5", "--redo")] == ["completed"] * 3
    capsys.readouterr()
    assert main(["batch", *given, "-o", str(folder / "out"), "--seed", "5", "--json"]) == 0
    reply = json.loads(capsys.readouterr().out)
    assert reply["counts"] == {"skipped": 3} and reply["output"] == str(folder / "out")


def test_settings_of_the_manifest_and_of_the_command_line_arrive(folder: Path) -> None:
    photos(folder, a="fine", b="fine")
    (folder / "photos/m.csv").write_text("photo,name,mesh.faces\na.jpg,first/A,5000\na.jpg,first/B,6000\n")
    rows = run(folder, str(folder / "photos"), "--manifest", str(folder / "photos/m.csv"), "--preset", "draft", "--faces", "7000")
    assert [row["name"] for row in rows] == ["first/A", "first/B", "b"]
    assert [record(folder, row["name"])["settings"]["mesh"]["faces"] for row in rows] == [5000, 6000, 7000]
    assert {record(folder, row["name"])["settings"]["preset"] for row in rows} == {"draft"}


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ((), "photos-missing"),
        (("--faces=-1", "PHOTO"), "setting-invalid"),
        (("--jobs", "0", "PHOTO"), "usage"),
        (("--gpus", "0,one", "PHOTO"), "usage"),
        (("--gpus", "0,0", "PHOTO"), "usage"),
        (("--name", "{x}", "PHOTO"), "name-invalid"),
        (("PHOTO", "--manifest", "MANIFEST"), "manifest-invalid"),
        (("PHOTO", "PHOTO"), "name-clash"),
    ],
)
def test_bad_input_starts_nothing(folder: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], code: str) -> None:
    (photo,) = photos(folder, a="fine")
    (folder / "m.csv").write_text("photo,colour\na.jpg,red\n")
    arguments = [{"PHOTO": photo, "MANIFEST": str(folder / "m.csv")}.get(word, word) for word in more]
    assert main(["batch", *arguments, "-o", str(folder / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error[{code}]: ") and len(err.splitlines()) == 1
    assert not (folder / "out").exists()


def test_jobs_share_the_photos_and_the_cores(folder: Path) -> None:
    given = photos(folder, **{f"p{number}": f"fine {number}" for number in range(12)})
    assert {row["state"] for row in run(folder, *given, "--jobs", "2")} == {"completed"}
    records = [record(folder, f"p{number}") for number in range(12)]
    assert 1 <= len({made["pid"] for made in records}) <= 2 and os.getpid() not in {made["pid"] for made in records}
    assert {made["threads"] for made in records} == {str(max(1, len(os.sched_getaffinity(0)) // 2))}


def test_each_gpu_has_a_process_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    run(folder, *photos(folder, a="wait", b="wait", c="die", d="wait"), "--gpus", "0,2", code=1)
    records = [record(folder, name) for name in "abd"]
    assert {made["gpu"] for made in records} == {"4", "7"} and len({made["pid"] for made in records}) <= 3


def test_a_full_disk_stops_the_batch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(folder, *photos(folder, a="fine", b="full", c="fine"), code=1)
    assert [row["state"] for row in rows] == ["completed", "failed", "waiting"] and rows[1]["error"]["code"] == "disk-full"
    assert "3 heads: 1 completed, 1 failed, 1 waiting" in capsys.readouterr().out


def test_what_a_killed_batch_left_is_cleared_away(folder: Path) -> None:
    (folder / "out/.a.partial-0123abcd/views").mkdir(parents=True)
    (folder / "out/.other.partial-0123abcd").mkdir()
    run(folder, *photos(folder, a="fine"))
    assert left(folder) == [".batch.lock", ".other.partial-0123abcd", "a", "summary.csv", "summary.json"], "only of its own heads"


def test_the_folders_of_others_are_left_alone(folder: Path) -> None:
    (folder / "out/a").mkdir(parents=True)
    (folder / "out/a/thesis.txt").write_text("years of work")
    rows = run(folder, *photos(folder, a="fine", b="fine"), code=1)
    assert [row["state"] for row in rows] == ["failed", "completed"] and rows[0]["error"]["code"] == "output-not-empty"
    assert (folder / "out/a/thesis.txt").read_text() == "years of work"


def start(folder: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """Start a batch in a process group of its own, as a shell does."""
    env = {**os.environ, **more, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(SCRIPT), "batch", *arguments, "-o", str(folder / "out")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True)


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"the batch ended without saying {text!r}")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def all_leave(pids: list[int]) -> None:
    wait_until(lambda: not any(alive(pid) for pid in pids), "the processes to leave")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_finished_heads_and_nothing_else(folder: Path, number: signal.Signals, code: int) -> None:
    given = photos(folder, a="fine", b="slow", c="fine")
    with start(folder, *given) as process:
        wait_for(process, "b: started")
        time.sleep(0.3)
        workers = children(process.pid)
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in err and out == ""
    assert left(folder) == [".batch.lock", "a", "summary.csv", "summary.json"]
    rows = json.loads((folder / "out/summary.json").read_text())["photos"]
    assert [row["state"] for row in rows] == ["completed", "cancelled", "waiting"]
    assert workers
    all_leave(workers)
    if number == signal.SIGINT:
        assert "error[cancelled]: cancelled, 3 heads: 1 completed, 1 cancelled, 1 waiting. The finished heads are in" in err
    (folder / "photos/b.jpg").write_text("quick")
    assert [row["state"] for row in run(folder, *given)] == ["skipped", "completed", "completed"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_a_killed_batch_takes_its_processes_along_and_another_goes_on(folder: Path) -> None:
    given = photos(folder, a="fine", b="slow")
    with start(folder, *given) as process:
        wait_for(process, "b: started")
        time.sleep(0.3)
        assert main(["batch", *given, "-o", str(folder / "out")]) == 2, "two batches in one folder"
        workers = children(process.pid)
        process.kill()
        process.communicate(timeout=30)
    all_leave(workers)
    (folder / "photos/b.jpg").write_text("quick")
    assert [row["state"] for row in run(folder, *given)] == ["skipped", "completed"]
    assert left(folder) == [".batch.lock", "a", "b", "summary.csv", "summary.json"]


@pytest.mark.slow
def test_with_the_pipeline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_run, "ENGINE", PIPELINE)
    small = ["--view-size", "64", "--turntable", "none"]
    given = photos(folder, a="one", b="two")
    assert [row["state"] for row in run(folder, *given, *small, "--jobs", "2")] == ["completed"] * 2
    assert (folder / "out/a/views/front.png").is_file() and record(folder, "b")["photo"]["name"] == "b.jpg"
    rows = run(folder, *given, *small)
    assert [row["state"] for row in rows] == ["skipped"] * 2 and rows[0]["warnings"] == ["two faces: the largest was taken"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_a_batch_killed_inside_a_head_goes_on_inside_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, runs = photos(folder, a="fine"), folder / "runs.log"
    quick = ("--preset", "draft", "--turntable", "none", "--view-size", "64")
    with start(folder, *given, *quick, ENGINE=PIPELINE, MESH_PAUSE="600", RUNS=str(runs)) as process:
        wait_until(lambda: runs.exists() and "mesh" in runs.read_text(), "the mesh", 60)
        workers = children(process.pid)
        process.kill()
        process.communicate(timeout=30)
    all_leave(workers)
    stages = folder / "out/.a.stages"
    assert {path.name for path in stages.glob("*.json")} == {"portrait.json", "prior.json"}
    (stages / ".mesh.1.part.safetensors").write_bytes(b"half")
    monkeypatch.setattr(batch_run, "ENGINE", PIPELINE)
    monkeypatch.setenv("RUNS", str(runs))
    assert [row["state"] for row in run(folder, *given, *quick)] == ["completed"]
    assert runs.read_text().split() == ["prior", "mesh", "mesh"], "what was finished is not computed again"
    assert left(folder) == [".batch.lock", "a", "summary.csv", "summary.json"]
    resumed = (folder / "out/a/head.glb").read_bytes()
    run(folder, *given, *quick, "--redo")
    assert (folder / "out/a/head.glb").read_bytes() == resumed and runs.read_text().split()[3:] == ["prior", "mesh"]
