"""The packages that only some engines and the export need."""

from importlib import import_module

from utils.errors import InputError


def require(*names):
    """Import modules by name; returns them. Raises InputError with the remedy where one is missing or broken."""
    modules = []
    for name in names:
        try:
            modules.append(import_module(name))
        except ModuleNotFoundError as error:
            if error.name != name:  # it is there, and lacks something itself
                raise _broken(name, error) from error
            raise InputError(
                f"{name} isn't installed: pip install -r requirements-engines.txt (or only pip install {name})"
            ) from None
        except ImportError as error:
            raise _broken(name, error) from error
    return modules


def _broken(name, error):
    return InputError(f"{name} is installed but can't be imported ({error}); pip install --force-reinstall {name}")
