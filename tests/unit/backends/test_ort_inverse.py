"""``1 / x * y``, which onnxruntime would make ``y / x``, and lose a y that is only passed on."""

from __future__ import annotations

import numpy as np
import pytest

from deploykit.backends import GraphOptions
from deploykit.backends.ort import OrtRunner
from tests.graphs import graph, normal


@pytest.mark.parametrize("optimise", [True, False])
@pytest.mark.parametrize("passing", ["Identity (a)", "Cast <to = 1> (a)"])
def test_a_factor_that_is_only_passed_on_is_still_there(passing: str, *, optimise: bool) -> None:
    model = graph(
        f"""g (float[batch,4] x) => (float[batch,4] y) {{
            a = Abs (x)
            f = {passing}
            s = Add (a, one)
            i = Div (one, s)
            y = Mul (f, i)
        }}""",
        {"one": np.array(1, np.float32)},
    )
    x = normal(3, 4)
    with OrtRunner(model.SerializeToString(), GraphOptions(optimise=optimise)) as runner:
        got = runner.run({"x": x})["y"]
    np.testing.assert_allclose(got.astype(np.float32), np.abs(x) / (1 + np.abs(x)), rtol=1e-6)
