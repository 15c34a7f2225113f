// Memory of buffers and threadgroup variables: each between pages that belong to nothing.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "state.h"

static char *arena;
static ulong arena_size, arena_used;
static Region regions[MAX_REGIONS + 1];  // region 0 is nothing
static int region_count;
static unsigned char *region_of_page;  // the number, also on the region's guard pages

static struct {
  void *address;
  ulong bytes;
} variables[MAX_VARIABLES];
static ulong threadgroup_bytes;

static void *map(ulong bytes) {
  void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) abort();
  return memory;
}

void create_arena(ulong buffer_bytes, int buffer_count) {
  const ulong page_slack = (2 * GUARD_PAGES + 1) * PAGE;
  arena_size = PAGE + buffer_bytes + buffer_count * page_slack + MAX_THREADGROUP_MEMORY +
               MAX_VARIABLES * page_slack;
  arena_size = (arena_size + PAGE - 1) / PAGE * PAGE;
  arena = (char *)map(arena_size);
  arena_used = 0;
  region_of_page = (unsigned char *)calloc(arena_size / PAGE, 1);
  region_count = 0;
  memset(variables, 0, sizeof variables);
  threadgroup_bytes = 0;
}

void destroy_arena() {
  for (int i = 1; i <= region_count; i++) {
    if (regions[i].cells) munmap(regions[i].cells, regions[i].cell_count * sizeof(Cell));
    if (i <= MAX_BUFFERS && regions[i].space == DEVICE) {
      launch.stats->loads[i - 1] = regions[i].loads;
      launch.stats->stores[i - 1] = regions[i].stores;
    }
  }
  munmap(arena, arena_size);
  free(region_of_page);
}

Region *add_region(const char *name, ulong bytes, uint element, uint cell, int flags,
                   MemorySpace space) {
  const ulong pages = (bytes + PAGE - 1) / PAGE + 2 * GUARD_PAGES;
  Region *region = &regions[++region_count];
  memset(region, 0, sizeof *region);
  memset(region_of_page + arena_used / PAGE, region_count, pages);
  region->low = arena + arena_used + GUARD_PAGES * PAGE;
  region->high = region->low + bytes;
  region->element = element;
  region->cell_shift = __builtin_ctz(cell | 8);
  region->flags = flags;
  region->space = space;
  snprintf(region->name, sizeof region->name, "%s", name);
  arena_used += pages * PAGE;
  if (msl_sanitize && flags != IS_INPUT) {
    region->cell_count = (bytes >> region->cell_shift) + 2;
    region->cells = (Cell *)map(region->cell_count * sizeof(Cell));
  }
  return region;
}

bool in_arena(const char *address) { return (ulong)address - (ulong)arena < arena_size; }

Region *region_near(const char *address) {
  const uint number = region_of_page[(ulong)(address - arena) / PAGE];
  return number ? &regions[number] : nullptr;
}

constexpr ulong LARGEST_ALIGNMENT = 16;

extern "C" void *msl_threadgroup_variable(int number, const char *name, ulong bytes, ulong element,
                                          ulong align) {
  if (number >= MAX_VARIABLES) fail("more than %d threadgroup variables", MAX_VARIABLES);
  if (!variables[number].address) {
    threadgroup_bytes = (threadgroup_bytes + align - 1) / align * align + bytes;
    if (threadgroup_bytes > MAX_THREADGROUP_MEMORY)
      fail("threadgroup memory: %lu bytes with '%s', the limit is %lu", threadgroup_bytes, name,
           MAX_THREADGROUP_MEMORY);
    launch.stats->threadgroup_bytes = threadgroup_bytes;
    // A structure's members may belong to different threads.
    const uint cell = (uint)(element | align);
    Region *region = add_region(name, bytes + LARGEST_ALIGNMENT, (uint)element, cell, IS_OUTPUT,
                                THREADGROUP);
    // No better aligned than was asked for, so that whatever relies on more is found.
    if (align < LARGEST_ALIGNMENT) region->low += align;
    region->high = region->low + bytes;
    variables[number] = {region->low, bytes};
    memset(region->low, 0xff, bytes);
  }
  return variables[number].address;
}

void clear_threadgroup_variables() {  // to NaN and to large numbers
  for (auto &variable : variables)
    if (variable.address) memset(variable.address, 0xff, variable.bytes);
}
