"""The tab "Portrait" in the 3D viewport's sidebar: photo, preset, Generate, and what the job is doing."""

import time
from pathlib import Path
from typing import Any

import bpy

from . import backend_box, photo, preferences, properties, runtime
from .core import checks, settings_view
from .core.jobs import Job, photo_in, time_left
from .core.manager import State

TAB = "Portrait"
PREVIEW_SCALE = 9.0
FIX_ICONS = {
    "portrait.backend_install": "IMPORT",
    "portrait.backend_start": "PLAY",
    "portrait.choose_photo": "FILE_FOLDER",
    "portrait.preferences": "PREFERENCES",
    "portrait.backend_log": "TEXT",
    "portrait.resume": "PLAY",
    "portrait.dismiss": "X",
}


class _Panel:
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = TAB


class PORTRAIT_PT_main(_Panel, bpy.types.Panel):
    """The panel's first part."""

    bl_idname = "PORTRAIT_PT_main"
    bl_label = "Portrait Diffusion"

    def draw(self, context: bpy.types.Context) -> None:
        """Draw: state, photo, preset, the button, the job."""
        layout, props = self.layout, context.scene.portrait
        session = runtime.session()
        current = situation(props)
        found = checks.preflight(current)
        if session.backend.state is State.INSTALLING:
            backend_box.draw(layout.box())
        for check in found:
            if check.id not in ("photo", "no-photo"):
                draw_check(layout, check)
        draw_photo(layout, props, next((c for c in found if c.id in ("photo", "no-photo")), None))
        draw_choices(layout, props)
        job = session.jobs.current
        if job is not None and job.active:
            draw_progress(layout, job)
        else:
            draw_generate(layout, found)
            if job is not None:
                draw_outcome(layout, job)
        if session.notice and not (job is not None and job.active):
            backend_box.paragraph(layout, session.notice, icon="INFO")


def situation(props: Any) -> checks.Situation:
    """Return what the pre-flight checks look at."""
    session = runtime.session()
    backend = session.backend
    info = backend.info
    settings = properties.values(props.settings)
    installing = backend.state in (State.ABSENT, State.BROKEN) and not preferences.current().wheel_folder
    return checks.Situation(
        state=backend.state,
        message=backend.message,
        outdated=backend.outdated,
        has_photo=photo.chosen(props),
        photo_problem=photo.problem(props),
        needs_network=installing or preferences.needs_network(),
        online=bpy.app.online_access,
        offered=info.stages if info is not None else None,
        stages=settings["stages"],
        backend_version=info.package_version if info is not None else "",
        own_version=session.version,
    )


def draw_check(layout: bpy.types.UILayout, check: checks.Check) -> None:
    """Draw what is in the way, with its buttons."""
    box = layout.box()
    backend_box.paragraph(box, check.text, icon="ERROR" if check.severity == "stop" else "INFO")
    row = box.row(align=True)
    for fix in check.fixes:
        button = row.operator(fix.operator, text=fix.text, icon=FIX_ICONS.get(fix.operator, "NONE"))
        for name, value in fix.properties.items():
            setattr(button, name, value)


def draw_photo(layout: bpy.types.UILayout, props: Any, check: checks.Check | None) -> None:
    """Draw where the photo comes from, and the photo."""
    box = layout.box()
    box.row(align=True).prop(props, "photo_source", expand=True)
    icon = photo_icon(props)
    if icon:
        row = box.row()
        row.alignment = "CENTER"
        row.template_icon(icon_value=icon, scale=6.0)
    if props.photo_source == "FILE":
        row = box.row(align=True)
        row.alert = check is not None and check.id == "photo"
        row.prop(props, "photo_path", text="")
    else:
        box.template_ID(props, "photo_image", open="image.open")
    if check is not None and (check.id == "photo" or props.photo_source == "FILE"):
        backend_box.paragraph(box, check.text, icon="ERROR" if check.id == "photo" else "IMAGE_DATA")
        if props.photo_source == "FILE":
            box.operator("portrait.choose_photo", icon="FILE_FOLDER")


def photo_icon(props: Any) -> int:
    """Return the icon of the chosen photo, 0 without one."""
    if props.photo_source == "FILE":
        return runtime.session().pictures.icon(Path(bpy.path.abspath(props.photo_path))) if props.photo_path else 0
    image = props.photo_image
    return image.preview.icon_id if image is not None and image.preview is not None else 0


def draw_choices(layout: bpy.types.UILayout, props: Any) -> None:
    """Draw name, preset and seed."""
    layout.row(align=True).prop(props, "preset", expand=True)
    column = layout.column(align=True)
    column.use_property_split = True
    column.use_property_decorate = False
    column.prop(props, "name", placeholder="The photo's name")
    row = column.row(align=True)
    row.prop(props.settings, "seed")
    row.operator("portrait.random_seed", text="", icon="FILE_REFRESH")


def draw_generate(layout: bpy.types.UILayout, found: list[checks.Check]) -> None:
    """Draw the button; it can be pressed when no check says stop (a stopped backend is started by it)."""
    row = layout.row()
    row.scale_y = 1.6
    row.enabled = not any(check.severity == "stop" for check in found) and runtime.session().backend.state is not State.INSTALLING
    row.operator_context = "INVOKE_DEFAULT"
    row.operator("portrait.generate", icon="USER")


def draw_progress(layout: bpy.types.UILayout, job: Job) -> None:
    """Draw what the job is doing, how long yet, and the head as it is now."""
    session = runtime.session()
    box = layout.box()
    icon = session.pictures.live_icon(job.id)
    if icon:
        row = box.row()
        row.alignment = "CENTER"
        row.template_icon(icon_value=icon, scale=PREVIEW_SCALE)
    left = job.seconds_left(time.monotonic())
    box.label(text=job.title if session.backend.connected else f"{job.title} (backend {session.backend.state.value})", icon="SORTTIME")
    percent = f"{round(100 * job.fraction)} %" if job.steps else ""
    box.progress(factor=job.fraction, type="BAR", text=", ".join(t for t in (percent, time_left(left) if left is not None else "") if t))
    waiting = len(session.jobs.active) - 1
    if waiting > 0:
        box.label(text=f"{waiting} more in the queue")
    row = box.row()
    row.enabled = job.state != "cancelling"
    row.operator("portrait.cancel", icon="X").job = job.id


def draw_outcome(layout: bpy.types.UILayout, job: Job) -> None:
    """Draw how the last job ended and what can be done next."""
    if job.error is not None:
        suggests = bool(getattr(job.error, "suggested", None)) or bool(settings_view.smaller(runtime.session().job_settings(job)))
        failed = checks.Failure(
            job.id,
            job.error.code,
            job.error.message,
            job.error.hint,
            can_resume=job.on_backend and job.state == "failed",
            can_shrink=suggests,
        )
        draw_check(layout, checks.after(failed))
        return
    if job.state == "cancelled":
        text = f"{job.name} was cancelled"
        fixes = (checks.Fix("portrait.resume", "Resume", {"job": job.id}), checks.Fix("portrait.dismiss", "Dismiss", {"job": job.id}))
        draw_check(layout, checks.Check("cancelled", "note", text, fixes))
        return
    box = layout.box()
    if job.fetching or job.wanted:
        waits = job.head is not None
        box.label(text="Leave the current mode: the head comes in in Object mode" if waits else "Fetching the head", icon="SORTTIME")
        return
    draw_finished(box, job)


def draw_finished(box: bpy.types.UILayout, job: Job) -> None:
    """Draw a finished job with its next steps."""
    row = box.row()
    icon = thumbnail(job)
    if icon:
        row.template_icon(icon_value=icon, scale=4.0)
    column = row.column(align=True)
    column.label(text=job.name, icon="CHECKMARK")
    column.label(text=f"Seed {job.seed}")
    column.operator("portrait.view_head", icon="ZOOM_SELECTED")
    for warning in job.warnings:
        backend_box.paragraph(box, warning, icon="INFO")
    column = box.column(align=True)
    column.operator_context = "INVOKE_DEFAULT"
    column.operator("portrait.retexture", icon="BRUSH_DATA").job = job.id
    column.operator("portrait.again", icon="LOOP_BACK").job = job.id


def thumbnail(job: Job) -> int:
    """Return the icon of a job: its head, else its photo, else 0."""
    pictures = runtime.session().pictures
    icon = pictures.icon(job.folder / "views/front.png") if job.here else 0
    if icon:
        return icon
    kept = photo_in(job.folder)
    return pictures.icon(kept) if kept is not None else 0


class PORTRAIT_PT_settings(_Panel, bpy.types.Panel):
    """All other settings."""

    bl_idname = "PORTRAIT_PT_settings"
    bl_label = "Settings"
    bl_parent_id = "PORTRAIT_PT_main"
    bl_options = {"DEFAULT_CLOSED"}

    def draw(self, context: bpy.types.Context) -> None:
        """Draw the settings of no group: stages, device."""
        props = context.scene.portrait
        layout = self.layout
        draw_stages(layout, props)
        general = settings_view.groups()[0]
        draw_settings(layout, props, [info for info in settings_view.shown(general) if info.path not in ("seed", "stages")])
        changed = settings_view.overrides(properties.values(props.settings), props.preset)
        changed.pop("seed", None)
        if changed:
            layout.operator("portrait.reset_setting", text=f"Reset {len(changed)} changed to {props.preset}", icon="LOOP_BACK").path = ""


def draw_stages(layout: bpy.types.UILayout, props: Any) -> None:
    """Draw one switch per stage; those that the backend doesn't have can't be switched on."""
    info = runtime.session().backend.info
    column = layout.column(align=True)
    for group in settings_view.groups():
        if group.stage:
            row = column.row(align=True)
            offered = info is None or group.name in info.stages
            row.enabled = offered or group.name in props.settings.stages
            row.prop_enum(props.settings, "stages", group.name, text=group.title if offered else f"{group.title} (not in this backend)")


def draw_settings(layout: bpy.types.UILayout, props: Any, infos: Any) -> None:
    """Draw settings, each changed one with a button that takes it back to the preset."""
    values = properties.values(props.settings)
    layout = layout.column()
    layout.use_property_split = True
    layout.use_property_decorate = False
    for info in infos:
        row = layout.row(align=True)
        group, name = properties.holder(props.settings, info.path)
        row.prop(group, name)
        if not settings_view.same(info, values[info.path], settings_view.preset_value(props.preset, info.path)):
            row.operator("portrait.reset_setting", text="", icon="LOOP_BACK").path = info.path


def _group_panel(group: settings_view.Group) -> type:
    """Return the panel of one group of settings."""

    def draw(self: Any, context: bpy.types.Context) -> None:
        props = context.scene.portrait
        info = runtime.session().backend.info
        offered, version = (info.stages, info.package_version) if info is not None else (None, "")
        problem = settings_view.stage_problem(group, offered, props.settings.stages, version)
        if problem:
            self.layout.label(text=problem, icon="INFO")
        column = self.layout.column()
        column.enabled = not problem
        draw_settings(column, props, settings_view.shown(group))

    name = f"PORTRAIT_PT_settings_{group.name}"
    body = {
        "__doc__": group.text,
        "bl_idname": name,
        "bl_label": group.title,
        "bl_parent_id": "PORTRAIT_PT_settings",
        "bl_options": {"DEFAULT_CLOSED"},
        "draw": draw,
    }
    return type(name, (_Panel, bpy.types.Panel), body)


GROUP_PANELS = tuple(_group_panel(group) for group in settings_view.groups() if group.name and settings_view.shown(group))


class PORTRAIT_PT_backend(_Panel, bpy.types.Panel):
    """The backend."""

    bl_idname = "PORTRAIT_PT_backend"
    bl_label = "Backend"
    bl_options = {"DEFAULT_CLOSED"}
    bl_order = 2

    def draw_header_preset(self, context: bpy.types.Context) -> None:
        """Say how it is even while the panel is closed."""
        state = runtime.session().backend.state
        self.layout.label(text=state.value.capitalize(), icon=backend_box.ICONS[state])

    def draw(self, context: bpy.types.Context) -> None:
        """Draw its state and the way to its preferences."""
        backend_box.draw(self.layout)
        self.layout.operator("portrait.preferences", icon="PREFERENCES")


CLASSES = (PORTRAIT_PT_main, PORTRAIT_PT_settings, *GROUP_PANELS, PORTRAIT_PT_backend)
