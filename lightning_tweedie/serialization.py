"""Networks as plain data: a class path and its arguments, from which the same network is built again.

A module is described by the arguments of its constructor, read from attributes of the same names (the
convention of scikit-learn's estimators). The description holds plain types only, so it is stored in
checkpoints that load without executing code; building from it imports only allowed packages.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from lightning_tweedie.errors import UserError

__all__ = ["check_fits", "from_config", "to_config"]


def to_config(module: nn.Module) -> dict[str, Any]:
    """Describes a module as ``{"class_path": ..., "init_args": {...}}``.

    Args:
        module: A module whose constructor arguments are kept as attributes of the same names.

    Raises:
        UserError: if an argument is not kept, or is neither plain data nor such a module.

    Examples:
        >>> from lightning_tweedie.networks import MLP
        >>> to_config(MLP(dim=2, width=8))["init_args"]
        {'dim': 2, 'width': 8, 'depth': 3, 'embedding': 64}
    """
    cls = type(module)
    arguments = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if not hasattr(module, name):
            raise UserError(
                f"{cls.__name__} does not keep its argument `{name}`: add `self.{name} = {name}` to its "
                "__init__, so that checkpoints can tell how to build it"
            )
        arguments[name] = _plain(getattr(module, name), f"{cls.__name__}.{name}")
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": arguments}


def _plain(value: Any, where: str) -> Any:  # noqa: ANN401
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor) and value.ndim == 0:
        # A number kept as a buffer, such as sigma_data; NaN there stands for "not known yet".
        number = value.item()
        return None if math.isnan(number) else number
    if isinstance(value, nn.Module):
        return to_config(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v, where) for k, v in value.items()}
    if isinstance(value, Sequence):
        return [_plain(v, where) for v in value]
    raise UserError(f"{where} is a {type(value).__name__}: only numbers, strings, lists and modules can be stored")


def from_config(config: Mapping[str, Any], allow: Sequence[str] = ()) -> nn.Module:
    """Builds the module that :func:`to_config` described.

    Args:
        config: ``{"class_path": ..., "init_args": {...}}``.
        allow: Packages from which classes may be taken besides ``lightning_tweedie.networks`` and
            ``lightning_tweedie.denoiser``: importing a package executes its code.

    Raises:
        UserError: if the class comes from anywhere else, or does not exist.
    """
    path = str(config["class_path"])
    package, _, name = path.rpartition(".")
    trusted = ("lightning_tweedie.networks", "lightning_tweedie.denoiser", *allow)
    named = all(part.isidentifier() for part in path.split("."))
    if not named or not any(package == p or package.startswith(p + ".") for p in trusted):
        raise UserError(
            f"the network's class {path} is not one of this library's: if you trust its code, allow its package "
            f"with `--allow {package.partition('.')[0]}`"
        )
    try:
        cls = getattr(importlib.import_module(package), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"the network's class {path} cannot be imported ({error}): install its package") from None
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise UserError(f"{path} is not a network: the checkpoint is damaged or not one of this library's")
    arguments = {
        key: from_config(value, allow) if isinstance(value, Mapping) and "class_path" in value else value
        for key, value in config.get("init_args", {}).items()
    }
    return cls(**arguments)


def check_fits(config: Mapping[str, Any], weights: Mapping[str, Tensor], shape: Sequence[int]) -> None:
    """Makes sure that a description of a denoiser fits its weights and its data, at no cost of memory or time.

    A description from a stranger may ask for a network of any size. Here it is built without storage, and no further
    than the weights reach.

    Args:
        config: ``{"class_path": ..., "init_args": {...}}``, with classes of this library only.
        weights: What :meth:`~torch.nn.Module.state_dict` of the network would give.
        shape: Shape of one datum.

    Raises:
        Exception: They do not fit together: a ValueError, or what the network itself raises.
        UserError: A class comes from elsewhere.
    """
    tensors = values = 0
    most = sum(weight.numel() for weight in weights.values())

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal tensors, values
        if parameter is not None:
            tensors, values = tensors + 1, values + parameter.numel()
        if tensors > len(weights) or values > most:
            raise ValueError(f"the network that is described is larger than its weights, which are {most} numbers")

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            network = from_config(config)
    finally:
        hook.remove()
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted({*expected, *given}):
        if expected.get(name) != given.get(name):
            raise ValueError(
                f"the weight {name} is {given.get(name, 'absent')} and {expected.get(name, 'unknown')} in the network "
                "that is described"
            )
    try:
        with torch.no_grad():
            answer = network(torch.empty(1, *shape, device="meta"), torch.ones(1, device="meta"))
    except UserError as error:  # whose remedy is for someone who builds the network
        raise ValueError(str(error).partition(":")[0]) from None
    if tuple(answer.shape) != (1, *shape):
        raise ValueError(f"the network that is described does not answer data of shape {tuple(shape)} in that shape")
