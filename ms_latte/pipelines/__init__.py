# SPDX-License-Identifier: Apache-2.0
"""From noise to latents to frames: model, sampler and VAE put together.

Axis letters: N samples, F frames, C latent channels, h and w latent height and width, L text tokens. The class family
computes on latents (N, F, C, h, w), the text family on (N, C, F, h, w); what comes in and goes out of a pipeline is
always (N, F, C, h, w).
"""
