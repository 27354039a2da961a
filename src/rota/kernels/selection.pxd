"""The way through a selector. It is all Python to C: pick from the selector's picker instead."""
