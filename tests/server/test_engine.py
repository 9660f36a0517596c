"""The real engine in a real worker process: the pipeline's checkpoints, previews, errors, and the same bytes as on the command line."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import portrait_backend
from portrait_backend.server.engine import PREVIEW_SIDES, jpeg
from portrait_shared import protocol as p
from portrait_shared.settings import OutputSettings, Settings
from tests.cli import fake_parts
from tests.restoration import small_stage
from tests.server.harness import Server, wait_for

SETTINGS = Settings(seed=5, output=OutputSettings(view_size=64, turntable_frames=4, turntable_size=64))
STAGES = ["portrait", "prior", "mesh", "views", "turntable"]
ENGINE = "tests.server.fake_pipeline:FakePipeline"
pytestmark = pytest.mark.slow  # a worker with torch takes seconds to start


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with Server(tmp_path / "data", ENGINE) as made:
        yield made


def test_a_job_gives_the_same_bytes_as_the_command_line(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_parts.install(monkeypatch)
    (tmp_path / "me.jpg").write_bytes(b"photo")
    portrait_backend.generate(tmp_path / "me.jpg", SETTINGS, output=tmp_path / "cli")
    client = server.start().client()
    job = client.submit(tmp_path / "me.jpg", SETTINGS)
    seen = [event for event in client.follow(job.id, 60) if isinstance(event, p.JobProgress)]
    info = client.job(job.id)
    assert info.state == "completed" and info.warnings == ("two faces: the largest was taken",) and info.name == "me"
    client.result(job.id, tmp_path / "out")
    names = {path.relative_to(tmp_path / "cli").as_posix() for path in (tmp_path / "cli").rglob("*") if path.is_file()}
    assert names == {file.name for file in info.files}
    for name in names - {"job.json"}:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "cli" / name).read_bytes(), name
    previews = [event.preview for event in seen if event.preview is not None]
    assert previews and Image.open(io.BytesIO(previews[-1])).format == "JPEG"
    order = [STAGES.index(event.stage) for event in seen]
    assert order == sorted(order) and len(set(order)) > 1, "some reports may be left out, the order stays"


def test_a_killed_worker_loses_only_the_stage_it_was_in(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAUSE", "1")
    client = server.start().client()
    job = client.submit(b"photo", SETTINGS)
    wait_for(lambda: client.job(job.id).stage == "prior" and client.job(job.id).step >= 1, "the prior", 60)
    server.kill_worker()
    failed = server.wait(client, job.id)
    assert failed.error is not None and failed.error.code == "worker-died"
    folder = server.folder(job.id)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["portrait.json", "portrait.portrait.safetensors"]
    client.resume(job.id)
    assert server.wait(client, job.id, 60).state == "completed"
    assert not [path for path in folder.rglob("*") if "part" in path.name], "nothing half-written stays"
    first = (folder / "result/head.glb").read_bytes()
    again = client.submit(None, SETTINGS, parent=job.id)
    assert server.wait(client, again.id, 60).state == "completed"
    assert (server.folder(again.id) / "result/head.glb").read_bytes() == first, "the same bytes as without the interruption"


def test_a_worker_killed_in_the_restoration_goes_on_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_stage.write_weights(tmp_path / "weights")
    monkeypatch.setenv("WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = replace(small_stage.SETTINGS, restoration=replace(small_stage.SETTINGS.restoration, steps=20))
    with Server(tmp_path / "data", "tests.server.fake_pipeline:Restoring").start() as server:
        client = server.client()
        job = client.submit(b"photo", settings)
        wait_for(lambda: client.job(job.id).stage == "restoration" and client.job(job.id).step >= 2, "the restoration", 180)
        server.kill_worker()
        assert server.wait(client, job.id).state == "failed"
        finished = {path.name for path in (server.folder(job.id) / "checkpoints").glob("*.json")}
        assert finished == {"portrait.json", "prior.json"}
        client.resume(job.id)
        assert server.wait(client, job.id, 180).state == "completed"
        again = client.submit(None, settings, parent=job.id)
        assert server.wait(client, again.id, 180).state == "completed"
        first, second = ((server.folder(id) / "result/head.glb").read_bytes() for id in (job.id, again.id))
        assert first == second, "the same bytes as without the interruption"


def test_texturing_again_through_the_server(server: Server) -> None:
    client = server.start().client()
    job = client.submit(b"photo", SETTINGS)
    assert server.wait(client, job.id, 60).state == "completed"
    again = client.retexture(job.id, Settings(seed=6, output=SETTINGS.output))
    assert server.wait(client, again.id, 60).state == "completed"
    record = json.loads((server.folder(again.id) / "result/job.json").read_text())
    assert [stage["stage"] for stage in record["stages"]] == ["texture", "views", "turntable"]
    third = client.retexture(again.id, SETTINGS)
    assert server.wait(client, third.id, 60).state == "completed"


def test_out_of_memory_is_told_with_smaller_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with Server(tmp_path / "data", "tests.server.fake_pipeline:Hungry").start() as server:
        client = server.client()
        job = client.submit(b"photo", Settings(output=SETTINGS.output))
        error = server.wait(client, job.id, 60).error
        assert error is not None and error.code == "out-of-memory" and error.suggested["mesh"]["resolution"] == 112
        assert (server.folder(job.id) / "checkpoints/prior.json").exists(), "what was finished is kept"


def test_an_image_bomb_fails_its_job_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real photo reader, in the worker: the front end never decodes an image."""
    buffer = io.BytesIO()
    Image.new("1", (20000, 20000)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 100_000
    with Server(tmp_path / "data", "portrait_backend.server.engine:PipelineEngine").start() as server:
        client = server.client()
        for data, code in ((buffer.getvalue(), "image-too-large"), (b"no image", "image-not-recognised")):
            error = server.wait(client, client.submit(data, Settings()).id, 80).error
            assert error is not None and error.code == code, error
        assert len(server.workers) == 1


@pytest.mark.parametrize(("shape", "size"), [((64, 64), (256, 256)), ((300, 300), (300, 300)), ((2048, 1024), (256, 512))])
def test_previews_have_a_useful_size(shape: tuple[int, int], size: tuple[int, int]) -> None:
    picture = Image.open(io.BytesIO(jpeg(torch.rand(*shape, 3) * 2 - 0.5)))
    assert picture.format == "JPEG" and picture.size == size and max(size) <= PREVIEW_SIDES[1]
