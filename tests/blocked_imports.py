"""The start of a program in which hf_transfer cannot be imported, as where it is not installed."""

BLOCK_HF_TRANSFER = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_transfer":
            raise ModuleNotFoundError("hf_transfer is not installed here")

sys.meta_path.insert(0, Blocker())
try:
    import hf_transfer
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("hf_transfer could be imported")
"""
