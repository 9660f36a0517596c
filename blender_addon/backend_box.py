"""How the backend is, drawn where it is needed: in the panel and in the preferences."""

from __future__ import annotations

import textwrap

import bpy

from . import runtime
from .core.manager import State

ICONS = {
    State.ABSENT: "IMPORT",
    State.INSTALLING: "SORTTIME",
    State.BROKEN: "ERROR",
    State.INSTALLED: "PAUSE",
    State.STARTING: "SORTTIME",
    State.RUNNING: "CHECKMARK",
    State.REMOTE: "CHECKMARK",
    State.OFFLINE: "UNLINKED",
    State.LOST: "ERROR",
}
POINTS_PER_LETTER = 6.2
"""Mean width of a letter of Blender's interface font at scale 1, measured on its default theme."""
REGION_BORDER, POPUP_BORDER, ICON_WIDTH = 56, 24, 20
"""Pixels at scale 1 that are no room for text: beside a box in the sidebar (with its tabs), in a popup, for an icon before a label."""


def draw(layout: bpy.types.UILayout, lines: int = 4) -> None:
    """Draw state, device, memory, the buttons that fit, and the log while it is being installed."""
    backend = runtime.session().backend
    row = layout.row(align=True)
    row.label(text=f"Backend {backend.state.value}", icon=ICONS[backend.state])
    buttons(row, backend.state)
    if backend.info is not None:
        info = backend.info
        layout.label(text=f"{info.device_name or info.device}{memory(info.memory_free_mb, info.memory_mb)}", icon="MEMORY")
        layout.label(text=f"Version {info.package_version}, protocol {info.protocol_version}", icon="INFO")
    elif backend.message:
        paragraph(layout, backend.message)
    if backend.state is State.INSTALLING:
        layout.label(text=backend.installer.step or "Starting")
        column = layout.column(align=True)
        column.scale_y = 0.7
        for line in backend.log.tail(lines):
            column.label(text=line[:110])
    if backend.state in (State.INSTALLED, State.BROKEN, State.RUNNING) and backend.plan.developer is None:
        row = layout.row(align=True)
        if backend.outdated or backend.state is State.BROKEN:
            row.operator("portrait.backend_install", text="Update" if backend.outdated else "Repair", icon="FILE_REFRESH")
        row.operator("portrait.backend_uninstall", text="Uninstall", icon="TRASH")


def buttons(row: bpy.types.UILayout, state: State) -> None:
    """Draw the one button that a state offers."""
    if state is State.ABSENT:
        row.operator("portrait.backend_install", text="Install")
    elif state is State.INSTALLING:
        row.operator("portrait.backend_cancel", text="Cancel")
    elif state in (State.INSTALLED, State.LOST):
        row.operator("portrait.backend_start", text="Start")
    elif state is State.OFFLINE:
        row.operator("portrait.backend_start", text="Connect")
    elif state is State.RUNNING:
        row.operator("portrait.backend_stop", text="Stop")
    elif state is State.REMOTE:
        row.operator("portrait.backend_stop", text="Disconnect")
    row.operator("portrait.backend_log", text="", icon="TEXT")


def memory(free: int | None, total: int | None) -> str:
    """Return ", 12.3 of 24.0 GB free" as far as it is known."""
    if not total:
        return ""
    return f", {free / 1000:.1f} of {total / 1000:.1f} GB free" if free is not None else f", {total / 1000:.1f} GB"


def paragraph(layout: bpy.types.UILayout, text: str, icon: str = "NONE", width: int = 0, margin: int = 0) -> None:
    """Draw text in as many lines as the width asks for: labels don't wrap by themselves.

    width: of a popup in pixels at scale 1, 0 for the region's; margin: how much of it is taken by what stands beside the text.
    """
    region = bpy.context.region
    scale = bpy.context.preferences.system.ui_scale
    room = width - POPUP_BORDER if width else region.width / scale - REGION_BORDER if region is not None else 400
    room -= margin + (ICON_WIDTH if icon != "NONE" else 0)
    letters = max(20, int(room / POINTS_PER_LETTER))
    column = layout.column(align=True)
    column.scale_y = 0.8
    for number, line in enumerate(textwrap.wrap(text, letters) or [""]):
        column.label(text=line, icon=icon if number == 0 else ("BLANK1" if icon != "NONE" else "NONE"))
