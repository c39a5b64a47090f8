"""Which camera, stream or film is meant, and how OpenCV opens it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import cv2

from fundus_rt.models.errors import BackendUnavailableError, UsageError


class Capture(Protocol):
    """What is used of `cv2.VideoCapture`."""

    def isOpened(self) -> bool:
        """Whether there is anything to read from."""
        ...

    def read(self) -> tuple[bool, Any]:
        """Whether a frame came, and the frame in an array of its own."""
        ...

    def get(self, prop: int, /) -> float:
        """A property, 0 where it is not known."""
        ...

    def release(self) -> None:
        """Close it."""
        ...


@dataclass(frozen=True)
class CameraSource:
    """Where frames come from."""

    kind: str
    """``device``, ``stream``, ``film`` or ``gstreamer``."""
    name: str
    """What rows and messages call it; holds neither user nor password."""
    address: int | str = field(repr=False)
    """For OpenCV: the number of a camera, a path, a URL or a pipeline. It may hold a password and is never printed."""
    size: tuple[int, int] | None = None
    """Width and height, pixels, that a camera is asked for; None for what its driver chooses."""


def source_from_text(text: str, frame_size: str | None = None) -> CameraSource:
    """The source that a user means.

    Args:
        text: the number of a camera, ``/dev/video0``, a URL such as ``rtsp://...``, the file of a film, or a GStreamer
            pipeline, known by its ``!``.
        frame_size: ``WIDTHxHEIGHT`` to ask a camera for, or None.

    Raises:
        UsageError: it is none of these, or a frame size that cannot be asked for.
        BackendUnavailableError: a GStreamer pipeline, and this OpenCV was built without GStreamer.
    """
    if text.isascii() and text.isdigit():
        return CameraSource("device", f"camera:{int(text)}", int(text), _size(frame_size))
    if text.startswith("/dev/"):
        return CameraSource("device", f"camera:{os.path.basename(text)}", text, _size(frame_size))
    if frame_size is not None:
        raise UsageError("--frame-size is for a camera's number; in a pipeline write video/x-raw,width=...,height=...")
    if Path(text).is_file():
        return CameraSource("film", text, text)
    if "!" in text and "://" not in text.split("!")[0].split()[0]:
        return _pipeline(text)
    if "://" in text:
        return CameraSource("stream", _without_secrets(text), text)
    raise UsageError(
        f"--camera {text}: there is no such file, and it is no camera; expected a number such as 0, a URL such as "
        'rtsp://host/stream, the file of a film, or a GStreamer pipeline such as "v4l2src ! videoconvert ! appsink"'
    )


def open_source(source: CameraSource) -> Capture:
    """Open a source; whether that worked is told by `Capture.isOpened`. It may take seconds, or never return."""
    if source.kind == "gstreamer":
        return cv2.VideoCapture(source.address, cv2.CAP_GSTREAMER)
    capture = cv2.VideoCapture(source.address)
    if source.kind == "device":
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    if source.size is not None:
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, source.size[0])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, source.size[1])
    return capture


def silence_opencv() -> None:
    """Keep OpenCV's own warnings back: they quote whole URLs, passwords too. ``$OPENCV_LOG_LEVEL`` brings them back."""
    if "OPENCV_LOG_LEVEL" in os.environ:
        return
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's AV_LOG_QUIET; OpenCV reads it when it opens the first film
    if hasattr(cv2, "setLogLevel"):
        cv2.setLogLevel(0)
    elif hasattr(cv2, "utils") and hasattr(cv2.utils, "logging"):
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def opencv_has_gstreamer() -> bool:
    """Whether this OpenCV can read GStreamer pipelines."""
    registry = cv2.videoio_registry
    if hasattr(registry, "hasBackend"):
        return bool(registry.hasBackend(cv2.CAP_GSTREAMER))
    lines = [line.split() for line in cv2.getBuildInformation().splitlines()]
    return any(words[:2] == ["GStreamer:", "YES"] for words in lines)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d{1,4})x([1-9]\d{1,4})", text)
    if found is None:
        raise UsageError(f"--frame-size {text}: expected width and height in pixels, for example 1920x1080")
    return int(found[1]), int(found[2])


def _pipeline(text: str) -> CameraSource:
    if not opencv_has_gstreamer():
        raise BackendUnavailableError(
            f"--camera was given a GStreamer pipeline, but OpenCV {cv2.__version__} here was built without GStreamer, as the "
            "opencv-python wheels are. On a Jetson use JetPack's OpenCV; on Debian or Ubuntu `apt install python3-opencv "
            "gstreamer1.0-plugins-base gstreamer1.0-plugins-good`, and no opencv-python wheel beside it. Without GStreamer, "
            "give the number of the camera, a URL or a film."
        )
    if "appsink" not in text.rsplit("!", 1)[1]:
        raise UsageError(
            "--camera was given a GStreamer pipeline that does not end in appsink, where frames are taken from; add "
            '"! videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1"'
        )
    return CameraSource("gstreamer", "gstreamer", text)


def _without_secrets(url: str) -> str:
    """Scheme and host of a URL: users, passwords and paths (some cameras want the password there) are left out."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UsageError("--camera was given a URL that cannot be read; expected for example rtsp://host:554/stream") from None
    if not host:
        raise UsageError(f"--camera was given a URL of {parts.scheme}:// without a host; for a file give its path")
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")
