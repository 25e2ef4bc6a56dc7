"""The modules at which parameters are watched."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from pydvl_datainf.gradients.rules import Rule, rules_of


@dataclass(frozen=True, slots=True)
class Layer:
    """A module and parameters of it, or of modules inside it.

    Args:
        module: that is watched.
        owned: local name -> name in the model, of each parameter.
        rules: for all of the parameters; None where the module is mapped over samples.
    """

    module: nn.Module
    owned: Mapping[str, str]
    rules: Mapping[str, Rule] | None


def layers_of(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], around: Mapping[str, str]
) -> list[Layer]:
    """The modules at which parameters are watched.

    Args:
        model: that is watched.
        parameters: by their names in the model.
        around: for some of them the path of a module around the one that owns them.

    Returns:
        Those modules, and for all other parameters the modules that directly own them; tied ones
        have several owners.
    """
    names = {id(p): name for name, p in parameters.items() if name not in around}
    layers = []
    for module in model.modules():
        own = {local: names[id(p)] for local, p in module._parameters.items() if id(p) in names}
        if not own:
            continue
        # What a module shares with one inside it, such as an output layer's bias, is the latter's.
        inner = {names.get(id(p)) for child in module.children() for p in child.parameters()}
        owned = {local: name for local, name in own.items() if name not in inner}
        if owned:
            layers.append(Layer(module, owned, rules_of(module, owned)))
    inside: dict[str, dict[str, str]] = {}
    for name, path in around.items():
        if name in parameters:
            inside.setdefault(path, {})[name.removeprefix(f"{path}.")] = name
    for path, owned in inside.items():
        module = model.get_submodule(path)
        layers.append(Layer(module, owned, rules_of(module, owned)))
    return layers


_LEVELS = 2


def next_around(model: nn.Module, name: str, path: str | None) -> str | None:
    """The path of the next larger module at which a parameter may be watched.

    Args:
        model: that has the parameter.
        name: of the parameter.
        path: of the module at which it is watched; None = that which owns it.

    Returns:
        The path of the module around that; None where that is the model itself, or too large: the
        whole of a module is mapped over samples to differentiate one of its parameters.
    """
    owner = name.rpartition(".")[0]
    steps = [owner[:i] for i, letter in enumerate(owner) if letter == "."][::-1]
    modules = (nn.Module.forward, None)
    called = [s for s in steps if type(model.get_submodule(s)).forward not in modules][:_LEVELS]
    later = called[called.index(path) + 1 :] if path else called
    return later[0] if later else None
