"""Networks of plans that came in a file of somebody else: nothing but a network is built."""

import pydoc
from typing import TYPE_CHECKING, Any

from torch import nn

from nnunet_alice.errors import UnsafeCheckpointError

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

#: whence a network's class and the layers that it is made of may come
_NETWORKS, _LAYERS = "dynamic_network_architectures.", "torch.nn."


def network_of_file(
    path: Any, configuration: "ConfigurationManager", num_input_channels: int, num_outputs: int, **options: Any
) -> nn.Module:
    """Return nnU-Net's ``get_network_from_plans``, once :func:`check_architecture` has passed.

    Args:
        path: file that holds the plans, for the error message.
        configuration: nnU-Net's ``ConfigurationManager``.
        num_input_channels: of the network.
        num_outputs: of the network.
        options: ``allow_init``, ``deep_supervision``.

    Raises:
        CheckpointError: the plans name something else than a network and its layers.
    """
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    check_architecture(path, configuration)
    return get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        num_input_channels,
        num_outputs,
        **options,
    )


def check_architecture(path: Any, configuration: "ConfigurationManager") -> None:
    """Refuse plans that would make nnU-Net call something else than a network and its layers.

    nnU-Net looks up whatever names the plans hold and calls it with the plans' own arguments: plain text is then as
    dangerous as a pickle.

    Args:
        path: file that holds the plans, for the error message.
        configuration: nnU-Net's ``ConfigurationManager``.

    Raises:
        CheckpointError: one of the names is not a class of a network or a layer.
    """
    arguments = configuration.network_arch_init_kwargs
    names = {"network_class_name": (configuration.network_arch_class_name, _NETWORKS)}
    for argument in configuration.network_arch_init_kwargs_req_import:
        if arguments[argument] is not None:
            names[argument] = (arguments[argument], _LAYERS)
    for argument, (name, prefix) in names.items():
        if not isinstance(name, str) or not name.startswith(prefix) or not _is_module(name):
            raise UnsafeCheckpointError(
                f"{path} was refused: its plans name {name!r} as {argument}, which is no {prefix}* network or layer."
            ).about(path=path, option=argument, value=name)


def _is_module(name: str) -> bool:
    """Return whether nnU-Net will find a class of torch modules under this name (a prefix alone may lead anywhere)."""
    found = pydoc.locate(name)
    if found is None:  # nnU-Net then looks for the last part among these
        import dynamic_network_architectures
        from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

        package = f"{dynamic_network_architectures.__name__}.architectures"
        folder = f"{dynamic_network_architectures.__path__[0]}/architectures"
        found = recursive_find_python_class(folder, name.rpartition(".")[2], package)
    return isinstance(found, type) and issubclass(found, nn.Module)
