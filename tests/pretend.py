"""A device that is not there: tensors on it say so, and their numbers lie on the CPU.

On a `Pretend` device every operation runs on the CPU, as it would on a GPU: one that mixes tensors
of both is an error, as there, and those that make the CPU wait for the device are written down. So
where tensors lie, and who waits, is tested where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")  # which needs no driver, and has a place in torch's autograd
_TENSOR = torch.tensor
_COPIES = ("copy_", "_to_copy")
_WAITS = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "equal.default")


class _There(Tensor):
    """A tensor on the device; ``numbers`` has its content."""

    numbers: Tensor
    is_meta = False  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, numbers: Tensor) -> _There:
        made = Tensor._make_wrapper_subclass(
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            layout=numbers.layout,
            device=DEVICE,
        )
        made.numbers = numbers
        return made

    def __repr__(self) -> str:
        return f"there({self.numbers})"

    def __deepcopy__(self, memo: Any) -> Tensor:
        return _There(self.numbers.clone())

    def new_tensor(self, data: Any, **named: Any) -> Tensor:
        return _TENSOR(data, **{"dtype": self.dtype, **named}).to(DEVICE)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, [])


def _run(func: Any, args: Any, kwargs: dict[str, Any], waits: list[str]) -> Any:
    """One operation, and whether it made the CPU wait."""
    name = str(func)
    flat = tree_flatten((args, kwargs))[0]
    there = [one for one in flat if isinstance(one, _There)]
    here = [o for o in flat if isinstance(o, Tensor) and not isinstance(o, _There) and o.dim()]
    copies = any(word in name for word in _COPIES)
    index = "aten.index" in name and "select" not in name  # ids on the CPU are taken along
    if there and here and not copies and not (index and isinstance(args[0], _There)):
        raise RuntimeError(f"{name}: tensors on the device and on the CPU, {here[0].shape}")
    masks = index and any(
        o.dtype in (torch.bool, torch.uint8)
        for o in tree_flatten(args[1])[0]
        if isinstance(o, Tensor)
    )
    to = kwargs.get("device")
    leaves = there and (to is not None and torch.device(to) != DEVICE)
    if there and (leaves or masks or any(word in name for word in _WAITS)):
        waits.append(name)
    own = {**kwargs, **({} if to is None else {"device": "cpu"})}
    args, own = tree_map(lambda o: o.numbers if isinstance(o, _There) else o, (args, own))
    made = func(*args, **own)
    if not (there if to is None else torch.device(to) == DEVICE):
        return made

    def back(one: Any) -> Any:
        same = (o for o in there if o.numbers is one)
        return next(same, _There(one)) if isinstance(one, Tensor) else one

    return tree_map(back, made)


class _Mode(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self.waits)


@contextmanager
def pretended() -> Iterator[list[str]]:
    """While within: `DEVICE` is there. Operations that wait for it are added to the list."""
    made = torch.Generator

    class Kind(type):
        """Of generators of any device, on the CPU."""

        def __call__(cls, device: Any = None) -> Any:
            return made()

        def __instancecheck__(cls, one: Any) -> bool:
            return isinstance(one, made)

    class Generator(metaclass=Kind):
        pass

    real = torch.autocast

    def autocast(kind: str, **named: Any) -> Any:
        return nullcontext() if kind == DEVICE.type else real(kind, **named)

    def tensor(data: Any, *, device: Any = None, **named: Any) -> Tensor:
        made = _TENSOR(data, **named)  # with a device it would have no content
        return made if device is None else made.to(device)

    with pytest.MonkeyPatch.context() as patch, _Mode() as mode:
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(torch, "tensor", tensor)
        patch.setattr(torch, "autocast", autocast)
        yield mode.waits
