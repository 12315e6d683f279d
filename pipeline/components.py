"""The losses, modalities and encoders that a config names, checked against their constructors' signatures."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

from annotated_types import Ge
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from pydantic.errors import PydanticUserError
from typing_extensions import NotRequired, Required, TypedDict

from pipeline.configfile import Document, Key, show_value
from pipeline.errors import UserError
from pipeline.explain import explain, unknown

if TYPE_CHECKING:  # they bring torch, which is not needed to read what a config may contain
    from losses import Loss
    from modalities import Encoder, Modality

T = TypeVar("T")

REFUSING = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


def check_components(document: Document) -> dict[str, Any]:
    """Note each fault in the document's components; return its data with their settings in the types they state.

    A loss without settings may be null, a modality or an encoder without settings its mere name. A loss that an
    override sets to null is taken away.
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
    """The loss of a name in `losses.LOSSES`, or `package.module:Class`; UserError if there is none."""
    from losses import LOSSES, Loss
    from modalities.encoders import find

    if name not in LOSSES and ":" not in name:
        message = unknown((name,), {(): LOSSES})
        raise UserError(message if message.endswith("?") else f"{message}, or your own package.module:Class")
    return _found(name, lambda: find(name, LOSSES, Loss, "loss"))


def find_modality(name: str) -> type[Modality]:
    """The modality of that name, or `package.module:Class`; UserError if there is none."""
    import modalities

    return _found(name, lambda: modalities.get(name))


def find_encoder(modality: type[Modality], name: str) -> type[Encoder] | None:
    """The encoder of that name for a modality, or `package.module:Class`; UserError if there is none.

    None for a modality that lists no `encoders`: it checks the settings itself when it builds one.
    """
    from modalities import Encoder
    from modalities.encoders import find

    if not modality.encoders and ":" not in name:
        return None
    return _found(name, lambda: find(name, modality.encoders, Encoder, "encoder"))


def parameters(cls: type, *, keyword_only: bool) -> dict[str, Any]:
    """What a config may set of a class: parameter name -> its type, marked as `Required` or `NotRequired`.

    Raises UserError if an annotation cannot be evaluated. `**kwargs` accepts nothing: a setting has a name.
    """
    # A dataclass's own fields and those it inherits are each read by the names of the module that they stand in.
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
    """The settings in the types of `fields`; faults are noted in the document, and then they come back as they were.

    fields: as from `parameters`. Raises UserError if one of these types is none that can be validated.
    """
    adapter = _adapter(fields)
    try:
        # By way of JSON, where a list is how a tuple is written even if types are strict.
        return adapter.validate_json(json.dumps(settings))
    except ValidationError as error:
        explain(document, error, at, {at: fields})
        return settings


def _adapter(fields: Mapping[str, Any]) -> TypeAdapter[dict[str, Any]]:
    try:
        return TypeAdapter(with_config(REFUSING)(TypedDict("Settings", dict(fields))))  # type: ignore[operator]
    except (PydanticUserError, TypeError) as error:
        raise UserError(f"its annotations cannot be validated: {error}") from None


def _defaults(loss: type[Loss], fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a config leaves to the loss, so that a run's config says it even when a later version has other defaults.

    As if it were read from the config: a default that could not be written there is left to the loss.
    """
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(loss).parameters.items():
        filled_in = loss.needs_index and name == "samples"  # by the pipeline, which knows the training set
        if parameter.kind is parameter.KEYWORD_ONLY and not filled_in:
            with suppress(TypeError, ValueError):
                written = json.dumps({name: parameter.default}, allow_nan=False)
                found |= _adapter({name: fields[name]}).validate_json(written)
    return found


def _removed(document: Document, at: Key) -> bool:
    """Whether an override takes this loss away; a fault for a name that none has, which may have meant another."""
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
        return settings  # which the schema refuses
    try:
        loss = find_loss(str(at[-1]))
        fields = {"weight": NotRequired[Annotated[float, Ge(0)]], **parameters(loss, keyword_only=True)}
        settings = validated(document, at, fields, settings)
    except UserError as error:
        document.fault(at, str(error))
        return settings
    if loss.needs_teacher and document.data.get("teacher") is None:
        document.fault(at, "needs a teacher: add `teacher:`, or remove this loss")
    return {"weight": 1.0, **_defaults(loss, fields), **settings}


def _network(document: Document, role: str, network: dict[str, Any]) -> None:
    """Check modality and encoder, or lists of them, and replace each by `{name: ..., settings}`."""
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
    """Check one; a modality is noted under its place in the list, where the encoder that reads it looks."""
    spec = {"name": written} if isinstance(written, str) else written
    place = at[2:]
    if not isinstance(spec, dict) or not isinstance(name := spec.get("name"), str):
        document.fault(at, f"must be a name, or {{name: ..., its settings}}, got {show_value(written)}")
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
            fields = parameters(encoder, keyword_only=True)
        return validated(document, at, {"name": Required[str], **fields}, spec)
    except UserError as error:
        document.fault(at if spec is not written else (*at, "name"), str(error))
        return spec


def _found(name: str, find: Callable[[], T]) -> T:
    try:
        return find()
    except ValueError as error:
        raise UserError(re.sub(rf"^(loss|modality|encoder|{re.escape(name)}): ", "", str(error))) from None
    except Exception as error:  # importing a class of somebody else runs its module, which may raise anything
        raise UserError(f"{name} fails on import: {type(error).__name__}: {error}") from error
