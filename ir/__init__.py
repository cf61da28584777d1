"""The typed IR of attention variants: nodes, text form, interpreter, passes and tile analysis.

Needs neither torch nor triton; sympy and lark are loaded when they are first used.
"""
