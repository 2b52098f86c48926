"""What a script asks for by name, loaded when it does: Engine, Client, AsyncClient."""

from importlib import import_module as _import_module

__all__ = ["AsyncClient", "Client", "Engine"]

_HOMES = {
    "AsyncClient": "appliance.client",
    "Client": "appliance.client",
    "Engine": "appliance.runtime.offline",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'appliance' has no attribute {name!r}")
    return vars(_import_module(_HOMES[name]))[name]
