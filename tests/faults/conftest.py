"""One Ray for all tests of a module, as for the drivers."""

from tests.drivers.conftest import running_ray

__all__ = ["running_ray"]
