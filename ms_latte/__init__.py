# SPDX-License-Identifier: Apache-2.0
"""Latte and LatteT2V, latent diffusion transformers for video, in MindSpore.

`ms_latte.models` holds the networks, `ms_latte.checkpoint.load` turns a file into a model,
`ms_latte.device.select` picks the device. Importing the package touches no device, file or network; it needs
neither torch nor mindone.
"""
