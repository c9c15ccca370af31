# SPDX-License-Identifier: Apache-2.0
"""The file formats that hold tensors, one module each. Readers map files; writers stream into an `Output`.

    read_X(path) -> entries (with metadata, where the format has any), headers checked, no data read
    write_X(output, entries, metadata)   metadata is a map of words to words; formats without a place ignore it

`source` opens whatever a path leads to, `target` writes whatever a target's name asks for.
"""
