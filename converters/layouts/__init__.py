# SPDX-License-Identifier: Apache-2.0
"""The published layouts. A new one is a table of rows in this folder and one listing in its `LAYOUTS`.

Layouts are grouped in families, one per command: a family's tensors never become another's.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from converters.errors import ConversionError
from converters.layouts import latte_official, latte_t2v, t5, vae
from converters.layouts.base import Layout, Shapes
from converters.stream import names_of

NO_MAP = (
    "Latte (adaLN-Zero) has a modulation MLP in every block, LatteT2V (adaLN-single) shares one: "
    "no lossless map exists between them"
)


@dataclass(frozen=True)
class Family:
    """Models that one command converts.

    layouts  name -> published layout
    ours     class name -> our own layout
    stem     what the files in a folder are called
    """

    name: str
    command: str
    layouts: Mapping[str, Layout]
    ours: Mapping[str, Layout]
    stem: str

    def named(self, name: str, model: str | None = None) -> Layout:
        """The layout of this name; "ours" needs to know the model. Raises ConversionError."""
        if name == "ours" and model in self.ours:
            return self.ours[model]
        if name not in self.layouts:
            elsewhere = next((f for f in FAMILIES.values() if name in f.layouts), None)
            raise ConversionError(
                f"unknown layout {name!r}",
                expected=" or ".join([*self.layouts, "ours"]),
                remedy=f"{name} is for converters/{elsewhere.command}" if elsewhere else None,
            )
        return self.layouts[name]


def _family(name: str, module: object, *modules: object, stem: str = "diffusion_pytorch_model") -> Family:
    layouts = [layout for part in (module, *modules) for layout in part.LAYOUTS]
    ours = [layout for part in (module, *modules) for layout in part.OURS]
    return Family(
        name,
        f"{name}_converter.py",
        {layout.name: layout for layout in layouts},
        {layout.model.name: layout for layout in ours},
        stem,
    )


FAMILIES = {
    "latte": _family("latte", latte_official, latte_t2v),
    "vae": _family("vae", vae),
    "t5": _family("t5", t5, stem="model"),
}
# Files that this package wrote: our own names, the model and its configuration stand in the metadata.
OURS = {name: layout for family in FAMILIES.values() for name, layout in family.ours.items()}


def candidates(shapes: Shapes, families: Collection[str] = tuple(FAMILIES)) -> list[tuple[Family, Layout]]:
    """Every layout that the names and shapes admit."""
    return [
        (FAMILIES[name], layout)
        for name in families
        for layout in FAMILIES[name].layouts.values()
        if layout.detect(shapes)
    ]


def choose(shapes: Shapes, wanted: str | None, side: Mapping[str, object], family: str) -> Layout:
    """The layout of a published file: the wanted one, or the only one that its names, shapes and config admit.

    wanted  name from the user, or None
    side    what configuration files and the user say: layouts that then do not differ are as good as one
    Raises ConversionError for an unknown name, another family's file, the wrong model, no candidate or several.
    """
    mine = FAMILIES[family]
    found = [layout for _, layout in candidates(shapes, [family])]
    if wanted is not None:
        layout = mine.named(wanted)
        if found and all(other.model.name != layout.model.name for other in found):
            raise ConversionError(
                f"the file holds a {found[0].model.name}, {wanted!r} is for {layout.model.name}"
                + (f": {NO_MAP}" if family == "latte" else ""),
                remedy=f"leave --from out, or use --from {found[0].name}",
            )
        return layout
    if not found:
        others = candidates(shapes, [name for name in FAMILIES if name != family])
        raise ConversionError(
            "no known layout has these names"
            if not others
            else f"this is a {others[0][1].model.name} in layout {others[0][1].name!r}, not for this command",
            got=names_of(shapes),
            expected=" or ".join(mine.layouts),
            remedy=f"converters/{others[0][0].command}"
            if others
            else f"check that this is a {' or '.join(mine.ours)}; --from LAYOUT lists what differs",
        )
    if written := _written(mine, found[0].model.name, side.get("_layout")):
        return written
    if (
        side.get("_class_name") == "LatteT2V" and found[0].name == "diffusers"
    ):  # an original without its buffer
        found += [mine.layouts[name] for name in latte_t2v.ORIGINALS]
    if side.get("_class_name") == "LatteTransformer3DModel":  # only diffusers writes that
        found = [layout for layout in found if layout.name.startswith("diffusers")] or found
    else:
        found = [layout for layout in found if layout.name != "diffusers-0.24"] or found
    if len(found) > 1 and (differing := _differing(found, side)):
        raise ConversionError(
            f"the file can be {' or '.join(layout.name for layout in found)}: the tensors are alike, but "
            f"{' and '.join(differing)} differs ({'; '.join(f'{la.name}: {la.evidence}' for la in found)})",
            remedy=" or ".join(f"--from {layout.name}" for layout in found),
        )
    return found[0]


def _written(family: Family, model: str, name: object) -> Layout | None:
    """The layout that this package noted beside the file when it wrote it."""
    if name == "ours":
        return family.ours[model]
    layout = family.layouts.get(name) if isinstance(name, str) else None
    return layout if layout and layout.model.name == model else None


def _differing(found: list[Layout], side: Mapping[str, object]) -> list[str]:
    """Arguments in which layouts with the same tensors differ, as far as nobody settled them."""
    try:
        given, _ = found[0].model.arguments(side, "configuration")
    except ConversionError:
        return []  # whoever reads the configuration next says what is wrong with it, and where
    fixed = [layout.defaults(given) for layout in found]
    keys = {key for each in fixed for key in each} - given.keys()
    return sorted(key for key in keys if any(each.get(key) != fixed[0].get(key) for each in fixed))
