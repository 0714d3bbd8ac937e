"""A pretended CUDA device on real CPU tensors, for tests of device handling on machines without a card.

Within :class:`FakeCuda` code that asks for ``"cuda"`` gets tensors that say ``device(type='cuda', index=0)``, and real
numbers of the CPU. Every storage carries the device it pretends to be on, so that what a real card would refuse is
refused here, and what would make the host wait is recorded with the line that did it:

- operations on tensors of two devices raise :class:`DeviceMixed` (a CPU tensor without axes may meet a CUDA one in
  elementwise operations, as on a card);
- a generator of random numbers of the other device raises; ``numpy()`` of a CUDA tensor raises;
- ``events`` holds copies between the devices and waits: ``Event(kind, what, where)``.

Kinds of events, worst first:

=====================  ===================================================================================
``hazard``             a host buffer written, or read, while a copy that nobody waited for may be under way
``wait``               the host waits for the device: item(), bool(), nonzero(), masks as indices, eigh(), ...
``copy to host``       blocking copy off the device: waits
``copy to device``     blocking copy onto the device: waits for all that is queued
``pageable``           ``non_blocking`` copy of memory that is not pinned: the driver stages it, and may wait if large
``pinned``             ``non_blocking`` copy of pinned memory: as it should be
=====================  ===================================================================================

Limits. Kernels are the CPU's, so that kernels' own failures, numbers (TF32, atomics), memory, streams and cuDNN are not
seen. ``torch.autocast("cuda")`` runs as ``torch.autocast("cpu")``, whose list of operations is shorter. A factory that
C++ calls beneath Python (in backward passes) has no device of its own here and takes that of what it meets.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from recording import Recording
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
ANY = "any"  # made in C++ without an input to tell: takes the device of what it meets


class DeviceMixed(RuntimeError):
    """What a card would answer with "Expected all tensors to be on the same device"."""


class Event(NamedTuple):
    kind: str
    what: str
    where: str


_real_generator = torch.Generator
_real_autocast = torch.autocast


class FakeGenerator(_real_generator):
    """A CPU generator that says it is a CUDA one, and whose state has as many bytes as one of those."""

    made: list[FakeGenerator] = []  # noqa: RUF012  # kept, for they are told by their addresses: C++ forgets the class
    states: list[Tensor] = []  # noqa: RUF012  # that were handed out

    def __new__(cls, device: Any = "cpu") -> Any:
        generator = super().__new__(cls)
        cls.made.append(generator)
        return generator

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    def get_state(self) -> Tensor:
        self.states.append(super().get_state())
        return torch.tensor([self.initial_seed(), len(self.states) - 1]).view(torch.uint8)

    def set_state(self, new_state: Tensor) -> Any:
        if new_state.numel() != 16:
            raise RuntimeError("RNG state is wrong size")
        return super().set_state(self.states[int(new_state.view(torch.int64)[1])])


class _GeneratorMeta(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _real_generator)


class _Generator(metaclass=_GeneratorMeta):
    """Stands for torch.Generator: makes the one or the other."""

    def __new__(cls, device: Any = "cpu") -> Any:  # type: ignore[misc]
        return FakeGenerator() if torch.device(device).type == "cuda" else _real_generator(device=device)


class _Autocast(_real_autocast):
    """Stands for torch.autocast: CUDA's is the CPU's."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


# Where a tensor pretends to be --------------------------------------------------------------------------------------


def _tag(tensor: Tensor) -> Any:
    """Return CPU, CUDA, ANY, or None for tensors that are neither (meta)."""
    if _device_of(tensor).type != "cpu" or tensor.layout is not torch.strided:
        return None
    return getattr(tensor.untyped_storage(), "pretended", CPU)


def _set(tensor: Tensor, device: Any) -> None:
    if _device_of(tensor).type == "cpu" and tensor.layout is torch.strided:
        tensor.untyped_storage().pretended = device


def _device_of(tensor: Tensor) -> torch.device:
    with torch._C.DisableTorchFunction():
        return tensor.device


def _leaves(*values: Any) -> Iterator[Any]:
    """Yield what is in arguments or results, lists and dictionaries of them opened."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _leaves(*value)
        elif isinstance(value, dict):
            yield from _leaves(*value.values())
        else:
            yield value


_real_grouped = torch.optim.Optimizer._group_tensors_by_device_and_dtype


def _grouped(tensors: Any, with_indices: bool = False) -> Any:
    """Stand for what sorts the tensors of an optimizer by device, in C++, where they are all of the CPU."""
    found = _real_grouped(tensors, with_indices)
    return {(CUDA if _tag(lists[0][0]) == CUDA else d, t): (lists, at) for (d, t), (lists, at) in found.items()}


def _is_pinned(tensor: Tensor) -> bool:
    return getattr(tensor.untyped_storage(), "pinned", False)


# What is below autograd -----------------------------------------------------------------------------------------------

# Operations whose result has a shape that depends on values, or that check their result on the host.
WAITING = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount",
    "equal", "is_nonzero", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_cholesky", "histc",
    "_linalg_check_errors", "linalg_lstsq", "linalg_qr_checked", "repeat_interleave", "multinomial",
}  # fmt: skip
BETWEEN = {"copy_", "_to_copy", "set_", "_copy_from"}  # may have tensors of two devices
VIEWS = {"detach", "alias", "lift_fresh", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}


class _Below(TorchDispatchMode):
    def __init__(self, owner: FakeCuda) -> None:
        super().__init__()
        self.owner = owner

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        owner, name = self.owner, func.overloadpacket.__name__
        flat = list(_leaves(args, kwargs))
        tensors = [x for x in flat if isinstance(x, Tensor)]
        tags = {id(x): _tag(x) for x in tensors}
        wanted = self._common(func, name, args, tensors, tags)
        for generator in (x for x in flat if isinstance(x, _real_generator)):
            of = CUDA if any(generator._cdata == fake._cdata for fake in FakeGenerator.made) else CPU
            device = wanted if wanted not in (None, ANY) else owner.requested or CPU
            if device != of:
                raise DeviceMixed(f"{name}: a generator of {of} for a tensor on {device} at {_where()}")
        if wanted == CUDA:
            if name != "copy_" or tags[id(args[1])] != CPU:  # what goes to the card is in `events`
                self._count(func, name)
            if name in WAITING:
                owner.record("wait", name)
            if name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"):
                for index in (i for i in args[1] if i is not None):
                    if index.dtype in (torch.bool, torch.uint8):
                        owner.record("wait", f"{name} by a mask")
                    if tags[id(index)] == CPU:
                        owner.record("copy to device", f"{name} by a CPU tensor")
        if (
            name == "copy_"
            and tags[id(args[0])] != tags[id(args[1])]
            and ANY not in (tags[id(args[0])], tags[id(args[1])])
        ):
            non_blocking = bool(args[2]) if len(args) > 2 else bool(kwargs.get("non_blocking", False))
            owner.copied(args[1], tags[id(args[1])], tags[id(args[0])], non_blocking, "copy_")
        if func._schema.is_mutable:
            for argument, value in zip(func._schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Tensor):
                    if getattr(value.untyped_storage(), "in_flight", False):
                        owner.record("hazard", f"{name} writes to a host buffer that is being copied")
        if owner.recording is not None and CUDA in (wanted, owner.requested):
            # What comes from the host is elsewhere each time, and would be copied outside of a graph.
            comes = name == "copy_" and tags[id(args[1])] == CPU
            owner.recording.before(str(func), flat[:1] if comes else flat)
        result = func(*args, **kwargs)
        if owner.recording is not None:
            owner.recording.after(_leaves(result), tensors)
        inputs = {x.untyped_storage()._cdata for x in tensors if tags[id(x)] is not None}
        for out in _leaves(result):
            if not isinstance(out, Tensor) or _tag(out) is None:
                continue
            if out.untyped_storage()._cdata in inputs:  # a view, or changed in place
                if wanted in (CPU, CUDA) and _tag(out) == ANY:
                    _set(out, wanted)
                continue
            if tensors and wanted is not None:
                _set(out, wanted)
            else:
                _set(out, owner.requested if owner.requested is not None else ANY)
        return result

    def _common(self, func: Any, name: str, args: Any, tensors: list[Tensor], tags: dict[int, Any]) -> Any:
        """Return the device of an operation, or raise."""
        found = {tags[id(x)] for x in tensors} - {None}
        if name in BETWEEN and len(args) and isinstance(args[0], Tensor):
            return tags[id(args[0])]
        if name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"):
            # CPU indices are taken along; values without axes too.
            heavy = {tags[id(args[0])]} | ({tags[id(args[2])]} if len(args) > 2 and args[2].ndim else set())
            heavy |= {tags[id(i)] for i in args[1] if i is not None and tags[id(i)] == CUDA}
            found = heavy
        if not found:
            return None
        if {CPU, CUDA} <= found:
            scalars = torch.Tag.pointwise in func.tags or name in ("where", "fill_", "fill", "lerp", "clamp")
            big = {tags[id(x)] for x in tensors if x.ndim or not scalars} - {None, ANY}
            if {CPU, CUDA} <= big:
                parts = ", ".join(f"{tuple(x.shape)} on {tags[id(x)]}" for x in tensors)
                raise DeviceMixed(f"{name} of tensors on two devices: {parts} at {_where()}")
            return next(iter(big), CUDA)
        for device in (CUDA, CPU):
            if device in found:
                for x in tensors:
                    if tags[id(x)] == ANY:
                        _set(x, device)
                return device
        return ANY

    def _count(self, func: Any, name: str) -> None:
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not views and name not in VIEWS:
            self.owner.launches[name] += 1


# What is in Python ----------------------------------------------------------------------------------------------------

_GETTERS = {
    Tensor.device.__get__: lambda device: device,
    Tensor.is_cuda.__get__: lambda device: device == CUDA,
    Tensor.is_cpu.__get__: lambda device: device == CPU,
}
_FACTORIES = {
    getattr(torch, name)
    for name in (
        "zeros ones full empty eye arange linspace logspace rand randn randint randperm tensor as_tensor "
        "scalar_tensor empty_strided range tril_indices triu_indices hann_window bartlett_window"
    ).split()
}


class _Above(TorchFunctionMode):
    def __init__(self, owner: FakeCuda) -> None:
        super().__init__()
        self.owner = owner

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        owner = self.owner
        if func is torch._C._nn._parse_to:  # only reads its arguments
            return func(*args, **kwargs)
        if func in _GETTERS:
            tag = _tag(args[0])
            return func(*args) if tag is None else _GETTERS[func](CPU if tag == ANY else tag)
        if func in (Tensor.numpy, Tensor.__array__) and _tag(args[0]) == CUDA:
            raise TypeError(f"can't convert cuda:0 device type tensor to numpy at {_where()}")
        if func is Tensor.tolist and _tag(args[0]) == CUDA:
            owner.record("wait", "tolist")
        if func is Tensor.pin_memory:
            if _tag(args[0]) == CUDA:
                raise RuntimeError(f"cannot pin a CUDA tensor at {_where()}")
            pinned = args[0].clone()
            pinned.untyped_storage().pinned = True
            return pinned
        if func is Tensor.is_pinned:
            return _is_pinned(args[0])
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._to(func, args, kwargs)
        if func is Tensor.new_tensor and "device" not in kwargs:
            kwargs["device"] = CUDA if _tag(args[0]) == CUDA else CPU
        device = kwargs.get("device")
        if device is not None:
            device = torch.device(device)
            if device.type in ("cpu", "cuda"):
                device = CUDA if device.type == "cuda" else CPU
                kwargs["device"] = CPU
            else:
                device = None
        elif func in _FACTORIES:
            device = CPU
        if device is None:
            return func(*args, **kwargs)
        before, owner.requested = owner.requested, device
        try:
            result = func(*args, **kwargs)
        finally:
            owner.requested = before
        if isinstance(result, Tensor) and _tag(result) is not None:
            if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor) and device == CUDA:
                owner.record("copy to device", f"{func.__name__}(..., device='cuda')")
            _set(result, device)
        return result

    def _to(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        tensor, args = args[0], list(args[1:])
        before = _tag(tensor)
        if func in (Tensor.cpu, Tensor.cuda):
            target = CPU if func is Tensor.cpu else CUDA
            args, kwargs = [], {"non_blocking": kwargs.get("non_blocking", False)}
        else:
            given = kwargs.pop("device", None)
            for position, value in enumerate(args):
                if isinstance(value, torch.device | str):
                    given = value
                    args[position] = CPU if torch.device(value).type == "cuda" else value
                elif isinstance(value, Tensor):
                    given = _tag(value)
            if (given is not None and torch.device(given).type not in ("cpu", "cuda")) or before is None:
                if (
                    given is not None
                    and "device" not in kwargs
                    and not any(isinstance(a, torch.device | str) for a in args)
                ):
                    kwargs["device"] = given
                return func(tensor, *args, **kwargs)
            target = before if given is None else CUDA if torch.device(given).type == "cuda" else CPU
            if args and args[0] is None:
                args[0] = CPU
        if before == target or before == ANY:
            result = func(tensor, *args, **kwargs) if func is Tensor.to else tensor
        else:
            positional = [a for a in args if isinstance(a, bool)]
            non_blocking = bool(kwargs.get("non_blocking", positional[0] if positional else False))
            self.owner.copied(tensor, before, target, non_blocking, "to")
            kwargs.pop("non_blocking", None)
            args = [a for a in args if not isinstance(a, bool)]
            result = Tensor.to(tensor, *args, **kwargs, copy=True)
        _set(result, target)
        return result


# Both -----------------------------------------------------------------------------------------------------------------


def _where(inside: str = "skbegan") -> str:
    """Return file and line of the innermost frame of the code under test, else of the innermost outside torch."""
    frame = sys._getframe(1)
    fallback = ""
    while frame is not None:
        name = frame.f_code.co_filename
        if f"/{inside}/" in name or f"\\{inside}\\" in name:
            return f"{name.rsplit(inside, 1)[1].lstrip('/')}:{frame.f_lineno}"
        if not fallback and "torch" not in name and name != __file__:
            fallback = f"{name.rsplit('/', 1)[-1]}:{frame.f_lineno}"
        frame = frame.f_back
    return fallback


class Mark:
    """Stands for an event of CUDA; says when the host waited for it."""

    def __init__(self) -> None:
        self.waited = False

    def synchronize(self) -> None:
        self.waited = True


class Stream:
    """Stands for a stream of CUDA: what is queued on it is done at once."""

    def __init__(self, device: Any = None) -> None:
        self.awaited: list[Mark] = []

    def record_event(self) -> Mark:
        return Mark()

    def wait_event(self, event: Mark) -> None:
        self.awaited.append(event)


class FakeCuda:
    """Context in which this machine has a CUDA device, see the module.

    Attributes
    ----------
    events : list of Event
    launches : Counter
        Operations on the device by name, views and allocations left out: about the kernels that a card would launch.
    free : int
        Bytes that ``torch.cuda.mem_get_info`` says are free.
    main : Stream
        That operations are queued on.
    strict : bool
        Refuse a device without an index where PyTorch 2.4 does.
    """

    def __init__(self, free: int = 40 << 30, strict: bool = False) -> None:
        self.events: list[Event] = []
        self.main = Stream()
        self.launches: Counter[str] = Counter()
        self.free = free
        self.strict = strict
        self.requested: torch.device | None = None
        self.recording: Recording | None = None

    @contextlib.contextmanager
    def recorded(self) -> Iterator[Recording]:
        """Record the operations within it."""
        self.recording = recording = Recording()
        try:
            yield recording
        finally:
            self.recording = None

    def _mem_get_info(self, device: Any = None) -> tuple[int, int]:
        if self.strict and device is not None and not isinstance(device, int) and torch.device(device).index is None:
            raise ValueError(f"Expected a torch.device with a specified index or an integer, but got:{device}")
        return self.free, 80 << 30

    def record(self, kind: str, what: str) -> None:
        self.events.append(Event(kind, what, _where()))

    def copied(self, source: Tensor, before: Any, after: Any, non_blocking: bool, what: str) -> None:
        what = f"{what} of {source.numel() * source.element_size()} B"
        if after == CPU:
            self.record("hazard" if non_blocking else "copy to host", what)
        elif not non_blocking:
            self.record("copy to device", what)
        else:
            self.record("pinned" if _is_pinned(source) else "pageable", what)
            if _is_pinned(source):
                source.untyped_storage().in_flight = True

    def since(self, mark: int, *kinds: str) -> list[Event]:
        """Return the events from `mark` on, of some kinds or all."""
        return [event for event in self.events[mark:] if not kinds or event.kind in kinds]

    def __enter__(self) -> FakeCuda:
        self._stack = contextlib.ExitStack()
        FakeGenerator.made.clear()
        enter = self._stack.enter_context
        for name, value in {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "get_device_name": lambda device=None: "pretended",
            "is_bf16_supported": lambda including_emulation=True: True,
            "mem_get_info": self._mem_get_info,
            "is_initialized": lambda: True,
            "synchronize": lambda device=None: self.record("wait", "synchronize"),
            "is_current_stream_capturing": lambda: False,
            "Stream": Stream,
            "current_stream": lambda device=None: self.main,
            "stream": lambda stream: contextlib.nullcontext(),
        }.items():
            enter(mock.patch.object(torch.cuda, name, value))
        enter(mock.patch.object(Tensor, "record_stream", lambda tensor, stream: None))
        enter(mock.patch.object(torch.optim.Optimizer, "_group_tensors_by_device_and_dtype", staticmethod(_grouped)))
        enter(mock.patch.object(torch, "Generator", _Generator))
        enter(mock.patch.object(torch, "autocast", _Autocast))
        enter(_Below(self))
        enter(_Above(self))
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stack.close()


@contextlib.contextmanager
def no_waits(fake: FakeCuda) -> Iterator[None]:
    """Fail when the device is waited for within it."""
    mark = len(fake.events)
    yield
    waits = fake.since(mark, "wait", "copy to host", "copy to device", "hazard")
    assert not waits, "\n".join(map(str, waits))
