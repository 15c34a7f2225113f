// Looks at every access to memory: bounds, initialisation, and data races.
//
// Two accesses to a cell race if one of them is a write and nothing orders them: neither one
// thread's program, nor a barrier of the threadgroup (or, between lanes of one simdgroup, of the
// simdgroup) whose mem_flags name the memory. No barrier reaches across threadgroups. What the
// schedule did does not matter.
#include <string.h>

#include "state.h"

extern "C" {
extern __attribute__((visibility("hidden"))) char __ehdr_start, _end;  // of the kernel's library
}
static inline uint program_counter(const void *address) {
  return (uint)((const char *)address - &__ehdr_start);
}

enum Kind { PLAIN, COLLECTIVE };  // COLLECTIVE: simdgroup_load and simdgroup_store
const ulong MAX_ACCESSES = 1ul << 31;  // some 20 seconds; more is taken for an endless loop

struct Actor {
  uint program_counter;
  unsigned short id, simdgroup;
};

static const char *memory_name(const Region *r) {
  return r->space == THREADGROUP ? "threadgroup" : "device";
}

static long element_index(const Region *r, const char *address) {
  const long bytes = address - r->low, element = r->element;
  return (bytes < 0 ? bytes - element + 1 : bytes) / element;
}

// Threadgroup memory does not outlive its threadgroup.
static inline bool happened(const Region *r, const Access &a) {
  return r->space == THREADGROUP ? a.threadgroup == launch.threadgroup.number : a.threadgroup;
}

static inline bool same_actor(const Access &a, const Actor &actor) {
  return a.threadgroup == launch.threadgroup.number && a.actor == actor.id;
}

static inline bool barrier_since(const Region *r, const Access &a, const Actor &actor) {
  if (a.threadgroup != launch.threadgroup.number) return false;
  if (a.epoch < launch.threadgroup.epoch[r->space]) return true;
  return a.simdgroup == actor.simdgroup &&
         a.simdgroup_epoch < launch.simdgroups[a.simdgroup].epoch[r->space];
}

[[noreturn]] static void race(const Region *r, const char *address, const char *what,
                              const Actor &actor, const char *earlier, const Access &a) {
  const bool elsewhere = a.threadgroup != launch.threadgroup.number;
  const char *barrier = elsewhere ? ", which no barrier orders" : " with no barrier between";
  const char *form = a.threadgroup == SEVERAL_THREADGROUPS ? "several threadgroups"
                     : elsewhere                           ? "threadgroup #%u"
                     : a.actor == SEVERAL                  ? "several threads"
                     : a.actor & SIMDGROUP_ACTOR           ? "simdgroup %u"
                                                           : "thread %u";
  const uint number = elsewhere ? a.threadgroup - 1 : a.actor & ~SIMDGROUP_ACTOR;
  char who[64];
  __builtin_snprintf(who, sizeof who, form, number);
  fail(
      "data race on %s '%s'[%ld]: %s, and an earlier %s by %s%s\n  pc 0x%x\n  earlier pc "
      "0x%x",
      memory_name(r), r->name, element_index(r, address), what, earlier, who, barrier,
      actor.program_counter, a.program_counter);
}

static Access access_by(const Region *r, const Actor &actor) {
  return {launch.threadgroup.number,
          launch.threadgroup.epoch[r->space],
          launch.simdgroups[actor.simdgroup].epoch[r->space],
          actor.program_counter,
          actor.id,
          actor.simdgroup};
}

// Reads do not race with one another: they leave one record.
static void merge(const Region *r, Access *record, const Actor &actor) {
  const Access now = access_by(r, actor);
  if (!happened(r, *record)) {
    *record = now;
  } else if (record->threadgroup != now.threadgroup) {
    record->threadgroup = SEVERAL_THREADGROUPS;
    record->program_counter = now.program_counter;
  } else if (record->epoch != now.epoch) {
    *record = now;
  } else {
    if (record->actor != now.actor) record->actor = SEVERAL;
    if (record->simdgroup != now.simdgroup) record->simdgroup = SEVERAL;
    if (now.simdgroup_epoch > record->simdgroup_epoch)
      record->simdgroup_epoch = now.simdgroup_epoch;
    record->program_counter = now.program_counter;
  }
}

static void access_cell(Region *r, Cell *cell, bool writes, Kind kind, const Actor &actor) {
  const char *address = r->low + ((ulong)(cell - r->cells) << r->cell_shift);
  const char *what = writes ? "write" : "read";
  const auto unordered = [&](const Access &earlier) {
    return happened(r, earlier) && !same_actor(earlier, actor) && !barrier_since(r, earlier, actor);
  };
  // Which lane holds which element of a matrix is not specified: a simdgroup's own store and load
  // need a barrier, too.
  const bool own_store = kind == COLLECTIVE && !writes && happened(r, cell->write) &&
                         !barrier_since(r, cell->write, actor);
  if (own_store || unordered(cell->write)) race(r, address, what, actor, "write", cell->write);
  if (writes) {
    if (unordered(cell->read)) race(r, address, what, actor, "read", cell->read);
    cell->write = access_by(r, actor);
  } else {
    if (!(r->flags & IS_INITIALISED) && !happened(r, cell->write))
      fail("read of uninitialised %s '%s'[%ld]\n  pc 0x%x", memory_name(r), r->name,
           element_index(r, address), actor.program_counter);
    merge(r, &cell->read, actor);
  }
}

static void access(const void *pointer, ulong bytes, bool writes, Kind kind, const void *caller) {
  const char *address = (const char *)pointer;
  const char *verb = writes ? "write" : "read";
  const uint pc = program_counter(caller);
  if (++launch.accesses > MAX_ACCESSES)
    fail("more than %lu accesses to memory: an endless loop?\n  pc 0x%x", MAX_ACCESSES, pc);
  if (!in_arena(address)) {
    const Fiber *fiber = current_fiber();
    if (address >= fiber->stack_low && address < fiber->stack_high) return;
    if (address >= launch.stacks && address < launch.stacks + launch.stacks_size)
      fail("%s of another thread's private memory\n  pc 0x%x", verb, pc);
    if (!writes && address >= &__ehdr_start && address < &_end) return;  // program-scope constants
    fail("wild %s of %lu bytes at %p\n  pc 0x%x", verb, bytes, address, pc);
  }
  Region *r = region_near(address);
  if (!r) fail("wild %s of %lu bytes between buffers\n  pc 0x%x", verb, bytes, pc);
  if (address < r->low || address + bytes > r->high)
    fail("out of bounds: %s of %lu bytes, %s '%s'[%ld], which has %lu elements\n  pc 0x%x", verb,
         bytes, memory_name(r), r->name, element_index(r, address),
         (ulong)(r->high - r->low) / r->element, pc);
  (writes ? r->stores : r->loads)++;
  if (r->flags == IS_INPUT) {
    if (writes) fail("write to the input '%s'\n  pc 0x%x", r->name, pc);
    return;
  }
  const uint thread = msl_thread->thread_index_in_threadgroup;
  const unsigned short simdgroup = thread / 32;
  const unsigned short id = kind == COLLECTIVE ? SIMDGROUP_ACTOR + simdgroup : thread;
  const Actor actor = {pc, id, simdgroup};
  const ulong first = (ulong)(address - r->low) >> r->cell_shift;
  const ulong last = (ulong)(address + bytes - 1 - r->low) >> r->cell_shift;
  for (ulong i = first; i <= last; i++) access_cell(r, &r->cells[i], writes, kind, actor);
}

extern "C" {
void msl_simdgroup_access(const volatile void *p, ulong bytes, int is_write, const void *caller) {
  access((void *)p, bytes, is_write, COLLECTIVE, caller);
}

// ---- what clang's -fsanitize=thread calls
#define READ(P, N) access(P, N, false, PLAIN, __builtin_return_address(0))
#define WRITE(P, N) access(P, N, true, PLAIN, __builtin_return_address(0))
// Sixteen bytes are two accesses of eight to it.
#define ALIGNED(P, N)                     \
  if ((ulong)(P) % (N < 8 ? N : 8) != 0) \
  fail("misaligned access of %d bytes\n  pc 0x%x", N, program_counter(__builtin_return_address(0)))
#define HOOKS(N)                                                                     \
  void __tsan_read##N(void *p) { ALIGNED(p, N); READ(p, N); }                        \
  void __tsan_write##N(void *p) { ALIGNED(p, N); WRITE(p, N); }                      \
  void __tsan_read_write##N(void *p) { ALIGNED(p, N); READ(p, N), WRITE(p, N); }     \
  void __tsan_unaligned_read##N(void *p) { READ(p, N); }          \
  void __tsan_unaligned_write##N(void *p) { WRITE(p, N); }        \
  void __tsan_unaligned_read_write##N(void *p) { READ(p, N), WRITE(p, N); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_read_range(void *p, ulong n) { READ(p, n); }
void __tsan_write_range(void *p, ulong n) { WRITE(p, n); }
void *__tsan_memcpy(void *to, const void *from, ulong n) {
  READ(from, n), WRITE(to, n);
  return memcpy(to, from, n);
}
void *__tsan_memmove(void *to, const void *from, ulong n) {
  READ(from, n), WRITE(to, n);
  return memmove(to, from, n);
}
void *__tsan_memset(void *to, int value, ulong n) {
  WRITE(to, n);
  return memset(to, value, n);
}
}
