# SPDX-License-Identifier: Apache-2.0
"""Training data: clips found on disk, made into batches whose every number follows from (seed, epoch, position).

Axis legend of this package: N samples of a batch, F video frames, I joint images behind them, C latent channels,
H and W height and width in pixels, h and w in latents.
"""
