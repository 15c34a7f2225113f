"""The generated text is, to the letter, what the installed MLX generates.

MLX without Metal traces a ``metal_kernel`` while it exports a function, and ``verbose=True`` prints
the source.
"""

import json
import subprocess
import sys

import pytest

from metal_on_cpu import Spec, mlx_source

PROBE = """
import json, sys
import mlx.core as mx

case = json.loads(sys.argv[1])
dtype = lambda name: getattr(mx, "bool_" if name == "bool" else name)
kernel = mx.fast.metal_kernel(**case["kernel"])
def function(*arrays):
    return kernel(
        inputs=list(arrays),
        template=[(n, dtype(v) if isinstance(v, str) else v) for n, v in case["template"]],
        grid=(32, 1, 1),
        threadgroup=(32, 1, 1),
        output_shapes=[[16]] * len(case["output_dtypes"]),
        output_dtypes=[dtype(name) for name in case["output_dtypes"]],
        verbose=True,
    )
mx.export_function(sys.argv[2], function, *[mx.zeros(s, dtype(d)) for s, d in case["inputs"]])
"""

CASES = {
    "template": {
        "kernel": {
            "name": "template",
            "input_names": ["a", "w", "b"],
            "output_names": ["o"],
            "source": "uint i = thread_position_in_grid.x; if (thread_index_in_simdgroup == 0) {}\n"
            "o[i] = T(a[i]) * a_shape[0] + w_strides[0] * b[0];",
            "header": "// a header\n",
        },
        "template": [["T", "float32"], ["N", 3], ["F", True]],
        "inputs": [[[16], "float32"], [[4, 4], "bfloat16"], [[3], "float16"]],
        "output_dtypes": ["float32"],
    },
    "a scalar": {
        "kernel": {
            "name": "scalar",
            "input_names": ["a", "w", "b"],
            "output_names": ["o", "p"],
            "source": "// w_ndim, in a comment\nuint i = thread_position_in_grid.x; b;",
        },
        "template": [],
        "inputs": [[[16], "int32"], [[4, 2], "uint8"], [[], "float16"]],
        "output_dtypes": ["float32", "uint32"],
    },
    "no template types": {
        "kernel": {
            "name": "integers",
            "input_names": ["a"],
            "output_names": ["o"],
            "source": "threadgroup float t[4]; o[0] = a_ndim + threads_per_threadgroup.x"
            " + thread_position_in_threadgroup.y;",
        },
        "template": [["A", 0], ["B", False]],
        "inputs": [[[2, 3, 4], "bool"]],
        "output_dtypes": ["int64"],
    },
    "names that contain names": {
        "kernel": {
            "name": "substrings",
            "input_names": ["a", "data"],
            "output_names": ["o"],
            "source": "o[0] = data_shape[0] * thread_position_in_threadgroup.x;",
        },
        "template": [],
        "inputs": [[[8], "uint16"], [[2, 5], "uint64"]],
        "output_dtypes": ["bfloat16"],
    },
}


@pytest.mark.parametrize("name", CASES)
def test_same_text_as_mlx(name, tmp_path):
    case = CASES[name]
    result = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(case), str(tmp_path / "exported.mlxfn")],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    expected = result.stdout.split("```\n", 1)[1].rsplit("\n```", 1)[0]
    generated = mlx_source(
        **case["kernel"],
        inputs=[Spec(shape, dtype) for shape, dtype in case["inputs"]],
        output_dtypes=case["output_dtypes"],
        template=[tuple(item) for item in case["template"]],
    )
    assert generated.text == expected
