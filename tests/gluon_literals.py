"""How the emulator of Gluon reads the text of a kernel: what its numbers and operators become in Python."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import ast


class Literals(ast.NodeTransformer):
    """Wraps integers in kernels, so that they have the methods of tensors."""

    def visit_Constant(self, node):
        if type(node.value) is int:
            return ast.Call(ast.Name("Number", ast.Load()), [node], [])
        return node

    def visit_AugAssign(self, node):
        """In a kernel it makes a new tensor, which may have another shape."""
        old = ast.Name(node.target.id, ast.Load())
        return ast.Assign([node.target], ast.BinOp(old, node.op, self.visit(node.value)))

    def visit_Call(self, node):
        """Unsigned integers are kept as larger signed ones, which torch can compare."""
        match node:
            case ast.Call(ast.Attribute(x, "to"), [ast.Attribute(attr="uint32")]):
                return ast.Call(ast.Name("_unsigned", ast.Load()), [self.visit(x)], [])
        return self.generic_visit(node)
