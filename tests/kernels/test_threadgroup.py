"""The rewriting of threadgroup variables, which is done to the text."""

import pytest

from mlx_tlstm.kernels.threadgroup import rewrite_definitions


def rewrite(body: str) -> str:
    return rewrite_definitions(body, lambda kind, name, dims, i: f"<{i}:{kind}|{name}|{dims}>")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("threadgroup float a[4];", "<0:float|a|[4]>"),
        ("threadgroup float a;", "<0:float|a|>"),
        ("threadgroup T a[8][2], b, c[N];", "<0:T|a|[8][2]><1:T|b|><2:T|c|[N]>"),
        ("threadgroup vec<T, 4> a[2];", "<0:vec<T, 4>|a|[2]>"),
        ("threadgroup metal::vec<T, (N > 2 ? 4 : 2)> a;", "<0:metal::vec<T, (N > 2 ? 4 : 2)>|a|>"),
        ("int i; threadgroup float a[2]; i;", "int i; <0:float|a|[2]> i;"),
        (
            "threadgroup float a;\nif (b) { threadgroup int c; }",
            "<0:float|a|>\nif (b) { <1:int|c|> }",
        ),
        ("threadgroup float // one\n  a[2];", "<0:float|a|[2]>\n"),
        ('#line 1 "a.metal"\nthreadgroup float a;', '#line 1 "a.metal"\n<0:float|a|>'),
        ("/* x; */ threadgroup float a[N == 2 ? 3 : 4];", "/* x; */ <0:float|a|[N == 2 ? 3 : 4]>"),
    ],
)
def test_definitions(body, expected):
    assert rewrite(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        "threadgroup float* p = a;",
        "threadgroup float *p;",
        "threadgroup T* const p = &a[2];",
        "threadgroup const float& r = a[0];",
        "f((threadgroup float*)a);",
        "for (threadgroup float* p = a; p < end; p++) {}",
        "// threadgroup float a;",
        "threadgroup_barrier(mem_flags::mem_threadgroup);",
        'print("; threadgroup float a;");',
    ],
)
def test_other_uses_stay(body):
    assert rewrite(body) == body


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("threadgroup float a = 0.0f;", "initialiser: float a = 0.0f"),
        ("threadgroup float a[2], *b;", "not understood: float a"),
        ("int i; threadgroup float a[2]", "never ended by ';'"),
    ],
)
def test_what_is_not_allowed(body, message):
    with pytest.raises(ValueError, match=message):
        rewrite(body)
