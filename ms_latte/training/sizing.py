# SPDX-License-Identifier: Apache-2.0
"""What a training run needs of memory, traffic and disk, from the sizes of a model's tensors.

Activations are not in it: they depend on batch, frames and recomputation; the command prints the peak that it measured.
"""

GIB = 2**30


def sizing(parameters, trained, dtype="fp32", cards=1, accumulation=False, ema=True):
    """Bytes on one card, on the wire in a step, and of a checkpoint: name -> bytes.

    parameters, trained: numbers of the model, and of those that are trained; dtype: "fp32", "fp16" or "bf16" of the
    weights, next to float32 masters if it is a half one; accumulation: whether gradients are accumulated. Gradients
    are reduced in float32 in every step: a ring sends and receives 2 (n - 1) / n of them on each of n cards.
    """
    width = 4 if dtype == "fp32" else 2
    found = {
        "weights": width * parameters,
        "masters": 4 * trained if width == 2 else 0,
        "EMA": 4 * trained if ema else 0,
        "m": 4 * trained,
        "v": 4 * trained,
        "gradients": width * trained + (4 * trained if width == 2 else 0),
        "accumulated": 4 * trained if accumulation else 0,
    }
    found["card"] = sum(found.values())
    found["sent"] = 8 * trained * (cards - 1) // cards
    found["checkpoint"] = found["card"] - found["gradients"]
    return found


def counts(model):
    """(numbers of a model, numbers of it that are trained)."""
    sizes = [(parameter.size, parameter.requires_grad) for parameter in model.get_parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def table(rows):
    """Markdown of rows (heading, sizing), in GiB."""
    names = ("weights", "masters", "EMA", "m", "v", "gradients", "accumulated", "card", "sent", "checkpoint")
    lines = [" | ".join(("", *names)), " | ".join("-" for _ in range(len(names) + 1))]
    lines += [" | ".join((head, *(f"{row[name] / GIB:.2f}" for name in names))) for head, row in rows]
    return "\n".join(f"| {line.strip()} |".replace("|  |", "| |") for line in lines)


def published():
    """The table of ms_latte/scripts/README.md: Latte-XL/2 of 16 frames of 256x256 pixels."""
    from ms_latte.models.latte import Latte_models

    numbers = counts(Latte_models["Latte-XL/2"]())
    rows = [
        (
            f"{dtype}, {cards} card{'s' * (cards > 1)}{', accumulation' * accumulation}",
            (dtype, cards, accumulation),
        )
        for dtype, cards, accumulation in (
            ("fp32", 1, False),
            ("fp16 or bf16", 1, False),
            ("fp16 or bf16", 8, False),
            ("fp16 or bf16", 8, True),
        )
    ]
    return numbers, table([(head, sizing(*numbers, *words)) for head, words in rows])
