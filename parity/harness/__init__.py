# SPDX-License-Identifier: Apache-2.0
"""The harness. Data flows one way: case -> inputs and weights -> worker processes -> traces -> gates -> report.

The judge (case, inputs, weights, emulate, runner, gates, report) imports neither framework. `worker` runs in
a process of its own per (framework, device, dtype) and imports exactly one of `torch_side` and `mindspore_side`.
"""
