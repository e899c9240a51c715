from __future__ import annotations

import json

import numpy as np
import pytest

from deploykit.backends._product import main, product_flop_per_s, product_programs
from deploykit.backends._registry import find_backend

PROGRAM = "deploykit.backends._product"


@pytest.mark.parametrize("name", ["ort", "eager"])
def test_a_backend_multiplies_again_and_again(name: str) -> None:
    product = find_backend(name).product
    assert product is not None
    left, right = (np.ones(shape, np.float32) for shape in ((6, 3), (3, 5)))
    multiply = product(left, right, 1)
    multiply()
    multiply()
    assert (product_flop_per_s(name, 1, 0.0, size=16) or 0) > 0


def test_torch_is_timed_only_where_it_is_measured() -> None:
    assert product_programs({"ort"}) == ((PROGRAM, "ort"),)
    assert product_programs({"ort", "eager"}) == ((PROGRAM, "ort"), (PROGRAM, "eager"))


def test_a_backend_without_a_product_has_no_rate() -> None:
    assert product_flop_per_s("tensorrt", 1, 0.0) is None


def test_the_program_prints_what_has_which_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploykit.backends._product.product_flop_per_s", lambda *_: 5e9)
    main("ort", 1, 0.0)
    told = json.loads(capsys.readouterr().out)
    assert told == {"label": "onnxruntime (cpu)", "fp32_flop_per_s": 5e9}
