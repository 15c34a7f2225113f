// Fibers: switching between them, and what they wait for.
#include <stdarg.h>
#include <stdio.h>

#include "state.h"

extern "C" {
MslThread *msl_thread;
int msl_sanitize;
void msl_entry(void **buffers, const MslThread *thread);  // the kernel
// Saves the stack pointer and the callee-saved registers, and takes up another stack.
void msl_switch_stack(void **save, void *to);
}
Launch launch;

#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.globl msl_switch_stack
.hidden msl_switch_stack
.type msl_switch_stack,@function
msl_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
)");
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 4
.globl msl_switch_stack
.hidden msl_switch_stack
.type msl_switch_stack,%function
msl_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  br x30
)");
#else
#error "msl_switch_stack has to be written for this processor"
#endif

// ---- the queue of fibers that can run; never longer than a threadgroup
static uint queue[MAX_THREADS], queue_start, queue_length;

static void make_ready(uint index) {
  launch.fibers[index].state = READY;
  queue[(queue_start + queue_length++) % MAX_THREADS] = index;
}

static uint next_ready() {
  queue_length--;
  return queue[queue_start++ % MAX_THREADS];
}

void fail(const char *format, ...) {
  if (!launch.failed) {
    launch.failed = true;
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(launch.error, launch.error_size, format, arguments);
    va_end(arguments);
    const MslThread *t = msl_thread;
    const uint3 group = t->threadgroup_position_in_grid, at = t->thread_position_in_threadgroup;
    if (length > 0 && (ulong)length < launch.error_size)
      snprintf(launch.error + length, launch.error_size - length,
               "\n  at threadgroup (%u,%u,%u) thread (%u,%u,%u) simdgroup %u lane %u", group[0],
               group[1], group[2], at[0], at[1], at[2], t->simdgroup_index_in_threadgroup,
               t->thread_index_in_simdgroup);
  }
  void *abandoned;
  msl_switch_stack(&abandoned, launch.launcher_stack_pointer);
  __builtin_unreachable();
}

extern "C" void msl_fail(const char *message) { fail("%s", message); }

// Runs another fiber; this one waits for something, has returned, or is in the queue.
static void yield_fiber(Fiber *fiber) {
  if (!queue_length) {
    uint returned = 0, at_barrier = 0, at_operation = 0, simdgroup = 0;
    for (uint i = 0; i < launch.threadgroup.size; i++) {
      const FiberState state = launch.fibers[i].state;
      returned += state == RETURNED;
      at_barrier += state == AT_THREADGROUP_BARRIER;
      if (state == AT_SIMDGROUP_OPERATION && !at_operation++) simdgroup = i / 32;
    }
    if (returned != launch.threadgroup.size)
      fail(
          "divergence: %u of %u threads wait at a threadgroup_barrier, %u at a simdgroup "
          "operation (e.g. simdgroup %u), %u have returned",
          at_barrier, launch.threadgroup.size, at_operation, simdgroup, returned);
    msl_switch_stack(&fiber->stack_pointer, launch.launcher_stack_pointer);
    return;
  }
  Fiber *next = &launch.fibers[next_ready()];
  if (next == fiber) return;
  msl_thread = &next->thread;
  launch.stats->switches++;
  msl_switch_stack(&fiber->stack_pointer, next->stack_pointer);
}

// ---- simdgroup operations
static void finish_operation(uint index) {
  Simdgroup *group = &launch.simdgroups[index];
  if (group->compute) group->compute(&group->exchange, group->parity);
  group->exchange.active[group->parity ^ 1] = 0;
  group->arrived = 0;
  for (uint k = 0; k < group->size; k++) {
    const uint i = launch.lanes[index * 32 + k];
    if (launch.fibers[i].state == AT_SIMDGROUP_OPERATION) make_ready(i);
  }
}

static const char *operation_name(MslOperation operation) {
#define MSL_NAME(ID, NAME) #NAME,
  static const char *names[] = {MSL_OPERATIONS(MSL_NAME)};
#undef MSL_NAME
  return names[operation];
}

static void meet(MslOperation operation, void (*compute)(MslSimdgroup *, int), int parity,
                 int flags) {
  Fiber *fiber = current_fiber();
  const uint index = fiber->thread.simdgroup_index_in_threadgroup;
  Simdgroup *group = &launch.simdgroups[index];
  if (!group->arrived) {
    group->operation = operation;
    group->compute = compute;
    group->parity = parity;
    launch.stats->simdgroup_operations++;
    launch.stats->multiplications += operation == MSL_OP_MULTIPLY;
  } else if (group->operation != operation || group->compute != compute) {
    fail("simdgroup divergence: a lane is in %s while others are in %s", operation_name(operation),
         operation_name(group->operation));
  }
  group->exchange.active[parity] |= 1u << fiber->thread.thread_index_in_simdgroup;
  if (++group->arrived + group->returned < group->size) {
    fiber->state = AT_SIMDGROUP_OPERATION;
    yield_fiber(fiber);
    return;
  }
  if (flags & 1) group->epoch[DEVICE]++;
  if (flags & 2) group->epoch[THREADGROUP]++;
  finish_operation(index);
}

extern "C" void msl_simdgroup_operation(MslOperation operation,
                                        void (*compute)(MslSimdgroup *, int), int parity) {
  meet(operation, compute, parity, 0);
}

extern "C" void msl_simdgroup_barrier(int flags) {
  meet(MSL_OP_BARRIER, nullptr, msl_thread->operations++ & 1, flags);
}

// ---- threadgroup barriers
extern "C" void msl_threadgroup_barrier(int flags) {
  Fiber *fiber = current_fiber();
  Threadgroup *group = &launch.threadgroup;
  if (group->returned)
    fail("threadgroup_barrier: %u threads have already returned", group->returned);
  if (!group->arrived) {
    group->flags = flags;
    launch.stats->threadgroup_barriers++;
  } else if (group->flags != flags) {
    fail("threadgroup_barrier: threads disagree on mem_flags (%d, %d): different barriers?",
         group->flags, flags);
  }
  fiber->state = AT_THREADGROUP_BARRIER;
  if (++group->arrived == group->size) {
    group->arrived = 0;
    if (flags & 1) group->epoch[DEVICE]++;
    if (flags & 2) group->epoch[THREADGROUP]++;
    // The schedule, not the order of arrival, says who goes first.
    for (uint k = 0; k < group->size; k++) make_ready(launch.schedule[k]);
  }
  yield_fiber(fiber);
}

// ---- a fiber's life
static void fiber_main() {
  for (;;) {  // once per threadgroup
    Fiber *fiber = current_fiber();
    msl_entry(launch.buffers, &fiber->thread);
    fiber->state = RETURNED;
    launch.stats->threads++;
    const uint index = fiber->thread.simdgroup_index_in_threadgroup;
    Simdgroup *simdgroup = &launch.simdgroups[index];
    simdgroup->returned++;
    launch.threadgroup.returned++;
    // Lanes that returned are inactive; the others need not wait for them.
    if (simdgroup->arrived && simdgroup->arrived + simdgroup->returned == simdgroup->size)
      finish_operation(index);
    if (launch.threadgroup.arrived)
      fail("threadgroup_barrier: %u threads wait, but thread %u returned without reaching it",
           launch.threadgroup.arrived, fiber->thread.thread_index_in_threadgroup);
    yield_fiber(fiber);
  }
}

void prepare_fiber(Fiber *fiber) {
  // Stacks that start at one stride would share sets of the cache.
  const ulong stagger = fiber->thread.thread_index_in_threadgroup * 832 % 16384 / 64 * 64;
  ulong *stack = (ulong *)(fiber->stack_high - stagger) - 8;
#if defined(__x86_64__)
  *--stack = 0;  // in the place of a return address; then fiber_main, then six registers
  *--stack = (ulong)fiber_main;
  stack -= 6;
#else
  stack -= 20;
  stack[11] = (ulong)fiber_main;  // x30
#endif
  fiber->stack_pointer = stack;
}

void run_fibers() {
  queue_start = queue_length = 0;
  for (uint k = 0; k < launch.threadgroup.size; k++) make_ready(launch.schedule[k]);
  Fiber *first = &launch.fibers[next_ready()];
  msl_thread = &first->thread;
  msl_switch_stack(&launch.launcher_stack_pointer, first->stack_pointer);
}
