"""Rules: what a parameter may be, with messages that name it."""

from __future__ import annotations

import math
import numbers
import os
from dataclasses import dataclass
from typing import Any

import numpy as np


class Rule:
    """What a parameter may be: returns its value as a plain Python object, or raises with the parameter's name."""

    def __call__(self, name: str, value: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Count(Rule):
    """An integer of at least `low`."""

    low: int = 0

    def __call__(self, name: str, value: Any) -> int:
        if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{name} must be an integer of at least {self.low}, got {value!r:.80}")
        if value < self.low:
            raise ValueError(f"{name} must be at least {self.low}, got {value}")
        return int(value)


@dataclass(frozen=True)
class OptionalCount(Count):
    """None, or an integer of at least `low`."""

    def __call__(self, name: str, value: Any) -> Any:
        return None if value is None else super().__call__(name, value)


@dataclass(frozen=True)
class Verbosity(Rule):
    """An integer of at least 0; True is 1."""

    def __call__(self, name: str, value: Any) -> int:
        return Count()(name, int(value) if isinstance(value, bool | np.bool_) else value)


@dataclass(frozen=True)
class Number(Rule):
    """A finite number from 0, or above it, up to `high`."""

    high: float = math.inf
    positive: bool = False

    def __call__(self, name: str, value: Any) -> float:
        if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a number, got {value!r:.80}")
        number = float(value)
        if not math.isfinite(number) or number < 0 or (self.positive and number == 0):
            raise ValueError(f"{name} must be {'positive' if self.positive else 'at least 0'}, got {number}")
        if number > self.high:
            raise ValueError(f"{name} must be at most {self.high}, got {number}")
        return number


@dataclass(frozen=True)
class Numbers(Rule):
    """A tuple of positive numbers, at least one."""

    def __call__(self, name: str, value: Any) -> tuple[float, ...]:
        if not isinstance(value, list | tuple) or not value:
            raise TypeError(f"{name} must be a tuple of numbers, got {value!r:.80}")
        return tuple(Number(positive=True)(f"{name}[{index}]", item) for index, item in enumerate(value))


@dataclass(frozen=True)
class Flag(Rule):
    """True or False."""

    def __call__(self, name: str, value: Any) -> bool:
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} must be True or False, got {value!r:.80}")
        return bool(value)


@dataclass(frozen=True)
class Choice(Rule):
    """One of some strings."""

    options: tuple[str, ...]

    def __call__(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in self.options:
            raise ValueError(f"{name} must be one of {self.options}, got {value!r:.80}")
        return str(value)


@dataclass(frozen=True)
class FlagOr(Rule):
    """True, False or a string."""

    option: str

    def __call__(self, name: str, value: Any) -> bool | str:
        if isinstance(value, str) and value == self.option:
            return self.option
        if isinstance(value, bool | np.bool_):
            return bool(value)
        raise ValueError(f"{name} must be True, False or {self.option!r}, got {value!r:.80}")


@dataclass(frozen=True)
class Folder(Rule):
    """A path or None."""

    def __call__(self, name: str, value: Any) -> Any:
        if value is not None and not isinstance(value, str | os.PathLike):
            raise TypeError(f"{name} must be None or a path, got {value!r:.80}")
        return value


@dataclass(frozen=True)
class Function(Rule):
    """None or something to call."""

    def __call__(self, name: str, value: Any) -> Any:
        if value is not None and not callable(value):
            raise TypeError(f"{name} must be None or a function of one argument, {name}(info), got {value!r:.80}")
        return value


@dataclass(frozen=True)
class Anything(Rule):
    """Checked where it is used."""

    def __call__(self, name: str, value: Any) -> Any:
        return value
