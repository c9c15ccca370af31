# SPDX-License-Identifier: Apache-2.0
"""The published layouts. A new one is a table of rows in this folder and one name in `LAYOUTS`."""

from collections.abc import Collection

from converters.errors import ConversionError
from converters.layouts import latte_official, latte_t2v
from converters.layouts.base import NO_MAP, Layout
from converters.stream import names_of

LAYOUTS = {layout.name: layout for layout in (latte_official.LAYOUT, *latte_t2v.LAYOUTS)}

# Files that this package wrote: our own names, the model and its configuration stand in the metadata.
OURS = {
    "Latte": Layout("ours", latte_official.MODEL, latte_official.RULES, lambda names: False),
    "LatteT2V": Layout("ours", latte_t2v.MODEL, latte_t2v.OUR_RULES, lambda names: False),
}


def choose(
    names: Collection[str], wanted: str | None, class_name: str | None, scale_is_given: bool
) -> Layout:
    """The layout of a published file: the wanted one, or the only one that its names (and config.json) admit.

    class_name      `_class_name` of a config.json: only diffusers itself writes LatteTransformer3DModel
    scale_is_given  temporal_interpolation_scale is known, so official-t2v and open-sora-plan no longer differ
    Raises ConversionError for an unknown name, the wrong model, no candidate or several.
    """
    found = [layout for layout in LAYOUTS.values() if layout.detect(names)]
    if wanted is not None:
        if wanted not in LAYOUTS:
            raise ConversionError(f"unknown layout {wanted!r}", expected=" or ".join([*LAYOUTS, "ours"]))
        layout = LAYOUTS[wanted]
        if found and all(other.model.name != layout.model.name for other in found):
            raise ConversionError(
                f"the file holds a {found[0].model.name}, {wanted!r} is for {layout.model.name}: {NO_MAP}",
                remedy=f"leave --from out, or use --from {found[0].name}",
            )
        return layout
    if not found:
        raise ConversionError(
            "no known layout has these names",
            got=names_of(names),
            expected=" or ".join(LAYOUTS),
            remedy="check that this is the transformer of a Latte model; --from LAYOUT lists what differs",
        )
    if class_name == "LatteTransformer3DModel" and found[0].model.name == "LatteT2V":
        return LAYOUTS["diffusers"]
    if len(found) > 1 and not scale_is_given:
        raise ConversionError(
            f"the file can be {' or '.join(layout.name for layout in found)}: the tensors are alike, but the "
            "temporal positions differ (temporal_interpolation_scale)",
            remedy=" or ".join(f"--from {layout.name}" for layout in found),
        )
    return found[0]
