"""What a folder's server lets in: sizes, memory, and how many at once; by its limits.py alone, and over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.export.served import Server, loaded, python, serving, waited
from tests.export.small_bundles import V, write_bundle


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind that differs here; nobody changes them."""
    root, kinds = tmp_path_factory.mktemp("bundles"), ("lm", "seq2seq", "classification", "vision")
    for kind in kinds:
        write_bundle(kind, root / kind)
    return {kind: root / kind for kind in kinds}


# ---- over HTTP -------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def narrow(bundles) -> Iterator[dict[str, Server]]:
    """Servers that let little in: 60 tokens, and the logits of 65 at once."""
    options = ("--prompt-tokens", "60", "--computed", str(65 * V))
    with contextlib.ExitStack() as stack:
        kinds = ("lm", "seq2seq", "classification")
        yield {kind: stack.enter_context(serving(bundles[kind], *options)) for kind in kinds}


FEW, MANY = "numbers at once, and the limit is", "tokens; the limit is 60"


@pytest.mark.parametrize(
    ("kind", "path", "body", "words"),
    [
        ("lm", "/logits", {"input_ids": [[1] * 20] * 3}, None),
        ("lm", "/logits", {"input_ids": [[1] * 20] * 4, "last_only": True}, MANY),
        ("lm", "/generate", {"prompt": [[1] * 20] * 4, "max_new_tokens": 1}, MANY),
        ("lm", "/generate", {"prompt": [[1] * 8] * 4, "max_new_tokens": 8, "temperature": 0}, None),
        ("lm", "/generate", {"prompt": [[1] * 8] * 4, "max_new_tokens": 9}, FEW),
        ("lm", "/v1/completions", {"prompt": [[1] * 8] * 4, "max_tokens": 9}, FEW),
        ("lm", "/generate", {"prompt": [[1] * 8] * 4, "max_new_tokens": 9, "stream": True}, FEW),
        # of two lengths: two of each run at once
        ("lm", "/generate", {"prompt": [[1] * 8, [1] * 9] * 2, "max_new_tokens": 9, "temperature": 0}, None),
        # the view is cut at the model's limit of 24
        ("lm", "/generate", {"prompt": [[1] * 8] * 2, "max_new_tokens": 50, "temperature": 0}, None),
        ("lm", "/generate", {"prompt": [[1] * 8] * 3, "max_new_tokens": 50}, FEW),
        ("seq2seq", "/logits", {"input_ids": [[1]] * 3, "decoder_input_ids": [[1] * 22] * 3, "last_only": True}, MANY),
        ("seq2seq", "/logits", {"input_ids": [[1] * 20] * 3, "decoder_input_ids": [[1] * 2] * 3}, None),
        ("seq2seq", "/generate", {"prompt": [[1] * 20] * 3, "max_new_tokens": 20, "temperature": 0}, None),
        ("seq2seq", "/generate", {"prompt": [[1] * 5] * 4, "max_new_tokens": 20, "temperature": 0}, FEW),
        ("classification", "/classify", {"text": ["on the wall " * 20] * 2}, None),
        ("classification", "/classify", {"text": ["on the wall " * 20] * 3}, MANY),
        ("classification", "/classify", {"input_ids": [[1] * 21] * 3}, MANY),
        ("classification", "/logits", {"input_ids": [[1] * 21] * 3}, MANY),
    ],
)
def test_what_would_take_too_much_memory_is_refused_before_it_is_computed(narrow, kind, path, body, words):
    status, content, _ = narrow[kind].ask(path, body)
    assert status == (200 if words is None else 422), content
    assert words is None or words in content["error"]["message"]


def test_the_last_row_alone_saves_no_memory(bundles):
    with serving(bundles["lm"], "--computed", str(10 * V)) as server:
        status, content, _ = server.ask("/logits", {"input_ids": [[1] * 11], "last_only": True})
        assert status == 422 and f"{11 * V:,} {FEW} {10 * V:,}" in content["error"]["message"]
        assert server.ask("/logits", {"input_ids": [[1] * 10], "last_only": True})[0] == 200


# ---- limits.py, alone ------------------------------------------------------------------------------------------------------
def test_a_place_is_free_again_however_the_work_ended(bundles):
    limits = loaded(bundles["lm"], "limits")
    desk, hold = limits.Desk(1, 1), threading.Event()

    def broken() -> None:
        hold.wait()
        raise OSError("broken")

    futures = [desk.submit(broken), desk.submit(hold.wait)]
    with pytest.raises(limits.RefusedError, match="2 requests are here already"):
        desk.submit(hold.wait)
    hold.set()
    assert isinstance(futures[0].exception(), OSError) and futures[1].result()
    waited(lambda: desk.inside == 0)
    assert desk.submit(lambda: 5).result() == 5


def test_a_flow_ends_with_its_reader_and_hands_on_errors(bundles):
    limits, made = loaded(bundles["lm"], "limits"), []

    def numbers() -> Iterator[int]:
        for number in range(1_000_000):
            made.append(number)
            yield number
            time.sleep(0.001)

    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("as planned")

    async def read() -> None:
        desk = limits.Desk(1, 4)
        flow = limits.Flow(desk, numbers)
        reader = aiter_of(flow)
        assert [await reader.__anext__() for _ in range(3)] == [0, 1, 2]
        await reader.aclose()
        unstarted = limits.Flow(desk, numbers)
        unstarted.stop()
        assert [item async for item in unstarted] == []
        with pytest.raises(ValueError, match="as planned"):
            _ = [item async for item in limits.Flow(desk, broken)]

    asyncio.run(read())
    assert len(made) < 1000


def aiter_of(flow: Any) -> Any:
    return flow.__aiter__()


class Visitor:
    """A request to `BodyLimit`: sends its parts, and keeps what it is answered."""

    def __init__(self, parts: list[bytes], leaves: bool = False, waits: bool = False) -> None:
        ends = [{"type": "http.disconnect"}] if leaves else []
        more = leaves or waits
        self.unsent = [
            {"type": "http.request", "body": part, "more_body": more or number < len(parts) - 1}
            for number, part in enumerate(parts)
        ] + ends
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        await asyncio.sleep(0)
        return self.unsent.pop(0) if self.unsent else await asyncio.Future()

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]


def test_bodies_that_wait_together_are_bounded(bundles):
    limits = loaded(bundles["lm"], "limits")
    scope = {"type": "http", "headers": []}
    bound = limits.Limits(body_bytes=100, held_bytes=150, body_seconds=1)

    async def serve() -> None:
        free, read = asyncio.Event(), []

        async def app(_: Any, receive: Any, send: Any) -> None:
            read.append((await receive())["body"])
            await free.wait()
            await send({"type": "http.response.start", "status": 200})

        desk = limits.BodyLimit(app, bound)

        async def visited(visitor: Visitor) -> Visitor:
            await desk(scope, visitor.receive, visitor.send)
            return visitor

        first = asyncio.create_task(visited(Visitor([b"a" * 60, b"b" * 40])))
        while not read:
            await asyncio.sleep(0)
        assert desk.held == 100
        second = await visited(Visitor([b"c" * 40, b"d" * 11, b"e" * 20]))
        told = dict(second.sent[0]["headers"])
        assert second.status == 503 and told[b"retry-after"] == b"1" and desk.held == 100
        assert json.loads(second.sent[1]["body"])["error"]["code"] == "overloaded"
        assert (await visited(Visitor([b"f" * 50, b"g" * 51]))).status == 413
        assert (await visited(Visitor([b"h" * 20], waits=True))).status == 408
        assert (await visited(Visitor([b"i" * 20], leaves=True))).sent == []
        assert desk.held == 100, "what was refused, too slow or left is held no more"
        third = asyncio.create_task(visited(Visitor([b"j" * 50])))
        while len(read) < 2:
            await asyncio.sleep(0)
        free.set()
        assert [(await task).status for task in (first, third)] == [200, 200]
        assert read == [b"a" * 60 + b"b" * 40, b"j" * 50] and desk.held == 0

    asyncio.run(asyncio.wait_for(serve(), 20))


def test_limits_that_contradict_each_other_are_told(bundles):
    limits = loaded(bundles["lm"], "limits")
    assert limits.Limits().problems() == []
    (found,) = limits.Limits(body_bytes=100, held_bytes=99).problems()
    assert "held_bytes must be body_bytes (100) or more; got 99" in found
    code = (
        "import server, types\n"
        "signature = types.SimpleNamespace(image_shape=(3, 640, 640))\n"
        "found = server.limits_for(types.SimpleNamespace(signature=signature))\n"
        "assert found.body_bytes > server.Limits().held_bytes and not found.problems()"
    )
    done = python(bundles["vision"], "-c", code)
    assert done.returncode == 0, done.stderr
