"""The operator's view of a state folder, with or without a server running on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from server.adapting import clip_norm_after
from server.budget import Budget
from server.service import DATABASE_FILE, URL_FILE
from server.store import Store
from server.task_folder import digest_of, load_task
from tf_dpfl.protocol.checks import finite_or_none


def operator_status(state: Path) -> dict[str, Any]:
    """Counts and figures of `state`. Raises DpflError when it cannot be read."""
    store = Store(state / DATABASE_FILE, create=False)
    try:
        counts, ended = store.counts(), store.ended()
        unfinished, charges = store.unfinished_round(), store.charges()
        last = store.last_released()
        reports = {} if unfinished is None else store.report_digests(unfinished.number)
        home = state / "task"
        task = load_task(home) if home.exists() else None
        if task is not None:
            store.bind_task(digest_of(task))
    finally:
        store.close()
    url = state / URL_FILE
    epsilon, planned, task_id, delta, clip_norm = (None,) * 5
    if task is not None:
        plan = task.manifest.plan
        epsilon = finite_or_none(Budget(task.manifest, max_epsilon=None).epsilon_of(charges))
        planned, task_id, delta = plan.server.rounds, task.manifest.task_id, plan.privacy.delta
        adapted = clip_norm_after(plan, last)
        clip_norm = plan.privacy.clip_norm if adapted is None else adapted
    return {
        "task_id": task_id,
        "state": "done" if ended is not None else "running or stopped",
        "reason": ended,
        "last_url": url.read_text(errors="replace").strip() if url.exists() else None,
        "planned_rounds": planned,
        **counts,
        "round_number": None if unfinished is None else unfinished.number,
        "round_state": None if unfinished is None else unfinished.state,
        "reports_so_far": None if unfinished is None else len(reports),
        "central_epsilon": epsilon,
        "delta": delta,
        "clip_norm": clip_norm,
    }
