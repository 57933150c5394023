"""What an import loads, in a process of its own."""

import subprocess
import sys


def assert_not_loaded(imported, unwanted):
    """After `import IMPORTED`, none of the modules `unwanted` is loaded."""
    found = f"{set(unwanted)} & set(sys.modules)"
    code = f"import sys, {imported}; assert not {found}, {found}"
    subprocess.run([sys.executable, "-c", code], check=True)
