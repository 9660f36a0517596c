"""Which heads a batch makes, what their folders are called, and which of them are there already."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portrait_backend import stages
from portrait_backend.batch import naming
from portrait_backend.batch.manifest import Row
from portrait_backend.batch.plan import Item, finished, make_plan
from portrait_backend.job_folder import job_folder, write_record
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import Settings, from_dict, to_dict


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a/anna.jpg", "a/bert.PNG", "a/notes.txt", "a/.hidden.jpg", "b/anna.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    return tmp_path


def names(items: list[Item]) -> list[str]:
    return [item.name for item in items]


def plan(photos: Path, *given: str, rows: tuple[Row, ...] = (), template: str = "{stem}", **overrides: Any) -> list[Item]:
    return make_plan([photos / name for name in given], rows, overrides, photos / "out", template)


def test_folders_give_their_pictures_by_name(photos: Path) -> None:
    items = plan(photos, "a", template="{parent}_{index:03d}_{stem}")
    assert names(items) == ["a_001_anna", "a_002_bert"] and items[0].folder == photos / "out/a_001_anna"


def test_every_field_of_a_template(photos: Path) -> None:
    digest = hashlib.sha256(b"a/anna.jpg").hexdigest()
    (item,) = plan(photos, "a/anna.jpg", template="{parent}/{stem}-{index}-{preset}-{seed}-{sha}", seed=7, preset="draft")
    assert item.name == f"a/anna-1-draft-7-{digest[:12]}"


def test_the_manifest_gives_a_named_photo_its_settings(photos: Path) -> None:
    row = Row(photos / "a/../a/anna.jpg", "Anna", {"preset": "draft", "mesh": {"faces": 5000}}, "m.csv line 2")
    items = plan(photos, "a", rows=(row,), preset="full", mesh={"faces": 9000, "smoothing": 1}, seed=3)
    assert names(items) == ["Anna", "bert"], "the photo that the manifest has is not taken twice"
    assert items[0].settings == from_dict({"preset": "draft", "mesh": {"faces": 5000, "smoothing": 1}, "seed": 3})
    assert items[1].settings == from_dict({"preset": "full", "mesh": {"faces": 9000, "smoothing": 1}, "seed": 3})


@pytest.mark.parametrize(
    ("given", "template", "more", "code"),
    [
        ((), "{stem}", {}, "photos-missing"),
        (("empty",), "{stem}", {}, "photos-missing"),
        (("a/anna.jpg", "b/anna.jpg"), "{stem}", {}, "name-clash"),
        (("a/anna.jpg", "a/anna.jpg"), "{stem}", {}, "name-clash"),
        (("a",), "{preset}", {}, "name-clash"),
        (("a",), "head", {}, "name-invalid"),
        (("a",), "{colour}", {}, "name-invalid"),
        (("a",), "{stem.__class__}", {}, "name-invalid"),
        (("a",), "{stem!r}", {}, "name-invalid"),
        (("a",), "{stem", {}, "name-invalid"),
        (("a",), "{stem:04d}", {}, "name-invalid"),
        (("a",), "../{stem}", {}, "name-invalid"),
        (("a",), "/elsewhere/{stem}", {}, "name-invalid"),
        (("a",), "{stem}/", {}, "name-invalid"),
        (("a",), ".{stem}", {}, "name-invalid"),
        (("a",), "{stem}", {"mesh": {"faces": -1}}, "setting-invalid"),
    ],
)
def test_what_is_refused(photos: Path, given: tuple[str, ...], template: str, more: dict[str, Any], code: str) -> None:
    (photos / "empty").mkdir()
    with pytest.raises(PortraitDiffusionError) as caught:
        plan(photos, *given, template=template, **more)
    assert caught.value.code == code and not (photos / "out").exists()


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../../x", "a//b", "", "a\\b", "con", "LPT1.x", "x.", " x", "a:b", "a\nb", "x" * 300, ".x"]
)
def test_a_manifests_name_does_not_lead_out(photos: Path, name: str) -> None:
    with pytest.raises(PortraitDiffusionError) as caught:
        naming.checked(name, "m.csv line 2")
    assert caught.value.code == "name-invalid" and "m.csv line 2" in caught.value.message


@pytest.mark.parametrize("pair", [("a", "A"), ("a", "a/b"), ("a/b", "a"), ("summary.json", "x"), ("Summary.CSV/x", "y")])
def test_folders_stay_apart(pair: tuple[str, str]) -> None:
    with pytest.raises(PortraitDiffusionError) as caught:
        naming.check_apart([(name, f"photo {name}") for name in pair], ("summary.json", "summary.csv"))
    assert caught.value.code == "name-clash"
    naming.check_apart([("a/b", "1"), ("a/c", "2"), ("ab", "3")], ("summary.json",))


@given(st.text())
def test_whatever_a_photo_is_called_its_folder_is_inside(text: str) -> None:
    name = naming.fill("{stem}", {"stem": text})
    try:
        assert naming.checked(name, "") == name
    except PortraitDiffusionError:
        assert naming.RESERVED.fullmatch(name), "only the names of devices are refused"
    assert Path("/out", name).resolve().parent == Path("/out")


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_a_link_out_of_the_folder_is_refused(photos: Path) -> None:
    (photos / "out").mkdir()
    (photos / "out/anna").symlink_to(photos / "b")
    with pytest.raises(PortraitDiffusionError) as caught:
        plan(photos, "a")
    assert caught.value.code == "name-invalid"


def test_a_stage_that_is_not_there_is_refused(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "RUNNERS", {"prior": stages.RUNNERS["prior"]})
    with pytest.raises(PortraitDiffusionError) as caught:
        plan(photos, "a", stages=["prior", "restoration"])
    assert caught.value.code == "stage-unavailable" and "anna.jpg: " in caught.value.message


def test_a_photo_that_cannot_be_read_has_a_name_all_the_same(photos: Path) -> None:
    assert names(plan(photos, "none.jpg", "a/anna.jpg", template="{sha}"))[0] == "unreadable-1"


def made(photos: Path, wanted: Settings, **changes: Any) -> Item:
    """Write what a finished head leaves, and return its item."""
    item = Item(1, photos / "a/anna.jpg", wanted, "anna", photos / "out/anna")
    with job_folder(item.folder) as folder:
        (folder / "head.glb").write_text("glb")
        record = {"photo": {"sha256": hashlib.sha256(item.photo.read_bytes()).hexdigest()}, "settings": to_dict(wanted)}
        write_record(folder, {**record, **changes})
    return item


def test_what_is_finished_is_found(photos: Path) -> None:
    settings = from_dict({"seed": 3})
    item = made(photos, settings)
    assert finished(item) is not None
    assert finished(Item(1, photos / "a/anna.jpg", from_dict({"seed": 3, "device": "cpu"}), "anna", item.folder)) is not None
    copy = photos / "copy.jpg"
    copy.write_bytes(item.photo.read_bytes())
    assert finished(Item(1, copy, settings, "anna", item.folder)) is not None, "the content counts, not the name"


def test_what_an_older_version_did_not_know_is_at_its_default(photos: Path) -> None:
    known = to_dict(Settings())
    del known["mesh"]["smoothing"]
    assert finished(made(photos, Settings(), settings=known)) is not None


@pytest.mark.parametrize("what", ["seed", "photo", "file", "record", "damaged", "foreign", "gone"])
def test_what_is_not_finished_is_made_again(photos: Path, what: str) -> None:
    item = made(photos, Settings(), **({"settings": {"seed": "x"}} if what == "damaged" else {}))
    if what == "seed":
        item = Item(1, item.photo, from_dict({"seed": 9}), "anna", item.folder)
    elif what == "photo":
        item.photo.write_text("another photo")
    elif what == "gone":
        item.photo.unlink()
    elif what == "file":
        (item.folder / "head.glb").unlink()
    elif what == "record":
        (item.folder / "job.json").write_text('{"half": ')
    elif what == "foreign":
        (item.folder / "job.json").write_text(json.dumps({"application": "other", "files": []}))
    assert finished(item) is None
