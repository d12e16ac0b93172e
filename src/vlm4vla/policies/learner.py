"""What a training can train: a policy, or a VLM that answers questions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn


class Learner(nn.Module, ABC):
    """A module that knows what it is made of and writes itself as a folder."""

    @abstractmethod
    def learners(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """All parameters by what they belong to."""

    @abstractmethod
    def save(
        self, folder: Path, *, provenance: Mapping[str, Any] | None, state: Mapping[str, Tensor] | None
    ) -> None:
        """Write a folder from which it can be loaded to train on; `state`: weights to write instead of its own."""
