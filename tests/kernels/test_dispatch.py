"""Which backend a layer takes: by argument, by environment, and by what the device has."""

import mlx.core as mx
import pytest
from kernel_devices import claims_gpu

from mlx_tlstm import TLSTM, make_layer
from mlx_tlstm.kernels import dispatch
from mlx_tlstm.reference import ReferenceBackend


def test_plain_operations_on_the_cpu():
    assert dispatch.select_backend("TLSTM", None, 2) == "ops"


def test_the_equations_run_everywhere(monkeypatch):
    assert dispatch.select_backend("TLSTM", "reference", 4) == "reference"
    monkeypatch.setenv("MLX_TLSTM_BACKEND", "reference")
    cell = TLSTM(4, 7, (3,)).cell
    assert cell.selected_backend() == "reference"
    assert isinstance(cell.active_transition(2).backend, ReferenceBackend)


def test_kernels_where_the_device_has_them(kernel_calls):
    chosen = dispatch.select_backend("TLSTM", None, 2)
    assert chosen in ("metal", "cuda")
    assert dispatch.select_backend("TLSTM", chosen, 3) == chosen
    assert dispatch.select_backend("TLSTM", "ops", 2) == "ops"


def test_more_axes_than_the_kernels_take(kernel_calls):
    assert dispatch.select_backend("TLSTM", None, 4) == "ops"
    layer = TLSTM(2, 3, (1, 2, 1, 2), backend="metal")
    with pytest.raises(
        ValueError, match=r"\[TLSTMCell\] 'backend' must be 'ops' or 'reference' here .*3 ten"
    ):
        layer(mx.zeros((1, 2, 2)))


def test_environment_variable(kernel_calls, monkeypatch):
    monkeypatch.setenv("MLX_TLSTM_BACKEND", "ops")
    assert dispatch.select_backend("TLSTM", None, 2) == "ops"
    monkeypatch.setenv("MLX_TLSTM_BACKEND", "vulkan")
    message = "'MLX_TLSTM_BACKEND' must be one of .*'cuda', 'reference' but got 'vulkan'"
    with pytest.raises(ValueError, match=message):
        dispatch.select_backend("TLSTM", None, 2)


def test_an_empty_variable_asks_for_nothing(monkeypatch):
    monkeypatch.setenv("MLX_TLSTM_BACKEND", "")
    assert dispatch.select_backend("TLSTM", None, 2) == "ops"


def test_an_nvidia_gpu_runs_the_kernels_through_cuda(monkeypatch):
    claims_gpu(monkeypatch, "sm_90", cuda=True)
    monkeypatch.delenv("MLX_TLSTM_BACKEND", raising=False)
    assert dispatch.kernel_backend() == ("cuda", "")
    assert dispatch.select_backend("TLSTM", None, 2) == "cuda"
    with pytest.raises(ValueError, match="'backend' must be 'cuda' or 'ops' or 'reference' here"):
        dispatch.select_backend("TLSTM", "metal", 2)


@pytest.mark.parametrize("backend", ["metal", "cuda"])
def test_what_the_machine_lacks(backend):
    layer = make_layer("2d-tlstm", 4, 7, 3, backend=backend)
    message = r"'backend' must be 'ops' or 'reference' here \(the default device is .*cpu"
    with pytest.raises(ValueError, match=message):
        layer(mx.zeros((2, 5, 4)))


def test_the_environment_may_not_ask_for_it_either(monkeypatch):
    monkeypatch.setenv("MLX_TLSTM_BACKEND", "metal")
    with pytest.raises(ValueError, match="'MLX_TLSTM_BACKEND' must be 'ops' or 'reference' here"):
        TLSTM(4, 7, (3,))(mx.zeros((2, 5, 4)))


def test_unknown_names():
    message = "'backend' must be one of None, 'ops', 'metal', 'cuda', 'reference' but got 'gpu'"
    with pytest.raises(ValueError, match=message):
        TLSTM(4, 7, (3,), backend="gpu")


def test_a_mac_runs_the_kernels(monkeypatch):
    claims_gpu(monkeypatch, "applegpu_g13g")
    assert dispatch.kernel_backend() == ("metal", "")


def test_a_mac_without_a_device(monkeypatch):
    """MLX's Metal says that it is there, and raises at the first question."""

    def none(*_):
        raise RuntimeError("[metal::load_device] No Metal device available. This typically …")

    claims_gpu(monkeypatch, "")
    monkeypatch.setattr(mx, "device_info", none)
    available, reason = dispatch.kernel_backend()
    assert available is None
    assert reason.startswith("no Metal device: [metal::load_device] No Metal device available")
    assert dispatch.select_backend("TLSTM", None, 2) == "ops"
