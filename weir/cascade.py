"""The cascade: what happens to one image, from its admission to its answer, as a pure state machine.

    progress, actions = advance(progress, event, forecast)

``Progress`` is the state of one image. An *event* says what happened to it; the *actions* say what to do next. Nothing
here waits, sends or generates: the load balancer executes the actions on a Ray cluster, the simulator on a heap of
events, ``weir generate`` in one process. All of them take their decisions here and nowhere else.

    Admitted ──▶ LookUp ──▶ LookupAnswered ──▶ Run ──▶ ImageReady ─┬─▶ Answer
                                                ▲                  ├─▶ Show, Run   deferred, doubted, or redrawn
                                                │                  └─▶ TellCache   once, for every LookUp
                                                └── RunFailed ─────┴─▶ Answer with what there is, or Fail

The phases and how events lead from one to the next are in :data:`TRANSITIONS`, from which the diagram in
``docs/architecture.md`` is generated.

The only thing that a decision needs from outside is a :class:`Forecast`: what time it is, and when a run would be ready
if it were dispatched now.

What is made for every step of every image is a named tuple: that takes a third of the time of a frozen dataclass, and
the simulator makes millions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import Any, Literal, NamedTuple, Protocol

from weir.core import NO_LOOKUP, CacheLookup, ImageSize, Resume, margin_s, steps_of_edit
from weir.plan import Plan

#: An image is waited for no longer than this many deadlines.
PATIENCE = 3.0
#: A run that failed or lost its replica is tried on another replica once.
ATTEMPTS = 2

CacheMode = Literal["off", "read", "read-write"]

#: Value of :attr:`Answer.path` for an image that resumed from a stored state.
FROM_CACHE = "cache"
#: Ends :attr:`Answer.path` for an image that was deferred, and is the answer because the next one would be late.
AT_DEADLINE = "-deadline"


@dataclass(frozen=True, slots=True)
class CascadeSettings:
    """What a service fixes for all its images.

    Attributes:
        steps: denoising steps of each variant's own run, by key, from the fastest variant to the best.
        direct: the least share of steps saved for which a cache hit enters at the last variant, where the plan does not
            say.
        redraw_below: an image of the last variant with a lower confidence is generated again from other noise.
        redraw_most: how often, at most.
    """

    steps: Mapping[str, int]
    direct: float = 0.0
    redraw_below: float = 0.0
    redraw_most: int = 1


class ImageTask(NamedTuple):
    """One admitted image: what was asked for, and under which plan. It keeps its plan until it is answered.

    Times are unix time, seconds.

    Attributes:
        admitted_at: the deadline counts from here.
        variant: named by the client; None lets the cascade decide.
        steps: denoising steps that the client asks of the last variant; None: its own.
        seeded: the client named a seed, so the image is not generated again from other noise.
        cache: what the request does with the cache.
        cache_named: the request itself said so, and not the service.
        low_priority: lets all others go first.
        beyond_share: its tenant already had more than an equal part of all work in flight; set beside ``low_priority``.
        draw: uniform in [0, 1), for what a plan leaves to chance.
        size: of the image; None: the family's own.
        strength: of an edit (:attr:`weir.core.Edit.strength`); None: the image starts from noise.
    """

    plan: Plan
    admitted_at: float
    slo_s: float
    variant: str | None = None
    steps: int | None = None
    seeded: bool = False
    cache: CacheMode = "off"
    cache_named: bool = False
    low_priority: bool = False
    beyond_share: bool = False
    draw: float = 1.0
    size: ImageSize | None = None
    strength: float | None = None

    @property
    def deadline(self) -> float:
        """The worker's; by then the image is late, or dropped where the plan's rules say so."""
        return self.admitted_at + (self.plan.rules.drop_after_s or self.slo_s)

    @property
    def latest(self) -> float:
        """When the answer has to leave to be in time."""
        return self.admitted_at + self.slo_s - margin_s(self.slo_s)

    @property
    def patience(self) -> float:
        """When a run that nothing can stand in for is given up."""
        return self.admitted_at + (self.plan.rules.drop_after_s or self.slo_s) + (PATIENCE - 1) * self.slo_s


# ------------------------------------------------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True)
class LookUp:
    """Ask the cache; answer with :class:`LookupAnswered`, also when it fails or is slow (with nothing found)."""


class Run(NamedTuple):
    """Generate an image on a replica; answer with :class:`ImageReady` or :class:`RunFailed`.

    Attributes:
        variant: key of the variant to run.
        role: replicas to choose from; the one that would be ready first, by the plan's rules.
        until: when to stop waiting (:attr:`Reason.LATE`), unix time.
        deadline: the worker's.
        steps: of the run; None: the variant's own.
        resume: the state to resume from; None: from noise.
        capture: whether states that the run passes are kept.
        judge: the discriminator looks at the image, whichever variant it is of.
        droppable: give the image up (:attr:`Reason.DROPPED`) if it still waits when it would have to start to be ready
            by ``deadline``.
        low_priority: let all others go first.
        redraw: 0, or which generation from other noise this is.
        avoid: replicas not to choose.
        stay: the replica to send it to, whatever the plan says; "": the best one.
        size, strength: see :class:`ImageTask`.
    """

    variant: str
    role: str
    until: float
    deadline: float
    steps: int | None = None
    resume: Resume | None = None
    capture: bool = False
    judge: bool = False
    droppable: bool = False
    low_priority: bool = False
    redraw: int = 0
    avoid: tuple[str, ...] = ()
    stay: str = ""
    size: ImageSize | None = None
    strength: float | None = None

    def work(self, own: int) -> float:
        """Steps that run, as a share of ``own``, the steps of the variant's own run."""
        steps = self.steps or own
        if self.strength is not None:
            return steps_of_edit(steps, self.strength) / own
        if self.resume is not None:
            return (steps - self.resume.step) / self.resume.stride / own
        return steps / own


class Judged(NamedTuple):
    """Count a judge's verdict on an image of a chain."""

    variant: str
    confidence: float | None
    deferred: bool


@dataclass(frozen=True, slots=True)
class Show:
    """Show the image to a client that streams; a better one may replace it."""

    image: int


@dataclass(frozen=True, slots=True)
class TellCache:
    """Tell the cache how the request that it was asked for ended; follows every :class:`LookUp` once.

    Attributes:
        image: the last run of the last variant; None: there was none.
        sought: step K of the state that it should have resumed from; 0: none.
    """

    image: int | None
    sought: int


class Answer(NamedTuple):
    """Answer with an image. Nothing follows.

    Attributes:
        path: key of the variant that generated it; :data:`FROM_CACHE` if it resumed; with :data:`AT_DEADLINE` if it was
            deferred and the next image would be late.
    """

    image: int
    path: str


@dataclass(frozen=True, slots=True)
class Fail:
    """Answer with the failure of the last run. Nothing follows."""


Action = LookUp | Run | Judged | Show | TellCache | Answer | Fail


# -------------------------------------------------------------------------------------------------------- events


class Admitted(NamedTuple):
    """The image was admitted.

    Attributes:
        first: the run that admission predicted (:func:`first_run`), where it is at hand.
    """

    first: Run | None = None


@dataclass(frozen=True, slots=True)
class LookupAnswered:
    """The cache answered."""

    lookup: CacheLookup


class ImageReady(NamedTuple):
    """A run ended with an image.

    Attributes:
        variant: that generated it; another one than asked where the replica took its queue along into another role.
        confidence: None where nobody judged it; a value outside 0…1 counts as None.
        resumed_at: the first step that ran; 0 from noise.
    """

    variant: str
    confidence: float | None
    resumed_at: int = 0


class Reason(Enum):
    """Why a run gave no image."""

    LATE = "late"  #: it was not there in time
    DROPPED = "dropped"  #: it could not have been there in time, and never started
    LOST = "lost"  #: its replica died
    FAILED = "failed"  #: the worker could not generate it
    NOT_FINITE = "not finite"  #: the model's output was not finite, and would be so on another replica
    INVALID = "invalid"  #: no worker can: the request itself is wrong
    BLOCKED = "blocked"  #: the image must not be shown; no other one of the same prompt is
    ROLE_CHANGED = "role changed"  #: its replica has another role now; it never started


@dataclass(frozen=True, slots=True)
class RunFailed:
    """A run ended without an image.

    Attributes:
        replica: that had it; "" when it was at none.
        new_role: of that replica, where its role changed.
    """

    reason: Reason
    replica: str = ""
    new_role: str = ""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Nobody waits for the image any more."""


Event = Admitted | LookupAnswered | ImageReady | RunFailed | Cancelled


class Forecast(Protocol):
    """What the decisions ask of the world."""

    def now(self) -> float:
        """Unix time, seconds."""
        ...

    def finish_at(self, run: Run) -> float | None:
        """When the image would be ready if the run were dispatched now; None when no replica could take it."""
        ...


# --------------------------------------------------------------------------------------------------------- state


class Phase(StrEnum):
    """Where an image stands."""

    NEW = "new"
    LOOKING_UP = "looking up"
    RUNNING = "running"
    REDRAWING = "redrawing"  #: there is a good answer; another one may be better
    OVER = "over"


#: By phase and event, the phases that may follow. The diagram of the documentation is made from this, and a test holds
#: :func:`advance` to it.
TRANSITIONS: dict[tuple[Phase, type], frozenset[Phase]] = {
    (Phase.NEW, Admitted): frozenset({Phase.LOOKING_UP, Phase.RUNNING}),
    (Phase.LOOKING_UP, LookupAnswered): frozenset({Phase.RUNNING}),
    (Phase.RUNNING, ImageReady): frozenset({Phase.RUNNING, Phase.REDRAWING, Phase.OVER}),
    (Phase.RUNNING, RunFailed): frozenset({Phase.RUNNING, Phase.REDRAWING, Phase.OVER}),
    (Phase.REDRAWING, ImageReady): frozenset({Phase.REDRAWING, Phase.OVER}),
    (Phase.REDRAWING, RunFailed): frozenset({Phase.REDRAWING, Phase.OVER}),
    (Phase.NEW, Cancelled): frozenset({Phase.OVER}),
    (Phase.LOOKING_UP, Cancelled): frozenset({Phase.OVER}),
    (Phase.RUNNING, Cancelled): frozenset({Phase.OVER}),
    (Phase.REDRAWING, Cancelled): frozenset({Phase.OVER}),
}


class Image(NamedTuple):
    """A finished run. Its number is its place in :attr:`Progress.images`."""

    variant: str
    confidence: float | None
    resumed_at: int
    run: Run


class Progress(NamedTuple):
    """The state of one image between two events.

    Attributes:
        lookup: what the cache had; :data:`weir.core.NO_LOOKUP` before it answered, or where it was not asked.
        looked_up: the cache was asked, and has not been told the end.
        run: under way; None in the phases without one.
        images: finished runs, in order.
        doubted: number of the resumed image that the discriminator doubted, while it is generated from noise.
        may_fall: the request entered at the last variant, and may turn to the first one if that run is late.
        best, path: number and path of the best answer so far, once there is one.
        redraws: generations from other noise so far.
    """

    task: ImageTask
    settings: CascadeSettings
    phase: Phase = Phase.NEW
    lookup: CacheLookup = NO_LOOKUP
    looked_up: bool = False
    run: Run | None = None
    images: tuple[Image, ...] = ()
    doubted: int | None = None
    may_fall: bool = False
    best: int | None = None
    path: str = ""
    redraws: int = 0

    # Every image takes these steps. Naming all attributes takes a third of the time of ``_replace``.

    def started(self, run: Run, phase: Phase) -> Progress:
        """The state after a run was sent off."""
        task, settings, _, lookup, looked_up, _, images, doubted, may_fall, best, path, redraws = self
        return Progress(task, settings, phase, lookup, looked_up, run, images, doubted, may_fall, best, path, redraws)

    def finished(self, image: ImageReady) -> Progress:
        """The state after the run under way ended with an image."""
        task, settings, phase, lookup, looked_up, run, images, doubted, may_fall, best, path, redraws = self
        assert run is not None
        confidence = image.confidence
        if confidence is not None and not 0 <= confidence <= 1:  # not a number, too: the judge itself is broken
            confidence = None
        images = (*images, Image(image.variant, confidence, image.resumed_at, run))
        return Progress(task, settings, phase, lookup, looked_up, None, images, doubted, may_fall, best, path, redraws)

    def over(self, best: int | None, path: str) -> Progress:
        """The last state; the cache has been told."""
        task, settings, _, lookup, _, _, images, doubted, may_fall, _, _, redraws = self
        return Progress(task, settings, Phase.OVER, lookup, False, None, images, doubted, may_fall, best, path, redraws)


Step = tuple[Progress, tuple[Action, ...]]


def advance(progress: Progress, event: Event, forecast: Forecast) -> Step:
    """The next state of an image after an event, and what to do.

    Raises:
        ValueError: no such event can happen in this phase.
    """
    step = _STEPS.get((progress.phase, type(event)))
    if step is None:
        raise ValueError(f"{type(event).__name__} in the phase {progress.phase}")
    return step(progress, event, forecast)


# ------------------------------------------------------------------------------------------- where a request enters


def first_variant(task: ImageTask) -> str:
    """The variant that a request enters at before the cache has answered: the one that the client names, else the
    first of the chain that has replicas; the plan's ``heavy_entry`` is the share that enters at the last one."""
    plan = task.plan
    if task.variant is not None:
        return task.variant
    if plan.routing is not None:
        return plan.routing.levels[plan.routing.pick(None, task.draw)].variant
    if task.draw < plan.rules.heavy_entry and plan.count(plan.last):
        return plan.last
    return plan.entry


def first_run(task: ImageTask, settings: CascadeSettings) -> Run:
    """The run that a request starts with where the cache has nothing for it; admission predicts when it is ready."""
    progress, routing = Progress(task, settings), task.plan.routing
    if routing is not None and task.variant is None:
        return _run_of_level(progress, routing.pick(None, task.draw))
    return _run_of(progress, first_variant(task))


def steps_from_noise(task: ImageTask, own: int) -> int | None:
    """Denoising steps of the last variant's runs from noise: what the client asks for, else what the plan says.

    None is the variant's own number, which a request that names the variant gets; no plan makes a run longer.
    """
    if task.steps is not None or task.variant is not None:
        return task.steps
    planned = task.plan.rules.heavy_steps
    return planned if planned is not None and planned < own else None


def _looks_up(task: ImageTask) -> bool:
    """Only the last variant's states are cached, so a request that names another variant has no use for them. States
    of an edit depend on its picture, so an edit neither uses nor leaves any."""
    return task.cache != "off" and task.strength is None and task.variant in (None, task.plan.last)


def _admitted(progress: Progress, event: Admitted, forecast: Forecast) -> Step:
    task, first = progress.task, event.first
    if _looks_up(task):
        return progress._replace(phase=Phase.LOOKING_UP, looked_up=True), (LookUp(),)
    if first is not None and first.variant != task.plan.last and task.plan.routing is None:
        return _start(progress, first)
    return _enter(progress, NO_LOOKUP, forecast)


def _looked_up(progress: Progress, event: LookupAnswered, forecast: Forecast) -> Step:
    return _enter(progress, event.lookup, forecast)


def _enter(progress: Progress, lookup: CacheLookup, forecast: Forecast) -> Step:
    task, plan = progress.task, progress.task.plan
    if task.cache == "read":
        lookup = replace(lookup, capture=False)
    if plan.routing is not None and task.variant is None:
        return _enter_level(progress._replace(lookup=lookup), forecast)
    own = progress.settings.steps[plan.last]
    from_noise = steps_from_noise(task, own)
    if lookup.resume is not None and not task.cache_named:
        longer = from_noise is not None and lookup.steps_left(task.steps or own) > from_noise
        if longer or not plan.rules.reuse:
            lookup = replace(lookup, resume=None)
    if lookup.resume is None and from_noise != task.steps:  # nobody looks for the states of a shortened run
        lookup = replace(lookup, capture=False)
    if lookup is not progress.lookup:
        progress = progress._replace(lookup=lookup)
    variant = first_variant(task)
    if task.variant is None and variant != plan.last and _enters_last(progress, own, forecast):
        variant = plan.last
    if variant == plan.last and task.variant is None and plan.rules.light_fallback:
        first = next((it for it in plan.chain[:-1] if plan.count(it)), None)
        progress = progress._replace(may_fall=first is not None)
    return _start(progress, _run_of(progress, variant))


def _enters_last(progress: Progress, own: int, forecast: Forecast) -> bool:
    """Whether a cache hit saves enough, or the prompt is predicted to be too hard, to skip the chain: if the last
    variant can make the deadline."""
    task, plan, lookup = progress.task, progress.task.plan, progress.lookup
    if not plan.count(plan.last):
        return False
    if lookup.resume is not None:
        least = progress.settings.direct if plan.rules.direct is None else plan.rules.direct
        wanted = lookup.saved(task.steps or own) >= least
    else:
        wanted = lookup.prompt_class is not None and lookup.prompt_class < plan.rules.heavy_levels
    return wanted and _in_time(task, _run_of(progress, plan.last), forecast)


def _enter_level(progress: Progress, forecast: Forecast) -> Step:
    """The level that the plan deals to the prompt's class, or the best faster one that meets the deadline."""
    task, routing = progress.task, progress.task.plan.routing
    assert routing is not None
    first = routing.pick(progress.lookup.prompt_class, task.draw)
    run = _run_of_level(progress, first)
    if routing.hurry and not _in_time(task, run, forecast):
        for faster in range(first + 1, len(routing.levels)):
            if routing.levels[faster].variant == routing.levels[first].variant:
                other = _run_of_level(progress, faster)
                if _in_time(task, other, forecast):
                    run = other
                    break
    return _start(progress, run)


# ------------------------------------------------------------------------------------------------------------ runs


def _run_of(progress: Progress, variant: str) -> Run:
    """A run of a variant of the chain, as things stand."""
    task = progress.task
    rules = task.plan.rules
    waits = bool(progress.images) and rules.light_fallback  # an image is there that could be the answer
    droppable = rules.drop_after_s is not None or waits
    doubted = progress.doubted is not None
    until = task.latest if waits or doubted else task.patience
    # Nobody waits for it longer, so the worker should not start it later.
    deadline = task.latest if waits else task.deadline
    if variant != task.plan.last:
        return Run(
            variant,
            variant,
            until,
            deadline,
            droppable=droppable,
            low_priority=task.low_priority,
            size=task.size,
            strength=task.strength,
        )
    lookup, falls, own = progress.lookup, progress.may_fall, progress.settings.steps[variant]
    return Run(
        variant=variant,
        role=variant,
        until=until,
        deadline=task.latest if falls else deadline,
        steps=task.steps if lookup.resume is not None else steps_from_noise(task, own),
        resume=None if doubted else lookup.resume,  # a state whose image was doubted is not tried again
        capture=lookup.capture,
        judge=doubted or _may_redraw(progress),
        droppable=droppable or falls,
        low_priority=task.low_priority,
        size=task.size,
        strength=task.strength,
    )


def _run_of_level(progress: Progress, index: int) -> Run:
    task, routing = progress.task, progress.task.plan.routing
    assert routing is not None
    level = routing.levels[index]
    resume = progress.lookup.at(level.skipped) if level.skipped else None
    is_last = level.variant == task.plan.last
    return Run(
        variant=level.variant,
        role=level.role,
        until=task.patience,
        deadline=task.deadline,
        steps=task.steps or level.steps if is_last else level.steps,
        resume=resume,
        capture=is_last and resume is None and level.steps is None and progress.lookup.capture,
        droppable=task.plan.rules.drop_after_s is not None,
        low_priority=task.low_priority,
        size=task.size,
        strength=task.strength,
    )


def _start(progress: Progress, run: Run, *actions: Action, phase: Phase = Phase.RUNNING) -> Step:
    return progress.started(run, phase), (*actions, run)


def _in_time(task: ImageTask, run: Run, forecast: Forecast) -> bool:
    ready_at = forecast.finish_at(run)
    return ready_at is not None and ready_at <= task.latest


# ---------------------------------------------------------------------------------------------- an image is there


def _image_ready(progress: Progress, event: ImageReady, forecast: Forecast) -> Step:
    progress = progress.finished(event)
    plan, number = progress.task.plan, len(progress.images) - 1
    image = progress.images[number]
    if image.variant != plan.last and image.variant in plan.chain and plan.routing is None:
        return _judged(progress, number, forecast)
    resume = image.run.resume
    resumed = resume is not None and image.resumed_at == resume.step
    if progress.doubted is not None:
        return _better(progress, number, forecast)
    if resumed and resume is not None and (image.confidence or 0.0) < resume.min_confidence:
        # Judged as well, for the more confident of the two will be the answer.
        again = image.run._replace(
            resume=None,
            until=progress.task.latest,
            judge=True,
            droppable=plan.rules.drop_after_s is not None,
            avoid=(),
            stay="",
        )
        if _in_time(progress.task, again, forecast):
            return _start(progress._replace(doubted=number, may_fall=False), again, Show(number))
    return _settle(progress, number, FROM_CACHE if resumed else image.variant, forecast)


def _judged(progress: Progress, number: int, forecast: Forecast) -> Step:
    """An image of the chain before the last: good enough, or on to the next variant."""
    task, image = progress.task, progress.images[number]
    following = None if image.variant == task.variant else task.plan.next_variant(image.variant)
    deferred = following is not None and task.plan.defers(image.variant, image.confidence)
    # A client that names a variant decides itself, which says nothing of the cascade.
    verdict = (Judged(image.variant, image.confidence, deferred),) if task.variant is None else ()
    if not deferred or following is None:
        return _settle(progress, number, image.variant, forecast, *verdict)
    if progress.may_fall:
        progress = progress._replace(may_fall=False)
    run = _run_of(progress, following)
    if task.plan.rules.light_fallback and not _in_time(task, run, forecast):
        return _settle(progress, number, image.variant + AT_DEADLINE, forecast, *verdict)
    return _start(progress, run, *verdict, Show(number))


def _better(progress: Progress, number: int, forecast: Forecast) -> Step:
    """Of a resumed image that was doubted and the one from noise, the one with more confidence."""
    doubted = progress.doubted
    assert doubted is not None
    first, second = progress.images[doubted], progress.images[number]
    if (first.confidence or 0.0) > (second.confidence or 0.0):
        return _settle(progress, doubted, FROM_CACHE, forecast)
    return _settle(progress, number, second.variant, forecast)


def _settle(progress: Progress, number: int, path: str, forecast: Forecast, *actions: Action) -> Step:
    """There is an answer. It leaves at once, unless it is doubted and there is time for another one."""
    best, task = progress.images[number], progress.task
    doubted = (
        _may_redraw(progress)
        and not path.endswith(AT_DEADLINE)
        and best.variant == task.plan.last
        and best.confidence is not None
        and best.confidence < progress.settings.redraw_below
        and sum(image.variant == task.plan.last for image in progress.images) <= progress.settings.redraw_most
    )
    if doubted:
        again = Run(
            variant=best.variant,
            role=best.variant,
            until=task.latest,
            # Workers serve the most urgent first, so this comes behind all that may arrive meanwhile.
            deadline=task.latest + task.slo_s,
            steps=steps_from_noise(task, progress.settings.steps[best.variant]),
            judge=True,
            droppable=task.plan.rules.drop_after_s is not None,
            low_priority=True,
            redraw=progress.redraws + 1,
            size=task.size,
            strength=task.strength,
        )
        if _in_time(task, again, forecast):
            told, progress = _told(progress)
            progress = progress._replace(best=number, path=path, redraws=again.redraw)
            return _start(progress, again, *actions, *told, phase=Phase.REDRAWING)
    return _answer(progress, number, path, actions)


def _redrawn(progress: Progress, event: ImageReady, forecast: Forecast) -> Step:
    """The better of the best image so far and the newest one is the answer, or is doubted still."""
    progress = progress.finished(event)
    assert progress.best is not None
    number = len(progress.images) - 1
    newest, best = progress.images[number], progress.images[progress.best]
    if newest.variant != progress.task.plan.last:  # its replica took it along into another role
        return _answer(progress, progress.best, progress.path)
    if (newest.confidence or 0.0) > (best.confidence or 0.0):
        return _settle(progress, number, newest.variant, forecast)
    return _settle(progress, progress.best, progress.path, forecast)


def _may_redraw(progress: Progress) -> bool:
    """A request that names a seed or a variant gets what it names; levels have no judge."""
    task = progress.task
    return progress.settings.redraw_below > 0 and not task.seeded and task.variant is None and task.plan.routing is None


def next_seed(seed: int) -> int:
    """The seed of the next redraw of a request, 0…2³² − 1; the same for the same seed."""
    return random.Random(seed).getrandbits(32)


# ------------------------------------------------------------------------------------------------ a run gave nothing


def _run_failed(progress: Progress, event: RunFailed, forecast: Forecast) -> Step:
    run, plan = progress.run, progress.task.plan
    assert run is not None
    match event.reason:
        case Reason.BLOCKED:
            return _end(progress, Fail())
        case Reason.ROLE_CHANGED:
            again = run._replace(stay="")
            if not plan.rules.dispatch_again and event.new_role in plan.roles:
                again = _taken_along(progress, run, event.replica, event.new_role)
            return _start(progress, again, phase=progress.phase)
        case Reason.NOT_FINITE if (following := _variant_after(progress, run)) is not None:
            # There is nothing to judge or to answer with: it counts as an image without any confidence.
            progress = progress._replace(may_fall=False)
            return _start(progress, _run_of(progress, following), Judged(run.variant, 0.0, deferred=True))
        case Reason.LOST | Reason.FAILED | Reason.NOT_FINITE:
            tried = (*run.avoid, event.replica)
            again = run._replace(avoid=tried, stay="")
            if len(tried) < ATTEMPTS and (event.reason is Reason.LOST or forecast.finish_at(again) is not None):
                return _start(progress, again, phase=progress.phase)
    return _fall_back(progress, event.reason in (Reason.LATE, Reason.DROPPED), forecast)


def _variant_after(progress: Progress, run: Run) -> str | None:
    """The variant that a run's image would be deferred to; None after the last one and where nothing is deferred."""
    task = progress.task
    if task.variant is not None or task.plan.routing is not None or progress.best is not None:
        return None
    return task.plan.next_variant(run.variant)


def _taken_along(progress: Progress, run: Run, replica: str, role: str) -> Run:
    """The run as its replica generates it in its new role. Until when it is waited for stays as it was."""
    variant = progress.task.plan.variant_of(role)
    run = run._replace(variant=variant, role=role, stay=replica)
    if progress.run is None or progress.run.variant == variant:
        return run
    other = _run_of(progress, variant)
    if run.redraw:  # from other noise, so no state fits it, nor does anybody look for its own
        other = other._replace(resume=None, capture=False)
    return run._replace(steps=other.steps, resume=other.resume, capture=other.capture, judge=other.judge)


def _fall_back(progress: Progress, late: bool, forecast: Forecast) -> Step:
    """What stands in for an image that does not come: a finished image is never thrown away."""
    task = progress.task
    if progress.best is not None:
        return _answer(progress, progress.best, progress.path)
    if progress.may_fall and late:
        progress = progress._replace(may_fall=False)
        first = next(it for it in task.plan.chain[:-1] if task.plan.count(it))
        run = _run_of(progress, first)._replace(deadline=task.latest)
        if _in_time(task, run, forecast):
            return _start(progress, run)
    if progress.doubted is not None:
        return _settle(progress, progress.doubted, FROM_CACHE, forecast)
    if progress.images and task.plan.rules.light_fallback:
        number = len(progress.images) - 1
        return _answer(progress, number, progress.images[number].variant + AT_DEADLINE)
    return _end(progress, Fail())


# --------------------------------------------------------------------------------------------------------- the end


def _answer(progress: Progress, number: int, path: str, actions: tuple[Action, ...] = ()) -> Step:
    told, progress = _told(progress)
    return progress.over(number, path), (*actions, *told, Answer(number, path))


def _end(progress: Progress, *last: Action) -> Step:
    """The end without an answer."""
    told, progress = _told(progress)
    return progress.over(progress.best, progress.path), (*told, *last)


def _cancelled(progress: Progress, _: Cancelled, forecast: Forecast) -> Step:
    return _end(progress)


def _told(progress: Progress) -> tuple[tuple[Action, ...], Progress]:
    """Tells the cache the end of what it was asked for, once."""
    if not progress.looked_up:
        return (), progress
    runs = [n for n, image in enumerate(progress.images) if image.variant == progress.task.plan.last]
    number = runs[-1] if runs else None
    resume = progress.images[number].run.resume if number is not None else None
    return (TellCache(number, resume.step if resume else 0),), progress._replace(looked_up=False)


#: By phase and event, what decides; :data:`TRANSITIONS` says where it may lead.
_STEPS: dict[tuple[Phase, type], Callable[[Progress, Any, Forecast], Step]] = {
    (Phase.NEW, Admitted): _admitted,
    (Phase.LOOKING_UP, LookupAnswered): _looked_up,
    (Phase.RUNNING, ImageReady): _image_ready,
    (Phase.RUNNING, RunFailed): _run_failed,
    (Phase.REDRAWING, ImageReady): _redrawn,
    (Phase.REDRAWING, RunFailed): _run_failed,
    **{(phase, Cancelled): _cancelled for phase in Phase if phase is not Phase.OVER},
}
