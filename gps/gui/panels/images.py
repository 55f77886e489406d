"""The folder Cameras: the images at the selected step, with the policy's feature points."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gps.gui.panels.context import PageContext
from gps.types import Array, Images


class ImagePanel:
    """The cameras' images at the selected step of the selected sample."""

    def __init__(self, context: PageContext) -> None:
        self._context = context
        self.folder: Any = context.server.gui.add_folder(
            "Cameras at the selected step", visible=False
        )
        with self.folder:
            self._empty = context.server.gui.add_html("")
        self._images: list[Any] = []

    def show(self) -> None:
        """The images of the selection."""
        if not self.folder.visible:
            return
        context = self._context
        found = context.session.images()
        none = "this run stores no images: its agent has no cameras"
        context.text(self._empty, "" if found else none)
        for k, handle in enumerate(self._images):
            context.set(handle, visible=k < len(found))
        for k, camera in enumerate(found):
            image, points = enlarged(camera.image, camera.feature_points), camera.feature_points
            of = "" if points is None else f", {len(points)} feature points of the policy"
            label = f"{camera.camera}, step {context.session.selection.t}{of}"
            if k < len(self._images):
                self._images[k].image = image
                self._images[k].label = label
            else:
                with self.folder:
                    new = context.server.gui.add_image(image, label=label, format="png")
                self._images.append(new)


def enlarged(image: Images, points: Array | None, scale: int = 6) -> npt.NDArray[np.uint8]:
    """A camera's image, enlarged without smoothing, with a ring around every feature point."""
    big = np.ascontiguousarray(np.repeat(np.repeat(image, scale, axis=0), scale, axis=1))
    if points is None:
        return big
    rows, columns = np.mgrid[: big.shape[0], : big.shape[1]]
    for x, y in points:
        cx, cy = (x + 0.5) * scale, (y + 0.5) * scale
        distance = np.hypot(columns + 0.5 - cx, rows + 0.5 - cy)
        big[np.abs(distance - 0.8 * scale) < 1.2] = (255, 255, 255)
        big[np.abs(distance - 0.5 * scale) < 1.2] = (220, 30, 30)
    return big
