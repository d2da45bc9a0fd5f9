"""Memory that processes share: checked before it is taken, or in a mapped file instead.

Linux hands out shared memory without checking that there is any; a process that writes to pages
that do not exist ends by SIGBUS, without a word. Containers often have no more than 64 MB.
"""

from __future__ import annotations

import copy
import math
import os
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SHARED", "Folder", "Shareable", "amount", "free_in", "free_memory", "share"]

_PAGES = 1 << 14  # what a few tensors take beyond their bytes, to the end of a page each
SHARED = Path("/dev/shm")  # where Linux keeps shared memory

Folder = Union[str, "os.PathLike[str]"]
Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def free_in(folder: Path) -> float:
    """Free bytes in a folder; infinite if the system does not say."""
    if not (hasattr(os, "statvfs") and folder.is_dir()):
        return float("inf")
    state = os.statvfs(folder)
    return float(state.f_bavail * state.f_frsize)


def free_memory() -> float:
    """Bytes of memory that the system can give (Linux); infinite if it does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except OSError:
        pass
    return float("inf")


def amount(count: int) -> str:
    """A number of bytes in words."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count} bytes"


def check_shared_room(needed: int, what: str, advice: str) -> None:
    """Refuse bytes that shared memory has no room for.

    Says what takes them, with its verb, and what would help besides more shared memory.

    Raises:
        MemoryError: if there are fewer bytes free.
    """
    room = min(free_in(SHARED), free_memory())
    if needed + _PAGES > room:
        raise MemoryError(
            f"{what} {amount(needed)} of shared memory, and there are {amount(int(room))} free "
            f"({SHARED}); raise --shm-size of a container (or remount {SHARED} with a larger size, "
            f"or end what else uses it), {advice}"
        )


def share(tensor: Tensor, what: str, advice: str = "or pass a smaller graph") -> Tensor:
    """The tensor, moved to shared memory.

    Raises:
        MemoryError: if that has no room.
    """
    check_shared_room(tensor.numel() * tensor.element_size(), what, advice)
    tensor.share_memory_()
    return tensor


class Shareable(nn.Module):
    """A module whose buffers can be shared with other processes, or lie in a mapped file.

    Copies of one in a file, and processes that it is sent to, map the same file. It is removed with
    the module that made it, or when its process ends; a killed process leaves it. A process that
    shares a module with another names the other's file in place of a folder.
    """

    path: Path | None = None
    _layout: Layout | None = None

    def share(self, what: str, folder: Folder | None = None) -> None:
        """Move the buffers to shared memory; to a file in a folder if that has no room.

        Args:
            what: what they are, with a verb, for an error.
            folder: defaults to None, for no file.

        Raises:
            MemoryError: if there is no room, and no folder.
            OSError: if the folder cannot be written, or has no room either.
        """
        own = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        try:
            check_shared_room(
                sum(buffer.numel() * buffer.element_size() for buffer in own.values()),
                what,
                "pass a graph with fewer edges, or keep it in a file with "
                "Resources(table_folder=...) where a sampler takes resources",
            )
        except MemoryError:
            if folder is None:
                raise
        else:
            for buffer in own.values():
                buffer.share_memory_()
            return
        # Long numbers first: each field begins at a multiple of its numbers' size.
        order = sorted(own, key=lambda name: -own[name].element_size())
        layout = {name: (own[name].dtype, tuple(own[name].shape)) for name in order}
        self._lie_in(folder, layout, "dgl-dmns-edges-")
        for name, buffer in own.items():
            getattr(self, name).copy_(buffer)

    def on(self, device: torch.device) -> Self:
        """A copy on a device, in memory of its own; the module itself where it is there."""
        if all(buffer.device == device for buffer in self.buffers()):
            return self
        made = copy.copy(self)
        made.path = made._layout = None
        made._buffers = {n: None if b is None else b.to(device) for n, b in self._buffers.items()}
        made._modules = {name: _part(one).on(device) for name, one in self._modules.items()}
        return made

    def _lie_in(self, folder: Folder, layout: Layout, prefix: str) -> None:
        """Put buffers of some types and shapes, all zero, into a new file in a folder.

        If that is a file of another process, they are what it holds.
        """
        self.path, self._layout = Path(folder), layout
        if not self.path.is_file():
            self.path = _new_file(self.path, _bytes_of(layout), prefix)
            weakref.finalize(self, _remove, self.path, os.getpid())
        for name, field in _map(self.path, layout).items():
            if name not in self._buffers:
                self.register_buffer(name, None)
            self._buffers[name] = field

    def __getstate__(self) -> dict[str, Any]:
        """What copies get: of buffers in a file, its name."""
        state: dict[str, Any] = self.__dict__.copy()
        if self._layout is not None:
            inside = self._layout
            state["_buffers"] = {n: b for n, b in self._buffers.items() if n not in inside}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self._layout is not None:
            assert self.path is not None
            self._buffers.update(_map(self.path, self._layout))


def _part(module: nn.Module | None) -> Shareable:
    assert isinstance(module, Shareable)
    return module


def _size(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * torch.zeros(0, dtype=dtype).element_size()


def _bytes_of(layout: Layout) -> int:
    return max(1, sum(_size(*field) for field in layout.values()))


def _new_file(folder: Path, size: int, prefix: str) -> Path:
    """A file of a size, all of it allocated, so that the disk cannot be full later."""
    handle, name = tempfile.mkstemp(prefix=prefix, dir=folder)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
        else:
            os.truncate(handle, size)
    except OSError:
        Path(name).unlink()
        raise
    finally:
        os.close(handle)
    return Path(name)


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker has it, too, and leaves it alone
        path.unlink(missing_ok=True)


def _map(path: Path, layout: Layout) -> dict[str, Tensor]:
    """The fields in a file, one after the other."""
    size = _bytes_of(layout)
    if not path.is_file() or path.stat().st_size != size:  # torch would make one, of zeros
        raise FileNotFoundError(
            f"there is no file {path} of {size} bytes: the sampler that made it has ended, or a "
            "rank that shares its table; keep it until the others have ended, on the same machine"
        )
    content = torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)
    fields, start = {}, 0
    for name, (dtype, shape) in layout.items():
        end = start + _size(dtype, shape)
        fields[name] = content[start:end].view(dtype).view(shape)
        start = end
    return fields
