"""Images and films of rollouts, for `gps evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gps.errors import ConfigError, StoreError
from gps.extras import require

if TYPE_CHECKING:
    import numpy as np

    from gps.protocols import Agent, Renders
    from gps.types import Rollouts

_IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp")
_FILMS = (".mp4", ".mkv", ".mov", ".avi")


class Drawing:
    """What is to be drawn of an evaluation, as the options of `gps evaluate` say it."""

    def __init__(
        self, images: str | None, video: str | None, camera: str | None, size: str, test: bool
    ) -> None:
        """Refuses files that could not be written; ConfigError, StoreError."""
        from gps.pipeline.evaluation import require_writable

        self.width, self.height = _size(size, even=video is not None)
        self.images = None if images is None else Path(images)
        self.video = None if video is None else Path(video)
        self.camera, self.test = camera, test
        for option, path, suffixes in (
            ("--images", self.images, _IMAGES),
            ("--video", self.video, _FILMS),
        ):
            if path is None:
                continue
            if path.suffix.lower() not in suffixes:
                raise ConfigError(
                    f"{option} must be a file that ends in {', '.join(suffixes)}, got '{path}'"
                )
            if option == "--video":
                require("video", option)
            require_writable(path)
        if camera is not None and not self.wanted:
            raise ConfigError("--camera needs --images or --video")

    @property
    def wanted(self) -> bool:
        """Whether there is anything to draw."""
        return self.images is not None or self.video is not None

    @property
    def _view(self) -> dict[str, Any]:
        camera = -1 if self.camera is None else self.camera
        return {"width": self.width, "height": self.height, "camera": camera, "test": self.test}

    def renderer(self, agent: Agent) -> Renders:
        """The agent, which can draw; ConfigError for one that cannot, a camera that it does not
        have, or a size or machine with which it cannot."""
        from gps.protocols import ChecksRender, Renders

        if not isinstance(agent, Renders):
            raise ConfigError(f"{type(agent).__name__} draws no images")
        if isinstance(agent, ChecksRender):  # an agent of the user's may have `render` alone
            try:
                agent.check_render(**self._view)
            except ConfigError as error:
                option = "--camera" if self.camera else "--size"
                raise ConfigError(f"{option}: {error}") from error
        return agent

    def write(
        self, agent: Renders, rollouts: Sequence[Rollouts | None], T: int, dt: float
    ) -> list[Path]:
        """Write the files, of the first sample of every condition; returns their paths."""
        drawn = [r for r in rollouts if r is not None]
        if not drawn:
            raise ConfigError("nothing to draw: the simulation failed in every condition")
        written: list[Path] = []
        for path, every, write in (
            (self.images, max(1, (T - 1) // 5), _write_images),
            (self.video, 1, _write_video),
        ):
            if path is not None:
                frames = [agent.render(r, 0, every=every, **self._view) for r in drawn]
                try:
                    write(path, frames, dt)
                except (OSError, ValueError) as error:
                    raise StoreError(f"cannot write {path}: {error}") from error
                written.append(path)
        return written


def _size(text: str, *, even: bool) -> tuple[int, int]:
    """Width and height; `even` where a film is wanted, whose codec halves them for the colours."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) > 0 and int(height) > 0):
        raise ConfigError(f"--size must look like 320x240, got {text!r}")
    if even and (int(width) % 2 or int(height) % 2):
        raise ConfigError(f"--size must be two even numbers for --video, got {text!r}")
    return int(width), int(height)


def _write_images(path: Path, frames: Sequence[np.ndarray], dt: float) -> None:
    """One row of images for each condition."""
    import numpy as np
    from PIL import Image

    strip = np.concatenate([np.concatenate(list(row), axis=1) for row in frames], axis=0)
    Image.fromarray(strip).save(path)


def _write_video(path: Path, frames: Sequence[np.ndarray], dt: float) -> None:
    """The conditions one after the other, in real time."""
    from imageio import v2

    rate = max(1, round(1 / dt))
    writer: Any
    with v2.get_writer(path, fps=rate, macro_block_size=1) as writer:
        for frame in (frame for part in frames for frame in part):
            writer.append_data(frame)
