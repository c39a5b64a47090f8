"""Whether OpenCV can be used, and what to do where it cannot; the one library that a Jetson brings itself."""

from __future__ import annotations

from fundus_rt.models.errors import BackendUnavailableError


def require_opencv() -> None:
    """Load OpenCV.

    Raises:
        BackendUnavailableError: it is not installed or cannot be loaded; with the cause and what to do.
    """
    try:
        import cv2  # noqa: F401 - only tried
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cv2":
            cause = "is not installed"
        elif "numpy" in str(error).lower():
            cause = f"was built for another NumPy ({error})"
        else:
            cause = f"cannot be loaded ({error})"
        raise BackendUnavailableError(
            f"OpenCV {cause}: on a Jetson use JetPack's (apt install python3-opencv, a virtual environment with "
            "--system-site-packages, numpy below 2), elsewhere pip install opencv-python-headless"
        ) from error
