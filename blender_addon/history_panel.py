"""The panel "History": the jobs of this user, newest first, a few at a time."""

import time

import bpy

from . import runtime
from .core.jobs import Job
from .panel import TAB, thumbnail

PER_PAGE = 5
STATE_TEXTS = {"completed": "", "failed": "Failed", "cancelled": "Cancelled"}


class PORTRAIT_PT_history(bpy.types.Panel):
    """Finished heads."""

    bl_idname = "PORTRAIT_PT_history"
    bl_label = "History"
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = TAB
    bl_options = {"DEFAULT_CLOSED"}
    bl_order = 1

    def draw(self, context: bpy.types.Context) -> None:
        """Draw one page."""
        session = runtime.session()
        jobs = list(session.jobs)
        if not jobs:
            self.layout.label(text="No heads yet")
            return
        pages = (len(jobs) - 1) // PER_PAGE + 1
        page = min(session.history_page, pages - 1)
        for job in jobs[page * PER_PAGE : (page + 1) * PER_PAGE]:
            draw_job(self.layout, job)
        if pages > 1:
            row = self.layout.row(align=True)
            row.operator("portrait.history_page", text="", icon="TRIA_LEFT").step = -1
            row.label(text=f"{page + 1} of {pages}")
            row.operator("portrait.history_page", text="", icon="TRIA_RIGHT").step = 1


def draw_job(layout: bpy.types.UILayout, job: Job) -> None:
    """Draw one job: picture, name, date, buttons."""
    row = layout.box().row()
    icon = thumbnail(job)
    if icon:
        row.template_icon(icon_value=icon, scale=3.0)
    column = row.column(align=True)
    column.label(text=job.name or "Head")
    state = STATE_TEXTS.get(job.state, job.title)
    when = time.strftime("%d %b %H:%M", time.localtime(job.created))
    column.label(text=", ".join(text for text in (state, when, f"seed {job.seed}") if text))
    buttons = column.row(align=True)
    buttons.operator_context = "INVOKE_DEFAULT"
    if job.state == "completed":
        buttons.operator("portrait.history_import", icon="IMPORT").job = job.id
        buttons.operator("portrait.history_settings", text="", icon="COPYDOWN").job = job.id
        buttons.operator("portrait.history_folder", text="", icon="FILE_FOLDER").job = job.id
    elif job.active:
        buttons.operator("portrait.cancel", icon="X").job = job.id
    else:
        buttons.operator("portrait.resume", icon="PLAY").job = job.id
    if not job.active:
        buttons.operator("portrait.history_delete", text="", icon="TRASH").job = job.id


CLASSES = (PORTRAIT_PT_history,)
