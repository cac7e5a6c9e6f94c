"""What a caller wants, and the model that it is to have it from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from triptych.gateway.body import GenerateBody
from triptych.gateway.editing import Pictures
from triptych.gateway.parameters import Parameters, resolve
from triptych.gateway.registry import Identities, Model, Registry
from triptych.pipeline import Keep


@dataclass(frozen=True, kw_only=True)
class Order:
    """One request as it was understood: true of whatever model carries it out.

    Attributes:
        body: Its seed is drawn: another model may make the picture in the end, with other defaults, but with this seed.
        pictures: What the body brought of them, decoded.
        arrived: When the request came, by `time.monotonic()`.
        deadline: When nobody waits for it any more, by the same clock.
        priority: `low`, `normal` or `high`.
        key: The name of the API key that it came with, not the key itself; empty where none is demanded.
        keep: Where to keep what the stages make for a job that this becomes; None: nowhere.
    """

    id: str
    body: GenerateBody
    pictures: Pictures
    arrived: float
    deadline: float
    priority: str = "normal"
    key: str = ""
    keep: Callable[[Job], Keep] | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """An order for a certain model.

    Attributes:
        identities: What the model's stages said of themselves when it was given the order.
        warnings: What the caller should know of how it came about.
    """

    order: Order
    model: Model
    identities: Identities
    parameters: Parameters
    warnings: tuple[str, ...]

    @property
    def is_up_to_date(self) -> bool:
        """Whether the model's stages are those that it was given to, as far as is known."""
        return self.model.identities == self.identities


async def find(registry: Registry, order: Order, *, patiently: bool = False, deadline: float | None = None) -> Model:
    """The model that is to have an order. Arguments and errors are those of `Registry.find`."""
    masked = order.body.mask is not None
    return await registry.find(order.body.model, masked=masked, patiently=patiently, deadline=deadline)


async def give(order: Order, model: Model, *, patiently: bool = False, deadline: float | None = None) -> Job:
    """The order for a model. Arguments are those of `Model.known`.

    Raises:
        StageNotReady, StageTimeout: As `Model.known` raises them.
        InvalidValue: The model cannot do it.
    """
    identities = await model.known(patiently=patiently, deadline=deadline)
    chosen_for_the_caller = identities.diffusion.warnings if order.body.sampler is None else ()
    return Job(
        order=order,
        model=model,
        identities=identities,
        parameters=resolve(order.body, model.name_with(identities), identities, order.pictures),
        warnings=(*chosen_for_the_caller, *order.pictures.warnings()),
    )
