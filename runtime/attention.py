"""The callable attention, and the three functions that make one."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..dsl.assemble import Part, assemble
from ..dsl.binding import Binding
from ..dsl.eagerly import eagerly
from ..dsl.elsewhere import elsewhere
from ..ir.errors import ArgumentError, ParameterError, UnsupportedError
from ..ir.printer import print_variant
from ..ir.variant import Align, StaticParameter, Variant
from . import autograd, ops, transforms
from .arguments import check_is_tensor, check_scalar, check_tensors
from .autograd import is_watched
from .engines import edited_engine, engine_for

if TYPE_CHECKING:
    from .tuning import Tuning

# What to write for keywords of torch.nn.functional.scaled_dot_product_attention.
_OF_SDPA = {
    "attn_mask": "a mask is a part of the attention: rg.attention(mask, ...)",
    "is_causal": "write rg.attention(rg.causal)",
    "dropout_p": "there is no dropout",
    "scale": "write rg.attention(..., scale=...)",
    "enable_gqa": "leave it out: query heads share key/value heads by their numbers",
}


class Aux(NamedTuple):
    """What an attention returns besides its output, where asked for."""

    lse: Tensor
    """Natural logarithm of each row's sum of exponentials, (B, H, Lq), float32; −inf for empty rows."""


class Attention:
    """An attention variant with the values of its parameters, ready to be called, printed and inspected.

    Made by :func:`attention` from parts, by :func:`parse` from text. Immutable. Two are equal if their structure
    and scalars are; tensors, names and places in the source are not compared.
    """

    def __init__(self, variant: Variant, binding: Binding, edited: tuple[str, str] | None = None) -> None:
        """``edited``: path and text of a module that takes the place of the generated one."""
        self.variant = variant
        self.binding = binding
        self._edited = edited
        if edited:
            self._text, self._engine = edited_engine(variant, *edited)
        else:
            self._text, self._engine = engine_for(variant)
        self._tuned: set[tuple[object, ...]] = set()  # shapes for which schedules were searched
        parameters = [p for p in variant.parameters if not isinstance(p, StaticParameter)]
        self._open = tuple(p for p in parameters if p.name not in binding)
        for p in variant.scalars:
            if p.name in binding:
                check_scalar(p, binding[p.name])
        # Values in the order in which programs take them; None while some are open.
        self._bound = None if self._open else self._ordered(dict(binding))

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        aux: tuple[str, ...] = (),
        deterministic: bool | None = None,
        tune: bool = False,
        **parameters: int | float | Tensor,
    ) -> Any:
        """Attends.

        ``query`` (B, H, Lq, D), ``key`` (B, Hkv, Lkv, D) and ``value`` (B, Hkv, Lkv, Dv) are float16, bfloat16 or
        float32, on one device, with any strides as long as the last axis is contiguous; H is a multiple of Hkv,
        D and Dv are 16 to 256. Open parameters of the variant are passed by keyword.

        Returns the output (B, H, Lq, Dv) in the dtype of ``query``; with ``aux=("lse",)`` a pair of it and an
        :class:`Aux`. Both are differentiable once. Rows that may attend to nothing give 0 and an lse of −inf.

        ``deterministic=True`` insists on gradients that repeat bit for bit, which takes longer on sm_90 (default:
        as ``torch.use_deterministic_algorithms`` says) and raises :class:`UnsupportedError` for the one that does not:
        that of a tensor indexed by arbitrary functions of query and key. ``tune=True`` searches the fastest schedules
        first, unless they were searched for before: see :meth:`tune`. Raises :class:`ArgumentError` for
        tensors that do not fit, :class:`ParameterError` for missing and unknown parameters,
        :class:`IndexRangeError` where an allowed pair would read outside a captured tensor.
        """
        if aux and aux not in (("lse",), ["lse"]):
            raise ArgumentError(f"aux is {aux!r}", hint='write aux=("lse",), or leave it out')
        buffers, scalars = self._bound if self._bound and not parameters else self._with_open(parameters)
        compiling = torch.compiler.is_compiling()
        if not (compiling or tune):
            repeated = self._engine.again(query, key, value, buffers, scalars)
            if repeated is not None:
                return (repeated[0], Aux(repeated[1])) if aux else repeated[0]
        if not (isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(value, Tensor)):
            check_tensors(query, key, value)  # raises; all other checks wait until a shape is new
        kind = "cuda" if query.is_cuda else "cpu"
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        differentiating = torch.is_grad_enabled() and (
            query.requires_grad or key.requires_grad or value.requires_grad or any(b.requires_grad for b in buffers)
        )
        if deterministic is None:
            deterministic = torch.are_deterministic_algorithms_enabled()
        elif deterministic not in (True, False):
            raise ArgumentError(f"deterministic is True, False or None, got {deterministic!r}")
        if differentiating and deterministic:
            self._check_deterministic(query, buffers)
        if tune:
            self._tune_once((query, key, value), buffers, scalars, differentiating, deterministic)
        if compiling:
            out, lse = ops.attention(
                self.variant, self._text, query, key, value, buffers, scalars, deterministic, reuse_tables=False
            )
        elif is_watched(query, key, value, *buffers):
            out, lse = transforms.attention(
                self._engine, self._text, query, key, value, buffers, scalars, deterministic
            )
        elif differentiating or forward_ad._current_level >= 0:  # whose tangents a function of autograd refuses
            out, lse = autograd.attention(self._engine, self._text, query, key, value, buffers, scalars, deterministic)
        else:
            out, lse = self._engine.forward(query, key, value, buffers, scalars, True, plain=True)
        return (out, Aux(lse)) if aux else out

    def with_values(self, **values: int | float | Tensor) -> Attention:
        """The same variant with other values for some parameters; nothing is compiled again.

        Raises :class:`ParameterError` for names that are no run-time parameters, :class:`ArgumentError` for
        values of the wrong kind.
        """
        known = [p.name for p in self.variant.parameters if not isinstance(p, StaticParameter)]
        for name in values:
            if name not in known:
                raise self._unknown(name, known, "run-time parameter")
        return Attention(self.variant, Binding({**self.binding, **values}), self._edited)

    def tune(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        backward: bool | None = None,
        deterministic: bool | None = None,
        seconds: float = 60.0,
        **parameters: int | float | Tensor,
    ) -> Tuning:
        """Times every schedule and skeleton that could run on these tensors, and uses the fastest from now on.

        The arguments are those of a call. What is found serves all calls that share a program with this one (lengths,
        batch and heads may differ), is kept in the disk cache for this kind of GPU, and is what ``explain`` shows.
        ``backward``: the gradients' kernels too; default: whether a tensor requires a gradient. ``seconds``: for each
        direction, after which the candidates that are left are not tried. Returns a :class:`Tuning`, which
        prints as a table. Raises :class:`UnsupportedError` for tensors on a CPU, and as a call does.
        """
        from .tuning import tune

        check_tensors(query, key, value)
        buffers, scalars = self._bound if self._bound and not parameters else self._with_open(parameters)
        if backward is None:
            backward = any(x.requires_grad for x in (query, key, value, *buffers))
        if deterministic is None:
            deterministic = torch.are_deterministic_algorithms_enabled()
        return tune(
            self._engine, query, key, value, buffers, scalars,
            backward=backward, deterministic=deterministic, seconds=seconds,
        )  # fmt: skip

    def explain(self, *inputs: Any, **options: Any) -> Any:
        """What was proved about the tiles, and exact counts: see :func:`regard.runtime.explain.explain`."""
        from .explain import explain

        return explain(self, *inputs, **options)

    def plot(self, *inputs: Any, **options: Any) -> Any:
        """A picture of the tiles: see :func:`regard.runtime.plot.plot`."""
        from .plot import plot

        return plot(self, *inputs, **options)

    def source(self, **options: Any) -> str:
        """The generated module: see :func:`regard.runtime.inspection.source`."""
        from . import inspection

        return inspection.source(self, **options)

    def ptx(self, **options: Any) -> str:
        """The PTX of the kernels: see :func:`regard.runtime.inspection.ptx`."""
        from . import inspection

        return inspection.ptx(self, **options)

    def sass(self, **options: Any) -> str:
        """The machine code of the kernels: see :func:`regard.runtime.inspection.sass`."""
        from . import inspection

        return inspection.sass(self, **options)

    def ir(self, stage: str = "lowered") -> str:
        """The variant after a stage of compilation: see :func:`regard.runtime.inspection.ir`."""
        from . import inspection

        return inspection.ir(self, stage)

    def _repr_html_(self) -> str:
        from .html import html

        return html(self)

    def __str__(self) -> str:
        """The text form, which :func:`parse` reads back."""
        return print_variant(self.variant, self.binding.scalars)

    def __repr__(self) -> str:
        needs = ", ".join(p.name for p in self._open)
        return f"<Attention {self.variant.name}{f', open: {needs}' if needs else ''}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Attention):
            return NotImplemented
        return self.variant == other.variant and self.binding.scalars == other.binding.scalars

    def __hash__(self) -> int:
        return hash((self.variant, tuple(sorted(self.binding.scalars.items()))))

    def __reduce__(self) -> tuple[Any, ...]:
        return Attention, (self.variant, self.binding, self._edited)

    def _with_open(
        self, given: dict[str, int | float | Tensor]
    ) -> tuple[tuple[Tensor, ...], tuple[int | float, ...]]:
        names = [p.name for p in self._open]
        for name in given:
            if name not in names:
                raise self._unknown(name, names)
        for p in self._open:
            if p.name not in given:
                raise ParameterError(
                    f"`{p.name}` has no value",
                    # Dynamo cannot follow what looks into source files, and would say that instead.
                    location=None if torch.compiler.is_compiling() else p.loc,
                    hint=elsewhere(p.name) or f"pass it at the call: attn(query, key, value, {p.name}=…)",
                )
        return self._ordered({**self.binding, **given})

    def _ordered(self, values: dict[str, Any]) -> tuple[tuple[Tensor, ...], tuple[int | float, ...]]:
        """Buffers and scalars in the order in which programs take them."""
        buffers = tuple(check_is_tensor(p, values[p.name]) for p in self.variant.buffers)
        return buffers, tuple(check_scalar(p, values[p.name]) for p in self.variant.scalars)

    def _unknown(self, name: str, known: list[str], kind: str = "open parameter") -> ParameterError:
        if name in self.binding:
            hint = f"`{name}` is bound already; attn.with_values({name}=…) makes an attention with another value"
        elif any(p.name == name for p in self.variant.statics):
            hint = f"`{name}` is a constant of the kernel: build the part again with another value"
        elif name in _OF_SDPA:
            hint = _OF_SDPA[name]
        elif not torch.compiler.is_compiling() and (close := difflib.get_close_matches(name, known, n=1)):
            hint = f"did you mean `{close[0]}`?"
        else:
            hint = f"it takes {', '.join(known) or 'no parameters'}"
        return ParameterError(f"{self.variant.name} has no {kind} `{name}`", hint=hint)

    def _tune_once(
        self,
        tensors: tuple[Tensor, Tensor, Tensor],
        buffers: tuple[Tensor, ...],
        scalars: tuple[int | float, ...],
        backward: bool,
        deterministic: bool,
    ) -> None:
        if torch.compiler.is_compiling():
            raise UnsupportedError(
                "kernels are not tuned while a graph is traced",
                hint="call attn.tune(query, key, value) once before; what it finds is used in graphs too",
            )
        seen = (*((x.shape, x.stride(), x.dtype, x.device) for x in tensors), backward, deterministic)
        if seen not in self._tuned:
            from .tuning import tune

            tune(
                self._engine, *tensors, buffers, scalars,
                backward=backward, deterministic=deterministic, seconds=60.0, again=False,
            )  # fmt: skip
            self._tuned.add(seen)

    def _check_deterministic(self, query: Tensor, buffers: tuple[Tensor, ...]) -> None:
        if query.is_cuda and self._engine.uses_atomics(self._engine.buffer_gradients(buffers)):
            raise UnsupportedError(
                "the gradient of a tensor that is indexed by arbitrary functions of query and key is summed by atomic "
                "additions, whose order varies",
                hint="index it by head, query, key or their distance, detach it, or pass deterministic=False",
            )


@eagerly
def attention(
    *parts: Part, name: str | None = None, align: Align = "start", scale: float | None = None
) -> Attention:
    """An attention made of masks (all must hold), scores (applied in order) and at most one normaliser.

    ``align="end"`` lets the last query meet the last key instead of the first the first. ``scale`` multiplies the
    product of query and key before any score; None means D**-0.5. ``name`` is a label. Raises
    :class:`ParameterError` for parts that do not fit together.
    """
    return Attention(*assemble(*parts, name=name, align=align, scale=scale))


@eagerly
def parse(text: str) -> Attention:
    """The attention written as ``text`` in the text language; its tensors are open parameters.

    No Python is evaluated, so the text may come from anywhere. Raises :class:`TextError`, and :class:`ArgumentError`
    for what is no text.
    """
    if not isinstance(text, str):
        raise ArgumentError(
            f"rg.parse takes text, got {type(text).__name__}", hint='write rg.parse("attention … { keep q >= kv }")'
        )
    from ..ir.parser import parse_variant  # loads lark

    variant, values = parse_variant(text)
    return Attention(variant, Binding(values))


def load_source(path: str | os.PathLike[str], attn: Attention) -> Attention:
    """``attn`` with the module at ``path`` in place of the generated one: an edited ``attn.source(...)``.

    It replaces the forward or the backward program, whichever its ``run`` is, for all inputs; the other one is
    generated as before. An edited module is *run*: load only what you trust.
    """
    return Attention(attn.variant, attn.binding, (os.fspath(path), Path(path).read_text()))
