"""Triton kernels, loaded when a function of the core takes them.

Scores stay in registers. Partial sums are stored and added in a fixed order, so that results repeat bit by bit.
"""
