// Keywords, built-in types and constants of MSL.
#pragma once
#ifdef __OPENCL_CPP_VERSION__
#define MSL_CHECK 1
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#define device __global
#define constant __constant
#define threadgroup __local
#define thread __private
typedef __bf16 bfloat;
typedef unsigned int uint;
typedef unsigned long ulong;
#else
#define MSL_CHECK 0
#include "../runtime_interface.h"
#define device
#define constant
#define threadgroup
#define thread
typedef _Float16 half;
typedef __bf16 bfloat;
constexpr half operator""h(long double v) { return (half)v; }
constexpr half operator""h(unsigned long long v) { return (half)v; }
// Emulation, not the kernel's own accesses: not to be instrumented. Not inlined, so that the
// return address is in the kernel.
#define MSL_EMULATION __attribute__((no_sanitize("thread", "undefined"), noinline))
#endif

#define kernel
#define vertex  // keywords in MSL: not to be used as names
#define fragment
#define METAL_FUNC inline __attribute__((always_inline))
#define METAL_INTERNAL METAL_FUNC
#define __METAL__ 1
#ifndef __METAL_VERSION__
#define __METAL_VERSION__ 320
#endif

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef signed char int8_t;
typedef uchar uint8_t;
typedef short int16_t;
typedef ushort uint16_t;
typedef int int32_t;
typedef uint uint32_t;
typedef long int64_t;
typedef ulong uint64_t;
typedef ulong size_t;
typedef long ptrdiff_t;

#define MSL_VECTOR_TYPES(T)                           \
  typedef T T##2 __attribute__((ext_vector_type(2))); \
  typedef T T##3 __attribute__((ext_vector_type(3))); \
  typedef T T##4 __attribute__((ext_vector_type(4)));
MSL_VECTOR_TYPES(float)
MSL_VECTOR_TYPES(half)
MSL_VECTOR_TYPES(bfloat)
MSL_VECTOR_TYPES(char)
MSL_VECTOR_TYPES(uchar)
MSL_VECTOR_TYPES(short)
MSL_VECTOR_TYPES(ushort)
MSL_VECTOR_TYPES(int)
MSL_VECTOR_TYPES(uint)
MSL_VECTOR_TYPES(long)
MSL_VECTOR_TYPES(ulong)

#ifndef INFINITY
#define INFINITY __builtin_inff()
#endif
#ifndef NAN
#define NAN __builtin_nanf("")
#endif
#ifndef FLT_MAX
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.192092896e-07f
#define HALF_MAX 65504.0h
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 0xffffffffu
#define M_PI_F 3.14159265358979323846f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.69314718055994530942f
#endif
