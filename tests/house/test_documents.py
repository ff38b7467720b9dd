"""Docs, settings and OpenAPI are complete and true."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import jsonschema
import pytest

from ekiben.settings import PREFIX, Settings
from ekiben.training import TrainingOptions
from services.rest.app import create_app
from tests import toy_models
from tests.serving import ROOT, Server

RED = toy_models.encoded(toy_models.solid((255, 0, 0)))


def names() -> set[str]:
    return {PREFIX + field.upper() for field in Settings.model_fields}


def test_every_setting_is_in_the_example_and_in_the_docs() -> None:
    example = (ROOT / ".env.example").read_text()
    assert set(re.findall(r"^#? ?(EKIBEN_[A-Z0-9_]+)=", example, re.M)) == names()
    reference = (ROOT / "docs" / "reference" / "settings.md").read_text()
    for name, field in Settings.model_fields.items():
        row = next((line for line in reference.splitlines() if line.startswith(f"| `{PREFIX}{name.upper()}` |")), None)
        assert row is not None, name
        assert str(field.description).replace("|", "\\|") in row, name
        plain = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        shown = plain or "empty"
        assert f"| {shown} |" in row, name


def test_every_option_of_a_training_is_in_its_howto() -> None:
    howto = (ROOT / "docs" / "howto" / "train.md").read_text()
    for name, field in TrainingOptions.model_fields.items():
        shown = "none" if field.default is None else str(field.default)
        assert f"| `{name}` | {shown} | {field.description} |" in howto, name


def test_an_unknown_or_wrong_setting_is_refused() -> None:
    with pytest.raises(SystemExit, match="EKIBEN_PROT"):
        Settings.from_environ({"EKIBEN_PROT": "80"})
    with pytest.raises(SystemExit, match="EKIBEN_PORT"):
        Settings.from_environ({"EKIBEN_PORT": "many"})
    assert Settings.from_environ({"EKIBEN_PORT": "80", "OTHER": "x"}).port == 80


def test_links_of_the_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if not target.startswith(("http://", "https://")):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} -> {target}"


def test_every_route_is_in_the_reference() -> None:
    reference = (ROOT / "docs" / "reference" / "http.md").read_text()
    for path, operations in create_app().openapi()["paths"].items():
        for method in operations:
            assert f"`{method.upper()} {path}`" in reference, (method, path)


def test_every_reference_in_openapi_leads_somewhere() -> None:
    document = create_app().openapi()
    named = set(re.findall(r'"\$ref": ?"([^"]+)"', json.dumps(document)))
    assert named
    assert named <= {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}


def test_answers_are_what_openapi_says(toy_server: Server) -> None:
    with toy_server.client() as client:
        schema = client.get("/openapi.json").json()

        def check(method: str, path: str, template: str, status: int = 200, **more: Any) -> Any:
            answer = client.request(method, path, **more)
            assert answer.status_code == status, answer.text
            responses = schema["paths"][template][method.lower()]["responses"]
            stated = responses.get(str(status)) or responses.get(f"{status // 100}XX")
            assert stated is not None, (path, status)
            if status != 204:
                body = stated["content"]["application/json"]["schema"]
                jsonschema.validate(answer.json(), {**body, "components": schema["components"]})
                return answer.json()
            return None

        one = check("POST", "/v1/classify?model=colours", "/v1/classify", content=RED)
        check("POST", "/v1/classify?model=colours&store=false", "/v1/classify", content=RED)
        two = check("POST", "/v1/segment?model=areas", "/v1/segment", content=RED)
        check("POST", "/v1/segment?model=areas&store=false", "/v1/segment", content=RED)
        image = check("POST", "/v1/images", "/v1/images", 201, content=RED)
        check("GET", "/v1/images", "/v1/images")
        check("GET", f"/v1/images/{image['id']}", "/v1/images/{id}")
        check("GET", "/v1/predictions", "/v1/predictions")
        check("GET", f"/v1/predictions/{one['id']}", "/v1/predictions/{id}")
        check("GET", f"/v1/predictions/{two['id']}", "/v1/predictions/{id}")
        check("GET", "/v1/models", "/v1/models")
        check("GET", "/v1/models/colours", "/v1/models/{name}")
        check("POST", "/v1/models/colours/load", "/v1/models/{name}/load")
        check("GET", "/readyz", "/readyz")
        check("GET", "/healthz", "/healthz")
        check("GET", "/v1/images/nope", "/v1/images/{id}", 404)
        check("POST", "/v1/classify?model=nope", "/v1/classify", 404, content=RED)
        check("GET", "/v1/predictions?page=0", "/v1/predictions", 400)
        check("DELETE", f"/v1/predictions/{two['id']}", "/v1/predictions/{id}", 204)


def test_the_docs_page_and_its_examples(toy_server: Server) -> None:
    with toy_server.client() as client:
        page = client.get("/docs").text
        assert "http://" not in page  # nothing from elsewhere: it works without internet
        assert "https://" not in page
        for asset in re.findall(r'(?:src|href)="([^"]+)"', page):
            assert client.get(asset).status_code == 200, asset
        assert client.get("/docs/../gateway.py").status_code == 404
        schema = client.get("/openapi.json").json()
        assert schema["info"]["title"] == "Ekiben"
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                assert operation.get("summary"), (method, path)
                assert "422" not in operation["responses"], (method, path)
        classify = schema["paths"]["/v1/classify"]["post"]
        own = {"model", "version", "top_k", "image_id", "store", "range"}
        as_job = {"priority", "timeout_s", "webhook", "Prefer", "Idempotency-Key"}
        assert {p["name"] for p in classify["parameters"]} == own | as_job
        assert {"multipart/form-data", "image/jpeg"} <= set(classify["requestBody"]["content"])
        scores = schema["components"]["schemas"]["Score"]["properties"]
        assert all(property_.get("examples") for property_ in scores.values())


def test_the_project_speaks_of_itself_alone() -> None:
    """No address of a registry, no path of a machine."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, text=True, capture_output=True, check=False).stdout
    for relative in listed.splitlines():
        text = (ROOT / relative).read_text(errors="ignore")
        for word in ("/wo" + "rk/", "pypi" + ".org", "file" + "s.pythonhosted"):
            assert word not in text, f"{relative} has {word}"
