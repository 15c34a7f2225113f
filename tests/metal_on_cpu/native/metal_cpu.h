// Enough of <metal_stdlib> for compute kernels, off Apple hardware.
//
//   CHECK mode  clang -x cl -cl-std=clc++2021: device, threadgroup, constant and thread are real,
//               disjoint address spaces, and there is no double.
//   RUN mode    clang -x c++ -std=c++17 -cl-single-precision-constant: the address spaces are
//               blank; barriers and simdgroup operations call the runtime, which runs each thread
//               of a threadgroup as a fiber.
//
// The headers are themselves written in MSL, so that one definition serves both modes where it can.
#pragma once
#include "metal/language.h"
#include "metal/traits.h"
#include "metal/math.h"
#include "metal/integer.h"
#include "metal/simdgroup.h"
#include "metal/simdgroup_matrix.h"
#include "metal/threadgroup_variables.h"
#include "metal/vector_constructors.h"  // last: from here on float4 and the like are macros
