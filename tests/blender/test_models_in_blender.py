"""The backend's models in a real Blender (bpy) with a real backend: what `models_story.py` saw, judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.blender.telling import MAIN_THREAD_SECONDS, NEEDS_BPY, chapter, tell
from tests.blender.tiny_mirror import FILES, HEAVY, MODEL

pytestmark = NEEDS_BPY
INSTALLED = sorted(f"{MODEL}/{name}" for name in (*FILES, "model.json"))


@pytest.fixture(scope="session")
def story(extension_zip: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the story and return what it saw."""
    return tell("models_story.py", extension_zip, tmp_path_factory.mktemp("models_story"))


def test_leaving_blender_does_not_hang(story: dict[str, Any]) -> None:
    code, said = story["exit"]
    assert code == 0 and said.rstrip().endswith("the end"), said


def test_without_a_backend_the_panel_offers_to_start_it(story: dict[str, Any]) -> None:
    seen = chapter(story, "before")
    assert "Start the backend" in seen["panel"]["text"] and seen["panel"]["buttons"] == ["portrait.backend_start"]
    assert not seen["online"]


def test_the_panel_has_the_facts_of_models_list(story: dict[str, Any]) -> None:
    seen = chapter(story, "listed")
    assert {"sd15", "panohead", "portrait4d"} <= set(seen["names"])
    facts = ("panohead: not installed", "size unknown, from github.com/SizheAn/PanoHead", "EG3D licence", "Commercial use: not allowed")
    assert all(fact in seen["panohead"]["text"] for fact in facts), seen["panohead"]["text"]
    assert "about 2.5 GB, from huggingface.co/spaces/TencentARC/BrushNet" in seen["brushnet"]["text"]
    assert all(f"{name}: not installed" in seen["panel"]["text"] for name in seen["names"])
    assert seen["again"], "Refresh brings the same list"
    assert "online access is off" in seen["panel"]["text"] and "portrait.allow_online" in seen["panel"]["buttons"]


def test_what_can_be_done_depends_on_the_model_and_on_where_it_is(story: dict[str, Any]) -> None:
    seen = chapter(story, "listed")
    pages = ["wm.url_open", "wm.url_open"]
    assert seen["brushnet"]["buttons"] == ["portrait.model_download", "portrait.model_from_folder", *pages]
    assert seen["panohead"]["buttons"] == ["portrait.model_from_folder", *pages], "no program can fetch it"
    assert seen["remote"]["buttons"] == [*pages, "portrait.copy_command"] and seen["copied"] == ["FINISHED"]
    seen = chapter(story, "remote")
    assert not any("portrait.model_" in name for name in seen["panel"]["buttons"]) and "another machine" in seen["refused"]
    assert seen["there"] == INSTALLED, "nothing here was touched"


def test_the_dialog_shows_what_one_agrees_to(story: dict[str, Any]) -> None:
    seen = chapter(story, "dialog")
    for fact in ("about 2.5 GB", "huggingface.co/spaces/TencentARC/BrushNet", "Licence: Apache-2.0", "Commercial use: allowed", "I accept"):
        assert fact in seen[MODEL]["text"]
    assert "Copied from" not in seen[MODEL]["text"] and seen[MODEL]["buttons"] == ["wm.url_open"]
    assert "will make no commercial use" in seen["panohead"]["text"] and "Copied from" in seen["panohead"]["text"]


def test_a_refused_licence_and_other_refusals_leave_nothing(story: dict[str, Any]) -> None:
    seen = chapter(story, "refusals")
    assert "was not accepted" in seen["licence"] and "tick" in seen["licence"]
    assert "online access is off" in seen["offline"] and "From Folder" in seen["offline"]
    assert "by hand from https://github.com/SizheAn" in seen["by hand"] and "no model named 'huge'" in seen["unknown"]
    assert "is not installed" in seen["nothing to verify"] and "is not a folder" in seen["no folder"]
    assert all("\n" not in line for line in seen.values()) and seen["there"] == []


def test_a_click_copies_a_model_from_a_folder_without_holding_blender(story: dict[str, Any]) -> None:
    seen = chapter(story, "from_a_folder")
    assert seen["pressed"]["result"] == ["FINISHED"] and seen["pressed"]["own"] < MAIN_THREAD_SECONDS
    assert seen["during"]["buttons"] == ["portrait.models_cancel"] and "Copying" in seen["during"]["text"]
    assert len(seen["during"]["bars"]) == 1 and seen["after"]["bars"] == []
    assert "is being worked on" in seen["again"], "one at a time"
    assert "Copying" in seen["steps"] and seen["error"] == "None" and seen["there"] == INSTALLED
    assert seen["state"] == "ready" and "Installed, and ready" in seen["after"]["text"], "the list was refreshed by itself"
    assert {"portrait.model_verify", "portrait.model_remove"} <= set(seen["after"]["buttons"])
    assert "portrait.model_download" not in seen["after"]["buttons"]


def test_verify_and_remove(story: dict[str, Any]) -> None:
    seen = chapter(story, "checked_and_removed")
    assert seen["sound"] == ["FINISHED"] and "as it was published or installed" in seen["outcome"]
    assert f"is not as it was: {HEAVY}" in seen["altered"] and "download it again" in seen["altered"]
    assert f"not as it was: {HEAVY}" in seen["shown"] and "Download Again" in seen["shown"] and "not as it was" not in seen["dismissed"]
    assert seen["removed"] == ["FINISHED"] and seen["there"] == []


def test_without_a_network_the_panel_says_so_and_what_to_do(story: dict[str, Any]) -> None:
    seen = chapter(story, "no_network")
    assert seen["code"] == "download-failed" and "can't be reached" in seen["box"]["text"] and "use From Folder" in seen["box"]["text"]
    assert {"portrait.model_download", "portrait.models_dismiss"} <= set(seen["box"]["buttons"]) and seen["there"] == []


def test_cancel(story: dict[str, Any]) -> None:
    seen = chapter(story, "cancelled")
    assert seen["pressed"]["own"] < MAIN_THREAD_SECONDS and seen["seconds"] < 30 and seen["code"] == "cancelled"
    assert "was cancelled" in seen["text"] and "goes on where it stopped" in seen["text"] and seen["there"] == []


def test_a_list_that_nobody_can_confirm_is_not_shown(story: dict[str, Any]) -> None:
    seen = chapter(story, "without_a_backend")
    assert "Start the backend" in seen["panel"]["text"] and "portrait.model_remove" not in seen["panel"]["buttons"]


def test_disabling_ends_a_download(story: dict[str, Any]) -> None:
    seen = chapter(story, "disable")
    assert seen["ran"] and seen["gone"]


def test_the_main_thread_is_never_held(story: dict[str, Any]) -> None:
    polls = story["polls"]
    assert len(polls) > 100 and max(own for _, own in polls) < MAIN_THREAD_SECONDS
