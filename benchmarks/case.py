"""What is measured and how often, in plain numbers: nothing here needs torch or a device."""

from __future__ import annotations

from dataclasses import dataclass, field

# Tokens a side, slowest axis first, by sequence length.
GRIDS_2D = {1024: (32, 32), 4096: (64, 64), 16384: (128, 128), 65536: (256, 256), 1 << 20: (1024, 1024)}
GRIDS_3D = {4096: (16, 16, 16), 16384: (16, 32, 32), 65536: (16, 64, 64), 1 << 20: (64, 128, 128)}
# Places that a measuring job tells beside names of contenders: between them nothing else may run.
TIMING, TIMED = "timing", "timed"
DIRECTIONS = ("forward", "backward", "both")


@dataclass(frozen=True)
class Case:
    """Shapes (batch, query heads, key heads, length, head size) and a name that ``cases.build`` knows."""

    variant: str
    batch: int
    heads: int
    kv_heads: int
    length: int
    head_dim: int

    @property
    def title(self) -> str:
        heads = f"{self.heads}" if self.heads == self.kv_heads else f"{self.heads}:{self.kv_heads}"
        return f"{self.variant} B{self.batch} H{heads} S{self.length} D{self.head_dim}"


@dataclass(frozen=True)
class Task:
    """What a worker is asked.

    ``excluded``: contenders that ended an earlier process on this case, and how. ``budget_ms``: of one turn.
    ``directions``: what is timed; where that is the forward pass alone, gradients are not computed at all.
    """

    case: Case
    names: tuple[str, ...]
    excluded: dict[str, str] = field(default_factory=dict)
    directions: tuple[str, ...] = DIRECTIONS
    rounds: int = 7
    budget_ms: float = 6.0
    flush: bool = True
    device: str = "cuda"
