"""Image classifiers of Hugging Face transformers, from a configuration of plain values alone.

No file and no address is looked at, and nothing but transformers' own classes is built.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from robust_models.errors import UserError

# What a configuration could say to bring in other weights or other people's code, at any depth of it.
_NEVER = {"attn_implementation", "experts_implementation", "quantization_config", "auto_map", "trust_remote_code"}
_NEVER |= {"backbone", "backbone_config", "use_timm_backbone", "use_pretrained_backbone", "dtype", "torch_dtype"}


def build(name: str, options: dict[str, Any], num_classes: int) -> nn.Module:
    """transformers' class `name` with fresh weights: pixels [N,3,H,W] (normalised) -> logits [N,num_classes].

    options: {"config": values of its configuration}; without them those of its configuration class. Raises UserError
    where transformers is missing, the class is no image classifier, or the configuration does not make one.
    """
    network_class = _network_class(name)
    with _quiet():
        network = network_class(_configuration(network_class, options, num_classes))
    network.register_forward_hook(_logits_of)
    return network


def renamed(
    name: str, options: dict[str, Any], num_classes: int, state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a file under the names that the installed transformers gives them in its class `name`.

    Files keep the names of the release that first wrote such a network; transformers knows how they changed. Second:
    what the network has no place for. Raises UserError where a tensor is missing or of another shape.
    """
    network_class = _network_class(name)
    with _quiet():
        network, report = network_class.from_pretrained(
            None,
            config=_configuration(network_class, options, num_classes),
            state_dict=dict(state),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    missing, other = sorted(report["missing_keys"]), sorted(report["mismatched_keys"])
    if other:
        tensor, came, expected = other[0]
        raise UserError(f"{tensor} is {list(came)}, expected {list(expected)}")
    if missing:
        raise UserError(f"{len(missing)} tensors missing ({', '.join(missing[:3])})")
    return network.state_dict(), sorted(report["unexpected_keys"])


def image_classifiers() -> dict[str, str]:
    """Names of transformers' image classifiers, and the type of model that their config.json names."""
    _transformers()
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as classes

    every = {kind: (names,) if isinstance(names, str) else names for kind, names in classes.items()}
    return {name: kind for kind, names in every.items() for name in names}


def _network_class(name: str) -> Any:
    known = image_classifiers()
    if name not in known:
        raise UserError(
            f"arch: {name[:80]!a} is none of transformers' image classifiers (ViTForImageClassification, ...)"
        )
    network_class = getattr(_transformers(), name)
    if getattr(network_class, "main_input_name", None) != "pixel_values":
        raise UserError(f"arch: {name} takes something else than pixels")
    return network_class


def own_values(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a config.json that describe the network itself: those that the class's configuration declares."""
    config_class = _network_class(name).config_class
    declared = config_class().to_dict().keys() - _transformers().PretrainedConfig().to_dict().keys()
    return {name: value for name, value in _kept(values).items() if name in declared}


def _configuration(network_class: Any, options: dict[str, Any], num_classes: int) -> Any:
    values = options.get("config", {})
    if options.keys() - {"config"} or not isinstance(values, dict):
        raise UserError(f"options: {', '.join(options)[:80]}: transformers' networks take {{'config': {{...}}}} only")
    values = own_values(network_class.__name__, values)
    if values.get("num_channels", 3) != 3:
        raise UserError(f"config: num_channels is {values['num_channels']}; only networks for RGB images are read")
    try:
        return network_class.config_class(**values, num_labels=num_classes)
    except Exception as error:  # each release has its own kinds of complaint about values
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"config: {network_class.config_class.__name__} refuses it ({reason})") from error


def _kept(value: Any) -> Any:
    """Without what a configuration must not say, at any depth of it."""
    if isinstance(value, dict):
        return {key: _kept(item) for key, item in value.items() if key not in _NEVER and not str(key).startswith("_")}
    return [_kept(item) for item in value] if isinstance(value, list) else value


def _logits_of(network: nn.Module, inputs: Any, output: Any) -> Tensor:
    return output.logits


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError('arch: networks of transformers need it; install it with pip install "bigroc[zoo]"') from error
    return transformers


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' messages and bars, which are about files that we do not let it read."""
    logging = _transformers().utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
