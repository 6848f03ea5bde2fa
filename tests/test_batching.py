"""Requests that come and go in one batch give the codes that they give alone."""

from __future__ import annotations

import pytest
import torch

from chainrule.core import entries
from chainrule.decoding import Batcher, Guided, GuidedContext, Job, Known, Request, Sampling
from chainrule.decoding.guidance import GuidedRunner
from sizes import tiny
from test_contract import PRIORS, build, context


def requests(prior, guided: bool = False) -> list[Request]:
    """Of one image and of several, with other options, and completions by one candidate and by several."""
    length = prior.spec.length
    flat = prior.spec.flatten(tuple(torch.ones(1, *grid.shape, dtype=torch.int64) for grid in prior.spec.grids))
    mask = torch.arange(length) % 3 == 1

    def condition(count: int):
        own = context(prior, count)
        return GuidedContext(own, context(prior, count + 1).__class__(**vars(own))) if guided else own

    def known(count: int) -> Known:
        return Known(flat.expand(count, -1), mask)

    return [
        Request(condition(1), [5]),
        Request(condition(3), [1, 2, 3], Sampling(temperature=0.7)),
        Request(condition(2), [8, 9], Sampling(), known(2), particles=3),
        Request(condition(1), [6], Sampling(top_k=1)),
        Request(condition(2), [5, 7], Sampling(top_p=0.8), known(2)),
    ]


def drawn_together(batcher: Batcher, jobs: list[Job], wait: int, starters=None, at_once: int = 1) -> None:
    """New jobs every `wait` steps, `at_once` of them."""
    done, steps, coming = [], 0, list(enumerate(jobs))
    while len(done) < len(jobs):
        if coming and steps % wait == 0:
            for index, job in coming[:at_once]:
                batcher.add(job, starters and starters[index])
            del coming[:at_once]
        done += batcher.step()
        steps += 1
        assert steps < 5000
    assert not batcher.groups and not batcher.waiting


@pytest.mark.parametrize(("entry", "preset"), PRIORS)
@pytest.mark.parametrize(("wait", "at_once"), [(1, 1), (3, 2)])
def test_codes_do_not_depend_on_what_shares_the_batch(entry, preset, wait, at_once):
    prior = build(entry, preset)
    jobs = [Job(request) for request in requests(prior)]
    drawn_together(Batcher(prior.runner()), jobs, wait, at_once=at_once)
    for job in jobs:
        alone = job.request.draw(prior.runner())
        assert all(map(torch.equal, job.codes, alone))


@pytest.mark.parametrize("name", ["gpt", "rq_transformer"])
def test_images_of_different_guidance_share_a_batch(name):
    preset = tiny("priors", name, "tiny-class")
    prior = build(entries("priors")[name], preset)
    inner, scales = prior.runner(), [1.5, 2.0, 2.0, 0.5, 4.0]
    starters = [GuidedRunner(Guided(prior, scale), inner) for scale in scales]
    jobs = [Job(request) for request in requests(prior, guided=True)]
    batcher = Batcher(starters[0])
    drawn_together(batcher, jobs, 2, starters)
    for job, starter in zip(jobs, starters, strict=True):
        assert all(map(torch.equal, job.codes, job.request.draw(starter)))


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
