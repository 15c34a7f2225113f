// Up to 16 arrays behind one another: a copy of all in one launch.
//
// Inputs      part_0 … part_15 [n], T: all of one length but the last, which may be shorter; where
//             there are fewer, the last is repeated
// Output      stacked [total], T
// Template    T: any type
// Grid        ceil(n / 512) threadgroups x number of parts, 1 … 16
// Threadgroup 128 threads, each of which copies four elements
#include "pick.h"

const int parts = threadgroups_per_grid.y;
const int part = threadgroup_position_in_grid.y;
const int length = part < parts - 1 ? part_0_shape[0] : part_15_shape[0];
const int first = threadgroup_position_in_grid.x * 512 + thread_index_in_threadgroup;
const auto low = pick(part, part_0, part_1, part_2, part_3, part_4, part_5, part_6, part_7);
const auto high =
    pick(part - 8, part_8, part_9, part_10, part_11, part_12, part_13, part_14, part_15);
for (int i = first; i < metal::min(length, first + 512); i += 128)
  stacked[size_t(part) * part_0_shape[0] + i] = part < 8 ? low[i] : high[i];
