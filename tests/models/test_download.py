"""Downloads: through the hub's client from an imitated hub, or from a mirror; resumed, checked, complete or not there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from portrait_backend.models import fetching, store
from portrait_backend.models.catalogue import Hub, Model, WebPage
from portrait_backend.models.fetching import download
from portrait_shared.errors import PortraitDiffusionError
from tests.models.imitation import COMMIT, Imitation, serving
from tests.models.tiny_model import FILES, HEAVY, MODEL


def known(model: Model, digest: str) -> Model:
    """The model with a published sha256 of its heavy file."""
    return replace(model, files=(model.files[0], replace(model.files[1], size=len(HEAVY), sha256=digest, exact=True)))


def reach(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub's client speak with another address, as HF_ENDPOINT does at its first import."""
    package = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(package, "HfApi", partial(package.HfApi, endpoint=endpoint))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Imitation]:
    with serving(Imitation(FILES)) as imitation:
        reach(imitation.endpoint, monkeypatch)
        yield imitation


def assert_complete(folder: Path, commit: str) -> None:
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {*FILES, "model.json"}
    assert all((folder / name).read_bytes() == body for name, body in FILES.items())
    record = json.loads((folder / "model.json").read_text())
    assert record["source"]["commit"] == commit
    assert {f["path"]: f["sha256"] for f in record["files"]} == {n: hashlib.sha256(b).hexdigest() for n, b in FILES.items()}
    assert [p.name for p in folder.parent.iterdir()] == ["tiny"]


def test_the_hub_client_downloads_and_the_commit_is_noted(hub: Imitation, tmp_path: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    assert store.state_of(MODEL, tmp_path / "m") == "absent"
    folder = download(MODEL, tmp_path / "m", report=lambda *r: reports.append(r))
    assert_complete(folder, COMMIT)
    assert store.state_of(MODEL, tmp_path / "m") == "installed"
    assert ("unet/weights.safetensors", len(HEAVY), len(HEAVY)) in reports
    asked = len(hub.requests)
    assert download(MODEL, tmp_path / "m") == folder and len(hub.requests) == asked, "a complete model is not asked for again"


def test_a_folder_of_a_space_is_fetched_without_its_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Imitation({f"data/ckpt/{n}": b for n, b in FILES.items()}, kind="space")) as imitation:
        reach(imitation.endpoint, monkeypatch)
        model = replace(MODEL, source=Hub("someone/tiny", COMMIT, "space", "data/ckpt"))
        assert_complete(download(model, tmp_path / "m"), COMMIT)


def test_an_interrupted_download_goes_on_inside_the_file(hub: Imitation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest.importorskip("huggingface_hub.constants"), "DOWNLOAD_CHUNK_SIZE", 4096)

    def interrupt(name: str, done: int, total: int) -> None:
        if name.startswith("unet") and done > 4096:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(MODEL, tmp_path / "m", report=interrupt)
    assert store.state_of(MODEL, tmp_path / "m") == "incomplete"
    with pytest.raises(PortraitDiffusionError, match="incomplete"):
        monkeypatch.setattr("portrait_backend.models.catalogue.CATALOGUE", (MODEL,))
        store.model_path("tiny", tmp_path / "m")
    hub.requests.clear()
    assert_complete(download(MODEL, tmp_path / "m"), COMMIT)
    assert hub.downloads() == ["unet/weights.safetensors"], "the finished file isn't fetched again"
    assert [wanted for method, path, wanted in hub.requests if method == "GET" and "weights" in path] == ["bytes=4096-"]


def test_a_source_that_has_changed_is_refused_before_the_download(hub: Imitation, tmp_path: Path) -> None:
    with pytest.raises(PortraitDiffusionError, match="another file at its source now") as caught:
        download(known(MODEL, "00" * 32), tmp_path / "m")
    assert caught.value.code == "model-damaged" and hub.downloads() == []


def test_what_arrives_altered_is_refused_and_fetched_anew(hub: Imitation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = known(MODEL, hashlib.sha256(HEAVY).hexdigest())
    facts = {path: hub._fact(path) for path in hub.files}
    monkeypatch.setattr(hub, "_fact", facts.__getitem__)
    hub.files["unet/weights.safetensors"] = HEAVY[::-1]
    with pytest.raises(PortraitDiffusionError, match="not what it should be") as caught:
        download(model, tmp_path / "m")
    assert caught.value.code == "model-damaged" and caught.value.retryable
    assert store.state_of(model, tmp_path / "m") == "incomplete"
    hub.requests.clear()
    hub.files["unet/weights.safetensors"] = HEAVY
    assert_complete(download(model, tmp_path / "m"), COMMIT)
    assert hub.downloads() == ["unet/weights.safetensors"]


def test_what_the_hub_states_is_checked_where_nothing_is_published(hub: Imitation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_fact", lambda path: Imitation._fact(hub, path) | {"lfs": {"size": 2, "oid": "ab" * 32, "pointerSize": 1}})
    with pytest.raises(PortraitDiffusionError) as caught:
        download(MODEL, tmp_path / "m")
    assert caught.value.code == "model-damaged"


@pytest.mark.parametrize(("trouble", "word"), [("gated", "log in"), ("gone", "has no unet/weights"), ("down", "can't be reached")])
def test_troubles_of_the_hub_are_one_line(hub: Imitation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str, word: str) -> None:
    if trouble == "gated":
        hub.gated = True
    elif trouble == "gone":
        del hub.files["unet/weights.safetensors"]
    else:
        reach("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(PortraitDiffusionError, match=word) as caught:
        download(MODEL, tmp_path / "m")
    assert caught.value.code == "download-failed" and caught.value.retryable == (trouble == "down")
    assert not (tmp_path / "m/tiny").exists()


def test_a_mirror_is_copied_and_checked(mirror: Path, tmp_path: Path) -> None:
    model = known(MODEL, hashlib.sha256(HEAVY).hexdigest())
    for number, given in enumerate((mirror, mirror / "tiny")):
        assert_complete(download(model, tmp_path / str(number), given), "")
    (mirror / "tiny/unet/weights.safetensors").write_bytes(HEAVY[::-1])
    with pytest.raises(PortraitDiffusionError) as caught:
        download(model, tmp_path / "altered", mirror)
    assert caught.value.code == "model-damaged"
    (mirror / "tiny/unet/weights.safetensors").unlink()
    with pytest.raises(PortraitDiffusionError, match=r"has no unet/weights\.safetensors of tiny") as caught:
        download(model, tmp_path / "short", mirror)
    assert caught.value.code == "mirror-incomplete" and not (tmp_path / "short").exists()


def test_a_copy_that_was_cut_short_is_not_taken_for_the_file(mirror: Path, tmp_path: Path) -> None:
    part = store.part_folder(MODEL, tmp_path / "m")
    (part / "unet").mkdir(parents=True)
    (part / "unet/weights.safetensors.unfinished").write_bytes(HEAVY[:10])
    folder = download(MODEL, tmp_path / "m", mirror)
    assert (folder / "unet/weights.safetensors").read_bytes() == HEAVY


def test_a_model_without_an_address_asks_for_the_files(mirror: Path, tmp_path: Path) -> None:
    model = replace(MODEL, source=WebPage("https://example.org/by-hand"))
    with pytest.raises(
        PortraitDiffusionError, match=r"config\.json, unet/weights\.safetensors from https://example\.org/by-hand"
    ) as caught:
        download(model, tmp_path / "m")
    assert caught.value.code == "download-manual"
    assert_complete(download(model, tmp_path / "m", mirror), "")


def test_a_full_disk_is_said_before_anything_is_fetched(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=fetching.RESERVE + len(HEAVY) // 2))
    with pytest.raises(PortraitDiffusionError, match="GB are free") as caught:
        download(MODEL, tmp_path / "m", mirror)
    assert caught.value.code == "disk-full" and not list((tmp_path / "m/.tiny.part").rglob("*.safetensors"))


def test_a_second_download_of_the_same_model_is_kept_away(mirror: Path, tmp_path: Path) -> None:
    codes = []

    def again(name: str, done: int, total: int) -> None:
        if not codes:
            with pytest.raises(PortraitDiffusionError) as caught:
                download(MODEL, tmp_path / "m", mirror)
            codes.append((caught.value.code, caught.value.retryable))

    assert_complete(download(MODEL, tmp_path / "m", mirror, again), "")
    assert codes == [("download-running", True)]


def test_verify_finds_what_changed(mirror: Path, tmp_path: Path) -> None:
    folder = download(MODEL, tmp_path / "m", mirror)
    assert [c.state for c in store.verify(MODEL, tmp_path / "m")] == ["ok", "ok"]
    assert {c.against for c in store.verify(known(MODEL, "00" * 32), tmp_path / "m")} == {"published", "installed"}
    assert [c.state for c in store.verify(known(MODEL, "00" * 32), tmp_path / "m")] == ["ok", "altered"], "the publisher's word counts"
    (folder / "unet/weights.safetensors").write_bytes(HEAVY[::-1])
    (folder / "config.json").unlink()
    assert [c.state for c in store.verify(MODEL, tmp_path / "m")] == ["missing", "altered"]
    assert store.state_of(MODEL, tmp_path / "m") == "damaged"
    assert_complete(download(MODEL, tmp_path / "m", mirror), "")


def test_remove_takes_the_model_and_unfinished_downloads(mirror: Path, tmp_path: Path) -> None:
    download(MODEL, tmp_path / "m", mirror)
    store.part_folder(MODEL, tmp_path / "m").mkdir()
    assert store.remove(MODEL, tmp_path / "m") > len(HEAVY)
    assert list((tmp_path / "m").iterdir()) == []
    with pytest.raises(PortraitDiffusionError) as caught:
        store.remove(MODEL, tmp_path / "m")
    assert caught.value.code == "model-missing"


def test_a_record_that_points_outside_is_no_record(mirror: Path, tmp_path: Path) -> None:
    folder = download(MODEL, tmp_path / "m", mirror)
    record = json.loads((folder / "model.json").read_text())
    record["files"][0]["path"] = "../../secret"
    (folder / "model.json").write_text(json.dumps(record))
    assert store.state_of(MODEL, tmp_path / "m") == "absent"


def test_where_models_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.models_folder(tmp_path) == tmp_path
    assert store.models_folder().parts[-2:] == ("portrait-diffusion", "models")
    monkeypatch.setenv("PORTRAIT_DIFFUSION_MODELS", str(tmp_path / "elsewhere"))
    assert store.models_folder() == tmp_path / "elsewhere"
