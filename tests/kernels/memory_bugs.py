"""Bugs to plant in the memory kernels, with how each is caught.

A bug is written as the source's text with one place changed, ``…{{right => wrong}}…``; the text has
to occur exactly once in the file.
"""

from __future__ import annotations

from kernel_mutations import HEADER
from memory_cases import Case
from metal_on_cpu.planting import WRONG_NUMBERS as NUMBERS
from reference import Specification

# Rows and channels that fill no threadgroup and no simdgroup; 15 rows for 12 simdgroups of LAYER.
STEPS = ((True, True), (True, False))
LAYER = Case(Specification((3, 5), (3, 2), True, "layer"), 40, steps=STEPS)
CHANNEL = Case(Specification((3, 5), (3, 2), True, "channel"), 40, steps=STEPS)
AXES = Case(Specification((2, 3, 4), (2, 3, 4)), steps=STEPS)
PLAIN = Case(Specification((3, 2), (3, 3), False, None), 40, steps=STEPS)
MANY_TAPS = Case(Specification((4, 2), (6, 6)), steps=STEPS)

RACE = "data race"
BOUNDS = "out of bounds"
UNINITIALISED = "uninitialised"
UNWRITTEN = "never written"

FORWARD = "memory_forward.metal"
BACKWARD = "memory_backward.metal"
GATHER = "memory_gather.metal"

BARRIER = "metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup)"
THEN_SUM = ";\n    x = metal::simd_sum("
ROW_LIMIT = "cell_before_shape[0] * G::LOCATIONS{{ => %s}});"

#: (file, case, how it is caught, bugs)
TABLE = [
    # Sums over an example
    (HEADER, LAYER, f"{RACE}|{UNINITIALISED}", [
        "{{" + BARRIER + " => }}" + THEN_SUM,
        "metal::{{threadgroup => simdgroup}}_barrier(metal::mem_flags::mem_threadgroup)" + THEN_SUM,
        "threadgroup_barrier(metal::mem_flags::{{mem_threadgroup => mem_none}})" + THEN_SUM,
        "{{if (lane == 0)  => }}partial[simdgroup] = x;",
        "partial[{{simdgroup => 0}}] = x;",
    ]),
    (HEADER, LAYER, BOUNDS, ["lane {{< => <=}} SIMDGROUPS ? partial[lane]"]),
    (HEADER, LAYER, NUMBERS, ["lane < SIMDGROUPS{{ =>  - 1}} ? partial[lane]"]),
    (FORWARD, LAYER, RACE, ["(squares, partial_{{squares => sum}},"]),
    (BACKWARD, LAYER, RACE, ["(along, partial_{{along => sum}},"]),
    # Boundary, taps and their readers
    (HEADER, AXES, f"{BOUNDS}|{NUMBERS}", [
        "{{metal::clamp(p.x, 0, P0 - 1) => p.x}}",
        "{{metal::clamp(p.y, 0, P1 - 1) => p.y}}",
        "{{metal::clamp(p.z, 0, P2 - 1) => p.z}}",
        "metal::clamp(p.z, 0, P2{{ - 1 => }})",
        "tap / (K1 * K2) - {{K0 => (K0 - 1)}} / 2",
        "tap % K2 - {{K2 => (K2 - 1)}} / 2",
        "p.x >= 0 && p.x {{< => <=}} P0",
        "p.y >= {{0 => -1}} && p.y < P1",
        "p.y >= 0 && p.y {{< => <=}} P1",
        "p.z >= {{0 => -1}} && p.z < P2",
        "p.z >= 0 && p.z {{< => <=}} P2",
        "{{ || !G::inside(r) => }}) continue;",
        "(x * {{K1 + y) * K2 => K2 + y) * K1}} + z",
        "index / {{P2 % P1 => P1 % P2}}, index",
        "{{if (row < 0) continue; => }}",
    ]),
    (HEADER, MANY_TAPS, f"{BOUNDS}|{NUMBERS}", [
        "tap / K2 % K1 - {{K1 => (K1 - 1)}} / 2",
        "taps.weight[{{s => 0}}], ushort(",
        "slot + 1 < SLOTS ? {{32 => 31}} : G::TAPS",
        "32 : G::TAPS - 32 * (SLOTS - 1){{ =>  - 1}};",
    ]),
    (HEADER, CHANNEL, NUMBERS, [
        "{{p == 0 ? 0 :  => }}p - reader + K / 2",
        "{{p == P - 1 ? K - 1 :  => }}p - reader + K / 2",
        "p == P - {{1 => 2}} ? K - 1",
        "{{row - p +  => }}G::index(",
        "{{row - index +  => }}G::index(r)",
        "if (m < M{{ =>  - 1}}) sum[c]",
        "taps.weight[s], ushort(owner{{ =>  ^ 1}})",
        "taps.row[s], ushort(owner{{ =>  ^ 1}})",
    ]),
    (HEADER, CHANNEL, BOUNDS, ["if (m {{< => <=}} M) sum[c]"]),
    # Softmax, sigmoid, epsilon
    (HEADER, CHANNEL, f"{NUMBERS}|{BOUNDS}", [
        "exists = tap {{< => <=}} G::TAPS;",
        "exists = tap < G::TAPS{{ =>  - 1}};",
        "exists ? float(logits[tap]) : {{-INFINITY => 0.0f}}",
        "{{largest = metal::simd_max(largest); => }}",
        "{{sum = metal::simd_sum(sum); => }}\n#pragma",
        "taps.weight[s] /= {{sum => 1.0f}};",
        "EPSILON = {{1e-5f => 1e-3f}}",
    ]),
    (HEADER, PLAIN, NUMBERS, ["x < 0 ? {{e : 1.0f => 1.0f : e}}"]),
    # Forward
    (FORWARD, PLAIN, NUMBERS, [
        "g = metal::precise::tanh(float(A[{{m => M + m}}]",
        "i = logistic(float(A[{{M => 2 * M}} + m]",
        "f = logistic(float(A[{{2 * M => M}} + m]",
        "size_t(row) * O + {{3 => 2}} * M + m",
        "{{metal::precise::tanh => logistic}}(float(A[m]))",
        "{{g * i + carried * f => g * f + carried * i}}",
        "T({{metal::precise::tanh => }}(normalized) * o)",
    ]),
    (FORWARD, CHANNEL, NUMBERS, [
        "A + {{4 => 3}} * M, lane",
        "activation + size_t(row) * {{O => 4 * M}};",
        "carried = {{CONVOLVE ? C[c] :  => }}cell_before",
        "C[c] = {{0.0f => 1.0f}};",
        "C[c]){{ - mean => }};",
        "squares / COUNT{{ + EPSILON => }}",
        "float(norm_gain[{{at => m}}])",
        "float(norm_{{gain[at]) + float(norm_bias => bias[at]) + float(norm_gain}}[at])",
        "if (p == {{G::LOCATIONS - 1 => 0}})",
    ]),
    (FORWARD, LAYER, NUMBERS, [
        "{{WIDE ? float(G::LOCATIONS) * M :  => }}M",
        "{{(WIDE ? cell[size_t(row) * M + m] : C[c]) => C[c]}} - mean",
        "normalized = {{WIDE ? cell[start + m] :  => }}C[c];",
    ]),
    (FORWARD, CHANNEL, f"{RACE}|{BOUNDS}", [
        "* ROWS{{ + simdgroup => }};",
        "+ 1) * ROWS{{ =>  + 1}}, cell",
        ROW_LIMIT % " + 1",
        "if (m {{>= => >}} M) break;\n    const float carried",
        "if (m {{>= => >}} M) break;\n    float normalized",
        "{{lane == 0 &&  => }}(NORM",
        "size_t({{WIDE ? example : row => example}})",
    ]),
    (FORWARD, LAYER, f"{RACE}|{BOUNDS}", [
        "+ 1) * ROWS{{ =>  + 1}}, cell",
        "if (m {{>= => >}} M) break;\n      const float centred",
        "size_t({{WIDE ? example : row => row}})",
    ]),
    (FORWARD, CHANNEL, UNWRITTEN, [
        ROW_LIMIT % " - 1",
        "if (m >= M{{ =>  - 1}}) break;\n    float normalized",
        "if (p == G::LOCATIONS{{ - 1 => }})",
    ]),
    (FORWARD, LAYER, UNWRITTEN, ["({{WIDE ? p : row => row}}) == 0"]),
    # Backward
    (BACKWARD, PLAIN, NUMBERS, [
        "g = metal::precise::tanh(float(A[{{m => M + m}}]",
        "i = logistic(float(A[{{M => 2 * M}} + m]",
        "f = logistic(float(A[{{2 * M => M}} + m]",
        "d_C[c] *= logistic(float(A[{{2 * M => M}} + m]",
        "logistic(float(activation[size_t(row) * O + {{3 => 2}} * M + m]",
        "d_C[c] * i * (1.0f - g{{ * g => }})",
        "g * i * {{(1.0f - i) => 1.0f}}",
        "before * {{(1.0f - f) => 1.0f}}",
        "d_H * Z * o * {{(1.0f - o) => 1.0f}}",
        "d_H * o * {{(1.0f - Z * Z) => 1.0f}}",
        "{{d_C[c] *= logistic(float(A[2 * M + m])); => }}",
        "{{if (has_cell) d_C[c] += d_cell[start + m]; => }}",
        "{{if (!CONVOLVE && has_later) d_C[c] += later_carried[start + m]; => }}",
        "C_conv[c] : cell_before[{{start +  => }}m]",
        "has_output && p == {{G::LOCATIONS - 1 => 0}}",
        "has_output && p == {{G::LOCATIONS - 1 => -1}}",
    ]),
    (BACKWARD, PLAIN, f"{RACE}|{UNWRITTEN}", [
        "d_A[{{m => M + m}}] = T(",
        "d_A[{{M => 2 * M}} + m] = T(",
        "d_A[{{2 * M => M}} + m] = T(",
        "d_activation[size_t(row) * O + {{3 => 2}} * M + m]",
        "{{if (!CONVOLVE) kernels[0] = 0.0f; => }}",
        "{{if (NORM == 0) gain_sum[0] = bias_sum[0] = 0.0f; => }}",
    ]),
    (BACKWARD, CHANNEL, NUMBERS, [
        "size_t({{WIDE ? example : row => 0}})",
        "d_C[c] = d_N{{ * gain => }};",
        "float(norm_gain[{{at => m}}])",
        "has_later ? {{later_gain[start + m] => 0.0f}}",
        "(d_hat{{ - sum => }} - C_hat * along)",
        "C_hat * along){{ * scale => }};",
        "if ({{CONVOLVE && has_later => false}})\n",
        "C_conv[c] = {{0.0f => 1.0f}};",
        "cell_before[{{size_t(source) * M => start}} + m]",
        "if (m >= M{{ =>  - 1}}) break;\n          const float before",
        "C_conv[c] += {{weight *  => }}before",
        "lane == owner{{ =>  + 1}}) d_Q",
        "{{product = metal::simd_sum(product); => }}",
        "mixed {{+= => =}} weight * product",
        "(d_Q[s]{{ - mixed => }})",
    ]),
    (BACKWARD, LAYER, NUMBERS, [
        "has_later ? {{later_bias[start + m] => 0.0f}}",
        "d_N{{ * C_hat => }} + (has_later",
        "(d_hat - sum{{ - C_hat * along => }})",
        "{{WIDE ? float(G::LOCATIONS) * M :  => }}M",
        "d_hat = {{WIDE ? carried[start + m] :  => }}d_C[c]",
    ]),
    (BACKWARD, MANY_TAPS, NUMBERS, ["d_Q[{{s => 0}}] = product"]),
    (BACKWARD, CHANNEL, f"{RACE}|{BOUNDS}", [
        "* ROWS{{ + simdgroup => }};",
        "+ 1) * ROWS{{ =>  + 1}}, cell",
        ROW_LIMIT % " + 1",
        "if (m {{>= => >}} M) break;\n    const size_t at",
        "if (m {{>= => >}} M) break;\n    const float before",
        "if (m {{>= => >}} M) break;\n    const float g",
        "if (m {{>= => >}} M) break;\n          const float before",
        "if (tap {{>= => >}} G::TAPS) break;",
        "kernels[{{size_t(row) * G::TAPS +  => }}tap]",
    ]),
    (BACKWARD, LAYER, f"{RACE}|{BOUNDS}", ["if (m {{>= => >}} M) break;\n    if (NORM != 0)"]),
    (BACKWARD, LAYER, UNINITIALISED, ["{{if (WIDE) carried[start + m] = d_C[c]; => }}"]),
    (BACKWARD, CHANNEL, UNWRITTEN, [
        ROW_LIMIT % " - 1",
        "if (tap >= G::TAPS{{ =>  - 1}}) break;",
        "d_A[{{4 => 3}} * M + tap]",
    ]),
    # Gather
    (GATHER, CHANNEL, f"{RACE}|{BOUNDS}", [
        "if (row {{>= => >}} carried_shape",
        "SIMDGROUPS{{ + simdgroup_index_in_threadgroup => }};",
        "if (m {{< => <=}} M) d_cell",
    ]),
    (GATHER, CHANNEL, UNWRITTEN, [
        "if (row{{ =>  + 1}} >= carried_shape",
        "if (m < M{{ =>  - 1}}) d_cell",
    ]),
    (GATHER, CHANNEL, NUMBERS, ["d_C[c] = {{0.0f => 1.0f}};"]),
]  # fmt: skip
