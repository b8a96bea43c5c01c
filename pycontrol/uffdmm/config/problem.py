# SPDX-License-Identifier: GPL-2.0-or-later
"""One thing that is wrong with a configuration, and how it is told."""

import difflib
import json
from collections.abc import Iterable
from enum import Enum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Severity(Enum):
    """An error keeps the manager from starting, a warning does not."""

    ERROR = "error"
    WARNING = "warning"


class Problem(BaseModel):
    """What is wrong, where, and what to do about it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    severity: Severity = Field(description="error or warning")
    file: str | None = Field(description="file with the value, or null")
    key: str = Field(description="key path, tiers by name; empty for the whole file")
    value: Any = Field(default=None, description="the value found, or null")
    message: str = Field(description="what is wrong")
    remedy: str | None = Field(default=None, description="what to do about it, or null")

    @property
    def sentence(self) -> str:
        """File, key, value and what is wrong with them."""
        where = f"{self.file}: " if self.file else ""
        if not self.key:
            return where + self.message
        # A table is shown by its name alone.
        simple = self.value is not None and not isinstance(self.value, dict)
        shown = f" = {json.dumps(self.value, default=str, ensure_ascii=False)}" if simple else ""
        return f"{where}{self.key}{shown}: {self.message}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The remedy for an unknown word: the nearest one, or all there are."""
    names = list(known)
    near = difflib.get_close_matches(word.lower().replace("_", "-"), names, n=1, cutoff=0.5)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"there are {', '.join(names)}" if names else "there are none"
