"""Cells to train on: a table of image files, the original's folders of MATLAB files, and simulated cells."""

from skbegan.datasets.matlab import load_cell_images, resize_images, save_predictions
from skbegan.datasets.simulated import make_cell_images
from skbegan.datasets.tables import load_cell_table

__all__ = ["load_cell_images", "load_cell_table", "make_cell_images", "resize_images", "save_predictions"]
