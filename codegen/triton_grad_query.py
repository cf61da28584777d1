"""The kernel for dQ: a program owns a tile of queries and walks its keys."""

from __future__ import annotations

from .emitter import Emitter
from .schedule import Schedule
from .triton_gradients import Contribution, emit_select
from .triton_module import Argument, emit_launch, kernel
from .triton_over_keys import OverKeys
from .triton_program import emit_accumulate
from .triton_tiles import Masked, TileLoops
from .triton_values import Guard, Values

KERNEL = "attention_grad_query"


class GradQuery(OverKeys):
    """Emits the kernel and its launch.

    Captured gradients of loads that do not depend on the key are summed here per query (``NAME_sums``), those
    without structure are added to the gradient itself.
    """

    @property
    def here(self) -> list[Contribution]:
        return self.of_kinds("batch_head", "query", "pair")

    @property
    def sums(self) -> list[Contribution]:
        return self.of_kinds("batch_head", "query")

    def emit(self, out: Emitter, schedule: Schedule) -> None:
        """The kernel."""
        values = self.values()
        with kernel(out, KERNEL + self.suffix, self.arguments(), self.constants, self.problem.debug):
            out.line('"""dQ of one tile of queries."""')
            self.emit_start(out, schedule)
            for name in self.row_terms:
                out.line(f"{name}_rows = tl.load({name} + row + rows, mask=inside, other=0.0)")
            loops = self.emit_key_tiles(out)
            for p in self.head:
                out.line(f"dq{p.suffix} = tl.zeros([BLOCK_M, {p.width}], tl.float32)")
            for c in self.sums:
                out.line(f"{c.name}_total = tl.zeros([BLOCK_M], tl.float32)")
            self.emit_unit(out)

            def step(done: frozenset[str], masked: Masked) -> None:
                self._emit_step(out, values, loops, done, self.here, masked=masked, exact=not self.optimistic)

            wanted = self.wanted(self.here, masked=True)
            merged = (loops.table or loops.merged) and not any(
                values.reads(x, "pair") for x in wanted if x not in self.mask_result
            )
            done = self.emit_loops(out, values, loops, wanted, step, merged=merged)
            if self.optimistic and loops.partial_count:
                with self.emit_again(out, "dq", self.head):
                    for p in self.head:
                        out.line(f"dq{p.suffix} = tl.zeros([BLOCK_M, {p.width}], tl.float32)")
                    self.emit_exact_visits(
                        out, loops, "BLOCK_N",
                        lambda masked: self._emit_step(out, values, loops, done, [], masked=masked, exact=True),
                    )
            out.line()
            self.store_gradient(
                out, "dq", "grad_query", "head", "BLOCK_M", self.head, self.q_exists, "({} * scale)"
            )
            for c in self.sums:
                place = f"{c.name}_sums + row + rows"
                out.line(f"tl.store({place}, {self.stored(place, f'{c.name}_total')}, mask=inside)")

    def arguments(self) -> list[Argument]:
        """In the order of the kernel's signature."""
        captured = [Argument(f"{c.name}_sums", "", f"{c.name}_sums") for c in self.sums]
        for c in self.of_kinds("pair"):
            captured.append(Argument(f"{c.name}_to", "", c.grad))
            for i in range(len(c.load.indices)):
                captured.append(Argument(f"{c.name}_to_stride_{i}", "i64", f"{c.grad}.stride({i})"))
        return [
            *self.tiles.pointers("grad_query"),
            *captured,
            *self.inputs(),
            *(Argument(x, "", x) for x in self.row_terms),
            *self.table_and_sizes(),
        ]

    def _emit_step(
        self, out: Emitter, values: Values, loops: TileLoops, done: frozenset[str], here: list[Contribution], *,
        masked: Masked, exact: bool,
    ) -> None:  # fmt: skip
        """One tile of keys, and the contributions ``here``; with ``exact`` keys that nobody sees are zeroed."""
        rows = self.rows_in_hull(loops) if masked != "none" else ""
        wanted = self.wanted(here, masked=masked == "all")
        done = self.emit_pairs(out, values, done, wanted, rows=rows, masked=masked)
        found = self.emit_score_gradient(out, values, here, delta="delta_rows[:, None]")
        match masked:
            case "all":
                emit_select(out, found)
            case "some":
                with out.block(f"if {self.is_partial}:"):
                    done = values.emit(out, "key", self.mask_result, Guard(key=self.kv_exists), done)
                    self.emit_allowed(out, values, done)
                    emit_select(out, found)
        for c in here:
            if c.kind != "pair":
                out.line(f"{c.name}_total += tl.sum({c.name}, 1)")
                continue
            address, conditions = values.address(c.index_names, c.load.buffer, f"{c.name}_to")
            mask = " & ".join([self.lanes(masked), *conditions])
            out.line(f"tl.{'store' if c.injective else 'atomic_add'}({address}, {c.name}, mask={mask})")
        if masked == "all" and exact:
            self.emit_unseen(out, "k", self.head, rows, "ds")
        emit_accumulate(out, "dq", "ds", "k", self.head, self.precision)

    def emit_launch(self, out: Emitter) -> None:
        """The part of ``run`` that fills ``grad_query``."""
        for c in self.sums:
            out.line(f"{c.name}_sums = torch.{self.fresh}_like(lse)")
        self.emit_launches(out)

    def emit_launches(self, out: Emitter) -> None:
        """The launch itself."""
        self.emit_programs(out)
        emit_launch(out, KERNEL + self.suffix, "(programs,)", self.arguments(), "**options")
