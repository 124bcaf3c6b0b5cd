"""What proves that an implementation is right: oracles, one tolerance rule, input factories, conformance checks.

Public, because kernels, normalizations and backends defined outside this package are to pass the same checks:

``tolerance``
    the one rule by which a result is near enough, and the published constants.
``oracles``
    the formulas in float64, written plainly and without the code that they judge; and wrappers of other packages.
``inputs``
    ``Case`` describes one call of an operator, ``Case.build`` draws its inputs in the target dtype.
``catalogue``
    every kernel × normalization × similarity × backend, and whether it is legal.
``execution``
    runs an attention function on inputs and collects outputs and gradients.
``conformance``
    the checks: functions of an implementation and a case that raise AssertionError.

Example: is a new backend right for every legal combination?

>>> from epan.testing import catalogue, conformance
>>> for entry in catalogue.legal():
...     conformance.agrees_with_formula(my_attention, entry.case())
"""

from __future__ import annotations

from . import catalogue, conformance, execution, inputs, oracles, tolerance

__all__ = ["catalogue", "conformance", "execution", "inputs", "oracles", "tolerance"]
