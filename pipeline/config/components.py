"""Check the losses, modalities and encoders of a config against the signatures of their constructors."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

from annotated_types import Ge, Gt
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from pydantic.errors import PydanticUserError
from typing_extensions import NotRequired, Required, TypedDict

from pipeline.common.errors import UserError
from pipeline.config.document import Document, Key, show_value
from pipeline.config.messages import explain, unknown
from pipeline.config.outline import outline
from pipeline.config.weight_schedule import FIELDS, WeightSchedule

if TYPE_CHECKING:  # they import torch, which validating a config does not need
    from losses import Loss
    from modalities import Encoder, Modality

T = TypeVar("T")

TERM: dict[str, Any] = {
    "weight": NotRequired[Annotated[float, Ge(0), Field(description="Weight of the loss.")]],
    "schedule": NotRequired[WeightSchedule],
}
"""Settings of every loss that are read by the pipeline, not by the loss. Losses have no keywords of these names."""

WEIGHTS: dict[str, Any] = {
    "weights": NotRequired[
        Annotated[
            Literal["random"],
            Field(description="random: confirms that a frozen teacher with this encoder is untrained on purpose."),
        ]
    ],
}
"""A setting of every encoder that does not define one with this name itself."""

FREEZE: dict[str, Any] = {
    "freeze": NotRequired[
        Annotated[
            bool | Annotated[int, Gt(0)] | list[str],
            Field(
                description="Freeze the encoder of a student: no gradients, evaluation mode. A number freezes it for "
                "the first n steps; a list of dotted paths freezes only these modules.",
            ),
        ]
    ],
}
"""A setting of every encoder of a student that is read by the pipeline, not by the encoder."""

REFUSING = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


def check_components(document: Document) -> dict[str, Any]:
    """Record all errors in the components of a document.

    A loss without settings may be null; a modality or encoder without settings may be just a name. A loss that an
    override sets to null is removed.

    Args:
        document: The document.

    Returns:
        Its data, with the settings of components converted to their annotated types.
    """
    data = deepcopy(document.data)
    if isinstance(losses := data.get("losses"), dict):
        left = {name: written for name, written in losses.items() if not _removed(document, ("losses", name))}
        data["losses"] = {name: _loss(document, ("losses", name), written) for name, written in left.items()}
    for role in "teacher", "student":
        if isinstance(data.get(role), dict):
            _network(document, role, data[role])
    return data


def find_loss(name: str) -> type[Loss]:
    """Find a loss class in `losses.LOSSES`, or by `package.module:Class`.

    Returns:
        The class; of a built-in one, its `outline`, which has no methods that can be called.

    Raises:
        UserError: No such class exists.
    """
    built_in: dict[str, type[Loss]] = outline("losses").LOSSES
    if name in built_in:
        return built_in[name]
    if ":" not in name:
        message = unknown((name,), {(): built_in})
        raise UserError(message if message.endswith("?") else f"{message}, or your own package.module:Class")
    import losses

    return _found(name, lambda: losses.get(name))


def find_modality(name: str) -> type[Modality]:
    """Find a modality class by name, or by `package.module:Class`.

    Returns:
        The class; of a built-in one, its `outline`, which has no methods that can be called.

    Raises:
        UserError: No such class exists.
    """
    built_in: dict[str, type[Modality]] = outline("modalities").MODALITIES
    if name in built_in:
        return built_in[name]
    import modalities

    return _found(name, lambda: modalities.get(name))


def find_encoder(modality: type[Modality], name: str) -> type[Encoder] | None:
    """Find an encoder class by name, or by `package.module:Class`.

    Args:
        modality: The modality that it encodes.
        name: Name of the encoder.

    Returns:
        The class, as in `modality.encoders`; None if the modality has no `encoders`. Such a modality checks the
        settings when it builds an encoder.

    Raises:
        UserError: No such class exists.
    """
    if name in modality.encoders:
        return modality.encoders[name]
    if not modality.encoders and ":" not in name:
        return None
    from losses.registry import find
    from modalities import Encoder

    return _found(name, lambda: find(name, modality.encoders, Encoder, "encoder"))


def parameters(cls: type, *, keyword_only: bool) -> dict[str, Any]:
    """List the parameters of a class that a config may set. `**kwargs` does not count.

    Args:
        cls: The class.
        keyword_only: Whether only keyword-only parameters may be set.

    Returns:
        Name -> type, marked as `Required` or `NotRequired`.

    Raises:
        UserError: An annotation cannot be evaluated.
    """
    # Annotations of inherited fields of a dataclass are evaluated in the module that defines them.
    stated = cls if is_dataclass(cls) else cls.__init__  # type: ignore[misc]
    try:
        hints = get_type_hints(stated, include_extras=True)
    except (NameError, TypeError, AttributeError) as error:
        raise UserError(f"the annotations of {cls.__name__} cannot be evaluated: {error}") from None
    kinds = [inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD][: 1 if keyword_only else 2]
    return {
        name: (Required if parameter.default is parameter.empty else NotRequired)[hints.get(name, Any)]
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind in kinds
    }


def validated(document: Document, at: Key, fields: Mapping[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Validate settings.

    Args:
        document: Records the errors.
        at: Key of the settings.
        fields: Name -> type, as from `parameters`.
        settings: The settings.

    Returns:
        The settings converted to the types of `fields`; unchanged if there are errors.

    Raises:
        UserError: A type cannot be validated.
    """
    adapter = _adapter(fields)
    try:
        # In JSON, lists are accepted as tuples even in strict mode.
        return adapter.validate_json(json.dumps(settings))
    except ValidationError as error:
        explain(document, error, at, {at: fields, (*at, "schedule"): FIELDS if "schedule" in fields else {}})
        return settings


def _adapter(fields: Mapping[str, Any]) -> TypeAdapter[dict[str, Any]]:
    try:
        return TypeAdapter(with_config(REFUSING)(TypedDict("Settings", dict(fields))))  # type: ignore[operator]
    except (PydanticUserError, TypeError) as error:
        raise UserError(f"its annotations cannot be validated: {error}") from None


def check_keywords(cls: type, settings: Mapping[str, Any], where: str, keyword_only: bool = False) -> dict[str, Any]:
    """Check the keywords of a class without a config document.

    Args:
        cls: The class.
        settings: The keywords.
        where: Config path for messages.
        keyword_only: Whether only keyword-only parameters may be set.

    Returns:
        The keywords, converted to their annotated types.

    Raises:
        UserError: A keyword is unknown, missing, or has the wrong type.
    """
    fields = parameters(cls, keyword_only=keyword_only)
    try:
        return _adapter(fields).validate_json(json.dumps(dict(settings)))
    except ValidationError as error:
        fault = error.errors()[0]
        key, known = ".".join(map(str, fault["loc"])), ", ".join(fields) or "none"
        raise UserError(f"{where}.{key}: {fault['msg']}; keywords of {cls.__name__}: {known}.") from None
    except TypeError as error:
        raise UserError(f"{where}: {error}") from None


def _defaults(loss: type[Loss], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the defaults of a loss. The config of a run stays complete even if a later version changes the defaults.

    They are validated like a config. Defaults that YAML cannot represent are left out; the loss sets them itself.
    """
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(loss).parameters.items():
        filled_in = loss.needs_index and name == "samples"  # set by the pipeline
        if parameter.kind is parameter.KEYWORD_ONLY and not filled_in:
            with suppress(TypeError, ValueError):
                written = json.dumps({name: parameter.default}, allow_nan=False)
                found |= _adapter({name: fields[name]}).validate_json(written)
    return found


def _removed(document: Document, at: Key) -> bool:
    """Whether an override removes this loss. An unknown name is an error, since it may be mistyped."""
    if not document.removed(at):
        return False
    try:
        find_loss(str(at[-1]))
    except UserError as error:
        document.fault(at, str(error))
    return True


def _loss(document: Document, at: Key, written: Any) -> Any:
    settings = {} if written is None else written
    if not isinstance(settings, dict):
        return settings  # the schema rejects it
    try:
        loss = find_loss(str(at[-1]))
        own = parameters(loss, keyword_only=True)
        if taken := own.keys() & TERM:
            raise UserError(
                f"has a keyword `{min(taken)}`, which is reserved, since every loss has a setting with this name; "
                "rename it"
            )
        fields = TERM | own
        settings = validated(document, at, fields, settings)
    except UserError as error:
        document.fault(at, str(error))
        return settings
    if loss.needs_teacher and document.data.get("teacher") is None:
        document.fault(at, "requires a teacher; add `teacher:`, or remove this loss")
    return {"weight": 1.0, **_defaults(loss, fields), **settings}


def _network(document: Document, role: str, network: dict[str, Any]) -> None:
    """Check modality and encoder, or lists of them, and convert each to `{name: ..., settings}`."""
    modalities: dict[Key, type[Modality]] = {}
    for part in "modality", "encoder":
        written = network.get(part)
        if isinstance(written, list):
            network[part] = [
                _component(document, (role, part, number), one, modalities) for number, one in enumerate(written)
            ]
        elif written is not None:
            network[part] = _component(document, (role, part), written, modalities)


def _component(document: Document, at: Key, written: Any, modalities: dict[Key, type[Modality]]) -> Any:
    """Check one component. Modalities are recorded by position in the list, for the encoder at the same position."""
    spec = {"name": written} if isinstance(written, str) else written
    place = at[2:]
    if not isinstance(spec, dict) or not isinstance(name := spec.get("name"), str):
        document.fault(at, f"must be a name, or {{name: ..., settings}}, got {show_value(written)}")
        return written
    try:
        if at[1] == "modality":
            modalities[place] = find_modality(name)
            fields = parameters(modalities[place], keyword_only=False)
        else:
            modality = modalities.get(place)
            encoder = modality and find_encoder(modality, name)
            if encoder is None:
                return spec
            own = parameters(encoder, keyword_only=True)
            if taken := own.keys() & FREEZE:
                raise UserError(
                    f"has a keyword `{min(taken)}`, which is reserved, since every encoder has a setting with this "
                    "name; rename it"
                )
            fields = own | WEIGHTS | own | (FREEZE if at[0] == "student" else {})
        return validated(document, at, {"name": Required[str], **fields}, spec)
    except UserError as error:
        document.fault(at if spec is not written else (*at, "name"), str(error))
        return spec


def _found(name: str, find: Callable[[], T]) -> T:
    try:
        return find()
    except ValueError as error:
        raise UserError(re.sub(rf"^(loss|modality|encoder|{re.escape(name)}): ", "", str(error))) from None
    except Exception as error:  # importing a user's class runs its module, which may raise any error
        raise UserError(f"{name} fails on import: {type(error).__name__}: {error}") from error
