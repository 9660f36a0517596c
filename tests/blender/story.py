"""What an artist does with the extension, in a real Blender (bpy) with a real backend: run by test_in_blender.py in its own process.

    story.py EXTENSION.zip PHOTO WORK_FOLDER

Each chapter writes what it saw into WORK_FOLDER/story.json; the tests judge it. `poll` is called as Blender's timer calls it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from in_bpy import PACKAGE, PHOTO, WORK, bpy, click, enable, gone, part, play, session, timed, turn

TINY = {
    "prior": {"fit_steps": 2},
    "mesh": {"resolution": 64, "faces": 4000, "texture_size": 256},
    "output": {"view_size": 64, "turntable_frames": 4, "turntable_size": 64},
}
LONG = {**TINY, "prior": {"fit_steps": 400}}
seen: dict[str, Any] = {}


def current() -> Any:
    return session().jobs.current


def settings(values: dict[str, Any]) -> dict[str, str]:
    return {"preset": "draft", "settings": json.dumps(values)}


# --- chapters


def install() -> dict[str, Any]:
    enable()
    bpy.ops.ed.undo_push(message="The user's own work")
    import zmq

    import portrait_shared

    own = Path(bpy.utils.user_resource("EXTENSIONS"))
    return {
        "enabled": PACKAGE in bpy.context.preferences.addons,
        "shared_is_ours": Path(portrait_shared.__file__).is_relative_to(own),
        "zmq_is_ours": Path(zmq.__file__).is_relative_to(own),
        "torch": "torch" in sys.modules,
        "state": session().backend.state.name,
        "version": session().version,
        "operators": sorted(name for name in dir(bpy.ops.portrait) if not name.startswith("_")),
    }


def declared() -> dict[str, Any]:
    from portrait_shared.settings import PRESETS, walk

    props, properties = bpy.context.scene.portrait, part("properties")
    missing = [info.path for info in walk() if info.path != "preset" and info.path not in properties.values(props.settings)]
    limits = {}
    for info in walk():
        group, name = properties.holder(props.settings, info.path)
        if info.type is int and not info.many:
            rna = group.bl_rna.properties[name]
            limits[info.path] = [rna.hard_min == info.minimum, rna.hard_max == info.maximum, rna.description == info.help.rstrip(".")]
    props.settings.mesh.faces = 1234
    props.preset = "full"
    after = properties.values(props.settings)
    bpy.ops.portrait.reset_setting(path="mesh.faces")
    reset = props.settings.mesh.faces
    props.preset = "standard"
    return {
        "missing": missing,
        "limits": limits,
        "kept": after["mesh.faces"],
        "followed": after["mesh.resolution"] == PRESETS["full"]["mesh"]["resolution"],
        "reset": reset == PRESETS["full"]["mesh"]["faces"],
        "back": properties.values(props.settings)["mesh.resolution"],
    }


def refusals() -> dict[str, Any]:
    found = {}
    for name, arguments in {
        "no file": {"filepath": str(WORK / "nobody.jpg")},
        "preset": {"filepath": str(PHOTO), "preset": "best"},
        "range": {"filepath": str(PHOTO), "settings": '{"mesh": {"faces": -1}}'},
        "no photo": {},
    }.items():
        try:
            bpy.ops.portrait.generate(**arguments)
            found[name] = ""
        except RuntimeError as error:
            found[name] = str(error).strip()
    found["jobs"] = len(session().jobs)
    return found


def first_head() -> dict[str, Any]:
    """Press Generate, watch, undo and delete in the meantime, and get the head."""
    props = bpy.context.scene.portrait
    props.photo_path = str(PHOTO)
    objects = len(bpy.data.objects)
    pressed = click(bpy.ops.portrait.generate, wait=False, **settings(TINY), name="Ada")
    job = current()
    turn(lambda: job.state == "running")
    start_state = session().backend.state.name
    turn(lambda: "Portrait Preview" in bpy.data.images and bpy.data.images["Portrait Preview"].size[0] > 8)
    preview = list(bpy.data.images["Portrait Preview"].size)
    bpy.data.images.remove(bpy.data.images["Portrait Preview"])  # the user tidies up
    bpy.data.objects.remove(bpy.data.objects["Cube"])
    bpy.ops.ed.undo_push(message="Delete the cube")
    stages: list[str] = []

    def done() -> bool:
        if job.stage and (not stages or stages[-1] != job.stage):
            stages.append(job.stage)
        return "Portrait Ada" in bpy.data.collections or job.error is not None

    turn(done)
    seen["first_job"] = job.id
    return {"pressed": pressed, "started": start_state, "preview": preview, "stages": stages, "state": job.state,
            "error": str(job.error), "objects": len(bpy.data.objects) - objects}  # fmt: skip


def head_facts() -> dict[str, Any]:
    head = bpy.context.view_layer.objects.active
    material = head.data.materials[0]
    picture = next(node.image for node in material.node_tree.nodes if node.type == "TEX_IMAGE")
    shader = next(node for node in material.node_tree.nodes if node.type == "BSDF_PRINCIPLED")
    camera = next(o for o in bpy.data.collections["Portrait Ada"].objects if o.type == "CAMERA")
    return {
        "name": head.name,
        "selected": [o.name for o in bpy.context.selected_objects],
        "collection": [c.name for c in head.users_collection],
        "mode": head.mode,
        "size": list(head.dimensions),
        "faces": len(head.data.polygons),
        "loose": len(head.data.vertices) - len({v for p in head.data.polygons for v in p.vertices}),
        "smooth": all(p.use_smooth for p in head.data.polygons),
        "valid": not head.data.validate(),
        "uv": [layer.name for layer in head.data.uv_layers],
        "packed": picture.packed_file is not None,
        "texture": list(picture.size),
        "linked": shader.inputs["Base Color"].links[0].from_node.image.name == picture.name,
        "properties": {key: head[key] for key in head.keys() if key.startswith("portrait_") and not hasattr(head[key], "keys")},  # noqa: SIM118
        "camera_photo": list(camera.data.background_images[0].image.size),
        "photo_packed": camera.data.background_images[0].image.packed_file is not None,
        "job": seen["first_job"],
    }


def over_the_photo() -> dict[str, Any]:
    """Compare the texture of what faces the camera with the photo there: right only if mesh, UVs, texture and camera all are."""
    import numpy as np
    from bpy_extras.object_utils import world_to_camera_view

    head = bpy.context.view_layer.objects.active
    camera = next(o for o in head.users_collection[0].objects if o.type == "CAMERA")
    scene = bpy.context.scene
    scene.camera = camera
    result = {}
    for name, (x, y) in {"as wide as it is high": (512, 512), "16:9": (1920, 1080), "9:16": (1080, 1920)}.items():
        scene.render.resolution_x, scene.render.resolution_y = x, y
        fitted = part("scene_import").make_camera("again", photo_camera(), None, scene)
        camera.data.sensor_fit, camera.data.lens = fitted.data.sensor_fit, fitted.data.lens
        camera.data.shift_x, camera.data.shift_y = fitted.data.shift_x, fitted.data.shift_y
        bpy.data.objects.remove(fitted)
        bpy.context.view_layer.update()
        result[name] = difference(np, head, camera, scene, world_to_camera_view)
    return result


def photo_camera() -> Any:
    head_data = part("core.head_data")
    job = session().jobs.get(seen["first_job"])
    return head_data.read_head(job.folder).camera


def difference(np: Any, head: Any, camera: Any, scene: Any, project: Callable[..., Any]) -> dict[str, float]:
    texture = pixels(np, next(node.image for node in head.data.materials[0].node_tree.nodes if node.type == "TEX_IMAGE"))
    photo = pixels(np, camera.data.background_images[0].image)
    aspect = scene.render.resolution_x / scene.render.resolution_y / (photo.shape[1] / photo.shape[0])
    towards = camera.matrix_world.translation.normalized()
    rows = []
    for polygon in head.data.polygons:
        if polygon.normal.dot(towards) < 0.8:
            continue
        loop = polygon.loop_indices[0]
        vertex = head.data.vertices[head.data.loops[loop].vertex_index].co
        frame = project(scene, camera, vertex)
        # the picture is fitted into the frame: it fills one side and lies in the middle of the other
        u = 0.5 + (frame.x - 0.5) * max(1.0, aspect)
        v = 0.5 + (frame.y - 0.5) * max(1.0, 1 / aspect)
        rows.append((sample(texture, *head.data.uv_layers[0].uv[loop].vector), sample(photo, u, v), sample(photo, 1 - u, v)))
    painted, right, mirrored = (np.array(column) for column in zip(*rows, strict=True))
    return {"points": len(rows), "apart": float(np.abs(painted - right).mean()), "mirrored": float(np.abs(painted - mirrored).mean())}


def pixels(np: Any, image: Any) -> Any:
    flat = np.empty(len(image.pixels), np.float32)
    image.pixels.foreach_get(flat)
    return flat.reshape(image.size[1], image.size[0], -1)[..., :3]


def sample(picture: Any, u: float, v: float) -> Any:
    height, width = picture.shape[:2]
    return picture[min(max(int(v * height), 0), height - 1), min(max(int(u * width), 0), width - 1)]


def undo() -> dict[str, Any]:
    def names() -> list[str]:
        return sorted([o.name for o in bpy.data.objects] + [c.name for c in bpy.data.collections if c.name.startswith("Portrait")])

    before = names()
    bpy.ops.ed.undo()
    once = names()
    bpy.ops.ed.redo()
    return {"before": before, "after_undo": once, "after_redo": names()}


def large_import() -> dict[str, Any]:
    """Time the import of a head as large as the standard preset makes."""
    import numpy as np

    head_data, jobs = part("core.head_data"), part("core.jobs")
    side = 173  # 2 * 173^2 = 59858 triangles
    rows, columns = np.divmod(np.arange((side + 1) ** 2), side + 1)
    vertices = np.stack([columns, rows, np.sin(rows / 9)], 1).astype(np.float32) / side
    corner = (np.arange(side)[:, None] * (side + 1) + np.arange(side)).reshape(-1)
    quads = np.stack([corner, corner + 1, corner + side + 2, corner, corner + side + 2, corner + side + 1], 1)
    corners = quads.reshape(-1).astype(np.int32)
    uvs = vertices[corners][:, :2]
    png = WORK / "large.png"
    part("core.png").write_png(png, np.random.default_rng(0).random((1024, 1024, 4), np.float32), linear=False)
    head = head_data.HeadData(
        vertices.reshape(-1), corners, np.ascontiguousarray(uvs).reshape(-1), png.read_bytes(), "x", {}, photo_camera(), None
    )
    job = jobs.Job("large", "Large", WORK, "completed")
    times = []
    for _ in range(3):
        made, wall, own = timed(lambda: part("scene_import").import_head(bpy.context.scene, head, job))
        times.append((wall, own))
    return {"faces": len(made.data.polygons), "times": times}


def from_script() -> dict[str, Any]:
    """Re-texture from a script: it waits, and the head is the active object; mesh and UVs are the old ones."""
    source = bpy.data.objects["Ada"]
    bpy.context.view_layer.objects.active = source
    bpy.context.scene.portrait.preset = "draft"
    part("properties").assign(bpy.context.scene.portrait.settings, part("core.settings_view").flatten(TINY))
    result = bpy.ops.portrait.retexture()
    head = bpy.context.view_layer.objects.active
    same = len(head.data.vertices) == len(source.data.vertices) and all(
        (a.vector - b.vector).length < 1e-6 for a, b in zip(head.data.uv_layers[0].uv, source.data.uv_layers[0].uv, strict=True)
    )
    return {"result": sorted(result), "name": head.name, "same_uvs": same, "job": head["portrait_job"] != source["portrait_job"]}


def cancel() -> dict[str, Any]:
    """Generate from an unsaved image of this file, cancel while it runs."""
    image = bpy.data.images.load(str(PHOTO))
    image.pack()
    image.filepath = ""
    props = bpy.context.scene.portrait
    props.photo_source, props.photo_image = "IMAGE", image
    click(bpy.ops.portrait.generate, wait=False, **settings(LONG), name="Bob")
    job = current()
    turn(lambda: job.state == "running" and job.stage == "prior")
    pressed = click(bpy.ops.portrait.cancel)
    start = time.monotonic()
    turn(lambda: job.state == "cancelled", 120)
    seen["cancelled_job"] = job.id
    return {
        "pressed": pressed,
        "seconds": time.monotonic() - start,
        "objects": [o.name for o in bpy.data.objects if o.name.startswith("Bob")],
    }


def kill_worker() -> dict[str, Any]:
    """Resume it, kill the process that computes, look at the error."""
    job = session().jobs.get(seen["cancelled_job"])
    click(bpy.ops.portrait.resume, wait=False, job=job.id)
    turn(lambda: job.state == "running" and job.stage == "prior" and job.step > 0)
    os.kill(worker(session().backend.info.pid), signal.SIGKILL)
    start = time.monotonic()
    turn(lambda: job.state == "failed", 120)
    error = job.error
    return {
        "seconds": time.monotonic() - start,
        "code": error.code,
        "text": f"{error.message}. {error.hint}",
        "backend": session().backend.state.name,
    }


def worker(parent: int) -> int:
    """Return the process that uses most memory among the backend's descendants."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue

    def below(pid: int) -> bool:
        while pid in parents:
            pid = parents[pid]
            if pid == parent:
                return True
        return False

    return max((pid for pid in parents if below(pid)), key=lambda pid: int(Path(f"/proc/{pid}/statm").read_text().split()[1]))


def kill_backend() -> dict[str, Any]:
    """Resume it, kill the backend itself: it is noticed, started again, and the job is there again."""
    job = session().jobs.get(seen["cancelled_job"])
    click(bpy.ops.portrait.resume, wait=False, job=job.id)
    turn(lambda: job.state == "running")
    old = session().backend.info.pid
    os.kill(old, signal.SIGKILL)
    start = time.monotonic()
    turn(lambda: session().backend.state.name == "LOST", 60)
    noticed = time.monotonic() - start
    message = session().backend.message
    turn(lambda: session().backend.state.name == "RUNNING")
    new = session().backend.info.pid
    turn(lambda: job.state == "running")
    return {"noticed": noticed, "message": message, "other_process": new != old, "job": job.state}


def another_file() -> dict[str, Any]:
    """Load another file while it runs: it goes on, nothing breaks."""
    job = session().jobs.get(seen["cancelled_job"])
    bpy.ops.wm.read_homefile(use_empty=True)
    turn(lambda: True)
    return {"wanted": job.wanted, "state": job.state, "notice": session().notice, "timer": part("runtime").poll() is not None}


def disable() -> dict[str, Any]:
    """Disable the extension while the job runs, enable it again: the same backend, the same job, running."""
    job_id, pid = seen["cancelled_job"], session().backend.info.pid
    bpy.ops.preferences.addon_disable(module=PACKAGE)
    time.sleep(0.5)
    lives = Path(f"/proc/{pid}").exists()
    bpy.ops.preferences.addon_enable(module=PACKAGE)
    session().backend.start()
    turn(lambda: session().backend.state.name == "RUNNING")
    turn(lambda: session().jobs.get(job_id) is not None and session().jobs.get(job_id).on_backend)
    again = session().jobs.get(job_id)
    same = session().backend.info.pid == pid
    state = again.state
    click(bpy.ops.portrait.cancel, job=job_id)
    turn(lambda: again.state == "cancelled", 120)
    return {"lives": lives, "same_process": same, "state": state}


def history() -> dict[str, Any]:
    """Delete that job; import the first head again from History, with the backend stopped, into the new file."""
    bpy.ops.portrait.history_delete(job=seen["cancelled_job"])
    turn(lambda: session().jobs.get(seen["cancelled_job"]) is None)
    pid = session().backend.info.pid
    bpy.ops.portrait.backend_stop()
    turn(lambda: gone(pid), 60)
    turn(lambda: session().jobs.get(seen["first_job"]) is not None, 60)
    names = [job.name for job in session().jobs]
    result = bpy.ops.portrait.history_import(job=seen["first_job"])
    head = bpy.context.view_layer.objects.active
    return {
        "stopped": session().backend.state.name,
        "names": names,
        "result": sorted(result),
        "job": head["portrait_job"] == seen["first_job"],
        "thumbnail": (session().jobs.get(seen["first_job"]).folder / "views/front.png").is_file(),
    }


CHAPTERS = (
    install, declared, refusals, first_head, head_facts, over_the_photo, undo, large_import, from_script, cancel, kill_worker,
    kill_backend, another_file, disable, history,
)  # fmt: skip


if __name__ == "__main__":
    play(CHAPTERS)
