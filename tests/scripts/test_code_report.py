"""What clang makes of the kernels: no call of a helper is left, and no array in memory."""

import re
from collections import Counter

import code_report
import mlx.core as mx
import pytest
from benchmarking.launches import of_a_pass, recorded
from click.testing import CliRunner
from kernel_devices import needs_compiler
from metal_on_cpu.planting import planted

from mlx_tlstm import TLSTM
from mlx_tlstm.kernels import library, tuning
from mlx_tlstm.kernels.tiles import CANDIDATES

HEADERS = ("geometry.h", "memory.h", "packs.h", "pick.h", "tiles.h")
#: A name before a parenthesis and an opening brace: a function, unless it is a word of C++.
FUNCTION = re.compile(
    r"^ *((?:[\w:<>,*&]+ )+)(\w+)\((?:[^;{}()]|\([^()]*\))*\)(?: const)?(?: thread)? \{",
    re.MULTILINE,
)


def functions(text: str) -> list[tuple[str, str]]:
    return [(match[2], match[1]) for match in FUNCTION.finditer(text)]


@pytest.mark.parametrize("name", HEADERS)
def test_every_helper_is_inlined_by_force(name):
    header = library.source(name)
    found = functions(header)
    assert [helper for helper, words in found if "METAL_FUNC" not in words] == []
    assert len(found) == header.count("METAL_FUNC") > 0


def test_a_helper_without_the_word_is_seen():
    text = "template <typename T>\ninline int helper(T x) {\n  if (x < 0) {\n  }\n}\n"
    assert functions(text) == [("helper", "inline int ")]


def kernels(layer, batch_size):
    found = {}
    for choice in (CANDIDATES[0], CANDIDATES[4], None):
        with tuning.forced(choice):
            for launch in of_a_pass(layer, batch_size, 9):
                found[launch] = None
    return list(found)


def test_a_recorded_kernel_is_never_launched_later():
    layer = TLSTM(4, 7, (2, 3))
    x = mx.ones((3, 2, 4))
    expected = layer(x)[0]

    def fail():
        with recorded() as launches:
            assert not mx.any(layer(x)[0])
            raise KeyError(len(launches))

    with pytest.raises(KeyError, match=r"^[1-9]"):
        fail()
    assert library._built.cache_info().currsize == 0
    assert mx.array_equal(layer(x)[0], expected)


@needs_compiler
@pytest.mark.parametrize(
    "make",
    [
        lambda: TLSTM(4, 100, (4, 4), norm="channel"),
        pytest.param(lambda: TLSTM(4, 7, (2, 3, 2), (2, 3, 4)), marks=pytest.mark.slow),
        pytest.param(lambda: TLSTM(4, 40, (3,), 4, norm="layer"), marks=pytest.mark.slow),
        pytest.param(lambda: TLSTM(4, 20, (2, 3), (6, 6)), marks=pytest.mark.slow),
    ],
)
def test_neither_calls_nor_arrays_in_memory_are_left(make):
    for launch in kernels(make(), 15):
        code = code_report.compiled(code_report.cpp_text(*library.text(launch.name), launch))
        assert (code.calls, code.allocas) == ([], 0), launch
        # Nothing is divided in most slices, but where a location reads the corner.
        corners = 2 if launch.name == "convolution_weight_gradient" else 0
        assert code.divisions <= corners * 4, launch


@needs_compiler
def test_what_is_left_is_seen():
    """A helper that is no longer forced to be inlined, and an array that is indexed at run time."""
    [launch, *_] = [one for one in kernels(TLSTM(4, 100, (4, 4)), 15) if "forward" in one.name]
    header, body = library.text("convolution_forward")
    kept = ("METAL_FUNC void multiply", "__attribute__((noinline)) void multiply")
    called = planted(header, *kept)
    assert code_report.compiled(code_report.cpp_text(called, body, launch)).calls
    indexed = planted(body, "const Tile tile", "int kept[64];\nkept[self] = rows;\nconst Tile tile")
    indexed += "activation[kept[first_row % 64]] = T(0);\n"
    assert code_report.compiled(code_report.cpp_text(header, indexed, launch)).allocas == 1


@needs_compiler
def test_the_report():
    result = CliRunner().invoke(code_report.main, ["--size", "2x3,M=8,B=2,T=3"])
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    [tiles] = [line for line in lines if line[:1] == ["tiles"]]
    [products] = [line for line in lines if line[:1] == ["products"]]
    assert 4 < float(tiles[1]) < 4.3 < float(products[1]) < 7.1
    assert Counter(line[0] for line in lines if line)["memory_backward"] == 1
    text = next(line for line in lines if line[:1] == ["stack"])
    assert int(text[-2]) == sum(map(len, library.text("stack")))
