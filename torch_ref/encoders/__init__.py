# SPDX-License-Identifier: Apache-2.0
"""The frozen networks around the denoiser: the VAEs between pixels and latents, and T5, which reads the captions.

Axis legend used in every shape comment of this package: B batch, F video frames, N = B * F pictures in
sample-major order, C channels (I in, O out), G groups of a normalisation, H and W height and width of the tensor at
hand, h and w those of the result, L text tokens, D hidden width.
"""
