"""HDF5 files that would have other files of the machine opened, or its memory exhausted: found before a tensor is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fundus_rt.models.errors import UnsupportedCheckpointError

LARGEST_COMPRESSION = 1100
"""How many bytes one stored byte of a tensor may stand for: deflate cannot do better than 1,032 (its longest match)."""


def refuse_links(h5py: Any, file: Any, path: Path) -> None:
    """Raise for an HDF5 file whose tensors lie in other files of this machine, or hold more than the file can.

    Args:
        h5py: the module.
        file: the file or a group of it, open.
        path: where it lies, for the message.

    Raises:
        UnsupportedCheckpointError: an external link, external storage, a virtual dataset, or a tensor whose stated size is
            impossible for the bytes that are stored for it.
    """
    for name, parent in _members(h5py, file):
        link = parent.get(name.rpartition("/")[2], getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise UnsupportedCheckpointError(_elsewhere(path, name, str(link.filename)))
        item = parent.get(name.rpartition("/")[2])
        if not isinstance(item, h5py.Dataset):
            continue
        if item.external:
            raise UnsupportedCheckpointError(_elsewhere(path, name, text_of(item.external[0][0])))
        if item.is_virtual:
            raise UnsupportedCheckpointError(_elsewhere(path, name, str(item.virtual_sources()[0].file_name)))
        if item.nbytes > LARGEST_COMPRESSION * item.id.get_storage_size() and item.nbytes > 64:
            raise UnsupportedCheckpointError(
                f"{path.name} says that {name!r} has {item.nbytes:,} bytes and stores {item.id.get_storage_size():,} for it; "
                f"the file is damaged or made to exhaust the memory"
            )


def tensor_shapes(h5py: Any, group: Any) -> dict[str, tuple[int, ...]]:
    """Shape of every dataset under a group by its path, in the file's order."""
    shapes: dict[str, tuple[int, ...]] = {}

    def collect(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            shapes[name] = tuple(int(length) for length in item.shape)

    group.visititems(collect)
    return shapes


def _members(h5py: Any, top: Any) -> Iterator[tuple[str, Any]]:
    """Path and parent group of every link under a group, each group once; links to other files are not followed.

    A group may be linked from many places, even from inside itself, so that the paths are without end.
    """
    seen = {h5py.h5o.get_info(top.id).addr}
    waiting = [("", top)]
    while waiting:
        before, group = waiting.pop()
        for name in group:
            yield f"{before}{name}", group
            if not isinstance(group.get(name, getlink=True), h5py.HardLink) or not isinstance(group.get(name), h5py.Group):
                continue
            address = h5py.h5o.get_info(group[name].id).addr
            if address not in seen:
                seen.add(address)
                waiting.append((f"{before}{name}/", group[name]))


def _elsewhere(path: Path, name: str, other: str) -> str:
    return (
        f"{path.name} keeps its tensor {name!r} in another file, {other!r}; a checkpoint that reads other files of this machine "
        f"is not opened. Save the network into one file with model.save('model.keras')."
    )


def text_of(value: Any) -> str:
    """Text of an HDF5 attribute, which old versions of h5py give as bytes."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
