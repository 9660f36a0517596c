"""A finished head -> a collection with mesh, material, texture and the camera that took the photo. One undo step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import bpy
from mathutils import Matrix

from .core.head_data import HeadData, PhotoCamera
from .core.jobs import Job
from .core.settings_view import flatten

if TYPE_CHECKING:
    from .session import Session

ROUGHNESS = 0.8
"""As in the GLB."""
SENSOR_MM = 36.0
BACKGROUND_ALPHA = 0.5


def import_job(session: Session, job: Job, undo: bool, scene: bpy.types.Scene | None = None) -> bpy.types.Object:
    """Import the head that a job holds and let go of it; undo: push the undo step (an operator with UNDO does it itself)."""
    assert job.head is not None
    target = scene or bpy.data.scenes.get(job.scene) or current_scene()
    made = import_head(target, job.head, job)
    job.head = None
    session.notice = "" if target == current_scene() else f"{made.name} is in the scene {target.name}"
    if undo:
        bpy.ops.ed.undo_push(message=f"Import {made.name}")
    return made


def import_head(scene: bpy.types.Scene, head: HeadData, job: Job) -> bpy.types.Object:
    """Make the collection "Portrait <name>" in `scene` and return the head, which is active and alone selected."""
    name = job.name or "head"
    collection = bpy.data.collections.new(f"Portrait {name}")
    scene.collection.children.link(collection)
    obj = bpy.data.objects.new(name, make_mesh(name, head))
    obj.data.materials.append(make_material(name, head.texture))
    collection.objects.link(obj)
    describe(obj, head, job)
    if head.camera is not None:
        camera = make_camera(name, head.camera, head.photo, scene)
        collection.objects.link(camera)
        if scene.camera is None:
            scene.camera = camera
    select_only(scene, obj)
    return obj


def make_mesh(name: str, head: HeadData) -> bpy.types.Mesh:
    """Return the mesh: smooth, with the UV map "UVMap"."""
    import numpy as np

    mesh = bpy.data.meshes.new(name)
    mesh.vertices.add(len(head.vertices) // 3)
    mesh.vertices.foreach_set("co", head.vertices)
    mesh.loops.add(len(head.corners))
    mesh.loops.foreach_set("vertex_index", head.corners)
    mesh.polygons.add(head.faces)
    mesh.polygons.foreach_set("loop_start", np.arange(0, len(head.corners), 3, dtype=np.int32))
    mesh.uv_layers.new(name="UVMap").uv.foreach_set("vector", head.uvs)
    mesh.update(calc_edges=True)
    mesh.shade_smooth()
    return mesh


def make_material(name: str, texture: bytes) -> bpy.types.Material:
    """Return a Principled material whose base colour is the packed texture."""
    image = bpy.data.images.new(f"{name} base colour", 8, 8)
    image.pack(data=texture, data_len=len(texture))
    image.source = "FILE"
    image.filepath_raw = f"//{bpy.path.clean_name(name)}.png"  # where *Unpack* would write it
    image.buffers_free()
    material = bpy.data.materials.new(f"{name} skin")
    material.use_nodes = True
    nodes = material.node_tree.nodes
    shader = next((node for node in nodes if node.type == "BSDF_PRINCIPLED"), None) or nodes.new("ShaderNodeBsdfPrincipled")
    picture = nodes.new("ShaderNodeTexImage")
    picture.image = image
    picture.location = (shader.location.x - 320, shader.location.y)
    material.node_tree.links.new(picture.outputs["Color"], shader.inputs["Base Color"])
    shader.inputs["Roughness"].default_value = ROUGHNESS
    nodes.active = picture
    return material


def make_camera(name: str, given: PhotoCamera, photo: Path | None, scene: bpy.types.Scene) -> bpy.types.Object:
    """Return the camera that took the photo; its frame shows the photo fitted into the scene's render size.

    Blender fits a background picture into the frame by the side that is tighter, so the field of view is given along that
    side. Shifts are counted in lengths of that side.
    """
    camera = bpy.data.cameras.new(f"{name} camera")
    render = scene.render
    wide = given.width / given.height >= (render.resolution_x * render.pixel_aspect_x) / (render.resolution_y * render.pixel_aspect_y)
    side = given.width if wide else given.height
    camera.sensor_fit = "HORIZONTAL" if wide else "VERTICAL"
    camera.sensor_width = camera.sensor_height = SENSOR_MM
    camera.lens = given.focal / side * SENSOR_MM
    camera.shift_x = (given.width / 2 - given.centre[0]) / side
    camera.shift_y = (given.centre[1] - given.height / 2) / side
    camera.clip_start = 0.01
    camera.display_size = 0.1
    if photo is not None:
        camera.show_background_images = True
        background = camera.background_images.new()
        background.image = bpy.data.images.load(str(photo), check_existing=True)
        background.image.name = f"{name} photo"
        background.image.pack()
        background.alpha = BACKGROUND_ALPHA
        background.frame_method = "FIT"
        background.display_depth = "FRONT"
    obj = bpy.data.objects.new(f"{name} camera", camera)
    obj.matrix_world = Matrix(given.matrix)
    obj["portrait_photo_size"] = [given.width, given.height]
    return obj


def describe(obj: bpy.types.Object, head: HeadData, job: Job) -> None:
    """Write down on the object where it comes from."""
    identity = head.identity
    photo = identity.get("photo") or {}
    obj["portrait_job"] = job.id
    obj["portrait_seed"] = int(identity.get("seed") or 0)
    obj["portrait_settings"] = json.dumps(identity.get("settings") or {}, sort_keys=True)
    obj["portrait_preset"] = str(flatten(identity.get("settings") or {}).get("preset", ""))
    obj["portrait_generator"] = str(identity.get("generator") or "")
    obj["portrait_photo_name"] = str(photo.get("name", ""))
    obj["portrait_photo_sha256"] = str(photo.get("sha256", ""))
    obj["portrait_mesh_sha256"] = head.mesh_sha256
    obj["portrait_weights"] = json.dumps(identity.get("weights") or {}, sort_keys=True)


def select_only(scene: bpy.types.Scene, obj: bpy.types.Object) -> None:
    """Make `obj` the active and only selected object of the scene's view layers that show it."""
    for layer in scene.view_layers:
        layer.update()  # it learns of the new collection only then
        if obj.name in layer.objects:
            for other in layer.objects.selected:
                other.select_set(False, view_layer=layer)
            obj.select_set(True, view_layer=layer)
            layer.objects.active = obj


def current_scene() -> bpy.types.Scene:
    """Return the scene that the user looks at (timers have no context of their own)."""
    windows = bpy.context.window_manager.windows if bpy.context.window_manager else ()
    return windows[0].scene if len(windows) else bpy.context.scene
