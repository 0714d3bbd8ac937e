"""Saved models and checkpoints to damage, ways to damage them, and what may come of it; for the fuzz tests."""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from fuzzing import mutate
from test_stages import make_cells, make_stage

import skbegan
from skbegan.core import checkpoint as checkpoints
from skbegan.core.checkpoint import Checkpoint
from skbegan.core.loop import run_stage
from skbegan.io import model_file

DATA = Path(__file__).parent / "data"
EPOCHS = 3  # of the stage whose checkpoint is damaged after two
ODD: list[Any] = [  # values for the JSON of a model file
    *(None, True, -1, 0, 1, 2, 3, 16, 2**16, 10**30, 1e308, -0.5, 1e-320, "", "x", "auto", "cuda", "\ud800"),
    *("a" * 100_000, [], {}, [[]], [None] * 1000, {"dict": []}, {"tuple": []}, {"tuple": [16, 16]}),
    *({"tuple": [2**16, 2**16]}, {"tuple": [512, 512]}, {"tuple": [16, 16, 2**16]}, {"tuple": [16, 16, 3]}),
    *({"float": "nan"}, {"float": "inf"}, {"float": "1"}, {"call": "os.system"}, {"object": "os.system", "fields": []}),
    *({"object": "Config", "fields": []}, {"object": "Runtime", "fields": [["memory", "x"]]}),
    *({"object": "OnlineRemoval", "fields": [["learning_rate", {"float": "nan"}]]}, {"object": "Config"}),
    *({"object": "ProfileAlignment", "fields": [["hidden", 10**9]]}, {"object": "Config", "fields": [["runtime", 3]]}),
    *({"array": [], "dtype": "<f8"}, {"array": ["a", "b"], "dtype": "<U999999"}, {"array": [1], "dtype": "<U1"}),
    *({"array": ["a"] * 5000, "dtype": "object"}, {"array": [["a"]], "dtype": "object"}, {"array": [1], "dtype": "O"}),
    *({"array": ["2021"], "dtype": "<M8[Y]"}, {"array": ["x"], "dtype": "<M8[D]"}, {"array": ["1"], "dtype": "<M8"}),
    *({"array": [1e-320], "dtype": "<f8"}, {"array": [1e308], "dtype": "<f8"}, {"array": [10**30], "dtype": "<i8"}),
    *({"array": [1, 2], "dtype": "|b1"}, {"array": [0, 1, 256], "dtype": "|u1"}, {"array": [[1, 2]], "dtype": "<i8"}),
    *({"array": [1.5], "dtype": "<f2"}, {"dict": [[[], 1]]}, {"dict": [[1]]}, {"dict": [[{"dict": []}, 1]]}),
    *({"array": [1, 2], "dtype": "<M8[ns]"}, {"array": [{"float": "nan"}] * 2, "dtype": "<f8"}),
]


@dataclass(frozen=True)
class Target:
    """Sound files, a way to damage one, and what came of it: "refused", "right", or a failure in words."""

    files: list[bytes]
    damage: Callable[[bytes, np.random.Generator], bytes]
    outcome: Callable[[Path, bytes], str]  # of the damaged file, given the sound one


# Ways to damage -------------------------------------------------------------------------------------------------------


def flip_a_bit(content: bytes, rng: np.random.Generator) -> bytes:
    """Flip one bit, or cut the file off, or both."""
    data = bytearray(content)
    if rng.random() < 0.8:
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    if rng.random() < 0.3:
        del data[int(rng.integers(len(data))) :]
    return bytes(data)


def damage_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    return (flip_a_bit if rng.random() < 0.5 else mutate)(content, rng)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON document."""
    found = []
    for key in list(value) if isinstance(value, dict) else range(min(len(value), 30)):
        found.append((value, key))
        if isinstance(value[key], dict | list):
            found += _places(value[key])
    return found


def edit_json(document: Any, rng: np.random.Generator) -> None:
    """Change a place or a few of a JSON document."""
    for _ in range(int(rng.integers(1, 4))):
        places = _places(document)
        if not places:
            return
        # The document of a fit is mostly history: half of the time a top-level entry of parameters or fitted.
        near = [
            (holder, key) for holder, key in places if holder in (document.get("parameters"), document.get("fitted"))
        ]
        chosen = near if near and rng.random() < 0.6 else places
        holder, key = chosen[int(rng.integers(len(chosen)))]
        value = holder[key]
        match int(rng.integers(0, 8)):
            case 0 | 1 | 2:
                holder[key] = ODD[int(rng.integers(len(ODD)))]
            case 3 if isinstance(holder, dict):
                del holder[key]
            case 4:
                other, name = places[int(rng.integers(len(places)))]
                holder[key] = json.loads(json.dumps(other[name])) if other is not holder else value
            case 5:
                nested: Any = value
                for _ in range(int(rng.choice([1, 30, 900]))):
                    nested = [nested]
                holder[key] = nested
            case 6 if isinstance(value, int | float) and not isinstance(value, bool):
                holder[key] = [value * 1000, -value, value + 1, value / 3, value * 1e30][int(rng.integers(5))]
            case _ if isinstance(holder, dict):
                holder[f"{key}x"] = value


def edit_tensors(tensors: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    """Change one tensor: name, shape, type or numbers."""
    name = list(tensors)[int(rng.integers(len(tensors)))]
    values = tensors[name]
    match int(rng.integers(0, 9)):
        case 0:
            del tensors[name]
        case 1:
            tensors[f"{name}.more"] = values
        case 2:  # nothing stored, whatever its shape declares
            tensors[name] = np.zeros([(0, 2**40), (2**40, 0), (0,), (0, 4, 4, 4)][int(rng.integers(4))], np.float32)
        case 3:
            tensors[name] = values.astype([np.float64, np.float16, np.int64, np.bool_][int(rng.integers(4))])
        case 4:
            tensors[name] = values.reshape(-1) if rng.random() < 0.5 else values[None]
        case 5:
            tensors[name] = np.full_like(values, [np.nan, np.inf, 3e38, -1.0, 0.0, 1e-45][int(rng.integers(6))])
        case 6:
            tensors[name] = np.concatenate([values, values]) if values.ndim else values[None]
        case 7:
            flat = values.reshape(-1).copy()
            if flat.size:
                flat[int(rng.integers(flat.size))] = [np.nan, np.inf, -3e38, 1e10][int(rng.integers(4))]
            tensors[name] = flat.reshape(values.shape)
        case _:
            other = list(tensors)[int(rng.integers(len(tensors)))]
            tensors[name], tensors[other] = tensors[other], tensors[name]


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def declare(content: bytes, rng: np.random.Generator) -> bytes:
    """Change the header of a safetensors file: shapes, types and places that nothing is stored for."""
    header, body = _split(content)
    names = [name for name in header if name != "__metadata__"]
    for _ in range(int(rng.integers(1, 3))):
        entry = header[names[int(rng.integers(len(names)))]]
        huge = int(rng.choice([0, 1, 2**16, 2**31, 2**40, 2**62]))
        match int(rng.integers(0, 6)):
            case 0:
                entry["shape"] = [huge, *entry["shape"][1:]]
            case 1:
                entry["shape"] = [huge, 0, huge]
                entry["data_offsets"][1] = entry["data_offsets"][0]
            case 2:
                entry["data_offsets"][int(rng.integers(2))] += int(rng.choice([-4, 4, huge]))
            case 3:
                entry["dtype"] = ["F64", "F16", "I64", "BOOL", "F8_E4M3", "X"][int(rng.integers(6))]
            case 4:
                edit_json(header, rng)
            case _:
                entry["shape"] = entry["shape"] + [1] * int(rng.choice([1, 40, 500]))
    text = json.dumps(header).encode()
    length = len(text) if rng.random() < 0.9 else int(rng.choice([0, 2**24, 2**40, 2**63]))
    return struct.pack("<Q", length) + text + body


def forge_model(content: bytes, rng: np.random.Generator) -> bytes:
    """Change what a model file holds, and write a digest that agrees."""
    if rng.random() < 0.25:
        return declare(content, rng)
    header, _ = _split(content)
    document = json.loads(header["__metadata__"]["skbegan"])
    tensors = dict(safetensors.numpy.load(content))
    if rng.random() < 0.7:
        edit_json(document, rng)
    if rng.random() < 0.5:
        edit_tensors(tensors, rng)
    text = json.dumps(document)
    entries = {"skbegan": text, "digest": model_file._digest(text, tensors)}
    try:
        return safetensors.numpy.save({name: np.ascontiguousarray(v) for name, v in tensors.items()}, metadata=entries)
    except Exception:  # what cannot be written so
        return declare(content, rng)


_HEAD = len(checkpoints._MAGIC) + 32


def sealed(content: bytes) -> bytes:
    """Return a checkpoint file with this content."""
    return checkpoints._MAGIC + hashlib.sha256(content).digest() + content


def forge_checkpoint(content: bytes, rng: np.random.Generator) -> bytes:
    """Change what a checkpoint holds, and write a digest that agrees."""
    inner = content[_HEAD:]
    if rng.random() < 0.4:
        return sealed(damage_bytes(inner, rng))
    state = torch.load(io.BytesIO(inner), weights_only=True)
    values: list[Any] = [None, -1, 0, 1, 10**30, math.nan, math.inf, "x", [], {}, torch.zeros(0), torch.zeros(0, 2**40)]
    for _ in range(int(rng.integers(1, 3))):
        places = [(holder, key) for holder, key in _places(state) if isinstance(holder, dict | list)]
        holder, key = places[int(rng.integers(len(places)))]
        value = holder[key]
        if isinstance(value, torch.Tensor) and value.is_floating_point() and rng.random() < 0.7:
            ways = [value.double(), value.half(), value.reshape(-1), value * 1e30, value * math.nan, value[..., None]]
            holder[key] = ways[int(rng.integers(len(ways)))]
        elif isinstance(holder, dict) and rng.random() < 0.3:
            del holder[key]
        else:
            holder[key] = values[int(rng.integers(len(values)))]
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return sealed(buffer.getvalue())


# What came of it ------------------------------------------------------------------------------------------------------


IMAGES = np.random.default_rng(0).normal(0.6, 0.1, (4, 16, 16, 2)).astype(np.float32)


def _images(shape: tuple[int, ...]) -> np.ndarray:
    if shape == (16, 16):
        return IMAGES[..., 0]
    return IMAGES if shape == (16, 16, 2) else np.full((2, *shape), 0.6, np.float32)


def _outputs(est: Any) -> tuple[np.ndarray, np.ndarray]:
    images = _images(est.image_shape_)
    return est.transform(images), est.predict_image(images)


_known: dict[bytes, tuple[Any, tuple[np.ndarray, np.ndarray]]] = {}


def _original(content: bytes, path: Path) -> tuple[Any, tuple[np.ndarray, np.ndarray]]:
    if content not in _known:
        sound = path.with_name("sound")
        sound.write_bytes(content)
        est = skbegan.load(sound)
        _known[content] = est, _outputs(est)
    return _known[content]


def damaged_model(path: Path, content: bytes) -> str:
    """A model file whose digest was left alone: refused, or the same model."""
    try:
        est = skbegan.load(path)
    except ValueError as error:
        return "refused" if str(path) in str(error) else f"a message without the file's name: {error}"
    sound, expected = _original(content, path)
    same = all(np.array_equal(a, b) for a, b in zip(_outputs(est), expected, strict=True))
    return "right" if same and est.get_params() == sound.get_params() else "silently wrong"


def forged_model(path: Path, content: bytes) -> str:
    """A model file with a digest that agrees: refused, or a model that works and can be saved again."""
    try:
        est = skbegan.load(path)
    except ValueError as error:
        return "refused" if str(path) in str(error) else f"a message without the file's name: {error}"
    if est.memory is not None or est.checkpoint_dir is not None or est.callback is not None:
        return "silently wrong: what is of another machine was taken"
    if max(est.image_shape_) > 64 or est.base_width_ > 16:
        return "right"  # networks of another size, with all their weights
    est.set_params(device="cpu")
    try:
        outputs = _outputs(est)
    except (ValueError, FloatingPointError) as error:
        return "refused in use" if len(str(error)) < 1000 else f"a long message: {str(error)[:80]}"
    if not all(np.isfinite(values).all() for values in outputs):
        return "silently wrong: outputs are not finite"
    again = path.with_name("again")
    skbegan.save(est, again)
    same = all(np.array_equal(a, b) for a, b in zip(_outputs(skbegan.load(again)), outputs, strict=True))
    return "right" if same else "silently wrong: saved again it is another"


def _resumed(path: Path) -> Any:
    return run_stage(
        make_stage("pretraining"),
        make_cells(16),
        make_cells(8, seed=1),
        epochs=EPOCHS,
        minibatch_size=8,
        checkpoint=Checkpoint(path),
    )


def damaged_checkpoint(path: Path, content: bytes) -> str:
    """A checkpoint whose digest was left alone: refused, or the very state."""
    try:
        Checkpoint(path).read("pretraining", EPOCHS)
    except ValueError as error:
        return "refused" if str(path) in str(error) else f"a message without the file's name: {error}"
    return "right" if path.read_bytes() == content else "silently wrong"


def forged_checkpoint(path: Path, content: bytes) -> str:
    """A checkpoint with a digest that agrees: refused, or the stage goes on to finite weights."""
    try:
        result = _resumed(path)
    except ValueError as error:
        return "refused" if str(path) in str(error) else f"a message without the file's name: {error}"
    except FloatingPointError:
        return "refused in use"
    return "right" if all(np.isfinite(v).all() for v in result.generator.values()) else "silently wrong"


def targets() -> dict[str, Target]:
    """Return what is fuzzed, by name."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        cells = skbegan.datasets.make_cell_images(24, 2, 2, 16, random_state=0)
        two = np.stack([cells.bf, cells.bf[:, ::-1]], axis=-1)
        tiny = {"base_width": 2, "n_features": 8, "pretrain_epochs": 1, "removal_epochs": 0, "minibatch_size": 8}
        est = skbegan.BeGANTransformer(**tiny, random_state=0, device="cpu", inference="minibatch").fit(two, cells.qpi)
        skbegan.save(est, folder / "two")
        run_stage(
            make_stage("pretraining"),
            make_cells(16),
            make_cells(8, seed=1),
            epochs=EPOCHS - 1,
            minibatch_size=8,
            checkpoint=Checkpoint(folder / "stage.pt"),
        )
        kept = [(folder / "stage.pt").read_bytes()]
        models = [(DATA / "model-format-1.safetensors").read_bytes(), (folder / "two").read_bytes()]
    return {
        "model file": Target(models, damage_bytes, damaged_model),
        "model file, forged": Target(models, forge_model, forged_model),
        "checkpoint": Target(kept, damage_bytes, damaged_checkpoint),
        "checkpoint, forged": Target(kept, forge_checkpoint, forged_checkpoint),
    }


def outcome(target: Target, seed: int, path: Path) -> tuple[str, int]:
    """Make the mutant of a seed and read it; return what came of it, and the size of the file."""
    rng = np.random.default_rng(seed)
    sound = target.files[int(rng.integers(len(target.files)))]
    path.write_bytes(target.damage(sound, rng))
    return read(target, sound, path), path.stat().st_size


def read(target: Target, sound: bytes, path: Path) -> str:
    """Read a damaged file; any exception but the ones that are expected is a failure in words."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return target.outcome(path, sound)
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
