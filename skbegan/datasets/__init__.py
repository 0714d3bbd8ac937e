"""Cells to train on: the original's folders of MATLAB files, and simulated cells whose truth is known."""

from skbegan.datasets.matlab import load_cell_images, resize_images, save_predictions
from skbegan.datasets.simulated import make_cell_images

__all__ = ["load_cell_images", "make_cell_images", "resize_images", "save_predictions"]
