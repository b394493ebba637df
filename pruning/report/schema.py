"""What the files of a run, and a report's runs.json, have to hold for a report to be made."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.metrics import METRICS, deciding_metric
from models.fields import has_type, shown

Schema = Mapping[str, Any]
"""By name the type of a field, in the words of :func:`models.fields.has_type`; the schema of an
object; or a schema in a list, for a list of objects. The name "*" stands for every other field."""

PLAIN = "bool or number or str or null"
OPTIONS: Schema = {
    "method": "str or null",
    "init": "str or null or missing",
    "teacher": "str or null or missing",
    "*": PLAIN,
}
CONFIG: Schema = {
    "options": OPTIONS,
    "recipe": {"lr": "number", "*": PLAIN},
    "versions": "dict of str",
    "git": "any",
    "device": "str",
}

_COUNTS = dict.fromkeys(("substitutions", "deletions", "insertions", "reference_tokens"), "id")
RESULTS: Schema = {
    **dict.fromkeys(("model", "method", "target", "protocol"), "str"),
    "seed": "int",
    "steps": "id",
    "sparsity": dict.fromkeys(("target", "in_scope", "whole_model"), "share"),
    "dev": "dict of any",
    "pruning": "dict of any",
    "cost": dict.fromkeys(("fine_tuning_runs", "steps", "training_seconds"), "number"),
    "tensors": {"*": {"size": "size", "zeros": "id", "shift": "number"}},
    "bytes": dict.fromkeys(("dense", "bitmask", "zip"), "number"),
    "wall_seconds": "number",
    "real_time_factor": "number",
}
"""Of a results.json, beside the rate that decides."""

_AT: Schema = {"stage": "id", "step": "id"}
EVENTS: Mapping[str, Schema] = {
    "train": {**_AT, "loss": "number or null", "lr": "number"},
    "dev": _AT,
    "reprune": {
        **_AT,
        "sparsity": "share",
        "threshold": "number",
        "revived": "id",
        "newly_pruned": "id",
        "iou_first": "share",
        "iou_previous": "share",
    },
}
"""Of the lines of metrics.jsonl that a report is made of, by their event."""

UTTERANCE: Schema = {"utt_id": "str", "speaker": "str", "operations": "str"}
RUNS: Schema = {
    "runs": [
        {
            "name": "str",
            "options": OPTIONS,
            "recipe": CONFIG["recipe"],
            "environment": {key: CONFIG[key] for key in ("versions", "git", "device")},
            "results": RESULTS,
            "curves": {kind: [schema] for kind, schema in EVENTS.items()},
            "utterances": [UTTERANCE],
        }
    ],
    "overlaps": [{"runs": "list of str", "iou": "share"}],
}
"""Of a report's runs.json, beside its format and version."""


class Checker:
    """Checks what one file holds.

    Args:
        path: The file, for messages.
        remedy: What the user is told to do.
    """

    def __init__(self, path: Path, remedy: str) -> None:
        self._path, self._remedy = path, remedy

    def check(self, value: object, schema: Any, name: str = "") -> None:
        """Check a value and all that is in it.

        Args:
            value: As it was read.
            schema: A type or a :data:`Schema`.
            name: Where the value is in the file, as "results.cost.steps".

        Raises:
            ValueError: If something is missing or of another type; names file and place.
        """
        if isinstance(schema, str):
            if not has_type(value, schema.removesuffix(" or missing")):
                raise self.error(name, value, schema)
        elif isinstance(schema, list):
            if not isinstance(value, list):
                raise self.error(name, value, "a list")
            for number, item in enumerate(value):
                self.check(item, schema[0], f"{name}[{number}]")
        else:
            self._check_object(value, schema, name)

    def _check_object(self, value: object, schema: Schema, name: str) -> None:
        if not isinstance(value, dict):
            raise self.error(name or "it", value, "an object")
        prefix = f"{name}." if name else ""
        for key in schema:
            if key == "*":
                continue
            if key in value:
                self.check(value[key], schema[key], prefix + key)
            elif not (isinstance(schema[key], str) and schema[key].endswith(" or missing")):
                raise ValueError(f"{self._path}: {prefix}{key} is missing: {self._remedy}")
        for key in value.keys() - schema.keys() if "*" in schema else ():
            self.check(
                value[key], schema["*"], prefix + (key if key.isidentifier() else shown(key))
            )

    def check_rates(self, results: Any, dev_events: Any, name: str = "") -> None:
        """Check that the rate that decides is in the results, for dev too, and in dev's events.

        Args:
            results: Of a results.json, checked but for its rates.
            dev_events: Events of dev, checked but for theirs.
            name: Where the results are in the file.
        """
        prefix = f"{name}." if name else ""
        metric = deciding_metric(results)
        if metric is None:
            known = " or ".join(METRICS)
            raise ValueError(f"{self._path}: {prefix}{known} is missing: {self._remedy}")
        self.check(results[metric], {"rate": "number", **_COUNTS}, prefix + metric)
        self.check(results["dev"], {metric: {"rate": "number"}}, f"{prefix}dev")
        for number, event in enumerate(dev_events):
            self.check(event, {metric: "number"}, f"dev event {number}")

    def check_utterances(self, utterances: Any, name: str, results: Any) -> None:
        """Check alignments, checked by their types, and hold the results against them.

        Args:
            utterances: Alignments of the test set.
            name: Where they are in the file.
            results: Of the same run, checked by :meth:`check_rates`.
        """
        if not utterances:
            raise self.error(name, utterances, "at least one utterance")
        for number, utterance in enumerate(utterances):
            if not set(utterance["operations"]) <= set("=SDI"):
                place = f"{name}[{number}].operations"
                raise self.error(place, utterance["operations"], "letters of =SDI")

        metric = deciding_metric(results)
        assert metric is not None, "checked before"
        letters = Counter("".join(utterance["operations"] for utterance in utterances))
        counted = {kind: letters[kind[0].upper()] for kind in _COUNTS if kind != "reference_tokens"}
        counted["reference_tokens"] = letters.total() - letters["I"]
        for kind, count in counted.items():
            if results[metric][kind] != count:
                raise ValueError(
                    f"{self._path}: its alignments have {count} {kind.replace('_', ' ')}, "
                    f"results.json {results[metric][kind]}: {self._remedy}"
                )
        edits = sum(letters[letter] for letter in "SDI")
        rate = edits / counted["reference_tokens"] if counted["reference_tokens"] else 0.0
        if edits and not math.isclose(results[metric]["rate"], rate, rel_tol=1e-9):
            raise ValueError(
                f"{self._path}: {edits} edits of {counted['reference_tokens']} are a rate of "
                f"{rate:.6g}, results.json has {results[metric]['rate']:.6g}: {self._remedy}"
            )

    def error(self, name: str, value: object, expected: str) -> ValueError:
        """Return the error of a value that is not as expected."""
        return ValueError(
            f"{self._path}: {name} is {shown(value)}, expected {expected}: {self._remedy}"
        )
