"""Pictures of MuJoCo scenes without a screen, guarded against the ways in which they silently go wrong; and GIFs of them."""

from __future__ import annotations

import atexit
import ctypes.util
import importlib
import io
import os
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from discdiff.config import checked
from discdiff.report.pictures import write_atomically

CAMERA = "corner2"
PLACE = (0.75, 0.075, 0.7)  # of that camera, where LeRobot puts it
TRUE = (0.3, 30.0)  # a true frame's mean difference of neighbours is about 8; of colour noise it is 85
_OPEN: weakref.WeakSet[Camera] = weakref.WeakSet()
NEEDS = "pip install 'discdiff[robots]', and for pictures the system's libosmesa6 or EGL (MUJOCO_GL=osmesa or egl)"


class Undrawable(ValueError):
    """Nothing can be drawn on this computer."""


def load_mujoco() -> Any:
    """The mujoco package. Raises ValueError naming the extra where it is missing, or cannot load its OpenGL platform."""
    try:
        import mujoco
    except (ImportError, AttributeError, OSError, RuntimeError) as error:  # as the platform fails
        raise ValueError(f"MuJoCo cannot be imported ({error}): {NEEDS}") from error
    return mujoco


class Camera:
    """Draws the scenes that were built from one file, (size, size, 3) uint8, without shadows, reflections and smoothing.

    All cameras draw in one OpenGL context that lasts as long as the process. With a context each, one that is freed while
    another is current deletes that one's buffers, and all its later frames are noise (google-deepmind/mujoco#1186).
    """

    def __init__(self, model: Any, size: int) -> None:
        self.drawing = None
        checked("size", size, 8 <= size <= 1024, "pixels, from 8 to 1024")
        m = self.mujoco = load_mujoco()
        self.size, self.context = size, _context()
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
        self.context.make_current()
        try:
            self.drawing = m.MjrContext(model, m.mjtFontScale.mjFONTSCALE_50.value)
        except m.FatalError as error:  # of a window system without a screen
            raise Undrawable(f"nothing can be drawn ({error}): {NEEDS}") from error
        _OPEN.add(self)
        self.scene = m.MjvScene(model, maxgeom=1000)
        self.options, self.view = m.MjvOption(), m.MjvCamera()
        self.view.type = m.mjtCamera.mjCAMERA_FIXED
        self.view.fixedcamid = model.camera(CAMERA).id
        for flag in (m.mjtRndFlag.mjRND_SHADOW, m.mjtRndFlag.mjRND_REFLECTION):
            self.scene.flags[flag] = 0

    def picture(self, model: Any, data: Any, pillar: tuple[float, float, float, float] | None = None) -> np.ndarray:
        """What the camera sees, both image axes flipped as LeRobot does; pillar: x, y, radius and height of one to add.
        Raises RuntimeError for a frame that shows noise or nothing.
        """
        m = self.mujoco
        checked("camera", "closed", self.drawing is not None, "make another one")
        model.cam_pos[self.view.fixedcamid] = PLACE
        data.cam_xpos[self.view.fixedcamid] = PLACE  # where the simulation reads it only at its next step
        m.mjv_updateScene(model, data, self.options, None, self.view, m.mjtCatBit.mjCAT_ALL.value, self.scene)
        if pillar is not None:
            self._add(*pillar)
        self.context.make_current()
        m.mjr_setBuffer(m.mjtFramebuffer.mjFB_OFFSCREEN.value, self.drawing)
        frame, area = np.empty((self.size, self.size, 3), np.uint8), m.MjrRect(0, 0, self.size, self.size)
        m.mjr_render(area, self.scene, self.drawing)
        m.mjr_readPixels(frame, None, area, self.drawing)
        return true_frame(np.ascontiguousarray(frame[:, ::-1]))  # rows come from below: flipped already

    def close(self) -> None:
        """Free what it holds in the shared context."""
        if self.drawing is not None:
            self.context.make_current()
            self.drawing.free()
            self.drawing = None

    def _add(self, x: float, y: float, radius: float, height: float) -> None:
        m = self.mujoco
        size, place = np.array([radius, height / 2, 0]), np.array([x, y, height / 2])
        color = np.array([0.9, 0.9, 0.2, 1], np.float32)
        geom = self.scene.geoms[self.scene.ngeom]
        m.mjv_initGeom(geom, m.mjtGeom.mjGEOM_CYLINDER, size, place, np.eye(3).ravel(), color)
        self.scene.ngeom += 1


@cache
def _context() -> Any:
    """By MUJOCO_GL; without it what is installed, not the window system that mujoco itself would try."""
    found = [name for name, library in (("osmesa", "OSMesa"), ("egl", "EGL")) if ctypes.util.find_library(library)]
    name = os.environ.get("MUJOCO_GL", "").strip().lower() or next(iter(found), "osmesa")
    load_mujoco()
    try:
        platform = f"mujoco.{name}" if name in ("osmesa", "egl") else "mujoco.gl_context"
        context = importlib.import_module(platform).GLContext(64, 64)
    except Exception as error:  # each platform raises its own
        raise Undrawable(f"nothing can be drawn with MUJOCO_GL={name} ({error}): {NEEDS}") from error
    atexit.register(_leave, context)
    return context


def _leave(context: Any) -> None:
    """In this order: what is freed without its context, or after the platform, crashes or complains at exit."""
    for camera in list(_OPEN):
        camera.close()
    context.free()


def true_frame(frame: np.ndarray) -> np.ndarray:
    """The frame itself. Raises RuntimeError where its horizontal neighbours differ as much as noise, or not at all."""
    difference = float(np.abs(np.diff(frame.astype(np.int16), axis=1)).mean())
    if not TRUE[0] < difference < TRUE[1]:
        raise RuntimeError(
            f"a drawn frame is {'noise' if difference > 1 else 'empty'}: its horizontal neighbours differ by "
            f"{difference:.1f} levels, a true frame's by about 8. Was another OpenGL context freed in this process?"
        )
    return frame


def write_gif(path: str | Path, frames: np.ndarray, scale: int = 1, fps: float = 20) -> Path:
    """Frames (n, height, width, 3) uint8 as an animated GIF of one palette, each pixel `scale` wide, the last one held.
    Raises ValueError for other frames, and for rates above 50, which viewers slow down.
    """
    fits = frames.ndim == 4 and frames.shape[3] == 3 and frames.dtype == np.uint8 and len(frames) > 0
    checked("frames", (frames.dtype, frames.shape), fits, "give uint8 (n, height, width, 3)")
    checked("scale", scale, scale >= 1, "at least 1")
    checked("fps", fps, 0 < fps <= 50, "frames per second, at most 50")
    some = frames[np.unique(np.linspace(0, len(frames) - 1, 8).round().astype(int))]
    palette = Image.fromarray(np.concatenate(list(some))).quantize(255)  # one for all: colours do not flicker
    size = (frames.shape[2] * scale, frames.shape[1] * scale)
    drawn = [Image.fromarray(f).resize(size, Image.Resampling.NEAREST) for f in frames]
    drawn = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in drawn]
    pause, out = round(1000 / fps), io.BytesIO()
    pauses = [pause] * (len(drawn) - 1) + [max(1000, pause)]
    drawn[0].save(out, "GIF", save_all=True, append_images=drawn[1:], duration=pauses, loop=0)
    return write_atomically(path, out.getvalue())
