"""Tiny fits give the numbers that were frozen, see goldens.py."""

from __future__ import annotations

import goldens
import numpy as np
import pytest

# What another processor, another version of torch or another number of threads may make of the same arithmetic: float32
# training amplifies a rounding some thousandfold in these few steps, float64 too, from far below.
TOLERANCES = {"float32": 2e-2, "float64": 1e-6}


@pytest.mark.parametrize("case", goldens.CASES)
def test_numbers_are_those_that_were_frozen(case):
    where, frozen = goldens.read()
    found = goldens.CASES[case]()
    assert found.keys() == frozen[case].keys()
    if where == goldens.machine():
        assert goldens.same_bits(frozen[case], found)
    tolerance = TOLERANCES["float64" if "float64" in case else "float32"]
    gaps = goldens.distance(frozen[case], found)
    assert max(gaps.values()) < tolerance, gaps


def test_resumed_and_cached_fits_are_the_plain_one():
    _, frozen = goldens.read()
    for case in ("resumed in pretraining", "resumed in batch removal", "memory", "saved and loaded"):
        assert goldens.same_bits(frozen["online float32"], frozen[case]), case
    assert goldens.same_bits(frozen["published float32"], frozen["resumed in batch removal, published"])


def test_every_case_has_numbers_of_its_own():
    _, frozen = goldens.read()
    assert frozen.keys() == goldens.CASES.keys()
    weights = {case: frozen[case]["weights"].tobytes() for case in frozen}
    plain = {"online float32", "resumed in pretraining", "resumed in batch removal", "memory", "saved and loaded"}
    assert {case for case in frozen if weights[case] == weights["online float32"]} == plain
    arrays = [array for case in frozen.values() for array in case.values() if array.dtype.kind == "f"]
    assert all(np.isfinite(array).all() for array in arrays)
