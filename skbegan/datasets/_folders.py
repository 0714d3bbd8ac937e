"""The original's folder trees: which folders hold a pair of files, and which group of cells each of them is."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skbegan._foreign import listed
from skbegan.datasets._matfile import pick
from skbegan.datasets._writing import is_hidden

LAYOUTS = {"cell_lines": ("BATCH", "LINE"), "drugs": ("DRUG", "BATCH", "SAMPLE")}  # folders above the state folder


@dataclass(frozen=True)
class Group:
    """One folder with a pair of files. `dose` is the sample's folder name in both layouts."""

    folder: Path
    batch: str
    cell_type: str
    split: str
    drug: str
    dose: str


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key that reads digits as numbers."""
    parts = re.split(r"(\d+)", name.casefold())  # text and digits alternate, so like meets like
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def _folders(root: Path, depth: int) -> Iterator[Path]:
    """All folders of data exactly `depth` levels below `root`; not .git, __MACOSX and the like."""
    if depth == 0:
        yield root
        return
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name)):
        yield from _folders(folder, depth - 1)


def find_groups(root: Path, splits: list[str], layout: str, cell_type_from: str) -> tuple[str, list[Group]]:
    """Name of the layout and its groups, in the order in which they are read."""
    if not root.exists():
        raise FileNotFoundError(f"The folder {root} does not exist.")
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is a file; root must be the folder that holds the batches or the drugs.")
    tried = list(LAYOUTS) if layout == "auto" else [layout]
    found: dict[str, dict[str, list[Group]]] = {}
    states: set[str] = set()
    for name in tried:
        by_split: dict[str, list[Group]] = {}
        for folder in _folders(root, len(LAYOUTS[name])):
            present = [path.name for path in _folders(folder, 1)]
            states.update(present)
            for wanted in splits:
                state = pick(wanted, present)
                if state is not None:
                    by_split.setdefault(wanted, []).append(_group(root, folder, state, wanted, cell_type_from))
        if by_split:
            found[name] = by_split
    if len(found) > 1:
        raise ValueError(f"{root} has state folders of both layouts; choose layout='cell_lines' or layout='drugs'.")
    # States count as missing one by one, so that a mistyped name in a sequence is not passed over.
    missing = [wanted for wanted in splits if not any(wanted in by_split for by_split in found.values())]
    if missing:
        raise FileNotFoundError(_nothing_found(root, missing[0], list(found) or tried, states))
    layout_found, by_split = next(iter(found.items()))
    return layout_found, [
        group
        for wanted in splits
        for group in sorted(by_split[wanted], key=lambda g: [natural_key(name) for name in (g.drug, g.dose, g.batch)])
    ]


def _group(root: Path, folder: Path, state: str, split: str, cell_type_from: str) -> Group:
    *drugs, batch, sample = folder.relative_to(root).parts
    drug = drugs[0] if drugs else ""
    if not drug:
        cell_type = sample
    elif sample.upper() == "DMSO":
        cell_type = "DMSO"
    else:
        cell_type = drug if cell_type_from == "drug" else f"{drug} {sample}"
    return Group(folder / state, batch, cell_type, split, drug, sample)


def _nothing_found(root: Path, split: str, tried: list[str], states: set[str]) -> str:
    """What to say when no folder of a state is where it should be."""
    patterns = " and ".join(f"{'/'.join(('ROOT', *LAYOUTS[name], split))} (layout {name!r})" for name in tried)
    message = f"No {split!r} folder found under {root}. Looked for {patterns}."
    top = [path.name for path in _folders(root, 1)]
    listed = ", ".join(sorted(top, key=natural_key)[:8]) + (", ..." if len(top) > 8 else "")
    message += f" ROOT holds the folders: {listed or 'none'}."
    usual = sorted(states, key=natural_key)
    if usual:
        message += f" Folders where states are expected: {', '.join(usual[:8])}."
    for depth in range(1, 6):
        stray = next((path for path in _folders(root, depth) if path.name.casefold() == split.casefold()), None)
        if stray is not None:
            message += f" There is {stray}, at another depth: is ROOT one folder too high or too low?"
            break
    return message


def select(groups: list[Group], wanted: Mapping[str, str | Sequence[str] | None]) -> list[Group]:
    """Keep the groups whose labels are asked for."""
    attributes = {"batches": "batch", "cell_types": "cell_type", "drugs": "drug"}
    selected = groups
    for parameter, names in wanted.items():
        if names is None:
            continue
        keep = {names} if isinstance(names, str) else {str(name) for name in names}
        available = sorted({getattr(group, attributes[parameter]) for group in groups}, key=natural_key)
        unknown = sorted(keep - set(available))
        if unknown or not keep:
            asked = repr(names) if isinstance(names, str) else listed(names)
            raise ValueError(
                f"{parameter}={asked}: {f'unknown {listed(unknown)}' if unknown else 'empty'}. "
                f"Available: {listed(available)}."
            )
        selected = [group for group in selected if getattr(group, attributes[parameter]) in keep]
    if not selected:
        asked = ", ".join(f"{parameter}={names!r}" for parameter, names in wanted.items() if names is not None)
        raise ValueError(f"No group matches {asked} together, although each name exists.")
    return selected
