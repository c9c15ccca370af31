# SPDX-License-Identifier: Apache-2.0
"""Evidence for the training step: one file of cases per file of the same name. A case is data, never code."""
