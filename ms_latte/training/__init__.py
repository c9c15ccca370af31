# SPDX-License-Identifier: Apache-2.0
"""The training step, in MindSpore. Axis legend: as in `ms_latte.diffusion`; I joint images, L text tokens.

Everything random (noise, timesteps, posterior samples, drops) and everything scheduled (rate, decay, clipping)
is an argument of the step, made in numpy. Sums, moments and averages are float32 whatever the model computes in,
float64 under Precision("fp64").
"""
