"""Where a student comes from: licences by every way in which folders tell them, and the card's section."""

import importlib
import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.artifacts import Origin, sha256, write_manifest
from models.specs import ResolvedSpec, parse_job, resolve
from tests.factories import tiny_teacher
from worker.folders import fingerprint
from worker.provenance import License, Provenance, checkpoints, find_license, provenance, section

APACHE = "                                 Apache License\n                           Version 2.0, January 2004\n"
MIT = "The MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a copy"
BSD = "Copyright 2026\n\nRedistribution and use in source and binary forms, with or without modification, are permitted"


def spec(**more: Any) -> ResolvedSpec:
    return resolve(
        parse_job(
            {
                "task": {"kind": "text-classification", "text": "text", "label": "label"},
                "dataset": {"id": "ds_1"},
                "teachers": [{"kind": "local", "model": "file:one"}],
                "student": {"kind": "from_teacher", "layers": 1},
                **more,
            }
        )
    )


def folder_with(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content, "utf-8")
    return folder


class TestFindLicense:
    @pytest.mark.parametrize(
        ("head", "name"),
        [
            ("license: apache-2.0", "apache-2.0"),
            ("license: [mit, apache-2.0]", "mit, apache-2.0"),
            ("license: other\nlicense_name: a-community-license", "a-community-license"),
            ("license: other", "other"),
        ],
    )
    def test_of_a_model_card(self, tmp_path: Path, head: str, name: str) -> None:
        folder = folder_with(tmp_path, README_md=f"---\nlanguage: en\n{head}\n---\n# A teacher\n")
        assert find_license("file:x", folder) == License(name, "README.md")

    @pytest.mark.parametrize(
        "card",
        [
            "# no head\nlicense: mit\n",
            "---\nlanguage: en\n---\n",
            "---\nlicense: {a: b}\n---\n",
            "---\nlicense: unknown\n---\n",
            "---\nlicense: '<b>a</b>'\n---\n",
            "---\nlicense: [\n---\n",
        ],
    )
    def test_a_card_that_says_nothing(self, tmp_path: Path, card: str) -> None:
        folder = folder_with(tmp_path, README_md=card, config_json='{"model_type": "bert"}')
        assert find_license("file:x", folder) is None

    def test_of_the_config(self, tmp_path: Path) -> None:
        folder = folder_with(tmp_path, config_json='{"license": "mit"}', LICENSE=APACHE)
        assert find_license("file:x", folder) == License("mit", "config.json")

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            (APACHE, "Apache-2.0"),
            (MIT, "MIT"),
            (BSD, "BSD-2-Clause"),
            (f"{BSD} … Neither the name of the copyright holder", "BSD-3-Clause"),
            ("GNU AFFERO GENERAL PUBLIC LICENSE\n  Version 3, 19 November 2007", "AGPL-3.0"),
            ("\n  My own license, v1\nYou may look at it.", "My own license, v1"),
        ],
    )
    def test_of_a_license_file(self, tmp_path: Path, text: str, name: str) -> None:
        assert find_license("file:x", folder_with(tmp_path, LICENSE_txt=text)) == License(name, "LICENSE.txt")

    def test_of_an_installed_package(self, tmp_path: Path) -> None:
        assert find_license("package:numpy/model", tmp_path) is not None
        found = find_license("package:structlog/model", tmp_path)
        assert found == License("MIT OR Apache-2.0", "metadata of structlog")
        assert find_license("package:nothing_of_this_name/model", tmp_path) is None
        # Only a package's own weights are under its licence.
        assert find_license("file:structlog/model", tmp_path) is None

    def test_by_classifier(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        site = tmp_path / "site"
        info = site / "a_teacher-1.0.dist-info"
        info.mkdir(parents=True)
        (site / "a_teacher_weights").mkdir()
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: a-teacher\nVersion: 1.0\n"
            f"License: {'word ' * 200}\nClassifier: License :: OSI Approved :: BSD License\n"
        )
        (info / "top_level.txt").write_text("a_teacher_weights\n")
        monkeypatch.syspath_prepend(str(site))
        importlib.invalidate_caches()
        found = find_license("package:a_teacher_weights/model", tmp_path)
        assert found == License("BSD License", "metadata of a-teacher")

    def test_a_student_has_those_of_its_teachers(self, tmp_path: Path) -> None:
        known = [Origin(reference=name, identity="", license=name) for name in ("MIT", "Apache-2.0", "MIT")]
        folder = folder_with(tmp_path / "a", config_json="{}")
        write_manifest(folder, kind="student", teachers=known)
        assert find_license("student:st_00000000", folder) == License("MIT, Apache-2.0", "manifest.json")
        other = folder_with(tmp_path / "b", config_json="{}")
        write_manifest(other, kind="student", teachers=[*known, Origin(reference="x", identity="")])
        assert find_license("student:st_00000000", other) is None


class TestProvenance:
    def test_checkpoints_are_read_once_each(self, tmp_path: Path) -> None:
        one, two = tiny_teacher(tmp_path / "one"), tiny_teacher(tmp_path / "two", seed=1)
        folder_with(one, README_md="---\nlicense: mit\n---\n")
        asked: list[str] = []

        def find(reference: str) -> Path:
            asked.append(reference)
            return one if reference == "file:one" else two

        twice = [{"kind": "local", "model": "file:one", "weight": weight} for weight in (1, 2)]
        found = checkpoints(spec(teachers=twice, student={"kind": "pretrained", "model": "file:two"}), find)
        assert asked == ["file:one", "file:two"]
        assert found["file:one"] == Origin(
            reference="file:one",
            identity=fingerprint(one),
            checkpoint=fingerprint(one),
            license="mit",
            license_source="README.md",
        )
        assert (found["file:two"].checkpoint, found["file:two"].license) == (fingerprint(two), None)

    def test_teachers_as_they_taught_and_what_the_student_began_as(self, tmp_path: Path) -> None:
        report = tmp_path / "report.json"
        report.write_text("{}")
        named = {
            name: Origin(reference=name, identity="a", checkpoint="a", license="mit")
            for name in ("file:one", "file:two")
        }
        taught = [("file:one", "b"), ("column logits", "")]
        made = provenance(named, taught, {"test": "0" * 64}, seed=3, device="cpu", report=report)
        teacher, recorded = made.teachers
        assert (teacher.identity, teacher.checkpoint, teacher.license) == ("b", "a", "mit")
        assert (recorded.identity, recorded.checkpoint, recorded.license) == ("", None, None)
        assert made.bases == [named["file:two"]]
        assert (made.seeds, made.report_sha256) == ({"seed": 3}, sha256(report))
        assert made.versions["python"] == platform.python_version()
        assert made.versions["onnxruntime"]
        assert set(made.hardware) == {"device", "cpu", "cores", "threads", "gpu"}
        assert (made.hardware["device"], made.hardware["gpu"]) == ("cpu", None)
        json.dumps(made.hardware)


MADE = Provenance(
    [
        Origin(reference="hub:org/a|b@main", identity="1" * 64, checkpoint="2" * 64, license="mit", license_source="c"),
        Origin(reference="generation 0", identity="3" * 64),
    ],
    [],
    {"train": "4" * 64},
    {"seed": 0},
    {"torch": "2.10.0"},
    {"device": "gpu", "cpu": "A <processor>", "cores": 2, "threads": 1, "gpu": "NVIDIA H100"},
    "5" * 64,
)


class TestSection:
    def test_everything_stands_in_it(self) -> None:
        text = section(MADE)
        assert text.startswith("## Where it comes from\n")
        assert f"| teacher | hub:org/a\\|b@main | mit | c | `{'1' * 64}` |" in text
        assert "| teacher | generation 0 | trained here |" in text
        for part in (f"train rows: SHA-256 `{'4' * 64}`", f"`report.json`: SHA-256 `{'5' * 64}`", "loss convention: 1"):
            assert part in text
        assert "torch 2.10.0" in text
        assert "trained on: NVIDIA H100; A &lt;processor> (2 cores, threads: 1)" in text
        assert "unknown" not in text

    def test_an_unknown_licence_is_said(self) -> None:
        base = Origin(reference="file:two", identity="1", checkpoint="1")
        recorded = Origin(reference="column logits", identity="")
        text = section(replace(MADE, teachers=[*MADE.teachers, recorded], bases=[base]))
        assert "| began as | file:two | unknown |" in text
        assert "The licence of column logits, file:two is unknown" in text
