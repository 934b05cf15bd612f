"""Running suites by name, the record and its older layouts, and the cache of partial results."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from targets import make_target, random_images

from adautomix.errors import UsageError
from adautomix.evaluation.attack.results import AttackResult
from adautomix.evaluation.evaluate import evaluate, select_suites
from adautomix.evaluation.occlusion import OcclusionResult
from adautomix.evaluation.record import Evaluation, read_evaluation, upgrade, write_evaluation
from adautomix.evaluation.registry import SUITES, find_suite
from adautomix.evaluation.suite import ResultCache, split_list
from adautomix.reporting.evaluations import evaluation_tables
from adautomix.reporting.sections import section_builder

VERSION_2: dict[str, Any] = {
    "version": 2,
    "subject": "noise",
    "source": {"run": "noise", "checkpoint": "last"},
    "fingerprint": "0e67565932f2a3d2",
    "test_images": 8,
    "seed": 0,
    "device": "CPU",
    "versions": {"python": "3.11"},
    "settings": {"accuracy": {}, "attack": {"pictured": 4, "steps": [10]}, "occlusion": {}},
    "suites": {
        "accuracy": {"networks": {"teacher": {"top1": 0.5, "top5": 1, "nll": 2.0, "ece": 0.25}}},
        "attack": {
            "threat": "White-box and not adaptive.",
            "images": 8,
            "networks": {
                "teacher": {
                    "accuracy": 0.5,
                    "sweeps": [
                        {
                            "attack": attack,
                            "norm": "linf",
                            "epsilons": [0, 8 / 255],
                            "accuracy": [0.5, accuracy],
                            "error": [0.5, 1 - accuracy],
                        }
                        for attack, accuracy in (("random", 0.5), ("fgsm", 0.125))
                    ],
                    "warnings": [],
                    "examples": [],
                }
            },
        },
        "occlusion": {
            "patch": 4,
            "patches": 64,
            "shares": [0, 0.5, 1],
            "networks": {"teacher": {"accuracy": [0.5, 0.4, 0.1], "area": 0.35}},
        },
    },
    "not_applicable": {"diversity": "the run kept fewer than two checkpoints"},
}


# --- suites by name --------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_has_its_module_and_its_section(name: str) -> None:
    assert SUITES[name].name == name
    assert SUITES[name] is find_suite(name)
    assert find_spec(f"adautomix.evaluation.{name}") is not None
    assert callable(section_builder(name))


def test_every_module_with_a_suite_is_registered() -> None:
    package = Path(str(find_spec("adautomix.evaluation.registry").origin)).parent  # type: ignore[union-attr]
    names = {
        path.parent.name if path.name == "suite.py" else path.stem
        for path in package.rglob("*.py")
        if "\nSUITE = Suite(" in path.read_text(encoding="utf-8")
    }
    assert names == set(SUITES)


def test_suites_run_in_their_usual_order() -> None:
    assert select_suites(["occlusion", "accuracy", "occlusion"]) == ["accuracy", "occlusion"]
    assert select_suites(["maps", "all"]) == list(SUITES)


@pytest.mark.parametrize(
    ("suites", "settings"),
    [(["accuracies"], {}), (["accuracy"], {"accuracies": {}}), (["all", "accuracy"], {"x": {}})],
)
def test_unknown_suites_are_errors_before_anything_runs(
    tmp_path: Path, suites: list[str], settings: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=r"unknown suite .*: use all, or some of accuracy, "):
        evaluate(make_target(random_images(4, 6), tmp_path), suites, settings)
    assert list(tmp_path.iterdir()) == []


def test_lists_are_split() -> None:
    assert split_list("fog, snow,") == ["fog", "snow"]
    assert split_list("(1,2)") == ["1", "2"]
    assert split_list(None) == split_list("") == []
    assert split_list(3) == [3]
    assert split_list((1, 2)) == (1, 2)


# --- the record ------------------------------------------------------------------------------


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = evaluate(make_target(random_images(8, 6), tmp_path), ["accuracy"], {})
    assert record.version == 4
    assert read_evaluation(tmp_path) == record
    write_evaluation(record, tmp_path / "copy")
    assert read_evaluation(tmp_path / "copy") == record
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["evaluation.json"]


def test_a_record_of_version_2_is_upgraded(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(VERSION_2))
    record = read_evaluation(tmp_path)
    assert record is not None
    assert (record.version, record.target, record.fingerprint) == (4, "noise", "0e67565932f2a3d2")
    assert record.settings["attack"] == {"examples": 4, "steps": [10]}
    assert record.not_applicable == VERSION_2["not_applicable"]
    attack, occlusion = record.result("attack"), record.result("occlusion")
    assert isinstance(attack, AttackResult)
    assert attack.threat_model == "White-box and not adaptive."
    assert attack.networks["teacher"].error("fgsm", "linf", 8 / 255) == 0.875
    assert isinstance(occlusion, OcclusionResult)
    assert occlusion.fractions == [0, 0.5, 1]
    assert len(evaluation_tables({"noise": record})) == 4
    write_evaluation(record, tmp_path)
    assert read_evaluation(tmp_path) == record


def test_an_upgrade_leaves_the_present_version_unchanged() -> None:
    present = upgrade(VERSION_2)
    assert upgrade(present) == present
    assert upgrade(present | {"version": 3}) == present
    assert Evaluation.model_validate(present).model_dump(mode="json") == present


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 1}', '{"version": 5}'])
def test_other_files_are_not_records(tmp_path: Path, text: str) -> None:
    (tmp_path / "evaluation.json").write_text(text)
    assert read_evaluation(tmp_path) is None
    assert read_evaluation(tmp_path / "missing") is None


def test_results_are_kept_for_the_same_images_only(tmp_path: Path) -> None:
    images = random_images(8, 6)
    evaluate(make_target(images, tmp_path), ["accuracy"], {})
    both = evaluate(make_target(images, tmp_path), ["occlusion"], {})
    assert set(both.suites) == {"accuracy", "occlusion"}
    other = evaluate(make_target(random_images(8, 6, seed=1), tmp_path), ["occlusion"], {})
    assert set(other.suites) == {"occlusion"}


# --- partial results -------------------------------------------------------------------------


def test_a_result_is_computed_once_per_key(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []

    def open_cache(key: str) -> ResultCache:
        return ResultCache(
            tmp_path / "parts.jsonl", key, tmp_path, lambda *call: calls.append(call)
        )

    cache = open_cache("accuracy/1")
    cache.set_total(2)
    assert cache.get("a", lambda: {"top1": 0.5}) == {"top1": 0.5}
    assert cache.get("b", lambda: 1) == 1
    assert calls == [("a", 0, 2), ("b", 1, 2)]
    assert open_cache("accuracy/1").get("a", pytest.fail) == {"top1": 0.5}
    assert open_cache("accuracy/2").get("a", lambda: 2) == 2
    assert cache.digest == "1"


def test_incomplete_and_older_lines(tmp_path: Path) -> None:
    path = tmp_path / "parts.jsonl"
    old = {"of": "accuracy/1", "part": "a", "value": 7}
    path.write_text(f'{json.dumps(old)}\n[1]\n{{"key": "accuracy/1", "ta')
    assert ResultCache(path, "accuracy/1", tmp_path).values == {"a": 7}
