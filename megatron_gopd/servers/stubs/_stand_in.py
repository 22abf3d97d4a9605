"""Stand-ins for packages that SGLang imports at module level but never runs on a CPU."""

import importlib.machinery
import sys
import types


class _Members(type):
    """A class whose every member exists, as an enum's do."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = f"{cls.__name__}.{name}"
        setattr(cls, name, value)
        return value


class _Anything(metaclass=_Members):
    def __init__(self, *args, **kwargs):
        pass


class Kernel:
    """What a decorated GPU kernel becomes: it can be imported and inspected, not launched."""

    def __init__(self, function):
        self.fn = self.__wrapped__ = function
        self.arg_names = []
        for name in ("__name__", "__qualname__", "__doc__", "__module__"):
            setattr(self, name, getattr(function, name, None))

    def __call__(self, *args, **kwargs):
        return self.fn(*args, **kwargs)

    def __getitem__(self, grid):
        raise RuntimeError(f"the GPU kernel {self.__name__} was launched on a machine without a GPU")


def decorator(*args, **kwargs):
    """Stands for `@jit` and for `@jit(...)`."""
    if len(args) == 1 and callable(args[0]) and not kwargs:
        return args[0] if isinstance(args[0], Kernel) else Kernel(args[0])
    return decorator


class StandIn(types.ModuleType):
    """A module in which every name can be found: capitalised ones are classes, the others modules."""

    def __init__(self, name):
        super().__init__(name)
        self.__path__ = []
        self.__file__ = __file__

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        full = f"{self.__name__}.{name}"
        found = sys.modules.get(full)
        if found is None:
            found = _Members(name, (_Anything,), {"__module__": self.__name__}) if name[0].isupper() else StandIn(full)
        if isinstance(found, StandIn):
            found.__spec__ = importlib.machinery.ModuleSpec(full, None, is_package=True)
            sys.modules[full] = found
        setattr(self, name, found)
        return found

    def __call__(self, *args, **kwargs):
        return decorator(*args, **kwargs)

    def __getitem__(self, key):
        return self

    def __bool__(self):  # `if triton:` means there is one
        return False


class _Finder:
    """Lets `import PACKAGE.any.thing` succeed."""

    def __init__(self, package):
        self.prefix = f"{package}."

    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.startswith(self.prefix) else None

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        pass


def stand_in(package, version, **names):
    """Called by PACKAGE/__init__.py: make a stand-in of the package being imported."""
    module = sys.modules[package]
    module.__class__ = StandIn
    module.__dict__.update(names, __version__=version)
    sys.meta_path.append(_Finder(package))
