"""The queue of checked uploads, and the task that folds many of them at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from server.aggregation import COUNTED, Upload
from tf_dpfl.protocol.errors import WireError

_LOG = logging.getLogger(__name__)

# Uploads folded into one transaction: bounds the memory and time of one fold.
MOST_UPLOADS_A_FOLD = 64


@dataclass(frozen=True)
class _Item:
    number: int
    upload: Upload
    answer: asyncio.Future[str]


class Folding:
    """Answers an upload after the fold that holds it is durable.

    `fold(number, uploads)` adds uploads to a round; `counted(number, devices)`
    is told which devices were new in it, before they are answered.
    """

    def __init__(
        self,
        fold: Callable[[int, Sequence[Upload]], Awaitable[list[str]]],
        *,
        counted: Callable[[int, set[str]], None],
    ):
        self._fold = fold
        self._counted = counted
        self._queue: asyncio.Queue[_Item] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to fold."""
        self._task = asyncio.create_task(self._fold_for_ever())

    async def close(self) -> None:
        """Ends the folding; what was not folded is answered 503."""
        if self._task is not None:
            await cancel(self._task)
        while not self._queue.empty():
            answer = self._queue.get_nowait().answer
            if not answer.done():
                answer.set_exception(
                    WireError("the server is stopping; send the update again", status=503)
                )

    async def submit(self, number: int, upload: Upload) -> str:
        """The upload's outcome; see `aggregation.fold`. WireError 503 when it failed."""
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        await self._queue.put(_Item(number, upload, answer))
        return await answer

    async def _fold_for_ever(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < MOST_UPLOADS_A_FOLD and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            for number in sorted({item.number for item in batch}):
                await self._fold_one_round(
                    number, [item for item in batch if item.number == number]
                )

    async def _fold_one_round(self, number: int, items: list[_Item]) -> None:
        try:
            outcomes = await self._fold(number, [item.upload for item in items])
        except Exception as error:
            # Nothing was committed: every device is told to come again.
            _LOG.exception("a fold into round %d failed", number)
            refusal = f"the update could not be stored ({type(error).__name__}); send it again"
            for item in items:
                if not item.answer.done():
                    item.answer.set_exception(WireError(refusal, status=503))
            return
        paired = list(zip(items, outcomes, strict=True))
        self._counted(
            number, {item.upload.device_id for item, outcome in paired if outcome == COUNTED}
        )
        for item, outcome in paired:
            if not item.answer.done():
                item.answer.set_result(outcome)


async def cancel(task: asyncio.Task[Any]) -> None:
    """Cancels a task and waits for its end."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
