"""Puts MLX on the CPU in processes that tests start, as tests/conftest.py does in pytest's own.

Python imports this first where the folder is on PYTHONPATH. MLX itself is left for later: some
processes are to load OpenBLAS before it, and some not to load it at all.
"""

import importlib.machinery
import sys


class _OnTheCPU:
    """Finds ``mlx.core`` in Python's own way, and sets its default device once it is there."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "mlx.core":
            return None
        sys.meta_path.remove(cls)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                module.set_default_device(module.cpu)

            spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _OnTheCPU)
