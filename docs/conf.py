"""Sphinx: ``python tasks.py docs`` builds the site into docs/_build/html, with warnings as errors."""

from __future__ import annotations

import skbegan

project = "skbegan"
author = copyright = "The skbegan developers"
version = release = skbegan.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
html_theme = "alabaster"
html_theme_options = {"description": "Batch-free profiles and phase images of single cells", "page_width": "1100px"}
html_title = f"skbegan {release}"

myst_heading_anchors = 3
suppress_warnings = ["config.cache"]

autosummary_generate = True
autodoc_typehints = "none"  # the docstrings say it, with shapes
numpydoc_show_class_members = False  # the template lists the methods

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "plot_gallery": False,  # they train for minutes; tests run them
    "download_all_examples": False,
    "show_memory": False,
    "min_reported_time": 10**6,
    "write_computation_times": False,
}
