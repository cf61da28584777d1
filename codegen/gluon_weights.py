"""Weights of a tile of scores, their sums, and the sums of values that they are factors of."""

from __future__ import annotations

from contextlib import nullcontext

from .emitter import Emitter
from .gluon_parts import tiles_of
from .gluon_scores import FoldedScores
from .triton_module import Part
from .triton_values import Values

# The largest relative error of the polynomial is 7.5e-5, its mean 5e-6. NaN stays NaN.
POWERS = """
@triton.jit
def powers(x):
    \"\"\"2 ** x for small x, of every other number by a polynomial: one unit has all powers, and tanh too.\"\"\"
    low, high = tl.split(x.reshape([ROWS, BLOCK_N // 2, 2]))
    whole = high + 12582912.0  # 1.5 * 2 ** 23: the last bits are those of the number rounded
    rest = high - (whole - 12582912.0)
    series = 0.99992807 + rest * (0.69326099 + rest * (0.24261113 + rest * 0.05517167))
    power = tl.cast((tl.cast(whole, tl.int32, bitcast=True) << 23) + 0x3F800000, tl.float32, bitcast=True)
    both = tl.join(tl.exp2(low), series * power)
    return tl.convert_layout(both.reshape([ROWS, BLOCK_N]), SCORES)
"""


class Weights:
    """What a consumer of the forward kernel does from scores ``s`` to ``pairs``, weights that are rounded.

    ``unit``: what exponents are multiplied by. ``asks_bound``: whether there is code for scores of which none is large,
    half of whose powers are computed ``by_series``.
    """

    unit: str
    asks_bound: bool
    by_series: bool
    value: tuple[Part, ...]
    gathers: FoldedScores | None
    values: Values

    def emit_unit(self, out: Emitter) -> None:
        """What exponents are multiplied by, where scores say it."""
        if self.gathers is not None:
            out.line(f"unit = {self.values.result('unit')}")

    def emit_first_weights(self, out: Emitter) -> None:
        """Those of the first tile of keys, with which the unit ``m`` of a row and its sums ``l`` begin."""
        if self.asks_bound:
            with out.block("if BOUNDED:"):
                out.line("m = tl.zeros([ROWS], tl.float32, tl.SliceLayout(1, SCORES))")
                self._emit_powers(out, masked=True)
        with out.block("else:") if self.asks_bound else nullcontext():
            if self.asks_bound:
                self.emit_masked(out)
            out.comment("Finite, so never inf - inf: a row may see none of its first tile.")
            out.line(f"m = tl.maximum(row_max(s) * {self.unit}, -3.0e38)  # running maximum times log2(e)")
            out.line(f"p = tl.exp2(s * {self.unit} - m[:, None])")
        out.line("l = partial_sums(p)  # of exponentials")
        out.line("pairs = packed(p)")

    def emit_weights(self, out: Emitter, *, masked: bool) -> None:
        """Those of a further tile, and sums with them; the values of the tile before are waited for."""
        if self.asks_bound:
            with out.block("if BOUNDED:"):
                self._emit_bounded_weights(out, masked=masked)
        with out.block("else:") if self.asks_bound else nullcontext():
            if masked and self.asks_bound:
                self.emit_masked(out)
            self._emit_scaled_weights(out)

    def emit_masked(self, out: Emitter) -> None:
        """Scores of pairs that are not allowed."""
        out.line('s = tl.where(allowed, s, float("-inf"))')

    def _emit_powers(self, out: Emitter, *, masked: bool) -> None:
        power = f"{'powers' if self.by_series else 'tl.exp2'}(s * {self.unit})"
        out.line(f"p = {f'tl.where(allowed, {power}, 0.0)' if masked else power}")

    def _emit_bounded_weights(self, out: Emitter, *, masked: bool) -> None:
        """Weights of scores of which none is large: all of a row have one unit."""
        self.emit_wait_outputs(out, "next_")
        out.line("release(stage)")
        out.line("release(STAGES + last)")
        self._emit_powers(out, masked=masked)
        out.line("l += partial_sums(p)")
        out.line("pairs = packed(p)")

    def _emit_scaled_weights(self, out: Emitter) -> None:
        """Weights in units of the largest so far, and in these what was summed up before."""
        out.line(f"m_new = tl.maximum(m, row_max(s) * {self.unit})")
        out.comment("Exponentials come after this wait anyway; so they must not delay the release of the buffers.")
        self.emit_wait_outputs(out, "next_")
        out.line("m_new = released(m_new, stage, STAGES + last)")
        out.line(f"p = tl.exp2(s * {self.unit} - m_new[:, None])")
        out.line("alpha = tl.exp2(m - m_new)")
        out.line("l = l * tl.convert_layout(alpha, tl.SliceLayout(1, SUMS))[:, None] + partial_sums(p)")
        out.line("pairs = packed(p)")
        out.line("m = m_new")
        for p in self.value:
            factor = f"tl.convert_layout(alpha, tl.SliceLayout(1, OUTPUTS{p.suffix}))[:, None]"
            out.line(f"acc{p.suffix} = acc{p.suffix} * {factor}")

    def emit_no_outputs(self, out: Emitter) -> None:
        """Sums of values, at the start of a tile of queries."""
        for p in self.value:
            out.line(f"acc{p.suffix} = tl.zeros([ROWS, {p.width}], tl.float32, OUTPUTS{p.suffix})")

    def emit_start_outputs(self, out: Emitter, prefix: str) -> None:
        """From the last weights."""
        for p in self.value:
            out.line(f"weights{p.suffix} = tl.convert_layout(unpacked(pairs), WEIGHTS{p.suffix})")
        out.line("mbarrier.wait(v_ready.index(last), last_phase)")
        for i, p in enumerate(self.value):
            tile = f"{tiles_of('v_tiles', self.value, i)}.index(last)"
            out.line(f"{prefix}acc{p.suffix} = start_outputs(weights{p.suffix}, {tile}, acc{p.suffix})")

    def emit_wait_outputs(self, out: Emitter, prefix: str, behind: int = 0) -> None:
        """``behind``: how many products that were started after these may go on."""
        names = ", ".join(f"acc{p.suffix}" for p in self.value)
        waited = ", ".join(f"{prefix}acc{p.suffix}" for p in self.value)
        out.line(f"{names} = warpgroup_mma_wait({behind}, deps=({waited}{',' if len(self.value) == 1 else ''}))")

    def emit_quotient(self, out: Emitter, p: Part) -> None:
        """Divides a part of the sums by those of the weights."""
        acc = f"acc{p.suffix}"
        out.line(f"sums = tl.convert_layout(l, tl.SliceLayout(1, OUTPUTS{p.suffix}))")
        out.line(f"{acc} = tl.where((sums == 0.0)[:, None], 0.0, {acc} * (1.0 / sums)[:, None])")
