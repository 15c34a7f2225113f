// What a compiled kernel and the runtime share: a thread's attributes and the runtime's functions.
#pragma once

typedef unsigned int uint;
typedef unsigned long ulong;
typedef uint uint3 __attribute__((ext_vector_type(3)));

struct MslSimdgroup {  // where the lanes of one simdgroup exchange values
  uint active[2];      // bit mask of the lanes that arrived, for odd and even operations
  alignas(16) unsigned char slot[2][32][64];
  alignas(16) unsigned char result[2][32][64];
};

struct MslThread {  // the fields are named as the attributes in MSL
  uint3 thread_position_in_grid, thread_position_in_threadgroup, threadgroup_position_in_grid;
  uint3 threads_per_threadgroup, dispatch_threads_per_threadgroup, threadgroups_per_grid;
  uint3 threads_per_grid, grid_size, grid_origin;
  uint thread_index_in_threadgroup, thread_index_in_simdgroup, thread_index_in_quadgroup;
  uint simdgroup_index_in_threadgroup, quadgroup_index_in_threadgroup;
  uint simdgroups_per_threadgroup, dispatch_simdgroups_per_threadgroup;
  uint quadgroups_per_threadgroup, dispatch_quadgroups_per_threadgroup;
  uint threads_per_simdgroup, thread_execution_width;
  uint operations;  // simdgroup operations so far; their parity chooses the slots
  MslSimdgroup *simdgroup;
};

// The operations in which the lanes of a simdgroup meet.
#define MSL_OPERATIONS(X)                     \
  X(BARRIER, simdgroup_barrier)               \
  X(SUM, simd_sum)                            \
  X(MAX, simd_max)                            \
  X(INCLUSIVE_SUM, simd_prefix_inclusive_sum) \
  X(SHUFFLE, simd_shuffle)                    \
  X(SHUFFLE_UP, simd_shuffle_up)              \
  X(SHUFFLE_DOWN, simd_shuffle_down)          \
  X(ROTATE_DOWN, simd_shuffle_rotate_down)    \
  X(MULTIPLY, simdgroup_multiply_accumulate)  \
  X(LOAD, simdgroup_load)                     \
  X(STORE, simdgroup_store)
enum MslOperation {
#define MSL_ENUMERATOR(ID, NAME) MSL_OP_##ID,
  MSL_OPERATIONS(MSL_ENUMERATOR)
#undef MSL_ENUMERATOR
};

extern "C" {
extern MslThread *msl_thread;  // that runs
extern int msl_sanitize;

// Waits for all threads of the threadgroup or all lanes of the simdgroup; flags are mem_flags.
void msl_threadgroup_barrier(int flags);
void msl_simdgroup_barrier(int flags);
// Waits for all lanes; the last to arrive computes everyone's result from the slots.
void msl_simdgroup_operation(MslOperation operation, void (*compute)(MslSimdgroup *, int parity),
                             int parity);
// The memory of a threadgroup variable, the same for all threads of a threadgroup.
void *msl_threadgroup_variable(int number, const char *name, ulong bytes, ulong element,
                               ulong align);
// Accesses that instrumentation does not see: those of a simdgroup as a whole.
void msl_simdgroup_access(const volatile void *address, ulong bytes, int is_write,
                          const void *caller);
void msl_fail(const char *message);  // does not return to the kernel
}
