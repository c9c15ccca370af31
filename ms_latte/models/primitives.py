# SPDX-License-Identifier: Apache-2.0
"""Operators that the networks share, each made once: making one takes longer than its kernel does on small tensors.

This file has no twin: torch's operators are functions.
"""

from mindspore import ops

matmul, matmul_t = ops.MatMul(), ops.MatMul(transpose_b=True)  # x y, x y^T
batch_matmul, batch_matmul_t = ops.BatchMatMul(), ops.BatchMatMul(transpose_b=True)
bias_add = ops.BiasAdd()  # along axis 1
softmax = ops.Softmax(-1)
reduce_mean, reduce_mean_keep = ops.ReduceMean(), ops.ReduceMean(True)  # axes dropped, axes kept as 1
reduce_sum = ops.ReduceSum()
real_div = ops.RealDiv()  # the operator / takes five times as long on the CPU
