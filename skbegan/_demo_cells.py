"""The cells of ``skbegan demo``."""

from __future__ import annotations

import csv
from pathlib import Path


def write_demo_cells(folder: Path, n: int, side: int, seed: int) -> tuple[Path, Path]:
    """Write simulated cells as TIFF files and two tables: to train on, and to test."""
    try:
        import tifffile
    except ImportError:
        raise ImportError("the demo writes TIFF files: pip install 'skbegan[io]'") from None
    from skbegan.datasets import make_cell_images

    tables = folder / "cells.csv", folder / "new_cells.csv"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for part, (table, count) in enumerate(zip(tables, (n, max(n // 2, 60)), strict=True)):
        cells = make_cell_images(count, 3, 3, side, random_state=seed, cells_random_state=seed + part)
        with table.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["cell", "brightfield", "phase", "day", "line"])
            for index in range(count):
                names = [f"images/{table.stem}_{index:04d}_{kind}.tif" for kind in ("brightfield", "phase")]
                for name, image in zip(names, (cells.bf[index], cells.qpi[index]), strict=True):
                    tifffile.imwrite(folder / name, image.astype("float32"))
                rows.writerow([f"{table.stem}_{index:04d}", *names, cells.batch[index], cells.cell_type[index]])
    return tables
