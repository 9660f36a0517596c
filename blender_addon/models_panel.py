"""The panel "Models": what the backend could use besides its shipped weights, with the facts of `portrait-diffusion models list`.

A local backend's models are downloaded, verified and removed from here. Those of a backend on another machine belong to its
owner: the panel gives the command to run there.
"""

from __future__ import annotations

from typing import Any

import bpy

from . import backend_box, runtime
from .operators_models import draw_facts
from .panel import FIX_ICONS, TAB

ICONS = {"installed": "CHECKMARK", "incomplete": "SORTTIME", "damaged": "ERROR", "absent": "RADIOBUT_OFF"}


def state_text(model: Any) -> str:
    """Return how a model is on the backend, in a word or two."""
    if model.converted:
        return "ready"
    if model.state == "installed" and model.command:
        return "installed, not converted yet"
    texts = {"installed": "ready", "absent": "not installed", "incomplete": "download not finished"}
    return texts.get(model.state, model.state)


class PORTRAIT_PT_models(bpy.types.Panel):
    """The backend's models."""

    bl_idname = "PORTRAIT_PT_models"
    bl_label = "Models"
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = TAB
    bl_parent_id = "PORTRAIT_PT_backend"
    bl_options = {"DEFAULT_CLOSED"}

    def draw_header_preset(self, context: bpy.types.Context) -> None:
        """Say that something is under way even while the panel is closed."""
        work = runtime.session().backend.model_work
        if work.running:
            self.layout.label(text=f"{work.title} {round(100 * work.fraction)} %")

    def draw(self, context: bpy.types.Context) -> None:
        """Draw a box per model; nothing of this is needed for the default prior."""
        session, layout = runtime.session(), self.layout
        work = session.backend.model_work
        if not session.models:
            draw_no_list(layout, session)
            return
        backend_box.paragraph(layout, "Not needed for the default preset: the shipped weights are enough")
        local = session.backend.program is not None
        if local and not bpy.app.online_access:
            box = layout.box()
            backend_box.paragraph(box, "Blender's online access is off: models can come from a folder only", icon="INFO")
            box.operator("portrait.allow_online")
        for model in session.models:
            draw_model(layout.box(), model, work, local)
        layout.operator("portrait.models_refresh", icon="FILE_REFRESH")


def draw_no_list(layout: bpy.types.UILayout, session: Any) -> None:
    """Draw why there is no list, and the work that goes on without one."""
    backend = session.backend
    layout.label(text="No list from this backend" if backend.connected else "Start the backend to see its models")
    if not backend.connected and backend.program is not None and backend.settled:
        layout.operator("portrait.backend_start", icon=FIX_ICONS["portrait.backend_start"])
    if backend.model_work.model:
        box = layout.box()
        box.label(text=backend.model_work.model)
        draw_work(box, backend.model_work)


def draw_model(box: bpy.types.UILayout, model: Any, work: Any, local: bool) -> None:
    """Draw one model; work: what is done with a model now, or was; local: whether its backend's program can be run from here."""
    row = box.row(align=True)
    row.label(text=f"{model.name}: {state_text(model)}", icon="CHECKMARK" if model.converted else ICONS.get(model.state, "RADIOBUT_OFF"))
    draw_facts(box, model)
    at_work = local and work.model == model.name
    if at_work:
        draw_work(box, work)
    if not (at_work and work.running):
        draw_buttons(box, model, local, not work.running)


def draw_buttons(box: bpy.types.UILayout, model: Any, local: bool, free: bool) -> None:
    """Draw what can be done with a model; free: no other one is being worked on."""
    column = box.column(align=True)
    if local:
        row = column.row(align=True)
        row.enabled = free
        row.operator_context = "INVOKE_DEFAULT"
        if model.state != "installed" and not model.converted:
            if not model.manual:
                text = {"incomplete": "Go On Downloading", "damaged": "Download Again"}.get(model.state, "Download")
                row.operator("portrait.model_download", text=text, icon="IMPORT").model = model.name
            row.operator("portrait.model_from_folder", text="From Folder", icon="FILE_FOLDER").model = model.name
        elif model.state == "installed" and model.command:
            row.operator("portrait.model_convert", text="Convert", icon="FILE_REFRESH").model = model.name
        if model.state in ("installed", "damaged"):
            row.operator("portrait.model_verify", text="Verify", icon="VIEWZOOM").model = model.name
        if model.state != "absent":
            row.operator("portrait.model_remove", text="" if model.state != "installed" else "Remove", icon="TRASH").model = model.name
    row = column.row(align=True)
    row.operator("wm.url_open", text="Source", icon="URL").url = model.page
    row.operator("wm.url_open", text="Licence", icon="URL").url = model.licence_page
    if model.command and not local:
        row.operator("portrait.copy_command", text="Copy Command", icon="COPYDOWN").command = model.command


def draw_work(box: bpy.types.UILayout, work: Any) -> None:
    """Draw how far the work on a model is, or how it ended."""
    if work.running:
        box.progress(factor=work.fraction, type="BAR", text=work.amount or work.title)
        row = box.row(align=True)
        row.label(text=work.title + (f" {work.transfer.file}" if work.transfer is not None and not work.cancelled else ""), icon="SORTTIME")
        stop = row.row()
        stop.enabled = not work.cancelled
        stop.alignment = "RIGHT"
        stop.operator("portrait.models_cancel", icon="X")
        return
    row = box.row()
    column = row.column()
    if work.error is not None:
        stopped = work.error.code == "cancelled"
        column.alert = not stopped
        backend_box.paragraph(column, f"{work.error.message}. {work.error.hint}", icon="INFO" if stopped else "ERROR", margin=30)
    else:
        backend_box.paragraph(column, work.outcome, icon="INFO", margin=30)
    row.operator("portrait.models_dismiss", text="", icon="X", emboss=False)


CLASSES = (PORTRAIT_PT_models,)
