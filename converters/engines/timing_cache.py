"""What the library measured while it built an engine, kept so that the next build of that machine need not measure it again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fundus_rt.converters.engines.build_log import BuildLog
from fundus_rt.models.artifacts import atomic_path
from fundus_rt.models.engines import EngineKey


def timing_cache_path(folder: Path, key: EngineKey) -> Path:
    """The file of one library version on one GPU with one driver: measurements of another are of no use."""
    parts = [key.flavour, key.tensorrt_version, key.gpu_name, key.compute_capability, key.cuda_driver, key.l4t]
    parts += [str(key.multiprocessors), key.board]
    return folder / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}.timing"


def use_timing_cache(config: Any, path: Path | None, log: BuildLog, say: Callable[[str], None]) -> bool:
    """Give a build's configuration the measurements that are in a file, or an empty cache to measure into.

    Returns:
        Whether measurements from the file are used. A file that the library does not take (damaged, or made by another
        version or GPU) is said and replaced.
    """
    content = b""
    if path is not None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            content = b""
        except OSError as error:
            say(f"the timing cache cannot be read ({error.strerror}); this build measures everything anew")
    if content:
        before = len(log.warnings)
        cache = config.create_timing_cache(content)
        # The library answers damaged content with an empty cache and a warning, and another machine's with a refusal.
        complaints = [text for text in log.warnings[before:] if "timing cache" in text.lower()]
        if cache is not None and not complaints and config.set_timing_cache(cache, False):
            return True
        say("the timing cache does not fit this library and GPU, or is damaged; this build measures everything anew")
    cache = config.create_timing_cache(b"")
    if cache is not None:
        config.set_timing_cache(cache, False)
    return False


def keep_timing_cache(config: Any, path: Path | None, say: Callable[[str], None]) -> None:
    """Write what a build has measured, whole or not at all.

    Nothing is written where nothing was measured, as on a machine with no GPU. A folder that cannot be written costs only the
    next build's time.
    """
    cache = None if path is None else config.get_timing_cache()
    if path is None or cache is None:
        return
    content = bytes(cache.serialize())
    empty = config.create_timing_cache(b"")
    if not content or (empty is not None and content == bytes(empty.serialize())):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        say(f"the timing cache cannot be written ({error.strerror}); the next build measures again")
