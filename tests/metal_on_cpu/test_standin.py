"""The stand-in for ``mx.fast.metal_kernel`` on MLX's CPU backend."""

import contextlib

import mlx.core as mx
import numpy as np
import pytest

from metal_on_cpu import MslError, standin

pytestmark = pytest.mark.usefixtures("compiler")

INDEX = "const uint i = thread_position_in_grid.x;\n"


def elementwise(name, inputs, expression, **options):
    """A kernel that gives ``T(expression)`` of every element ``i``, and its caller."""
    kernel = mx.fast.metal_kernel(
        name=name,
        input_names=inputs,
        output_names=["y"],
        source=f"{INDEX}y[i] = T({expression});",
    )

    def call(*arrays):
        return kernel(
            inputs=list(arrays),
            template=[("T", arrays[0].dtype)],
            grid=(arrays[0].size, 1, 1),
            threadgroup=(32, 1, 1),
            output_shapes=[arrays[0].shape],
            output_dtypes=[arrays[0].dtype],
            **options,
        )[0]

    return call


def differentiable_square():
    forward = elementwise("square", ["x"], "float(x[i]) * float(x[i])")
    backward = elementwise("square_vjp", ["x", "g"], "2.0f * float(x[i]) * float(g[i])")
    square = mx.custom_function(forward)
    square.vjp(lambda x, cotangent, _: backward(x, cotangent))
    return square


def test_gradients_go_through_custom_functions():
    x = mx.random.normal((50,), key=mx.random.key(0))
    with standin.installed() as calls:
        square = differentiable_square()
        gradient = mx.grad(lambda v: (square(mx.sin(v)) * 3).sum())(x)
        _, (vjp,) = mx.vjp(square, [x], [mx.full((50,), 2.0)])
    # The same float32 operations up to the order of three factors.
    np.testing.assert_allclose(gradient, 6 * mx.sin(x) * mx.cos(x), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(vjp, 4 * x)
    assert [call.kernel for call in calls] == ["square", "square_vjp"] * 2


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_types_are_mlx_dtypes(dtype):
    x = mx.random.normal((3, 50), key=mx.random.key(1)).astype(dtype)
    with standin.installed():
        result = differentiable_square()(x)
    assert result.dtype == dtype
    assert result.shape == (3, 50)
    assert mx.array_equal(result, x * x)


def test_arrays_need_not_be_contiguous():
    x = mx.arange(12.0).reshape(3, 4)
    with standin.installed():
        result = differentiable_square()(x.T)
    np.testing.assert_array_equal(result, (x * x).T)


def test_calls_are_recorded():
    x = mx.ones((50,))
    with standin.installed(mode="san") as calls:
        differentiable_square()(x)
    (call,) = calls
    assert call.kernel == "square"
    assert call.grid == (50, 1, 1)
    assert call.threadgroup == (32, 1, 1)
    assert call.template == {"T": "float32"}
    assert call.output_shapes == [(50,)]
    assert call.stats["threads"] == 50
    assert call.stats["loads"] == {"x": 100, "y": 0} or call.stats["loads"] == {"x": 50, "y": 0}
    assert call.stats["stores"] == {"x": 0, "y": 50}


@pytest.mark.parametrize("initial", [0.0, 2.5])
def test_init_value_and_scalar_inputs(initial):
    with standin.installed():
        kernel = mx.fast.metal_kernel(
            name="add_to_first",
            input_names=["scale"],
            output_names=["y"],
            source=f"{INDEX}if (i == 39) y[0] += scale;",
        )
        (y,) = kernel(
            inputs=[0.5],
            grid=(40, 1, 1),
            threadgroup=(32, 1, 1),
            output_shapes=[(3,)],
            output_dtypes=[mx.float32],
            init_value=initial,
        )
    assert y.tolist() == [initial + 0.5, initial, initial]


def test_mode_says_whether_races_are_seen():
    def racy():
        return elementwise("racy", ["x"], "x[0]); y[0] = T(x[i]")(mx.ones((64,)))

    with standin.installed(mode="fast"):
        racy()
    with standin.installed(mode="san"), pytest.raises(MslError, match="data race on device 'y'"):
        racy()


def test_check_says_whether_address_spaces_are_seen():
    def misused():
        return elementwise("misused", ["x"], "0); const float* p = x; y[i] = T(p[i]")(mx.ones((9,)))

    with standin.installed(check=False):
        misused()
    with standin.installed(), pytest.raises(MslError, match="without an address space"):
        misused()


@pytest.mark.parametrize("transformation", [mx.compile, mx.vmap])
def test_compile_and_vmap_are_refused(transformation):
    with standin.installed():
        square = differentiable_square()
        with pytest.raises(RuntimeError, match=r"^square: .* mx.compile and mx.vmap do not allow"):
            mx.eval(transformation(square)(mx.ones((16, 2))))


def test_the_real_function_comes_back():
    real = mx.fast.metal_kernel
    with contextlib.suppress(KeyError), standin.installed():
        assert mx.fast.metal_kernel is not real
        raise KeyError
    assert mx.fast.metal_kernel is real


def test_contexts_nest():
    with standin.installed() as outer:
        with standin.installed(mode="fast") as inner:
            differentiable_square()(mx.ones((9,)))
        differentiable_square()(mx.ones((9,)))
    assert (len(outer), len(inner)) == (1, 1)
    assert "loads" in outer[0].stats
    assert "loads" not in inner[0].stats
