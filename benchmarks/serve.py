"""The figures of the server: `chainrule serve` in a process of its own, and clients in this one.

    python benchmarks/serve.py                    # everything, with 50 clients for 10 minutes
    python benchmarks/serve.py --seconds 30       # a short look
    python benchmarks/serve.py --only load
    python benchmarks/serve.py --only memory      # whether memory grows with the number of pictures

Prints JSON.  Every picture that comes back is compared, pixel by pixel, with `Pipeline.sample` of the same seed.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import torch
from PIL import Image

import chainrule
from chainrule.images import to_pil

PART = "emoji_parti"
MODELS = [PART, "emoji_gpt", "mnist_pixelcnn", "shapes_parti"]
KINDS = ["start", "throughput", "latency", "memory", "load"]
PROMPTS = ["frog, twemoji style", "crown, noto style", "pig, twemoji style", "umbrella, openmoji style", ""]


class Server:
    """`chainrule serve`, until the end of the block."""

    def __init__(self, models: list[str], threads: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        words = ["-m", "chainrule", "serve", *models, "--port", str(self.port), "--threads", str(threads)]
        self.since = time.monotonic()
        self.log = open(os.devnull, "w")  # noqa: SIM115
        self.process = subprocess.Popen([sys.executable, *words], stderr=self.log, stdout=self.log)

    def __enter__(self) -> "Server":
        while True:
            try:
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    self.seconds = time.monotonic() - self.since
                    return self
            except httpx.TransportError:
                time.sleep(0.05)
            assert self.process.poll() is None, "the server has ended"

    def __exit__(self, *_) -> None:
        self.process.terminate()
        self.process.wait(90)

    def cpu_seconds(self) -> float:
        """Time that the process has computed, of all threads."""
        numbers = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")

    def megabytes(self) -> float:
        """Memory of the process."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) / 1024


async def draw(client: httpx.AsyncClient, **body) -> list[bytes]:
    """Pixels of the pictures of one request."""
    response = await client.post("/v1/images/generations", json=body)
    response.raise_for_status()
    return [pixels(one["b64_json"]) for one in response.json()["data"]]


def pixels(text: str) -> bytes:
    return Image.open(io.BytesIO(base64.b64decode(text))).tobytes()


def start(threads: int) -> dict:
    """Seconds until the server is ready, and until the first picture after that."""
    with Server([PART], threads) as server:
        since = time.monotonic()
        httpx.post(f"{server.url}/v1/images/generations", json={"prompt": PROMPTS[0], "seed": 1}, timeout=60)
        return {"ready": server.seconds, "first_picture": time.monotonic() - since}


async def throughput(server: Server, rounds: int) -> dict:
    """Images per second of 16 clients, against `sample` with 16 images in this process; and what an image costs.

    Where other programs share the machine, compare CPU time: elapsed time includes theirs.
    """
    model, texts = chainrule.load(PART), [PROMPTS[i % 4] for i in range(16)]
    offline: dict[int, list[float]] = {1: [], torch.get_num_threads(): []}
    served: list[float] = []
    cpu: dict[str, list[float]] = {"offline": [], "served": []}

    async def ask(client: httpx.AsyncClient, index: int) -> None:
        for again in range(4):
            await draw(client, prompt=texts[index], seed=16 * again + index)

    async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
        for _ in range(rounds + 1):
            for threads, rates in offline.items():
                torch.set_num_threads(threads)
                since, before = time.monotonic(), time.process_time()
                model.sample(16, text=texts, seed=list(range(16)))
                rates.append(16 / (time.monotonic() - since))
                if threads == 1:
                    cpu["offline"].append((time.process_time() - before) / 16)
            since, before = time.monotonic(), server.cpu_seconds()
            await asyncio.gather(*(ask(client, index) for index in range(16)))
            served.append(64 / (time.monotonic() - since))
            cpu["served"].append((server.cpu_seconds() - before) / 64)
    rates = {f"offline_{threads}_threads": statistics.median(each[1:]) for threads, each in offline.items()}
    best, own = max(rates.values()), statistics.median(served[1:])
    costs = {f"cpu_seconds_{name}": min(each) for name, each in cpu.items()}
    return rates | {"served": own, "share_of_the_faster": own / best} | costs


async def latency(server: Server, rounds: int) -> dict:
    """Seconds of a request that arrives while 8 are drawn, against waiting for the 8, drawn together or in turn."""
    seconds: dict[str, list[float]] = {"joined": [], "after_the_batch": [], "in_turn": []}
    async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
        for number in range(rounds):
            for name, times in seconds.items():
                others = [(lambda i=i: draw(client, prompt=PROMPTS[0], seed=i)) for i in range(8)]
                running = [] if name == "in_turn" else [asyncio.ensure_future(other()) for other in others]
                await asyncio.sleep(0.03)
                since = time.monotonic()
                if name == "after_the_batch":
                    await asyncio.gather(*running)
                if name == "in_turn":
                    for other in others:
                        await other()
                await draw(client, prompt=PROMPTS[1], seed=number)
                times.append(time.monotonic() - since)
                await asyncio.gather(*running)
    found = {name: statistics.median(times) for name, times in seconds.items()}
    shares = {f"share_of_{name}": found["joined"] / found[name] for name in ("after_the_batch", "in_turn")}
    return found | shares


async def memory(server: Server, pictures: int) -> dict[str, float]:
    """Megabytes of the server before, and after each eighth of many pictures that 16 clients ask for one by one."""
    found, part = {"0": server.megabytes()}, max(1, pictures // 8)

    async def ask(client: httpx.AsyncClient, numbers: Iterator[int]) -> None:
        for number in numbers:
            await draw(client, prompt=PROMPTS[number % 4], seed=number)

    async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
        for start in range(0, pictures, part):
            numbers = iter(range(start, start + part))
            await asyncio.gather(*(ask(client, numbers) for _ in range(16)))
            found[str(start + part)] = server.megabytes()
    return found


async def load(server: Server, clients: int, seconds: float, threads: int) -> dict:
    """Many clients with mixed requests, some of which leave, some of which are malformed."""
    counts = dict.fromkeys(("pictures", "refused", "left", "malformed", "busy", "lost", "wrong"), 0)
    torch.set_num_threads(threads)  # as many as the server has: sums of float32 can depend on it
    models = {name: chainrule.load(name) for name in MODELS}
    expected: dict[tuple, list[bytes]] = {}
    memory, end = [], time.monotonic() + seconds

    def alone(name: str, seed: int, n: int, options: dict) -> list[bytes]:
        key = name, seed, n, json.dumps(options)
        if key not in expected:
            text = {"text": options["prompt"]} if models[name].text_tokenizer is not None else {}
            sampling = {key: value for key, value in options.items() if key in ("temperature", "guidance", "top_k")}
            label = options.get("label")
            expected[key] = [
                one.tobytes() for one in to_pil(models[name].sample(n, label, seed=seed, **text, **sampling))
            ]
        return expected[key]

    async def one(client: httpx.AsyncClient, chance: random.Random) -> None:
        name, seed, n = chance.choice(MODELS), chance.randrange(6), chance.choice((1, 1, 2))
        reads = models[name].text_tokenizer is not None
        options = {"prompt": chance.choice(PROMPTS[:2]) if reads else ""}
        if models[name].num_classes:
            options["label"] = 1
        options |= chance.choice([{}, {"temperature": 0.8}, {"guidance": 2.0} if reads and options["prompt"] else {}])
        body = {"model": name, "seed": seed, "n": n, **options}
        kind = chance.random()
        try:
            if kind < 0.1:  # leaves
                await client.post("/v1/images/generations", json=body | {"stream": chance.random() < 0.5}, timeout=0.05)
            elif kind < 0.2:
                wrong = chance.choice([{"n": -1}, {"model": "x"}, {"size": "9x9"}, {"seed": "x"}, {"stream": 5}])
                response = await client.post("/v1/images/generations", json=body | wrong)
                counts["malformed" if response.status_code in (400, 404) else "lost"] += 1
            else:
                response = await client.post("/v1/images/generations", json=body)
                if response.status_code == 429:
                    counts["busy"] += 1
                    await asyncio.sleep(float(response.headers["Retry-After"]))
                elif response.status_code != 200:
                    counts["lost"] += 1
                else:
                    found = [pixels(each["b64_json"]) for each in response.json()["data"]]
                    right = await asyncio.to_thread(alone, name, seed, n, options)
                    counts["pictures"] += len(found)
                    counts["wrong"] += sum(a != b for a, b in zip(found, right, strict=True))
        except httpx.TimeoutException:
            counts["left" if kind < 0.1 else "lost"] += 1
        except httpx.TransportError:
            counts["lost"] += 1

    async def client(number: int) -> None:
        chance = random.Random(number)
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as own:
            while time.monotonic() < end:
                await one(own, chance)

    async def watch() -> None:
        while time.monotonic() < end:
            memory.append(server.megabytes())
            await asyncio.sleep(max(1.0, seconds / 60))

    await asyncio.gather(watch(), *map(client, range(clients)))
    third = max(1, len(memory) // 3)
    early, late = statistics.median(memory[third : 2 * third] or memory), statistics.median(memory[-third:])
    return counts | {"megabytes_middle": early, "megabytes_end": late, "growth": late / early - 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="of the load")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--pictures", type=int, default=2000, help="of the memory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the server's two threads each")
    parser.add_argument("--only", choices=KINDS)
    options = parser.parse_args()
    found: dict[str, dict] = {}
    wanted = [options.only] if options.only else KINDS
    if "start" in wanted:
        found["start"] = start(options.threads)
    if set(wanted) & {"throughput", "latency"}:
        with Server([PART], options.threads) as server:
            if "throughput" in wanted:
                found["throughput"] = asyncio.run(throughput(server, options.rounds))
            if "latency" in wanted:
                found["latency"] = asyncio.run(latency(server, options.rounds))
    if "memory" in wanted:
        with Server([PART], options.threads) as server:
            found["memory"] = asyncio.run(memory(server, options.pictures))
    if "load" in wanted:
        with Server(MODELS, options.threads) as server:
            found["load"] = asyncio.run(load(server, options.clients, options.seconds, options.threads))
    print(json.dumps({"cores": os.cpu_count(), "torch_threads": torch.get_num_threads(), **found}, indent=2))


if __name__ == "__main__":
    main()
