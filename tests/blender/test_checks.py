"""Pre-flight checks: what is in the way is named, with the operator that mends it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import build_addon
from blender_addon.core import checks
from blender_addon.core.checks import Failure, Situation, after, preflight
from blender_addon.core.manager import State

READY = Situation(state=State.RUNNING, has_photo=True, offered=("prior",), backend_version="1", own_version="1")


def test_nothing_in_the_way() -> None:
    assert preflight(READY) == []
    assert preflight(Situation(state=State.INSTALLED, has_photo=True)) == [], "a stopped backend is started by Generate"


@pytest.mark.parametrize(
    ("change", "id", "operator"),
    [
        ({"state": State.ABSENT}, "no-backend", "portrait.backend_install"),
        ({"state": State.BROKEN, "message": "interrupted"}, "backend-broken", "portrait.backend_install"),
        ({"state": State.LOST, "message": "it ended"}, "backend-lost", "portrait.backend_start"),
        ({"state": State.OFFLINE}, "not-connected", "portrait.backend_start"),
        ({"state": State.INSTALLED, "outdated": True}, "backend-outdated", "portrait.backend_install"),
        ({"has_photo": False}, "no-photo", "portrait.choose_photo"),
        ({"photo_problem": "There is no photo a.jpg"}, "photo", "portrait.choose_photo"),
        ({"needs_network": True, "online": False}, "offline", "portrait.allow_online"),
        ({"stages": ()}, "no-stage", "portrait.reset_setting"),
        ({"stages": ("prior", "refinement")}, "stage-unavailable", "portrait.drop_stages"),
    ],
)
def test_each_check_offers_its_fix(change: dict[str, object], id: str, operator: str) -> None:
    found = preflight(Situation(**{**READY.__dict__, **change}))  # type: ignore[arg-type]
    assert [check.id for check in found] == [id]
    assert found[0].severity == "stop" and found[0].text and found[0].fixes[0].operator == operator


def test_another_version_is_only_noted() -> None:
    (check,) = preflight(Situation(**{**READY.__dict__, "backend_version": "2"}))
    assert check.id == "version" and check.severity == "note"


def test_a_failed_job_offers_what_fits_its_error() -> None:
    def operators(code: str, **more: bool) -> list[str]:
        return [fix.operator for fix in after(Failure("j", code, "it failed", "do that", **more)).fixes]

    assert operators("no-face") == ["portrait.choose_photo", "portrait.dismiss"]
    assert operators("face-turned-away")[0] == "portrait.choose_photo"
    assert operators("out-of-memory", can_shrink=True)[0] == "portrait.suggested_settings"
    assert operators("worker-died", can_resume=True) == ["portrait.resume", "portrait.dismiss"]
    assert after(Failure("j", "x", "it failed", "do that")).text == "it failed. do that"


def test_every_fix_names_an_operator_that_exists() -> None:
    sources = "".join(p.read_text(encoding="utf-8") for p in build_addon.ADDON.glob("operators_*.py"))
    known = set(re.findall(r'bl_idname = "(portrait\.[a-z_]+)"', sources))
    used = set(re.findall(r'"(portrait\.[a-z_]+)"', Path(checks.__file__).read_text(encoding="utf-8")))
    assert used and used <= known
