"""Calls in a separate process, whose memory can be measured."""

import json
import os
import subprocess
import sys
from typing import Any

from tests.conftest import REPOSITORY


def in_a_process(module: str, call: str) -> Any:
    """What a call in a module prints as JSON, in a separate process."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {module} as module; module.{call}"],
        cwd=REPOSITORY,
        # Freed memory is returned to the system at once.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
