"""Fused GPU kernels for adaptive, anchored and fixed attention, forward and backward, with memory linear in length.

Not a backend of the public functions yet: :mod:`epan.ops.triton.launch` runs the kernels on tensors. They need Triton,
which CUDA builds of PyTorch bring, and run without a GPU in Triton's interpreter (``TRITON_INTERPRET=1``).

* ``scores.py``: tiles, masks and the profile's argument, shared by all kernels.
* ``forward.py``: one dense sweep finds the tiles with weight, then threshold and output on these alone.
* ``backward.py``: queries by rows, keys and values by columns of the same tiles.
* ``launch.py``: shapes, scratch memory and launch parameters.
"""
