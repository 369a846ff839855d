"""Runs one of the commands so that it ends when the simulation that started it is gone, even by ``kill -9``."""

import sys
from importlib import import_module

from shared_models.processes import follow_parent


def main() -> None:
    """Run ``MODULE.main()`` with the remaining arguments: ``python -m simulations.followed MODULE ARGUMENT…``."""
    follow_parent()
    module, sys.argv = sys.argv[1], sys.argv[1:]
    import_module(module).main()


if __name__ == "__main__":
    main()
