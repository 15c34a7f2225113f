// Runs a kernel over a grid.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "state.h"

struct MslBuffer {  // as launch.py has it
  void *data;
  ulong bytes;
  uint element, flags;
};
enum Order { FORWARD, BACKWARD, RANDOM };

static ulong random_state;
static uint random_below(uint n) {  // xorshift
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (uint)(random_state >> 11) % n;
}

static void fill_order(uint *numbers, uint n, int order) {
  for (uint i = 0; i < n; i++) numbers[i] = order == BACKWARD ? n - 1 - i : i;
  if (order == RANDOM)
    for (uint i = n - 1; i > 0; i--) {
      const uint j = random_below(i + 1), other = numbers[j];
      numbers[j] = numbers[i];
      numbers[i] = other;
    }
}

static void *allocate(ulong bytes) {  // zeroed, on a cache line
  bytes = (bytes + 63) / 64 * 64;
  return memset(aligned_alloc(64, bytes), 0, bytes);
}

// size is the threads per threadgroup; at the grid's far edges a threadgroup may have fewer.
static void prepare_threadgroup(uint number, uint3 grid, uint3 size, uint3 groups, int order) {
  const uint3 position = {number % groups[0], number / groups[0] % groups[1],
                          number / groups[0] / groups[1]};
  const uint3 left = grid - position * size;
  uint3 extent;
  for (int axis = 0; axis < 3; axis++)
    extent[axis] = left[axis] < size[axis] ? left[axis] : size[axis];
  const uint threads = extent[0] * extent[1] * extent[2], full = size[0] * size[1] * size[2];
  launch.threadgroup = {};
  launch.threadgroup.number = number + 1;
  launch.threadgroup.size = threads;
  for (uint s = 0; s * 32 < threads; s++) {
    Simdgroup *group = &launch.simdgroups[s];
    group->exchange.active[0] = group->exchange.active[1] = 0;
    group->size = threads - s * 32 < 32 ? threads - s * 32 : 32;
    group->arrived = group->returned = group->epoch[0] = group->epoch[1] = 0;
  }
  for (uint i = 0; i < threads; i++) {
    const uint3 at = {i % extent[0], i / extent[0] % extent[1], i / extent[0] / extent[1]};
    MslThread *t = &launch.fibers[i].thread;
    t->thread_position_in_threadgroup = at;
    t->threadgroup_position_in_grid = position;
    t->thread_position_in_grid = position * size + at;
    t->threads_per_threadgroup = extent;
    t->dispatch_threads_per_threadgroup = size;
    t->threads_per_grid = t->grid_size = grid;
    t->grid_origin = uint3{0, 0, 0};
    t->threadgroups_per_grid = groups;
    t->thread_index_in_threadgroup = i;
    t->thread_index_in_simdgroup = i % 32;
    t->thread_index_in_quadgroup = i % 4;
    t->simdgroup_index_in_threadgroup = i / 32;
    t->quadgroup_index_in_threadgroup = i / 4;
    t->simdgroups_per_threadgroup = (threads + 31) / 32;
    t->dispatch_simdgroups_per_threadgroup = (full + 31) / 32;
    t->quadgroups_per_threadgroup = (threads + 3) / 4;
    t->dispatch_quadgroups_per_threadgroup = (full + 3) / 4;
    t->threads_per_simdgroup = t->thread_execution_width = 32;
    t->operations = 0;
    t->simdgroup = &launch.simdgroups[i / 32].exchange;
  }
  fill_order(launch.schedule, threads, order);
  uint filled[MAX_THREADS / 32] = {};
  for (uint k = 0; k < threads; k++) {
    const uint i = launch.schedule[k];
    launch.lanes[i / 32 * 32 + filled[i / 32]++] = i;
  }
  clear_threadgroup_variables();
}

static void find_unwritten(const MslBuffer &buffer, const Region *region) {
  ulong missing = 0, first = 0;
  const ulong cells = buffer.bytes >> region->cell_shift;
  for (ulong i = 0; i < cells; i++)
    if (!region->cells[i].write.threadgroup && !missing++) first = i;
  if (missing && !launch.failed) {
    launch.failed = true;
    snprintf(launch.error, launch.error_size,
             "output '%s': %lu of %lu elements were never written (first: %lu)", region->name,
             missing, cells, first);
  }
}

extern "C" __attribute__((visibility("default"))) int msl_launch(
    const MslBuffer *buffers, const char **names, int count, const uint *grid_,
    const uint *threadgroup, int order, ulong seed, int sanitize, ulong stack_size, char *error,
    ulong error_size, MslStats *stats) {
  *stats = {};
  launch = {};
  launch.stats = stats;
  launch.error = error;
  launch.error_size = error_size;
  msl_sanitize = sanitize;
  random_state = seed * 0x9e3779b97f4a7c15ul + 0x1234567;

  const uint3 grid = {grid_[0], grid_[1], grid_[2]};
  uint3 size, groups;
  for (int axis = 0; axis < 3; axis++) {  // as MLX
    size[axis] = threadgroup[axis] < grid[axis] ? threadgroup[axis] : grid[axis];
    groups[axis] = size[axis] ? (grid[axis] + size[axis] - 1) / size[axis] : 0;
  }
  const ulong full = (ulong)size[0] * size[1] * size[2];
  if (full == 0 || full > MAX_THREADS) {
    snprintf(error, error_size, "threads per threadgroup: %lu", full);
    return 1;
  }
  if (count > MAX_BUFFERS) {
    snprintf(error, error_size, "%d buffers, the limit is %d", count, MAX_BUFFERS);
    return 1;
  }

  // Buffers are copied, so that each has its own bounds.
  ulong bytes = 0;
  for (int i = 0; i < count; i++) bytes += buffers[i].bytes;
  create_arena(bytes, count);
  Region *regions[MAX_BUFFERS];
  for (int i = 0; i < count; i++) {
    const MslBuffer &b = buffers[i];
    regions[i] = add_region(names[i], b.bytes, b.element, b.element, b.flags, DEVICE);
    launch.buffers[i] = regions[i]->low;
    if (b.flags & (IS_INPUT | IS_INITIALISED))
      memcpy(regions[i]->low, b.data, b.bytes);
    else
      memset(regions[i]->low, 0xff, b.bytes);
  }

  stack_size = (stack_size + PAGE - 1) / PAGE * PAGE;
  launch.stacks_size = stack_size * full;
  launch.stacks = (char *)mmap(nullptr, launch.stacks_size, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  launch.fibers = (Fiber *)allocate(sizeof(Fiber) * full);
  launch.simdgroups = (Simdgroup *)allocate(sizeof(Simdgroup) * ((full + 31) / 32));
  launch.schedule = (uint *)allocate(sizeof(uint) * full);
  launch.lanes = (uint *)allocate(sizeof(uint) * full);
  for (ulong i = 0; i < full; i++) {
    Fiber *fiber = &launch.fibers[i];
    fiber->stack_low = launch.stacks + i * stack_size;
    fiber->stack_high = fiber->stack_low + stack_size;
    fiber->thread.thread_index_in_threadgroup = i;
    prepare_fiber(fiber);
  }

  const uint group_count = groups[0] * groups[1] * groups[2];
  uint *group_order = (uint *)allocate(sizeof(uint) * group_count);
  fill_order(group_order, group_count, order);
  for (uint i = 0; i < group_count && !launch.failed; i++) {
    prepare_threadgroup(group_order[i], grid, size, groups, order);
    run_fibers();
  }
  for (int i = 0; i < count && !launch.failed; i++)
    if (sanitize && buffers[i].flags == IS_OUTPUT) find_unwritten(buffers[i], regions[i]);
  for (int i = 0; i < count && !launch.failed; i++)
    if (buffers[i].flags & IS_OUTPUT) memcpy(buffers[i].data, regions[i]->low, buffers[i].bytes);

  free(group_order);
  free(launch.lanes);
  free(launch.schedule);
  free(launch.simdgroups);
  free(launch.fibers);
  munmap(launch.stacks, launch.stacks_size);
  destroy_arena();
  return launch.failed;
}
