"""A camera's main loop: watch, tell the photographer what to do, answer the best frame of each view, survive what goes wrong.

    python examples/camera_loop.py SOURCE [MODEL]

SOURCE is the number of a camera, a URL, a film or a GStreamer pipeline; MODEL a file of ``fundus-rt convert`` (default: the
bundled acquisition model). A camera with an SDK of its own gives `FrameReader` an ``open_capture``, see docs/embedding.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from fundus_rt.models.errors import CameraError, FundusRtError, StoppedError
from fundus_rt.runtime import Pipeline
from fundus_rt.runtime.batch import AnswerOptions
from fundus_rt.runtime.camera.answering import CameraAnswerer
from fundus_rt.runtime.camera.burst import Advice
from fundus_rt.runtime.camera.judge import FrameJudge
from fundus_rt.runtime.camera.reader import FrameReader
from fundus_rt.runtime.camera.source import CameraSource, silence_opencv, source_from_text

MOST_REOPENINGS = 3
"""In a row, without an answer between: a device that fails at once again is for a technician, not for a loop."""


def show(words: str) -> None:
    """What the photographer reads; here on standard error, in a camera in the finder."""
    print(words, file=sys.stderr, flush=True)


def keep(row: dict[str, Any]) -> None:
    """What is done with an answer; here a JSON line, in a camera it goes to the patient's record."""
    print(json.dumps(row), flush=True)


def answers_until_stopped(source: CameraSource, model: str, every_frame: bool) -> Iterator[dict[str, Any]]:
    """Rows of one opening of the models, as ``fundus-rt infer --camera`` writes them."""
    # Two models: one looks at every frame and advises, the other one answers. Their threads share the cores.
    with closing(Pipeline("acquisition", threads=1)) as looking, closing(Pipeline(model)) as answering:
        eye_needed = answering.card.laterality == "mirror-left"
        judge = FrameJudge(looking, eye_needed=eye_needed)
        reader = FrameReader(source, show, every_frame)

        def tell(advice: Advice) -> None:
            show(f"{advice.state}: {advice.words}")

        yield from CameraAnswerer(source.name, reader, judge, answering, AnswerOptions(), tell).rows()


def watch(source: CameraSource, model: str, every_frame: bool = False, keep: Callable[[dict[str, Any]], None] = keep) -> int:
    """Watch until a film ends, the camera does not come back, or Ctrl-C. Returns the exit status."""
    failures = 0
    while failures <= MOST_REOPENINGS:
        try:
            for row in answers_until_stopped(source, model, every_frame):
                keep(row)  # row["error"] says in words why a captured view has no answer
                failures = 0
            return 0  # the film is over
        except StoppedError as error:  # nothing more can be trusted before the model is opened again
            failures += 1
            show(f"opening the model again: {error}")
        except CameraError as error:
            show(str(error))
            return 1
        except KeyboardInterrupt:
            return 0
    show("the device keeps failing: take it out of use and run `fundus-rt doctor`")
    return 1


def main(arguments: list[str]) -> int:
    """Watch what the command line names."""
    if len(arguments) not in (1, 2):
        show(str(__doc__))
        return 2
    silence_opencv()
    model = arguments[1] if len(arguments) == 2 else "acquisition"
    try:
        return watch(source_from_text(arguments[0]), model)
    except FundusRtError as error:  # a source or a model that cannot be used: the message says what to do
        show(str(error))
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
