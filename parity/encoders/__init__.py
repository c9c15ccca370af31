# SPDX-License-Identifier: Apache-2.0
"""Evidence for the encoders: one file of cases per file of the same name. A case is data, never code.

All dimensions of a case differ from each other, so that a swapped axis cannot hide.
"""
