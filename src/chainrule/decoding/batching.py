"""Iteration-level batching: requests join a batch at the next code and leave it when done (Yu et al., Orca, OSDI 2022).

`Batcher.step` draws one code of every image of a group.  A request that arrives in between begins at the next step, and
its rows are freed at the step after its last code.  A request gives the codes that it gives alone: each image has its
own uniform numbers, and every row of a batch is computed as if it were alone.

Requests share a group where their states agree in all counters (`core.signature`).  Transformers that keep positions
per row (GPT, Parti, DALL-E Mini) always do.  An RQ-Transformer counts the depth of a code for all rows, so a new
request waits for the others to begin the next position.  In a state that counts all codes (PixelCNN, PixelRNN,
PixelSNAIL, cascades, DALL-E) only requests at the same code can share; such groups take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..core import Codes, Context, Runner, select, signature, tensors, with_tensors
from .guidance import GuidedContext
from .options import Sampling
from .sampling import Known, OnCode, Particles, complete, draw, image_seeds, sample, uniforms


@dataclass(frozen=True)
class Request:
    """Images that are to be drawn; the arguments are those of `sample` and `complete`."""

    context: Context | GuidedContext
    seeds: Sequence[int]
    sampling: Sampling = Sampling()
    known: Known | None = None
    particles: int = 1

    def split(self, size: int) -> list[Request]:
        """Requests of at most `size` of the images each, in order."""
        parts = torch.arange(len(self.seeds)).split(size)
        return [
            replace(
                self, context=select(self.context, part), seeds=[self.seeds[i] for i in part.tolist()],
                known=self.known and Known(self.known.codes[part], self.known.mask),
            )
            for part in parts
        ]  # fmt: skip

    def draw(self, runner: Runner, on_code: OnCode | None = None) -> Codes:
        """The codes, drawn alone."""
        if self.known is None:
            return sample(runner, self.context, self.seeds, self.sampling, None, on_code)
        return complete(runner, self.context, self.seeds, self.known, self.particles, self.sampling, on_code)


class Job:
    """A request that is being drawn.

    Args:
        request: its codes are `codes` when `Batcher.step` returns the job.
        on_code: called after each code with its index and a function that gives all codes (B, T) of the images so far,
            which are 0 after that index where they are not known.
    """

    def __init__(self, request: Request, on_code: Callable[[int, Callable[[], Tensor]], None] | None = None) -> None:
        self.request, self.on_code = request, on_code
        self.rows: list[int] = []  # in the group's batch
        self.t = 0
        self.end = 0
        self.first = 0
        self.particles: Particles | None = None
        self.codes: Codes | None = None

    @property
    def num_rows(self) -> int:
        """Rows of a batch that it needs."""
        return len(self.request.seeds) * self.request.particles

    def start(self, runner: Runner) -> tuple[Context | GuidedContext, Table]:
        """The context of its rows, and their table."""
        request, length, device = self.request, runner.prior.spec.length, runner.device
        seeds, count = list(request.seeds), request.particles
        fixed = [False] * length if request.known is None else request.known.mask.tolist()
        context = request.context
        if count > 1:
            self.particles = Particles(seeds, count, length, device)
            repeat = torch.arange(len(seeds), device=device).repeat_interleave(count)
            context, seeds = select(context, repeat), [one for seed in seeds for one in image_seeds(seed, count)]
            self.end = length
        else:
            self.end = 1 + max((t for t, given in enumerate(fixed) if not given), default=-1)
        self.first = fixed.index(False) if False in fixed else length
        codes = torch.zeros(len(seeds), length, dtype=torch.int64, device=device)
        mask = torch.tensor(fixed, device=device).expand(len(seeds), -1)
        if request.known is not None:
            codes = torch.where(mask, request.known.codes.to(device).repeat_interleave(count, 0), codes)
        t = torch.zeros(len(seeds), 1, dtype=torch.int64, device=device)
        return context, Table(t, codes, mask, uniforms(seeds, length).to(device))


@dataclass
class Table:
    """What is known of the rows of a batch, beside the state of the runner."""

    t: Tensor  # int64 (B, 1), the next code
    codes: Tensor  # int64 (B, T)
    fixed: Tensor  # bool (B, T), codes that are given
    noise: Tensor  # float64 (B, T)


class Rows:
    """The tensors of a batch in memory with room for more rows, so that few bytes move when requests come and go."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.rooms: dict[int, Tensor] = {}

    def append(self, value: Any) -> None:
        """Adds the rows of another batch behind its own."""
        grown = [self._grow(index, own, more) for index, own, more in self._pairs(value)]
        self.value = with_tensors(self.value, grown)

    def copy(self, source: Sequence[int], target: Sequence[int], count: int) -> None:
        """Copies the rows `source` to the places `target`, and keeps the first `count` rows."""
        from_, to = torch.tensor(source), torch.tensor(target)
        new = []
        for index, own in enumerate(tensors(self.value)):
            own = own if self._is_home(index, own) else own.clone()
            if len(source):
                own[to] = own[from_]
            new.append(own[:count])
        self.value = with_tensors(self.value, new)

    def _pairs(self, value: Any) -> list[tuple[int, Tensor, Tensor]]:
        pairs = zip(tensors(self.value), tensors(value), strict=True)
        return [(index, own, more) for index, (own, more) in enumerate(pairs)]

    def _is_home(self, index: int, own: Tensor) -> bool:
        """Whether a tensor is the beginning of the memory that was made for it, and not a new one of the runner."""
        room = self.rooms.get(index)
        return room is not None and own.data_ptr() == room.data_ptr() and own.stride() == room.stride()

    def _grow(self, index: int, own: Tensor, more: Tensor) -> Tensor:
        count = len(own) + len(more)
        if not (self._is_home(index, own) and count <= len(self.rooms[index])):
            room = own.new_empty((max(4, 1 << (count - 1).bit_length()), *own.shape[1:]))
            room[: len(own)] = own
            self.rooms[index] = room
        room = self.rooms[index]
        room[len(own) : count] = more
        return room[:count]


class Group:
    """Jobs in one batch.

    Args:
        jobs: of contexts of the same fields and shapes.
        runner: makes their states.
    """

    def __init__(self, jobs: Sequence[Job], runner: Runner) -> None:
        self.jobs, self.count = list(jobs), 0
        for job in jobs:
            job.rows = list(range(self.count, self.count + job.num_rows))
            self.count += job.num_rows
        context, table = map(_joined, zip(*(job.start(runner) for job in jobs), strict=True))
        self.rows = Rows((runner.init_state(self.count, context), table))
        self.options = self._by_sampling()

    @property
    def table(self) -> Table:
        """What is known of its rows."""
        return self.rows.value[1]

    def signature(self) -> Any:
        """See `core.signature`."""
        return signature(self.rows.value)

    def join(self, other: Group) -> None:
        """Takes the jobs of another group."""
        self.rows.append(other.rows.value)
        for job in other.jobs:
            job.rows = [row + self.count for row in job.rows]
        self.jobs, self.count = self.jobs + other.jobs, self.count + other.count
        self.options = self._by_sampling()

    def leave(self, gone: Sequence[Job]) -> None:
        """Frees the rows of jobs; rows from the end move to their places."""
        if not gone:
            return
        holes = {row for job in gone for row in job.rows}
        self.jobs = [job for job in self.jobs if job not in gone]
        self.count -= len(holes)
        target = sorted(row for row in holes if row < self.count)
        source = [row for row in range(self.count, self.count + len(holes)) if row not in holes]
        self.rows.copy(source, target, self.count)
        moved = dict(zip(source, target, strict=True))
        for job in self.jobs:
            job.rows = [moved.get(row, row) for row in job.rows]
        self.options = self._by_sampling()

    def step(self, runner: Runner) -> list[Job]:
        """One code of every row; returns the jobs that are done, which have left."""
        state, table = self.rows.value
        before = (table.t - 1).clamp(min=0)
        logits, state = runner.step(table.codes.gather(1, before)[:, 0], state)
        codes = self._draw(logits, table)
        table.codes.scatter_(1, table.t, codes[:, None])
        table.t += 1
        self.rows.value = state, table
        for job in self.jobs:
            self._reorder(job, logits, codes)
            job.t += 1
            if job.on_code is not None:
                job.on_code(job.t - 1, lambda job=job: self._codes(job))
        done = [job for job in self.jobs if job.t >= job.end]
        for job in done:
            images = torch.tensor(job.rows) if job.particles is None else torch.tensor(job.rows)[job.particles.choose()]
            job.codes = runner.prior.spec.unflatten(table.codes[images])
        self.leave(done)
        return done

    def _draw(self, logits: Tensor, table: Table) -> Tensor:
        """Codes (B,): those that are given, and the others drawn, each by the options of its request."""
        fixed = None
        if any(job.request.known is not None for job in self.jobs):
            fixed, given = (each.gather(1, table.t)[:, 0] for each in (table.fixed, table.codes))
            if fixed.all():
                return given
        noise = table.noise.gather(1, table.t)[:, 0]
        drawn = torch.empty_like(noise, dtype=torch.int64)
        for sampling, rows in self.options:
            if len(rows) == self.count:
                drawn = draw(sampling.probabilities(logits), noise)
            else:
                chosen = torch.tensor(rows)
                drawn[chosen] = draw(sampling.probabilities(logits[chosen]), noise[chosen])
        return drawn if fixed is None else torch.where(fixed, given, drawn)

    def _by_sampling(self) -> list[tuple[Sampling, list[int]]]:
        """The rows of each set of options; guidance and precision are the same or in the state.

        It changes only where jobs come and go.
        """
        jobs = sorted(self.jobs, key=_options)
        grouped = [(list(group)) for _, group in groupby(jobs, key=_options)]
        return [(group[0].request.sampling, [row for job in group for row in job.rows]) for group in grouped]

    def _reorder(self, job: Job, logits: Tensor, codes: Tensor) -> None:
        """Weighs the candidates of a completion after a known code, and draws those that go on."""
        if job.particles is None or job.t <= job.first or not job.request.known.mask[job.t]:
            return
        index = job.particles.weigh(job.t, logits[job.rows], codes[job.rows])
        if index is not None:
            self.rows.copy([job.rows[one] for one in index.tolist()], job.rows, self.count)

    def _codes(self, job: Job) -> Tensor:
        """All codes of the images of a job so far, of the first candidate of each."""
        return self.table.codes[job.rows[:: job.request.particles]]


def _joined(parts: Sequence[Any]) -> Any:
    """States or contexts as one, the rows of the first part first."""
    return with_tensors(parts[0], map(torch.cat, zip(*map(tensors, parts), strict=True)))


def _alike(one: Job, other: Job) -> bool:
    return signature(one.request.context) == signature(other.request.context)


def _options(job: Job) -> tuple[float, ...]:
    sampling = job.request.sampling
    return sampling.temperature, sampling.top_k or 0, 1.0 if sampling.top_p is None else sampling.top_p


class Batcher:
    """Draws requests for one runner together.

    Args:
        runner: of a prior, or of a guided prior.
        max_rows: images, or candidates of completions, in all groups together; further requests wait.
    """

    def __init__(self, runner: Runner, max_rows: int = 32) -> None:
        self.runner, self.max_rows = runner, max_rows
        self.groups: list[Group] = []
        self.waiting: list[Job] = []
        self.beginning: Any = None  # the signature of a state before the first code
        self.period: int | None = None  # steps after which a state has it again
        self.last_rows = 0  # rows of the last step

    @property
    def num_rows(self) -> int:
        """Rows that are being drawn."""
        return sum(group.count for group in self.groups)

    @property
    def is_busy(self) -> bool:
        """Whether there is something to draw."""
        return bool(self.groups or self.waiting)

    def add(self, job: Job) -> None:
        """Lets a job, of a context that fits the runner's prior, join at the next step at which there is room."""
        self.waiting.append(job)

    def cancel(self, job: Job) -> None:
        """Takes a job out, whether it waits or is being drawn."""
        self.waiting = [one for one in self.waiting if one is not job]
        for group in self.groups:
            if job in group.jobs:
                group.leave([job])
        self.groups = [group for group in self.groups if group.jobs]

    def clear(self) -> list[Job]:
        """Takes out all jobs, and returns them."""
        jobs = [job for group in self.groups for job in group.jobs] + self.waiting
        self.groups, self.waiting = [], []
        return jobs

    @torch.no_grad()
    def step(self) -> list[Job]:
        """One code of one group; returns the jobs that are done."""
        self._admit()
        if not self.groups:
            return []
        group = self.groups.pop(0)
        self.last_rows = group.count
        try:
            done = group.step(self.runner)
        except BaseException:
            self.groups.append(group)  # for `clear`
            raise
        age = group.jobs[0].t if group.jobs else 0
        if self.period is None and group.jobs and group.signature() == self.beginning:
            self.period = age
        if group.jobs:
            self.groups.append(group)
        return done

    def _admit(self) -> None:
        """Starts jobs for which there is room, in groups that they fit; of a period, only at its beginning."""
        if not self.waiting:
            return
        fitting = [group for group in self.groups if group.signature() == self.beginning]
        if self.groups and self.period is not None and not fitting:
            return  # soon they can join
        while count := self._num_admitted():
            group = Group(self.waiting[:count], self.runner)
            del self.waiting[:count]
            self.beginning = group.signature()
            for other in self.groups:
                if other.signature() == self.beginning:
                    other.join(group)
                    break
            else:
                self.groups.append(group)

    def _num_admitted(self) -> int:
        """How many of the first that wait can start together, in contexts of the same shapes."""
        rows, count = self.num_rows, 0
        for job in self.waiting:
            if not _alike(job, self.waiting[0]):
                break
            if rows and rows + job.num_rows > self.max_rows:
                break
            rows, count = rows + job.num_rows, count + 1
        return count
