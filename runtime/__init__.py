"""The device's side: from a frame to an answer, on numpy, OpenCV, Pillow and one backend.

`Pipeline` and `Result` are loaded when they are first asked for, so that the command line can print its help without OpenCV.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fundus_rt.runtime.pipeline import Pipeline
    from fundus_rt.runtime.result import Result

__all__ = ["Pipeline", "Result"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from fundus_rt.runtime.opencv import require_opencv

        require_opencv()
    if name == "Pipeline":
        from fundus_rt.runtime.pipeline import Pipeline

        return Pipeline
    if name == "Result":
        from fundus_rt.runtime.result import Result

        return Result
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
