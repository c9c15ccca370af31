# SPDX-License-Identifier: Apache-2.0
"""The diffusion process and its samplers, in PyTorch. Axis legend used in every shape comment of this package:

N batch, F frames, C latent channels, H and W latent height and width, T timesteps of the trained process, K
timesteps that a sampler visits. Latents are (N, F, C, H, W), `channel_axis` 2 (official Latte), or
(N, C, F, H, W), `channel_axis` 1 (LatteT2V). A model with a learned variance returns 2C channels: noise, then
variance.

Tables are numpy float64 (`schedule`, `respace`). Tensors of the process are float32 whatever the model
computes in, float64 under Precision("fp64"). Nothing here draws random numbers: noise is an argument.
"""
