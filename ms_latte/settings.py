# SPDX-License-Identifier: Apache-2.0
"""What the schemas of all commands share: how a key is declared, and the checks of keys that several of them have."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ms_latte.config import ListOf, is_optional
from ms_latte.device import DEVICES


def setting(group, default, help):
    """A field with its group and its explanation for --help."""
    return Field(default, description=help, json_schema_extra={"group": group})


class Settings(BaseModel):
    """A frozen schema of a command without a key yet; unknown keys are refused.

    aliases: other spelling -> key; choices: key -> key of the same choice, which a later layer replaces. The words None
    and null mean None where a key may be that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    aliases: ClassVar[dict] = {}
    choices: ClassVar[dict] = {}

    @staticmethod
    def translate(key, value):
        """The value of `key` where an alias counts differently."""
        return value

    @model_validator(mode="before")
    @classmethod
    def _plain_words(cls, values):
        fields = cls.model_fields
        return {
            key: None
            if isinstance(value, str) and value in ("None", "null", "") and is_optional(fields.get(key))
            else value
            for key, value in values.items()
        }

    @field_validator("image_size", mode="before", check_fields=False)
    @classmethod
    def _size(cls, value):
        value = value if isinstance(value, ListOf) else [value]
        parts = [
            part
            for item in value
            for part in (item.replace("x", ",").split(",") if isinstance(item, str) else [item])
        ]
        return tuple(parts) * 2 if len(parts) == 1 else tuple(parts)

    @field_validator("image_size", check_fields=False)
    @classmethod
    def _sides(cls, value):
        if min(value) < 1:
            raise ValueError("expected pixels, 1 or more")
        return value

    @field_validator("prompts", "overrides", mode="before", check_fields=False)
    @classmethod
    def _texts(cls, value):
        return tuple(value) if isinstance(value, ListOf) else (value,)

    @field_validator("mode", mode="before", check_fields=False)
    @classmethod
    def _mode(cls, value):
        return {"0": 0, "1": 1, "graph": 0, "pynative": 1}.get(value, value)

    @field_validator("device_target", check_fields=False)
    @classmethod
    def _device(cls, value):
        if value not in DEVICES:
            reason = "this port has no GPU formulations; " if value.upper() in ("GPU", "CUDA") else ""
            raise ValueError(f"{reason}expected {' or '.join(DEVICES)}")
        return value
