"""What importing the layers costs: nothing that only some calls need."""

from __future__ import annotations

import subprocess
import sys


def test_importing_layers_and_models_does_not_load_the_compiler() -> None:
    code = "import sys, torch, epan.nn, epan.models; assert 'torch._dynamo' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
