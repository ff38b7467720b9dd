"""Answers of a server, as JSON."""

from __future__ import annotations

from typing import Any

JOB = "01984f6e-5b7a-7c3e-9d1f-2a64c0f3b8aa"
MASK = "01984f6e-5b7a-7c3e-9d1f-2a64c0f3b8bb"


def head(**more: Any) -> dict[str, Any]:
    return {
        "id": "01984f6e-5b7a-7c3e-9d1f-2a64c0f3b8cc",
        "model": {"name": "colours", "version": 2},
        "image": {"id": None, "width": 4, "height": 3, "range": [0.0, 255.0]},
        "timing": {"queue_ms": 0.5, "inference_ms": 2, "batch_size": 1},
        **more,
    }


def classification(*names: str) -> dict[str, Any]:
    rows = [{"class_index": n, "class_name": name, "confidence": 0.5 / (n + 1)} for n, name in enumerate(names)]
    return head(predictions=rows)


def job(state: str = "running", **more: Any) -> dict[str, Any]:
    over = state in ("succeeded", "failed", "cancelled")
    return {
        "id": JOB,
        "kind": "request",
        "operation": "classify",
        "state": state,
        "progress": 1.0 if over else 0.0,
        "counts": {"total": 1, "done": int(over), "failed": int(state == "failed"), "running": int(not over)},
        "images_per_s": None,
        "time_left_s": None,
        "parameters": {"model": "colours", "version": 1},
        "store": True,
        "priority": 5,
        "timeout_s": 3600.0,
        "items_at_once": None,
        "attempts": 1,
        "error": None,
        "webhook": None,
        "created_at": "2026-11-20T09:30:00.000000Z",
        "started_at": None,
        "finished_at": None,
        **more,
    }


def refusal(code: str, message: str = "no") -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "request_id": "r-1"}}
