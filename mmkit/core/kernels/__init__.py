"""Triton kernels, loaded when a function of the core takes them: the scores stay in registers, partial sums are stored and added in a fixed order."""
