// The state of a launch. Threadgroups run one after the other on the calling thread, the threads of
// a threadgroup as fibers.
#pragma once
#include "../runtime_interface.h"

enum FiberState { READY, AT_THREADGROUP_BARRIER, AT_SIMDGROUP_OPERATION, RETURNED };
struct Fiber {
  MslThread thread;  // first: msl_thread points at a Fiber
  void *stack_pointer;
  char *stack_low, *stack_high;
  FiberState state;
};

// An epoch counts the barriers that ordered accesses to a memory space.
enum MemorySpace { DEVICE, THREADGROUP };

struct Simdgroup {
  MslSimdgroup exchange;
  uint size, arrived, returned, epoch[2];
  MslOperation operation;  // of the lanes that arrived
  void (*compute)(MslSimdgroup *, int);
  int parity;
};

struct Threadgroup {
  uint number;  // linear index + 1
  uint size, arrived, returned, epoch[2];
  int flags;  // of the barrier at which threads have arrived
};

struct Access {      // the last access of one kind to a cell
  uint threadgroup;  // number; 0: none, SEVERAL_THREADGROUPS
  uint epoch, simdgroup_epoch, program_counter;
  unsigned short actor;      // thread index, SIMDGROUP_ACTOR + simdgroup index, or SEVERAL
  unsigned short simdgroup;  // index or SEVERAL
};
const uint SEVERAL_THREADGROUPS = ~0u;
const unsigned short SEVERAL = 0xffff, SIMDGROUP_ACTOR = 0x8000;

struct Cell {  // shadow of one element
  Access read, write;
};

enum BufferFlags { IS_INPUT = 1, IS_OUTPUT = 2, IS_INITIALISED = 4 };
struct Region {  // a buffer or a threadgroup variable
  char *low, *high;
  uint element;     // bytes
  uint cell_shift;  // log2 of the bytes of a cell
  int flags;        // BufferFlags
  MemorySpace space;
  char name[48];
  Cell *cells;  // of what is written to, when sanitizing
  ulong cell_count;
  ulong loads, stores;
};

const ulong PAGE = 4096, GUARD_PAGES = 8;
const int MAX_BUFFERS = 31;  // Metal's limit
const int MAX_VARIABLES = 64;
const int MAX_REGIONS = MAX_BUFFERS + MAX_VARIABLES;
const ulong MAX_THREADGROUP_MEMORY = 32768;
const uint MAX_THREADS = 1024;

struct MslStats {  // as launch.py has it
  ulong threads, threadgroup_barriers, simdgroup_operations, multiplications, switches;
  ulong threadgroup_bytes, loads[MAX_BUFFERS], stores[MAX_BUFFERS];
};

struct Launch {
  void *buffers[MAX_BUFFERS];
  MslStats *stats;
  char *error;
  ulong error_size;
  bool failed;
  Threadgroup threadgroup;
  Fiber *fibers;          // by thread index
  Simdgroup *simdgroups;  // by index
  uint *schedule;         // the order of the threads, and that of
  uint *lanes;            // each simdgroup's, from 32 * its index on
  char *stacks;
  ulong stacks_size;
  ulong accesses;
  void *launcher_stack_pointer;
};
extern Launch launch;

// ---- fibers.cpp
static inline Fiber *current_fiber() { return (Fiber *)msl_thread; }
void prepare_fiber(Fiber *fiber);                 // to call the kernel on its stack
void run_fibers();                                // until all have returned or one has failed
[[noreturn]] void fail(const char *format, ...);  // as printf; leaves the kernel

// ---- memory.cpp
void create_arena(ulong buffer_bytes, int buffer_count);
void destroy_arena();
Region *add_region(const char *name, ulong bytes, uint element, uint cell, int flags,
                   MemorySpace space);
void clear_threadgroup_variables();
bool in_arena(const char *address);
// The region that the address is in, or on whose guard pages it is, or null.
Region *region_near(const char *address);
