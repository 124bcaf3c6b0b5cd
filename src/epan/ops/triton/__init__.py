"""Fused GPU kernels: exact attention forward and backward with memory linear in length; ``backend="triton"``.

They need Triton, which CUDA builds of PyTorch bring, and an NVIDIA GPU; without one they run in Triton's interpreter
(``TRITON_INTERPRET=1``) on tensors of the CPU. Nothing here that needs Triton is imported before it is used.

* ``support.py``: what can be taken, and why not; ``screening.py``: how tiles are found, if that is to be forced (``modes.py``).
* ``attention.py``: a call in the form in which a backend is called; ``softmax.py``: the Gaussian through torch's own.
* ``operators.py``: autograd, and custom operators for torch.compile; ``schedules.py``: which launcher serves a rule.
* ``launch.py``: shapes, scratch memory and launch parameters of adaptive, anchored and fixed, and of the Gaussian.
* ``plans.py``: what a call leaves for the next one like it; ``assembler.py``: what turns kernels into machine code.
* ``prepare.py``, ``forward.py``, ``backward.py``, ``scores.py``: their kernels.
* ``short_sequences.py``, ``short_kernels.py``: sequences of a few hundred tokens, all rules; ``short_mode.py``: not, if that is wished.
* ``parameters.py``: launch parameters measured on this GPU; ``tuning.py``: the search for them.
* ``nearest.py``, ``nearest_kernels.py``, ``nearest_gradients.py``: the same for the nearest rule.
* ``leaky.py``: the leaky average.
"""

from __future__ import annotations

from .screening import screen
from .short_mode import short

__all__ = ["screen", "short"]
