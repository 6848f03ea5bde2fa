"""Requests that come and go in one batch give the codes that they give alone."""

from __future__ import annotations

import pytest
import torch

from chainrule.core import entries, select
from chainrule.decoding import Batcher, Guided, GuidedContext, Job, Known, Request, Sampling
from sizes import tiny
from test_contract import PRIORS, build, context


def requests(prior, guided: bool = False) -> list[Request]:
    """Of one image and of several, with other options, and completions by one candidate and by several."""
    length = prior.spec.length
    flat = prior.spec.flatten(tuple(torch.ones(1, *grid.shape, dtype=torch.int64) for grid in prior.spec.grids))
    mask = torch.arange(length) % 3 == 1
    scales = iter((1.5, 2.0, 2.0, 0.5, 4.0))

    def condition(count: int):
        both = context(prior, count + 1)
        own, other = select(both, torch.arange(count)), select(both, torch.arange(1, count + 1))
        return GuidedContext(own, other, torch.full((count,), next(scales))) if guided else own

    def known(count: int) -> Known:
        return Known(flat.expand(count, -1), mask)

    return [
        Request(condition(1), [5]),
        Request(condition(3), [1, 2, 3], Sampling(temperature=0.7)),
        Request(condition(2), [8, 9], Sampling(), known(2), particles=3),
        Request(condition(1), [6], Sampling(top_k=1)),
        Request(condition(2), [5, 7], Sampling(top_p=0.8), known(2)),
    ]


def drawn_together(batcher: Batcher, jobs: list[Job], wait: int, at_once: int = 1) -> None:
    """New jobs every `wait` steps, `at_once` of them."""
    done, steps, coming = [], 0, list(jobs)
    while len(done) < len(jobs):
        if coming and steps % wait == 0:
            for job in coming[:at_once]:
                batcher.add(job)
            del coming[:at_once]
        done += batcher.step()
        steps += 1
        assert steps < 5000
    assert not batcher.groups and not batcher.waiting


@pytest.mark.parametrize(("entry", "preset"), PRIORS)
@pytest.mark.parametrize(("guided", "wait", "at_once"), [(False, 1, 1), (False, 3, 2), (True, 3, 2)])
def test_codes_do_not_depend_on_what_shares_the_batch(entry, preset, guided, wait, at_once):
    prior = build(entry, preset)
    runner = (Guided(prior) if guided else prior).runner()
    jobs = [Job(request) for request in requests(prior, guided)]
    drawn_together(Batcher(runner), jobs, wait, at_once)
    for job in jobs:
        alone = job.request.draw(runner)
        assert all(map(torch.equal, job.codes, alone))


@pytest.mark.parametrize("guided", [False, True])
def test_requests_that_wait_start_in_one_batch(guided, monkeypatch):
    prior = build(entries("priors")["rq_transformer"], tiny("priors", "rq_transformer", "tiny-class"))
    jobs, started = [Job(request) for request in requests(prior, guided)], []
    runner = (Guided(prior) if guided else prior).runner()
    start = runner.start
    monkeypatch.setattr(runner, "start", lambda count, context: (started.append(count), start(count, context))[1])
    batcher = Batcher(runner)
    for job in jobs:
        batcher.add(job)
    batcher.step()
    assert started == [sum(job.num_rows for job in jobs)] and len(batcher.groups) == 1


def test_requests_join_at_the_next_code_where_positions_are_per_row():
    prior = build(entries("priors")["gpt"], tiny("priors", "gpt"))
    first, second = (Job(Request(context(prior, 1), [seed])) for seed in (1, 2))
    batcher = Batcher(prior.runner())
    batcher.add(first)
    for _ in range(4):
        batcher.step()
    batcher.add(second)
    batcher.step()
    assert len(batcher.groups) == 1 and (first.t, second.t) == (5, 1)
    for _ in range(prior.spec.length - 5):
        batcher.step()
    assert first.codes is not None and second.codes is None and batcher.num_rows == 1


def test_a_new_request_waits_for_the_next_position_of_an_rq_transformer():
    prior = build(entries("priors")["rq_transformer"], tiny("priors", "rq_transformer", "tiny-class"))
    depth = prior.grid.depth
    first, second = (Job(Request(context(prior, 1), [seed])) for seed in (1, 2))
    batcher = Batcher(prior.runner())
    batcher.add(first)
    for _ in range(depth + 1):
        batcher.step()
    batcher.add(second)
    for _ in range(depth):
        assert len(batcher.groups) == 1
        batcher.step()
    assert len(batcher.groups) == 1 and second.t > 0 and first.t == 2 * depth + 1


def test_a_request_that_is_cancelled_frees_its_rows():
    prior = build(entries("priors")["gpt"], tiny("priors", "gpt"))
    jobs = [Job(request) for request in requests(prior)]
    batcher = Batcher(prior.runner(), max_rows=10)
    for job in jobs:
        batcher.add(job)
    batcher.step()
    assert batcher.num_rows == 10 and len(batcher.waiting) == 2
    batcher.cancel(jobs[1])
    batcher.cancel(jobs[3])
    while batcher.groups:
        batcher.step()
    for job in (jobs[0], jobs[2], jobs[4]):
        assert all(map(torch.equal, job.codes, job.request.draw(prior.runner())))
    assert jobs[1].codes is jobs[3].codes is None


def test_images_are_seen_as_they_grow():
    prior = build(entries("priors")["gpt"], tiny("priors", "gpt"))
    seen = []
    job = Job(Request(context(prior, 2), [1, 2]), on_code=lambda t, codes: seen.append((t, codes().clone())))
    batcher = Batcher(prior.runner())
    batcher.add(job)
    while not job.codes:
        batcher.step()
    final = prior.spec.flatten(job.codes)
    assert [t for t, _ in seen] == list(range(prior.spec.length))
    for t, codes in seen:
        assert torch.equal(codes[:, : t + 1], final[:, : t + 1]) and not codes[:, t + 1 :].any()
