"""The bugs that ``test_kernels_convolution_mutations`` plants in the convolution kernels."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """In ``file``, the one place that reads ``text`` reads ``planted`` instead."""

    file: str
    text: str
    planted: str

    def __str__(self) -> str:
        kernel = self.file.removeprefix("convolution_").removesuffix(".metal")
        return f"{kernel}: {self.text} -> {self.planted}".replace("\n", " ")


FORWARD = "convolution_forward.metal"
INPUT_GRADIENT = "convolution_input_gradient.metal"
WEIGHT_GRADIENT = "convolution_weight_gradient.metal"
UNFOLD = "convolution_unfold.metal"
FOLD = "convolution_fold.metal"
HEADER = "header"  # whichever has the text
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
WEAK_BARRIER = "simdgroup_barrier(mem_flags::mem_threadgroup);"

#: What stands before each barrier of a convolution kernel.
MULTIPLIED = {
    FORWARD: "tile.multiply(sum, row_slice, weight_slice);\n  ",
    INPUT_GRADIENT: "tile.multiply(sum, row_slice, weight_slice);\n  ",
    WEIGHT_GRADIENT: "tile.multiply(sum, output_slice, tap_slice);\n  ",
}
LOADED = {FORWARD: "weight_part);\n  ", INPUT_GRADIENT: "weight_part);\n  "}
LOADED[WEIGHT_GRADIENT] = "tap_part);\n  "
SPILLED = "tile.spill(sum, strip, strips);\n  "
WRITTEN = "  }\n  "
BARRIERS = [
    Mutation(file, before + BARRIER, before + planted)
    for file in (FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT)
    for before in (MULTIPLIED[file], LOADED[file], SPILLED, WRITTEN)
    for planted in ("", WEAK_BARRIER)
]

MUTATIONS = [
    *(mutation for mutation in BARRIERS if mutation.file == FORWARD or WEAK_BARRIER in mutation[2]),
    # The forward kernel.
    Mutation(FORWARD, "threadgroup_position_in_grid.x * BM", "threadgroup_position_in_grid.x * BN"),
    Mutation(FORWARD, "threadgroup_position_in_grid.y", "threadgroup_position_in_grid.x"),
    Mutation(FORWARD, "hidden_shape[0] * G::LOCATIONS", "hidden_shape[0]"),
    Mutation(FORWARD, "G::location(row % G::LOCATIONS)", "G::location(row)"),
    Mutation(FORWARD, "next < DEPTH + BK", "next < DEPTH"),
    Mutation(FORWARD, "next += BK", "next += 2 * BK"),
    Mutation(FORWARD, "if (next > 0)", "if (next >= 0)"),
    Mutation(FORWARD, "row < rows ? row / G", "true ? row / G"),
    Mutation(FORWARD, "row < rows ? row / G", "row <= rows ? row / G"),
    Mutation(FORWARD, "row < rows ? row / G", "row < rows - 1 ? row / G"),
    Mutation(FORWARD, "example[i] < 0 || !walk.inside()", "!walk.inside()"),
    Mutation(FORWARD, "location[i], walk.step)", "location[i], Location{0, 0, 0})"),
    Mutation(FORWARD, "walk.step), example[i] * G::LOCATIONS", "walk.step), example[i]"),
    Mutation(FORWARD, "if (moved)", "if (next == 0)"),
    Mutation(FORWARD, "bool moved = true;", "bool moved = false;"),
    Mutation(FORWARD, "ptrdiff_t(from[i]) * M, walk.at", "ptrdiff_t(from[i]) * M, 0"),
    Mutation(FORWARD, "projected + example[i] * M", "projected + from[i] * M"),
    Mutation(FORWARD, "threadgroup PACKED T row_slice", "threadgroup T row_slice"),
    Mutation(FORWARD, "threadgroup PACKED T weight_slice", "threadgroup T weight_slice"),
    Mutation(INPUT_GRADIENT, "threadgroup PACKED T row_slice", "threadgroup T row_slice"),
    Mutation(INPUT_GRADIENT, "threadgroup PACKED T weight_slice", "threadgroup T weight_slice"),
    Mutation(WEIGHT_GRADIENT, "threadgroup PACKED T output_slice", "threadgroup T output_slice"),
    Mutation(WEIGHT_GRADIENT, "threadgroup PACKED T tap_slice", "threadgroup T tap_slice"),
    Mutation(FORWARD, "row_part[i] = Pack<T>{};", ""),
    Mutation(FORWARD, "weight_part[i] = Pack<T>{};", ""),
    Mutation(FORWARD, "output < O && walk.inside()", "walk.inside()"),
    Mutation(FORWARD, "output < O && walk.inside()", "output <= O && walk.inside()"),
    Mutation(FORWARD, "output < O && walk.inside()", "output < O - 1 && walk.inside()"),
    Mutation(FORWARD, "output < O && walk.inside()", "output < O"),
    Mutation(FORWARD, "(output * G::TAPS + walk.tap)", "(output * G::TAPS)"),
    Mutation(FORWARD, "walk.tap) * M, walk.at", "walk.tap) * M, 0"),
    Mutation(FORWARD, "Walk<G, PADDED> walk = Walk<G, PADDED>", "Walk<G, M> walk = Walk<G, M>"),
    Mutation(FORWARD, "row < rows && output < O", "output < O"),
    Mutation(FORWARD, "row < rows && output < O", "row < rows - 1 && output < O"),
    Mutation(FORWARD, "row < rows && output < O", "row < rows"),
    Mutation(FORWARD, "row < rows && output < O", "row < rows && output < O - 1"),
    Mutation(FORWARD, " + float(bias[output])", ""),
    Mutation(FORWARD, "bias[output]", "bias[row % O]"),
    Mutation(FORWARD, "TANH ?", "!TANH ?"),
    Mutation(FORWARD, "size_t(row) * O + output", "size_t(row) * O + output + 1"),
    # The gradient for the inputs.
    Mutation(INPUT_GRADIENT, "WM, WN, WK, false, false", "WM, WN, WK, false, true"),
    Mutation(INPUT_GRADIENT, "rows = hidden_rows + batch", "rows = hidden_rows"),
    Mutation(INPUT_GRADIENT, "of_hidden = row < hidden_rows", "of_hidden = row <= hidden_rows"),
    Mutation(INPUT_GRADIENT, "row - hidden_rows;", "(row - hidden_rows) % batch * 0;"),
    Mutation(INPUT_GRADIENT, ": G::corner()", ": G::location(0)"),
    Mutation(INPUT_GRADIENT, "G::LOCATIONS + G::index(reader)", "G::LOCATIONS"),
    Mutation(INPUT_GRADIENT, "example[i] * G::LOCATIONS + G", "example[i] + G"),
    Mutation(INPUT_GRADIENT, "Walk<G, PADDED> Place", "Walk<G, O> Place"),
    Mutation(INPUT_GRADIENT, "if (moved)", "if (next == 0)"),
    Mutation(INPUT_GRADIENT, "bool moved = true;", "bool moved = false;"),
    Mutation(INPUT_GRADIENT, "    weight_place[i].template advance<BK>();", ""),
    Mutation(INPUT_GRADIENT, "Place::to(WeightShare::row(self, i))", "Place::to(0)"),
    Mutation(INPUT_GRADIENT, "next < DEPTH + BK", "next < DEPTH"),
    Mutation(INPUT_GRADIENT, "self, i) && row < rows;", "self, i) && row < rows - 1;"),
    Mutation(INPUT_GRADIENT, "self, i) && row < rows;", "self, i);"),
    Mutation(INPUT_GRADIENT, " && G::inside(reader);", ";"),
    Mutation(INPUT_GRADIENT, "G::reader(location[i]", "G::source(location[i]"),
    Mutation(INPUT_GRADIENT, "ptrdiff_t(from[i]) * O, place.at", "ptrdiff_t(from[i]) * O, 0"),
    Mutation(INPUT_GRADIENT, "of.inside() && of.at < O", "of.at < O"),
    Mutation(INPUT_GRADIENT, "of.at < O && channel < M", "channel < M"),
    Mutation(INPUT_GRADIENT, "of.at < O && channel < M", "of.at < O"),
    Mutation(INPUT_GRADIENT, "of.at < O && channel < M", "of.at < O && channel < M - 4"),
    Mutation(INPUT_GRADIENT, "of.at * G::TAPS + of.tap", "of.tap * O + of.at"),
    Mutation(INPUT_GRADIENT, "row < rows && channel < M", "channel < M"),
    Mutation(INPUT_GRADIENT, "row < rows && channel < M", "row < rows"),
    Mutation(INPUT_GRADIENT, "row < rows && channel < M", "row < rows - 1 && channel < M"),
    Mutation(INPUT_GRADIENT, "if (row < hidden_rows)", "if (row <= hidden_rows)"),
    Mutation(INPUT_GRADIENT, "(row - hidden_rows) * M", "row * M"),
    # The gradient for weight and bias.
    Mutation(WEIGHT_GRADIENT, "WM, WN, WK, true, false", "WM, WN, WK, false, false"),
    Mutation(WEIGHT_GRADIENT, "(rows + BK - 1) / BK", "rows / BK"),
    Mutation(WEIGHT_GRADIENT, "slice <= slices", "slice < slices"),
    Mutation(WEIGHT_GRADIENT, "if (slice > 0)", "if (slice >= 0)"),
    Mutation(WEIGHT_GRADIENT, "next >= rows", "next > rows + BK"),
    Mutation(WEIGHT_GRADIENT, "    next = 0;", "    next = 1;"),
    Mutation(WEIGHT_GRADIENT, "++step;", ""),
    Mutation(WEIGHT_GRADIENT, "projected_3,", "projected_4,"),
    Mutation(WEIGHT_GRADIENT, "row < end && output < O)\n", "output < O)\n"),
    Mutation(WEIGHT_GRADIENT, "row < end && output < O)\n", "row < end)\n"),
    Mutation(WEIGHT_GRADIENT, "row < end && output < O)\n", "row < end - 1 && output < O)\n"),
    Mutation(WEIGHT_GRADIENT, "self, i) && row < end) {", "self, i)) {"),
    Mutation(WEIGHT_GRADIENT, "self, i) && row < end) {", "self, i) && row < end - 1) {"),
    Mutation(WEIGHT_GRADIENT, "if (!of.inside()) {", "if (of.tap >= G::TAPS - 1) {"),
    Mutation(WEIGHT_GRADIENT, "TapShare::row(self, i) % G::LOCATIONS", "i % G::LOCATIONS"),
    Mutation(WEIGHT_GRADIENT, "    G::template advance<BK>(location[i]);", ""),
    Mutation(WEIGHT_GRADIENT, "  if (next == 0) {", "  if (slice == 0) {"),
    Mutation(WEIGHT_GRADIENT, "offset[i] = G::index(tap[i].step) * M", "offset[i] = 0"),
    Mutation(WEIGHT_GRADIENT, "if (G::inside(read))", "if (true)"),
    Mutation(WEIGHT_GRADIENT, "if (G::is_corner(read))", "if (false)"),
    Mutation(WEIGHT_GRADIENT, "projected + row / G::LOCATIONS", "projected + row % G::LOCATIONS"),
    Mutation(WEIGHT_GRADIENT, "tap[i % TAPS_OF_THREAD]", "tap[0]"),
    Mutation(WEIGHT_GRADIENT, "item[0] = T(1)", "item[0] = T(2)"),
    Mutation(WEIGHT_GRADIENT, "tap = column / PADDED;", "tap = column / M;"),
    Mutation(WEIGHT_GRADIENT, "m = column % PADDED;", "m = column % M;"),
    Mutation(WEIGHT_GRADIENT, "(output * G::TAPS + tap) * M", "(output * G::TAPS + tap) * PADDED"),
    Mutation(WEIGHT_GRADIENT, "output < O && tap < G::TAPS && m < M", "tap < G::TAPS && m < M"),
    Mutation(WEIGHT_GRADIENT, "output < O && tap < G::TAPS && m < M", "output < O && m < M"),
    Mutation(
        WEIGHT_GRADIENT, "output < O && tap < G::TAPS && m < M", "output < O && tap < G::TAPS"
    ),
    Mutation(WEIGHT_GRADIENT, "output < O && column == COLUMNS", "column == COLUMNS"),
    Mutation(WEIGHT_GRADIENT, "output < O && column == COLUMNS", "output < O && column > COLUMNS"),
    Mutation(WEIGHT_GRADIENT, "accumulate ? bias_before[output] + d", "accumulate ? d"),
    Mutation(WEIGHT_GRADIENT, "accumulate ? weight_before[place] + d", "accumulate ? d"),
    Mutation(WEIGHT_GRADIENT, "accumulate ? weight_before", "!accumulate ? weight_before"),
    # Where taps lie.
    Mutation(HEADER, "tap / (K1 * K2) - K0 / 2", "tap / (K1 * K2) - (K0 - 1) / 2"),
    Mutation(HEADER, "tap / K2 % K1 - K1 / 2", "tap / K2 % K1 - (K1 - 1) / 2"),
    Mutation(HEADER, "tap % K2 - K2 / 2", "tap % K2 - (K2 - 1) / 2"),
    Mutation(HEADER, "tap / K2 % K1", "tap % K1"),
    Mutation(HEADER, "p.y + step.y, p.z + step.z", "p.y, p.z + step.z"),
    Mutation(HEADER, "p.y - step.y, p.z - step.z", "p.y - step.y, p.z"),
    Mutation(HEADER, "s.z == K2 - K2 / 2 - 1", "s.z == K2 / 2"),
    Mutation(HEADER, "s.y == K1 - K1 / 2 - 1", "s.y == K1 / 2"),
    Mutation(HEADER, "s.x + int(plane_ends)", "s.x + int(row_ends)"),
    Mutation(HEADER, "s.y + int(row_ends)", "s.y"),
    Mutation(HEADER, "plane_ends ? s.y - K1 + 1", "plane_ends ? s.y - K1"),
    Mutation(HEADER, "row_ends ? s.z - K2 + 1", "row_ends ? s.z - K2 + 2"),
    Mutation(HEADER, "BY % LOCATIONS;", "BY;"),
    Mutation(HEADER, "p.y + REST / P2 % P1 + int(z >= P2)", "p.y + REST / P2 % P1"),
    Mutation(HEADER, "p.x + REST / (P1 * P2) + int(y >= P1)", "p.x + REST / (P1 * P2)"),
    Mutation(HEADER, "x >= P0 ? x - P0 : x", "x"),
    Mutation(HEADER, "y >= P1 ? y - P1 : y", "y"),
    Mutation(HEADER, "z >= P2 ? z - P2 : z", "z"),
    Mutation(HEADER, "if (at < LENGTH) return false;", "if (at <= LENGTH) return false;"),
    Mutation(HEADER, "at -= LENGTH;", "at = 0;"),
    Mutation(HEADER, "++tap;", ""),
    Mutation(HEADER, "step = G::next_step(step);", ""),
    Mutation(HEADER, "BY > LENGTH && at >= LENGTH", "false"),
    Mutation(HEADER, "return tap < G::TAPS;", "return tap <= G::TAPS;"),
    Mutation(HEADER, "first_row + G::index(place)", "first_row"),
    Mutation(HEADER, "G::is_corner(place) ? PROJECTED", "false ? PROJECTED"),
    Mutation(HEADER, "THREADS % WIDTH == 0 ? 1 : PASSES", "1"),
    Mutation(HEADER, "ROWS * WIDTH % THREADS == 0 ||", "true ||"),
    Mutation(HEADER, "p.z >= 0 && p.z < P2", "p.z >= 0 && p.z <= P2"),
    Mutation(HEADER, "p.z >= 0 && p.z < P2", "p.z < P2"),
    Mutation(HEADER, "p.y >= 0 && p.y < P1", "p.y >= 0 && p.y < P1 - 1"),
    Mutation(HEADER, "p.y >= 0 && p.y < P1", "p.y > 0 && p.y < P1"),
    Mutation(HEADER, "K1 == 1 ? 0 : -1", "-1"),
    Mutation(HEADER, "p.x == c.x && p.y == c.y && p.z == c.z", "p.x == c.x && p.z == c.z"),
    Mutation(HEADER, "index / P2 % P1", "index / P2"),
    Mutation(HEADER, "(p.x * P1 + p.y) * P2 + p.z", "(p.x * P1 + p.y) * P1 + p.z"),
    # Loading, multiplying and adding up.
    Mutation(HEADER, "(LENGTH + 3) / 4 * 4", "LENGTH / 4 * 4"),
    Mutation(HEADER, "if (LENGTH % 4 == 0) return", "if (LENGTH % 2 == 0) return"),
    Mutation(HEADER, "first + 4 <= LENGTH", "first + 2 <= LENGTH"),
    Mutation(HEADER, "first + 4 <= LENGTH", "first + 6 <= LENGTH || first + 4 == LENGTH + 1"),
    Mutation(HEADER, "if (has(thread_index, i)) *(", "*("),
    Mutation(HEADER, "pass * THREADS < ROWS * WIDTH", "pass * THREADS < ROWS * WIDTH - 1"),
    Mutation(HEADER, "% WIDTH * 4", "% WIDTH"),
    Mutation(HEADER, "(LEFT_TRANSPOSED ? BK : BM) * LEFT_STRIDE", "BK * BM"),
    Mutation(HEADER, "(RIGHT_TRANSPOSED ? BN : BK) * RIGHT_STRIDE", "BK * BN"),
    Mutation(HEADER, "WM * WN * WK * STRIP_SIZE", "WM * WN * STRIP_SIZE"),
    Mutation(
        HEADER, "make_filled_simdgroup_matrix<float, 8, 8>(0.0f)", "simdgroup_matrix<float, 8, 8>()"
    ),
    Mutation(HEADER, "simdgroup / WN % WM * ROWS", "simdgroup % WM * ROWS"),
    Mutation(HEADER, "return simdgroup % WN * COLUMNS", "return simdgroup / WN % WM * COLUMNS"),
    Mutation(HEADER, "simdgroup / (WN * WM) * DEPTH", "simdgroup / (WN * WM) * 0"),
    Mutation(HEADER, "k < DEPTH; k += 8", "k < DEPTH - 8; k += 8"),
    Mutation(HEADER, "LEFT_STRIDE, ulong2(0, 0), LEFT", "LEFT_STRIDE, ulong2(0, 0), !LEFT"),
    Mutation(HEADER, "RIGHT_STRIDE, ulong2(0, 0), RIGHT", "RIGHT_STRIDE, ulong2(0, 0), !RIGHT"),
    Mutation(HEADER, "sum[i][j], a[i], b[j], sum[i][j]", "sum[i][j], a[i], b[j], sum[0][j]"),
    Mutation(HEADER, "sum[strip][j], strips", "sum[0][j], strips"),
    Mutation(HEADER, "strips + simdgroup * STRIP_SIZE", "strips"),
    Mutation(HEADER, "return element + 32 * WK", "return element + 32"),
    Mutation(HEADER, "return element + 32 * WK", "return element + 64 * WK"),
    Mutation(HEADER, "element < 8 * COLUMNS", "element < 8 * COLUMNS - 1"),
    Mutation(HEADER, "first_row() + 8 * strip + element", "first_row() + element"),
    Mutation(HEADER, "k = 1; k < WK", "k = 1; k < WK - 1"),
    Mutation(HEADER, "strips[place + k * WN * WM * STRIP_SIZE]", "strips[place + k * STRIP_SIZE]"),
    Mutation(HEADER, "case 5: return b5", "case 5: return b6"),
]
PRODUCT_MUTATIONS = [
    Mutation(HEADER, "if (G::is_corner(from)) return", "if (false) return"),
    Mutation(HEADER, "projected + row / G::LOCATIONS", "projected + row % G::LOCATIONS"),
    Mutation(HEADER, "(ptrdiff_t(row) + G::shift(tap))", "(ptrdiff_t(row) + tap)"),
    Mutation(UNFOLD, "pack / (G::TAPS * PACKS)", "pack / (G::TAPS * PACKS) * 0"),
    Mutation(UNFOLD, "pack / PACKS % G::TAPS", "pack / PACKS % (G::TAPS - 1)"),
    Mutation(UNFOLD, "pack % PACKS * 4", "pack % PACKS"),
    Mutation(UNFOLD, "if (row < hidden_shape[0] * G::LOCATIONS)", "if (true)"),
    Mutation(
        UNFOLD, "row < hidden_shape[0] * G::LOCATIONS", "row < hidden_shape[0] * G::LOCATIONS - 1"
    ),
    Mutation(UNFOLD, "* G::TAPS + tap) * M, m", "* G::TAPS + tap) * M + 1, m"),
    Mutation(UNFOLD, "(size_t(row) * G::TAPS + tap)", "(size_t(row) * G::TAPS + 0)"),
    Mutation(UNFOLD, "row % G::LOCATIONS), tap", "row / G::LOCATIONS), tap"),
    Mutation(UNFOLD, "projected, row,", "projected, row % G::LOCATIONS,"),
    Mutation(FOLD, "pack / PACKS;", "pack / (PACKS + 1);"),
    Mutation(FOLD, "pack % PACKS * 4", "pack % PACKS"),
    Mutation(FOLD, "of_hidden = row < hidden_rows", "of_hidden = row <= hidden_rows"),
    Mutation(FOLD, "? row / G::LOCATIONS :", "? row % G::LOCATIONS :"),
    Mutation(FOLD, ": row - hidden_rows;", ": 0;"),
    Mutation(FOLD, "if (example < hidden_rows / G::LOCATIONS)", "if (true)"),
    Mutation(
        FOLD,
        "if (example < hidden_rows / G::LOCATIONS)",
        "if (example < hidden_rows / G::LOCATIONS - 1)",
    ),
    Mutation(FOLD, ": G::corner()", ": G::location(0)"),
    Mutation(FOLD, "G::LOCATIONS + G::index(location)", "G::LOCATIONS"),
    Mutation(FOLD, "Pack<float> sum = {};", "Pack<float> sum;"),
    Mutation(FOLD, "tap < G::TAPS", "tap < G::TAPS - 1"),
    Mutation(FOLD, "if (!G::inside(G::reader(location, tap))) continue;", ""),
    Mutation(FOLD, "G::reader(location", "G::source(location"),
    Mutation(FOLD, "start - G::shift(tap)", "start + G::shift(tap)"),
    Mutation(FOLD, "* G::TAPS + tap) * M, m", "* G::TAPS) * M, m"),
    Mutation(FOLD, "sum.item[j] += float", "sum.item[j] = float"),
    Mutation(FOLD, "float(term.item[j])", "float(term.item[0])"),
    Mutation(FOLD, "d_projected + size_t(example)", "d_projected + size_t(row)"),
    Mutation(HEADER, "if (LENGTH % 4 == 0) {", "if (LENGTH % 2 == 0) {"),
    Mutation(HEADER, "if (first + j < LENGTH) row[first + j]", "row[first + j]"),
    Mutation(HEADER, "row[first + j] = pack.item[j]", "row[first + j] = pack.item[0]"),
]
STACK_MUTATIONS = [
    Mutation("stack.metal", "part < parts - 1 ?", "part < parts ?"),
    Mutation("stack.metal", "threadgroup_position_in_grid.x * 512", "thread_index_in_threadgroup"),
    Mutation("stack.metal", "pick(part - 8", "pick(part"),
    Mutation("stack.metal", "i < metal::min(length, first + 512)", "i < first + 512"),
    Mutation("stack.metal", "i < metal::min(length, first + 512)", "i < length"),
    Mutation("stack.metal", "i += 128", "i += 127"),
    Mutation("stack.metal", "size_t(part) * part_0_shape[0]", "size_t(part) * length"),
    Mutation("stack.metal", "part < 8 ?", "part < 9 ?"),
]
