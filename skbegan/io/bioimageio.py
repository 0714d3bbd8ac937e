"""A fitted model as a package of the BioImage Model Zoo, which its community's software runs without Python of ours."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skbegan._version import versions
from skbegan.io._predicting import check_pixel_size, checked, needed
from skbegan.stored.atomic import check_new, in_one_step

if TYPE_CHECKING:
    from torch import nn

    from skbegan.estimator import BeGANTransformer

__all__ = ["write_package"]

EXTRA = "bioimageio"
TEST_CELLS = 8
_DOI = "10.1101/2023.11.06.565732"
_REFERENCE = "Batch-effect elimination GAN (beGAN, later CytoMAD) for single-cell imaging"


def write_package(
    path: str | os.PathLike[str],
    est: BeGANTransformer,
    X_bf: Any,
    *,
    name: str,
    authors: Sequence[str],
    license: str,
    description: str = "Batch-free profiles and target images of single cells from brightfield crops",
    pixel_size: float | None = None,
    channel_names: Sequence[str] | None = None,
    target_names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a fitted transformer as a package of the BioImage Model Zoo, with ONNX weights.

    The model in it is that of :meth:`~skbegan.BeGANTransformer.to_torch`: brightfields in their own units, of shape
    (n_cells, n_channels, side, side) and float32, to the outputs ``profile`` and ``image``.

    Parameters
    ----------
    path : path-like
        The package, a ``.zip`` file in a folder that exists.
    est : BeGANTransformer
        A fitted transformer.
    X_bf : array-like of shape (n_cells, side, side) or (n_cells, side, side, n_channels)
        Brightfield images like those of fit; the first eight go into the package, with what the model makes of them,
        so that other software can test itself. **They become public where the package does.**
    name : str
        Of the model.
    authors : sequence of str
        Who made it.
    license : str
        Identifier of SPDX, such as ``"CC-BY-4.0"``.
    description : str
        One sentence on what it was trained for; the default does not know your cells.
    pixel_size : float, default=None
        Side of a pixel in micrometres, in the object.
    channel_names, target_names : sequence of str, default=None
        Of the channels of brightfield and target; ``brightfield`` and ``target`` with numbers where not given.
    overwrite : bool, default=False
        Whether an existing file is replaced.

    Returns
    -------
    path : Path

    Raises
    ------
    ImportError
        Without bioimageio.core or the packages of ONNX, the extra ``bioimageio``.
    FileExistsError, FileNotFoundError, IsADirectoryError
        For a place that cannot be written to.
    NotFittedError
        If `est` is not fitted.
    TypeError, ValueError
        For input that cannot be used, and what the zoo's specification refuses.

    Notes
    -----
    ``bioimageio.core.test_model(path)`` runs the package and compares what comes out with what it holds. The
    documentation inside says what the model was fitted on, and that nothing was validated; the zoo wants a section
    ``Validation`` of your own before it takes a model.

    References
    ----------
    Ouyang, W., et al. BioImage Model Zoo: a community-driven resource for accessible deep learning in bioimage
    analysis. bioRxiv 2022.06.07.495102 (2022).

    Examples
    --------
    >>> import tempfile, zipfile, skbegan
    >>> from skbegan.io.bioimageio import write_package
    >>> cells = skbegan.datasets.make_cell_images(60, 2, 2, 16, random_state=0)
    >>> began = skbegan.BeGANTransformer(
    ...     base_width=4, n_features=8, pretrain_epochs=1, removal_epochs=0, random_state=0
    ... )
    >>> began = began.fit(cells.bf, cells.qpi)
    >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +SKIP
    ...     path = write_package(f"{folder}/p.zip", began, cells.bf, name="p", authors=["I"], license="CC-BY-4.0")
    ...     "model.onnx" in zipfile.ZipFile(path).namelist()
    True
    """
    path = Path(path)
    if path.suffix.lower() != ".zip":
        raise ValueError(f"path must end in .zip, got {path.name!r}")
    for package in ("bioimageio.core", "onnx", "onnxscript"):
        needed(package, "write_package", EXTRA)
    check_new(path, overwrite)
    if isinstance(authors, str) or not authors:
        raise ValueError(f"authors must be a list of names, got {authors!r}")
    bf = checked(est, X_bf, "write_package")
    sizes = [1 if len(shape) == 2 else shape[2] for shape in (est.image_shape_, est.target_shape_)]
    channels = _names(channel_names, sizes[0], "brightfield", "channel_names")
    targets = _names(target_names, sizes[1], "target", "target_names")
    if pixel_size is not None:
        check_pixel_size(pixel_size)
    spec = needed("bioimageio.spec.model.v0_5", "write_package", EXTRA)
    about: dict[str, Any] = {
        "name": name,
        "description": description,
        "authors": [spec.Author(name=author) for author in authors],
        "license": spec.LicenseId(license),
        "cite": [spec.CiteEntry(text=_REFERENCE, doi=spec.Doi(_DOI))],
        "tags": ["cell", "brightfield", "batch-effect", "image-translation", "profiling"],
    }
    with tempfile.TemporaryDirectory() as place, in_one_step(path) as draft:
        folder = Path(place).resolve()
        (folder / "documentation.md").write_text(_documentation(est, name, description), encoding="utf-8")
        opset = _write_parts(folder, est, bf[:TEST_CELLS])
        about |= _parts(folder, est, channels, targets, pixel_size, opset)
        needed("bioimageio.spec", "write_package", EXTRA).save_bioimageio_package(
            spec.ModelDescr(**about), output_path=draft
        )
    return path


def _names(given: Sequence[str] | None, n: int, default: str, argument: str) -> list[str]:
    if given is None:
        return [default] if n == 1 else [f"{default}_{channel}" for channel in range(n)]
    if isinstance(given, str) or len(given) != n:
        raise ValueError(f"{argument} must name {n} channel(s), got {given!r}")
    return [str(name) for name in given]


def export_onnx(module: nn.Module, sample: Any, path: Path) -> int:
    """Write a module of ``to_torch`` in ONNX's format, for any number of cells, and return its operator set."""
    import torch

    onnx = needed("onnx", "export_onnx", "onnx")
    needed("onnxscript", "export_onnx", "onnx")
    torch.onnx.export(
        module,
        (sample,),
        path,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("n_cells")},),
        input_names=["brightfield"],
        output_names=["profile", "image"],
        external_data=False,
        verbose=False,
    )
    sets = onnx.load(path).opset_import
    return next(int(found.version) for found in sets if found.domain in ("", "ai.onnx"))


def _write_parts(folder: Path, est: Any, bf: np.ndarray) -> int:
    import torch

    module = est.to_torch()
    images = (bf[..., None] if bf.ndim == 3 else bf).astype(np.float32)
    x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))
    with torch.inference_mode():
        profile, image = module(x)
    for name, values in (("brightfield", x), ("profile", profile), ("image", image)):
        np.save(folder / f"{name}.npy", values.numpy())
    # One cell would make the exporter take the number of cells for a constant.
    return export_onnx(module, x if len(x) > 1 else x.repeat(2, 1, 1, 1), folder / "model.onnx")


def _parts(
    folder: Path, est: Any, channels: list[str], targets: list[str], pixel_size: float | None, opset: int
) -> dict[str, Any]:
    """Return the fields of the description that speak of files and shapes."""
    spec = needed("bioimageio.spec.model.v0_5", "write_package", EXTRA)
    side = est.image_shape_[0]
    space: dict[str, Any] = {"size": side}
    if pixel_size is not None:
        space |= {"scale": float(pixel_size), "unit": "micrometer"}

    def file(name: str) -> Any:
        return spec.FileDescr(source=folder / name)

    def axes(kind: Any, names: list[str]) -> list[Any]:
        return [spec.BatchAxis(), spec.ChannelAxis(channel_names=names), kind(id="y", **space), kind(id="x", **space)]

    brightfield = spec.InputTensorDescr(
        id="brightfield", axes=axes(spec.SpaceInputAxis, channels), test_tensor=file("brightfield.npy")
    )
    profile = spec.OutputTensorDescr(
        id="profile",
        description="Profile of the cell",
        axes=[spec.BatchAxis(), spec.IndexOutputAxis(size=est.n_features_out_)],
        test_tensor=file("profile.npy"),
    )
    image = spec.OutputTensorDescr(
        id="image",
        description="Predicted image, in the units of the target",
        axes=axes(spec.SpaceOutputAxis, targets),
        test_tensor=file("image.npy"),
    )
    weights = spec.OnnxWeightsDescr(source=folder / "model.onnx", opset_version=opset)
    return {
        "inputs": [brightfield],
        "outputs": [profile, image],
        "weights": spec.WeightsDescr(onnx=weights),
        "documentation": file("documentation.md"),
    }


def _documentation(est: Any, name: str, description: str) -> str:
    made_with = ", ".join(f"{package} {version}" for package, version in versions().items())
    known = {"batches": est.batches_, "cell types": est.cell_types_}
    fitted = [f"- {what}: {', '.join(map(str, labels))}" for what, labels in known.items() if labels is not None]
    side = est.image_shape_[0]
    return "\n".join(
        [
            f"# {name}",
            "",
            description,
            "",
            f"Takes crops of single cells of {side} x {side} pixels, in the units that the instrument gave, not",
            "normalised. Gives a profile of each cell and its predicted image.",
            "",
            "## Fitted on",
            "",
            *(fitted or ["- cells without labels"]),
            "",
            f"Written with {made_with}.",
            "",
            "## Validation",
            "",
            "Nothing was validated when this package was written. What leaks of the batch, and how well the images",
            "agree with measured ones, depends on the instrument: measure it on cells of your own before you use it.",
            "",
        ]
    )
