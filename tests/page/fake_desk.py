"""A desk without models: answers the protocol of JSON lines with what can be worked out from the question."""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

WORDS = (" the", " small", " frog", " sat", " inside", " the", " red", " box", " and", " laughed")


def answer(question: dict[str, Any]) -> dict[str, Any]:
    if question["do"] == "signals":
        return {
            "signals": [{"pattern": "control.gain", "title": "gain", "neutral": 1.0, "low": 0.0, "high": 2.0}],
            "regions": [{"name": "front", "pattern": "steps.*.front", "value": 0.0}],
            "parts": ["prefrontal"],
            "depth": [1, 2, 3],
        }
    if question["text"] == "fail":
        raise ValueError("the model is too small for this text")
    if question["text"] == "die":
        print("no memory is left", file=sys.stderr, flush=True)
        sys.exit(1)
    if question["text"] == "endless":
        stop = json.loads(sys.stdin.readline())
        raise ValueError("stopped" if (stop["do"], stop["of"]) == ("stop", question["id"]) else f"told {stop}")
    return scan(question) if question["do"] == "scan" else sample(question)


def sample(question: dict[str, Any]) -> dict[str, Any]:
    text, start = "", len(question["changes"]) + question["seed"]
    for place in range(min(question["tokens"], 12)):
        piece = WORDS[(start * 3 + place * (2 if place > 3 and question["changes"] else 1)) % len(WORDS)]
        say({"id": question["id"], "piece": piece})
        text += piece
        time.sleep(0.2 if question["text"] == "slow" else 0.005)
    return {"text": text}


def scan(question: dict[str, Any]) -> dict[str, Any]:
    tokens = question["text"].replace(" ", "\x00 ").split("\x00")
    n = len(tokens)
    wave = [[round(1 + 0.4 * math.sin(place * (row + 1) / 3), 3) for place in range(n)] for row in range(4)]
    triangle = [[1 / (at + 1) if to <= at else 0.0 for to in range(n)] for at in range(n)]
    lens = [
        {
            "step": step,
            "label": f"step {step}",
            "words": [[[tokens[min(place + 1, n - 1)], 0.3 + 0.2 * step], [" the", 0.1]] for place in range(n)],
            "up": [[[tokens[min(place + 1, n - 1)], 0.2], [" <b>up</b>", 0.05]] for place in range(n)],
            "down": [[[tokens[place], -0.4]] for place in range(n)],
            "rank": [1 + (place * 7) % (30 // (step + 1)) if place + 1 < n else None for place in range(n)],
        }
        for step in range(3)
    ]
    notes = [
        "signals of the last pass",
        *([f"patched from {question['patch_text']}"] if question["patch_text"] else []),
    ]
    wave = [[value * (0.5 if question["changes"] else 1.0) for value in row] for row in wave]
    ends = {"low": 0.0, "high": 1.0 if question["changes"] else 2.0, "neutral": 1.0}
    head = {"format": 1, "run": "made", "step": question["step"] or 400, "text": question["text"]}
    panel = {"title": "Gain", "unit": "", "rows": [f"block {row}" for row in range(4)], "values": wave}
    return head | {
        "tokens": [
            {"id": place, "text": token, "surprisal": None if place == 0 else 0.3 + (len(token) * 7 % 10) / 2}
            for place, token in enumerate(tokens)
        ],
        "panels": [{"name": "gain"} | ends | panel],
        "attention": [{"name": "a.0", "label": "step 0", "values": [triangle, triangle]}],
        "lens": lens,
        "changes": question["changes"],
        "notes": notes,
    }


def say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def main() -> None:
    for line in sys.stdin:
        question = json.loads(line)
        if question["do"] == "stop":  # has no answer of its own
            continue
        try:
            say({"id": question["id"], "result": answer(question)})
        except (ValueError, KeyError) as error:
            say({"id": question["id"], "error": str(error)})


if __name__ == "__main__":
    main()
