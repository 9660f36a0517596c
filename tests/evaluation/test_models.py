"""What can't run is named with its licence and size; a download is verified."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from portrait_backend.evaluation import models
from portrait_backend.evaluation.models import SOURCES, ModelFile, ModelSource, download, fetch, locate, open_models, state_of
from tests.evaluation.test_lpips import backbone, heads
from tests.evaluation.test_view_models import OneFace

LPIPS = next(source for source in SOURCES if source.metrics == ("lpips_alex",))


def with_hashes(source: ModelSource, folder: Path) -> ModelSource:
    """The same metric whose published files are those in `folder`."""
    found = [(folder / file.name).read_bytes() for file in source.files]
    files = (replace(f, size=len(data), sha256=hashlib.sha256(data).hexdigest()) for f, data in zip(source.files, found, strict=True))
    return replace(source, files=tuple(files))


def source_of(path: Path, sha256: str) -> ModelSource:
    file = ModelFile("one.bin", path.as_uri(), path.stat().st_size, sha256)
    return ModelSource("One", ("one",), "weights", "a folder", "CC0-1.0", (file,))


def test_every_source_says_whose_it_is() -> None:
    for source in SOURCES:
        assert source.licence and source.source and source.weights and source.metrics and source.size > 1e6
        assert all(file.url.startswith("https://") and file.size > 0 and len(file.sha256) == 64 for file in source.files)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    state = state_of(LPIPS, tmp_path)
    assert "alexnet-owt-7be5be79.pth is missing" in state.reason and "244 MB" in state.reason and "BSD" in state.reason
    record = state.record()
    assert record["available"] is False and record["metrics"] == ["lpips_alex"]


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    source = ModelSource("One", ("one",), "w", "s", "l", (), (("no_such_module_here", "no-such-package"),))
    assert state_of(source, tmp_path).reason == "the package no-such-package is not installed"


def test_download_is_verified_and_atomic(tmp_path: Path) -> None:
    origin = tmp_path / "origin.bin"
    origin.write_bytes(b"weights" * 1000)
    digest = hashlib.sha256(origin.read_bytes()).hexdigest()
    said: list[str] = []
    good = source_of(origin, digest)
    assert download(good, tmp_path / "models", said.append) == ""
    assert said == ["One: 0 MB from a folder, licence CC0-1.0"]
    assert (tmp_path / "models/one.bin").read_bytes() == origin.read_bytes()
    assert download(good, tmp_path / "models", said.append) == "" and len(said) == 1, "nothing is fetched twice"
    failure = download(source_of(origin, "0" * 64), tmp_path / "other", said.append)
    assert "one.bin could not be downloaded (its sha256 is" in failure
    assert list((tmp_path / "other").iterdir()) == []


def test_a_lost_address_is_a_reason_not_a_crash(tmp_path: Path) -> None:
    lost = ModelSource("One", ("one",), "w", "s", "l", (ModelFile("one.bin", (tmp_path / "nothing").as_uri(), 1, ""),))
    assert "one.bin could not be downloaded" in download(lost, tmp_path, lambda line: None)
    with pytest.raises(OSError):
        fetch(lost.files[0], tmp_path / "one.bin")


def test_models_that_are_there_are_opened_and_the_others_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file, weights in zip(LPIPS.files, (backbone("alex"), heads("alex")), strict=True):
        torch.save(weights, tmp_path / file.name)
    other = next(source for source in SOURCES if source.metrics == ("lpips_vgg",))
    monkeypatch.setattr(models, "SOURCES", (with_hashes(LPIPS, tmp_path), other))
    opened, states = open_models(tmp_path, OneFace(), False, lambda line: None)
    assert len(opened) == 1 and [bool(s.reason) for s in states] == [False, True]
    image = torch.rand(64, 64, 3)
    assert opened[0].compare(opened[0].features(image), opened[0].features(image)) == {"lpips_alex": 0}
    torch.save({}, tmp_path / LPIPS.files[1].name)
    opened, states = open_models(tmp_path, OneFace(), False, lambda line: None)
    assert opened == [] and "is another file than the published one" in states[0].reason
    monkeypatch.setattr(models, "SOURCES", (with_hashes(LPIPS, tmp_path),))
    opened, states = open_models(tmp_path, OneFace(), False, lambda line: None)
    assert opened == [] and "can't be read" in states[0].reason


def test_locate_prefers_the_folder(tmp_path: Path) -> None:
    assert locate(LPIPS.files[0], tmp_path) is None
    (tmp_path / LPIPS.files[0].name).write_bytes(b"")
    assert locate(LPIPS.files[0], tmp_path) == tmp_path / LPIPS.files[0].name
