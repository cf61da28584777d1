"""The typed IR of attention variants: nodes, text form, interpreter, passes and tile analysis.

Needs neither torch nor triton; lark is loaded when it is first used.
"""
