"""Kernels of others at the shapes of ours, timed as ours are: `gpu_check_kernels.py` asks for them in turn.

A peer takes a shape (the `shape` object of a row) and gives a `Peer`, or raises `Skipped` with the reason why there is none.
"""
