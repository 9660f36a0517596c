"""What a client can do with jobs: a real server and real encrypted sockets, a fake engine."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from portrait_shared import protocol as p
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import MeshSettings, OutputSettings, Settings, to_dict
from tests.server.fake_engine import STAGES, expected, photo, runs
from tests.server.harness import Server, states, wait_for

DRAFT = Settings(preset="draft", seed=7)


def code_of(caught: pytest.ExceptionInfo[PortraitDiffusionError]) -> str:
    assert caught.value.message and caught.value.hint
    return caught.value.code


def test_a_job_from_photo_to_verified_files(server: Server, tmp_path: Path) -> None:
    client = server.client()
    data = photo(steps=3, pause=0.02, preview="a picture", size=3 * p.MAX_CHUNK_BYTES + 17)
    job = client.submit(data, DRAFT, name="Ünder test")
    events = list(client.follow(job.id, 30))
    assert states(events) in (["queued", "running", "completed"], ["running", "completed"]), "no state comes back that is past"
    progress = [event for event in events if isinstance(event, p.JobProgress)]
    assert [event.sequence for event in progress] == sorted({event.sequence for event in progress})
    assert {event.stage for event in progress} <= set(STAGES) and progress[-1].stage == "mesh"
    assert any(event.preview == b"a picture" for event in progress) and progress[-1].metrics["loss"] > 0
    info = client.job(job.id)
    assert (info.name, info.seed, info.warnings, info.photo_sha256) == ("Ünder test", 7, ("planned",), p.sha256(data))
    assert info.settings == to_dict(DRAFT) and info.started and info.finished and info.created <= info.started <= info.finished
    assert [file.name for file in info.files] == ["head.glb", "job.json", "views/front.png"]
    pieces: list[tuple[int, int]] = []
    folder = client.result(job.id, tmp_path / "out", progress=lambda done, total: pieces.append((done, total)))
    assert (folder / "head.glb").read_bytes() == expected(data, 3 * p.MAX_CHUNK_BYTES + 17)
    assert sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()) == [file.name for file in info.files]
    total = sum(file.size for file in info.files)
    assert pieces == sorted(pieces) and pieces[-1] == (total, total) and len(pieces) > 4


def test_the_greeting_says_what_the_backend_is(server: Server) -> None:
    client = server.client()
    wait_for(lambda: client.status().device != "starting", "the worker")
    info = client.info
    assert (info.device, info.device_name, info.memory_mb, info.memory_free_mb) == ("cpu", "a fake", 1000, 500)
    assert "prior" in info.stages and info.presets == ("draft", "standard", "fine", "full") and info.pid == server.process.pid  # type: ignore[union-attr]
    assert info.local and info.protocol_version == p.PROTOCOL_VERSION
    assert {weight.state for weight in client.models()} == {"ok"} and client.models() == info.weights
    known = {model.name: model for model in client.catalogue()}
    assert known["panohead"].commercial_use == "not allowed" and known["sd15"].command == "portrait-diffusion models download sd15"


def test_submitting_again_makes_no_second_job(server: Server) -> None:
    client, id = server.client(), p.new_id()
    first = client.submit(photo(a=1), DRAFT, id=id)
    assert client.submit(photo(a=1), DRAFT, id=id).id == first.id and len(client.jobs()) == 1
    server.wait(client, id)
    assert client.submit(photo(a=1), DRAFT, id=id).state == "completed" and runs(server.folder(id)) == list(STAGES)
    for other in ((photo(a=2), DRAFT), (photo(a=1), replace(DRAFT, seed=8))):
        with pytest.raises(PortraitDiffusionError) as caught:
            client.submit(*other, id=id)
        assert code_of(caught) == "job-id-taken"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"photo": b""}, "image-empty"),
        ({"photo": None}, "photo-missing"),
        ({"settings": {"seed": -1}}, "setting-invalid"),
        ({"settings": {"stages": ["refinement", "prior"]}}, "setting-invalid|stage-unavailable"),
        ({"settings": {"prior": {"provider": "multiview"}}}, "setting-invalid"),
        ({"settings": {"prior": {"views": "/home"}}}, "setting-invalid"),
        ({"job": "../../etc/passwd"}, "job-id-invalid"),
        ({"job": "A" * 32}, "job-id-invalid"),
        ({"parent": "0" * 32}, "job-not-found"),
        ({"start": "texture"}, "parent-missing"),
        ({"start": "coffee"}, "start-invalid"),
    ],
)
def test_what_is_wrong_with_a_submission_is_named(server: Server, change: dict[str, object], code: str) -> None:
    client = server.client()
    good = p.JobSubmit(p.new_id(), {}, photo())
    with pytest.raises(PortraitDiffusionError) as caught:
        list(client.exchange([replace(good, **change)], p.JobReply))  # type: ignore[arg-type]
    assert code_of(caught) in code.split("|") and client.jobs() == [] and list((server.data / "jobs").iterdir()) == []


def test_unknown_settings_are_ignored_and_names_are_only_names(server: Server) -> None:
    client = server.client()
    message = p.JobSubmit(
        p.new_id(), {"seed": 3, "colour": {"of": "hair"}}, photo(), "C:\\photos\\..\\me\x00\n.jpg", "a\x1b[31m" + "b" * 500
    )
    (reply,) = client.exchange([message], p.JobReply)
    assert reply.job.settings == to_dict(Settings(seed=3)) and reply.job.photo_name == "me.jpg"
    assert reply.job.name == "a[31m" + "b" * (p.MAX_NAME_LENGTH - 5)
    assert {path.name for path in server.folder(reply.job.id).iterdir()} <= {"photo", "runs.log", "checkpoints", "result"}


def test_a_photo_above_the_limit_is_refused_on_both_sides(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    client = server.client()
    client.info = replace(client.info, max_photo_bytes=10)
    with pytest.raises(PortraitDiffusionError) as caught:
        client.submit(b"x" * 11, DRAFT)
    assert code_of(caught) == "photo-too-large"
    message = p.JobSubmit(p.new_id(), {}, b"x" * (p.MAX_PHOTO_BYTES + 1))
    with pytest.raises(PortraitDiffusionError) as caught:
        list(client.exchange([message], p.JobReply))
    assert code_of(caught) == "photo-too-large" and client.jobs() == []


def test_cancelling_a_running_and_a_waiting_job(server: Server) -> None:
    client = server.client()
    running, waiting = (client.submit(photo(steps=500, pause=0.02), DRAFT) for _ in range(2))
    wait_for(lambda: client.job(running.id).stage == "portrait", "the first job to run")
    assert client.cancel(waiting.id).state == "cancelled"
    assert client.cancel(running.id).state == "cancelling"
    assert server.wait(client, running.id).state == "cancelled"
    assert client.cancel(running.id).state == "cancelled", "a job that has ended stays as it is"
    assert runs(server.folder(waiting.id)) == [] and not (server.folder(running.id) / "result").exists()
    third = client.submit(photo(), DRAFT)
    assert server.wait(client, third.id).state == "completed" and len(server.workers) == 1, "the worker stays warm"


def test_a_cancelled_job_can_be_resumed(server: Server) -> None:
    client = server.client()
    job = client.submit(photo(steps=20, pause=0.02), DRAFT)
    wait_for(lambda: client.job(job.id).stage == "prior", "the second stage")
    client.cancel(job.id)
    assert server.wait(client, job.id).state == "cancelled"
    assert client.resume(job.id).state in ("queued", "running")
    done = server.wait(client, job.id)
    assert done.state == "completed" and done.error is None
    assert runs(server.folder(job.id)) == ["portrait", "prior", "prior", "mesh"], "the finished stage is not computed again"
    with pytest.raises(PortraitDiffusionError) as caught:
        client.resume(job.id)
    assert code_of(caught) == "job-finished"


def test_a_failure_is_readable_and_the_worker_stays(server: Server) -> None:
    client = server.client()
    planned, bug = client.submit(photo(fail="no-face"), DRAFT), client.submit(photo(bug=True), DRAFT)
    error = server.wait(client, planned.id).error
    assert error is not None and (error.code, error.message, error.retryable) == ("no-face", "it failed as planned", True)
    error = server.wait(client, bug.id).error
    assert error is not None and error.code == "internal-error" and "a bug" in error.message and "fake_engine.py" in error.log
    assert server.wait(client, client.submit(photo(), DRAFT).id).state == "completed" and len(server.workers) == 1


def test_out_of_memory_suggests_settings_and_replaces_the_worker(server: Server) -> None:
    client = server.client()
    wanted = Settings(mesh=MeshSettings(resolution=320, texture_size=4096, faces=0), output=OutputSettings(view_size=64))
    error = server.wait(client, client.submit(photo(fail="out-of-memory"), wanted).id).error
    assert error is not None and error.code == "out-of-memory" and error.retryable
    assert error.suggested["mesh"] == {**to_dict(wanted)["mesh"], "resolution": 160, "texture_size": 2048}
    assert error.suggested["output"]["view_size"] == 64, "nothing goes below what is allowed"
    again = client.submit(photo(), error.suggested)
    assert server.wait(client, again.id).state == "completed" and len(server.workers) == 2


def test_texturing_again(server: Server, tmp_path: Path) -> None:
    client = server.client()
    first = client.submit(photo(steps=1), Settings(mesh=MeshSettings(faces=7000)), name="first")
    with pytest.raises(PortraitDiffusionError) as caught:
        client.retexture(client.submit(photo(steps=200, pause=0.02), DRAFT).id, DRAFT)
    assert code_of(caught) == "job-not-finished"
    server.wait(client, first.id)
    again = client.retexture(first.id, Settings(seed=9, mesh=MeshSettings(faces=9000, texture_size=2048)))
    assert (again.parent, again.start, again.seed, again.photo_sha256) == (first.id, "texture", 9, first.photo_sha256)
    assert again.settings["mesh"] == {**first.settings["mesh"], "texture_size": 2048}
    assert {path.name for path in (server.folder(again.id) / "geometry").iterdir()} == {f"{stage}.json" for stage in STAGES}
    client.delete(first.id)
    for job in client.jobs():
        if job.id != again.id:
            client.cancel(job.id)
    assert server.wait(client, again.id).state == "completed", "the geometry is its own, even when its parent is deleted"
    third = client.retexture(again.id, DRAFT)
    assert {path.name for path in (server.folder(third.id) / "geometry").iterdir()} == {f"{stage}.json" for stage in STAGES}


def test_a_new_job_may_take_its_photo_from_another(server: Server) -> None:
    client = server.client()
    first = client.submit(photo(a=1), DRAFT)
    second = client.submit(None, replace(DRAFT, seed=8), parent=first.id)
    assert second.photo_sha256 == first.photo_sha256 and second.parent == first.id and second.start is None
    assert server.wait(client, second.id).state == "completed"


def test_deleting(server: Server) -> None:
    client = server.client()
    job = client.submit(photo(steps=200, pause=0.02), DRAFT)
    with pytest.raises(PortraitDiffusionError) as caught:
        client.delete(job.id)
    assert code_of(caught) == "job-running" and server.folder(job.id).exists()
    client.cancel(job.id)
    server.wait(client, job.id)
    client.delete(job.id)
    assert client.jobs() == [] and not server.folder(job.id).exists()
    with pytest.raises(PortraitDiffusionError) as caught:
        client.job(job.id)
    assert code_of(caught) == "job-not-found"


def test_results_only_by_the_names_that_are_listed(server: Server, tmp_path: Path) -> None:
    client = server.client()
    running = client.submit(photo(steps=100, pause=0.02), DRAFT)
    with pytest.raises(PortraitDiffusionError) as caught:
        client.result(running.id, tmp_path / "out")
    assert code_of(caught) == "job-not-finished"
    client.cancel(running.id)
    job = client.submit(photo(), DRAFT)
    server.wait(client, job.id)
    for name in ("../photo", "photo", "/etc/passwd", "views", "", "views/../../photo"):
        with pytest.raises(PortraitDiffusionError) as caught:
            list(client.exchange([p.JobResult(job.id, name, 0, 10)], p.ResultChunk))
        assert code_of(caught) == "file-not-found"
    for offset, length in ((-1, 10), (0, -1), (0, p.MAX_CHUNK_BYTES + 1)):
        with pytest.raises(PortraitDiffusionError) as caught:
            list(client.exchange([p.JobResult(job.id, "head.glb", offset, length)], p.ResultChunk))
        assert code_of(caught) == "chunk-invalid"
    (piece,) = client.exchange([p.JobResult(job.id, "head.glb", 990, 100)], p.ResultChunk)
    assert piece.data == expected(photo())[990:]
    only = client.result(job.id, tmp_path / "one", files=["job.json"])
    assert [path.name for path in only.iterdir()] == ["job.json"] and json.loads((only / "job.json").read_text()) == to_dict(DRAFT)


def test_a_corrupted_result_is_never_taken_for_one(server: Server, tmp_path: Path) -> None:
    client = server.client()
    job = client.submit(photo(), DRAFT)
    server.wait(client, job.id)
    (server.folder(job.id) / "result/head.glb").write_bytes(b"x" * 1000)
    with pytest.raises(PortraitDiffusionError) as caught:
        client.result(job.id, tmp_path / "out")
    assert code_of(caught) == "result-damaged" and list((tmp_path / "out").iterdir()) == []
    (server.folder(job.id) / "result/head.glb").write_bytes(b"short")
    with pytest.raises(PortraitDiffusionError) as caught:
        client.result(job.id, tmp_path / "out")
    assert code_of(caught) == "result-damaged" and list((tmp_path / "out").iterdir()) == []


def test_two_devices_work_at_the_same_time(tmp_path: Path) -> None:
    with Server(tmp_path / "data").start("tcp://127.0.0.1:*", "cpu,auto") as server:
        client = server.client()
        jobs = [client.submit(photo(steps=100, pause=0.02), DRAFT) for _ in range(3)]
        wait_for(lambda: [client.job(job.id).state for job in jobs] == ["running", "running", "queued"], "two jobs to run")
        assert client.status().running == 2 and client.status().queued == 1


def test_a_device_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    with Server(tmp_path / "data").start("tcp://127.0.0.1:*", "cuda") as server:
        client = server.client()
        job = client.submit(photo(), DRAFT)
        done = server.wait(client, job.id, 60)
        assert done.state == "failed" and done.error is not None and done.error.code == "device-unavailable"
        assert client.status().device == "unavailable" and "CUDA" in client.info.device_name


def test_a_slow_client_gets_the_newest_and_no_flood(server: Server) -> None:
    client = server.client()
    job = client.submit(photo(steps=60, pause=0.1, preview="p" * 100_000), DRAFT)
    time.sleep(5)  # says nothing, reads nothing
    first = next(event for event in client.follow(job.id, 60) if isinstance(event, p.JobProgress))
    assert first.sequence > 20 and first.preview is not None, "the newest report, with the newest preview"
    client.cancel(job.id)
