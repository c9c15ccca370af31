# SPDX-License-Identifier: Apache-2.0
"""The networks, in MindSpore. Axis legend used in every shape comment of this package:

B or N batch, F video frames, I images appended on the frame axis (`use_image_num`), C latent channels, H and
W latent height and width, p patch size, h = H // p, w = W // p, T = h * w tokens of a frame, D hidden width,
A attention heads, d = D // A width of a head, L text tokens, S text rows of a sample (1 + I), R condition
rows.

The residual stream is two-dimensional, (B*F*T, D), tokens ordered sample-major, then frame, then row, then
column. It is never permuted: attending over space or over time is a way of grouping its rows
(`TokenLayout.attend`).
"""
