"""Parameters of the estimator from a TOML file, a preset and the command line."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from skbegan.config import OnlineRemoval, Parameters, ProfileAlignment, PublishedRemoval
from skbegan.presets import PRESETS

METHODS: dict[str, type[Parameters]] = {"online": OnlineRemoval, "published": PublishedRemoval}
_NESTED: dict[str, type[Parameters]] = {"removal": OnlineRemoval, "profile": ProfileAlignment}


def read_settings(path: Path) -> dict[str, Any]:
    """Return the parameters in a TOML file.

    Raises
    ------
    ValueError
        If it is no TOML.
    OSError
        If it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no TOML file: {error}") from None


def setting(text: str) -> tuple[str, Any]:
    """Return name and value of ``"name=value"``, the value as in TOML; what is no TOML is a string.

    Raises
    ------
    ValueError
        If there is no name or no value.
    """
    name, sign, value = (part.strip() for part in text.partition("="))
    if not name or not sign or not value:
        raise ValueError(f"{text!r} is not name=value, as in base_width=16 or removal.alignment=1.0")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        return name, {"True": True, "False": False}.get(value, value)


def parameters(
    known: Iterable[str],
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    changes: Iterable[tuple[str, Any]] = (),
) -> dict[str, Any]:
    """Return parameters of the estimator: those of a preset, changed by settings, changed by single values.

    Parameters
    ----------
    known : iterable of str
        Names of the estimator's parameters.
    preset : str, optional
        A name in ``PRESETS``.
    settings : mapping, optional
        As in a TOML file: parameters by name, those of `removal` and `profile` in tables. ``method`` in the table
        ``removal`` is ``"online"`` or ``"published"``. The string ``"none"`` is None.
    changes : iterable of (str, object)
        Single ones; ``"removal.alignment"`` or ``"removal__alignment"`` for those in a table.

    Raises
    ------
    ValueError
        For a name that is no parameter.
    """
    known, found = list(known), dict(PRESETS[preset]) if preset is not None else {}
    for name, value in (settings or {}).items():
        if name not in known:
            raise ValueError(f"{name!r} is no parameter{_meant(name, known)}")
        if name in _NESTED and isinstance(value, Mapping):
            for field, inner in _method_first(value):
                found[name] = _changed(found, name, field, inner)
        else:
            found[name] = _plain(name, value)
    for path, value in changes:
        name, _, field = path.replace("__", ".", 1).partition(".")
        if name not in known or (field and name not in _NESTED):
            raise ValueError(f"{path!r} is no parameter{_meant(path, known)}")
        found[name] = _changed(found, name, field, value) if field else _plain(name, value)
    return found


def _method_first(table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(table.items(), key=lambda item: item[0] != "method")


def _changed(found: Mapping[str, Any], name: str, field: str, value: Any) -> Parameters:
    """Return the object of parameters with one of them changed."""
    held: Parameters = found.get(name, _NESTED[name]())
    if name == "removal" and field == "method":
        method: Parameters = _plain(name, value)
        return held if type(held) is type(method) else method
    fields = list(held.get_params())
    if field not in fields:
        raise ValueError(f"{field!r} is no parameter of {type(held).__name__}{_meant(field, fields)}")
    return dataclasses.replace(held, **{field: _plain(field, value)})


def _plain(name: str, value: Any) -> Any:
    if name == "removal":
        if value not in METHODS:
            raise ValueError(f"removal must be one of {', '.join(METHODS)}, got {value!r:.80}")
        return METHODS[value]()
    if isinstance(value, list):
        return tuple(value)
    return None if isinstance(value, str) and value.lower() == "none" else value


def _meant(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name.rpartition(".")[2], known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}"
