"""Browsers: signing in with a key or a link, what their cookie may do, and what another site may not."""

from datetime import timedelta

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from app.sessions import COOKIE
from models.tables import BrowserSession, utc_now
from tests.app.conftest import Api, bearer, eventually

SAME = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def browser(api: Api) -> TestClient:
    """Someone without a key."""
    found = TestClient(api.app, follow_redirects=False)
    found.portal = api.client.portal
    return found


def sign_in(browser: TestClient, key: str, **fields: str) -> int:
    return browser.post("/ui/sign-in", data={"key": key, **fields}, headers=SAME).status_code


class TestSignIn:
    def test_with_a_key(self, api: Api, browser: TestClient) -> None:
        answer = browser.post("/ui/sign-in", data={"key": api.key("read"), "next": "/ui/jobs"}, headers=SAME)
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui/jobs")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        assert browser.get("/ui/").status_code == 200

    @pytest.mark.parametrize(("key", "status"), [("lk_nonsense", 401), ("", 422)])
    def test_with_something_else(self, browser: TestClient, key: str, status: int) -> None:
        assert sign_in(browser, key) == status
        assert browser.get("/ui/").status_code == 303

    def test_a_key_that_may_not_read(self, api: Api, browser: TestClient) -> None:
        assert sign_in(browser, api.key("predict")) == 403

    @pytest.mark.parametrize(
        "target", ["https://evil.example/", "//evil.example", "/ui//evil.example", "/jobs", "/ui/\\evil"]
    )
    def test_leads_to_no_other_place(self, api: Api, browser: TestClient, target: str) -> None:
        answer = browser.post("/ui/sign-in", data={"key": api.key("read"), "next": target}, headers=SAME)
        assert answer.headers["location"] == "/ui/"

    def test_from_another_site(self, api: Api, browser: TestClient) -> None:
        answer = browser.post("/ui/sign-in", data={"key": api.key("read")}, headers={"Sec-Fetch-Site": "cross-site"})
        assert answer.status_code == 403
        assert COOKIE not in answer.cookies


class TestLinks:
    def test_signs_in_once(self, api: Api, browser: TestClient) -> None:
        link = api.client.post("/ui/links").json()["path"]
        first = browser.get(link)
        assert (first.status_code, first.headers["location"]) == (303, "/ui/")
        assert browser.get("/ui/").status_code == 200
        browser.cookies.clear()
        second = browser.get(link)
        assert second.status_code == 401
        assert COOKIE not in second.cookies

    def test_expires(self, api: Api, browser: TestClient) -> None:
        link = api.client.post("/ui/links").json()["path"]
        with api.database.writing() as session:
            session.execute(update(BrowserSession).values(expires_at=utc_now() - timedelta(seconds=1)))
        assert browser.get(link).status_code == 401

    def test_is_no_session(self, api: Api, browser: TestClient) -> None:
        token = api.client.post("/ui/links").json()["path"].partition("token=")[2]
        browser.cookies.set(COOKIE, token)
        assert browser.get("/jobs").status_code == 401

    def test_of_a_revoked_key(self, api: Api, browser: TestClient) -> None:
        key = api.client.post("/keys", json={"scopes": ["read"]}).json()
        link = TestClient(api.app, headers=bearer(key["key"]))
        link.portal = api.client.portal
        path = link.post("/ui/links").json()["path"]
        assert api.client.delete(f"/keys/{key['id']}").status_code == 204
        assert browser.get(path).status_code == 401


class TestCookie:
    def test_opens_the_api_as_far_as_its_key(self, api: Api, browser: TestClient) -> None:
        assert sign_in(browser, api.key("read")) == 303
        assert browser.get("/jobs").status_code == 200
        refused = browser.post("/jobs", json={}, headers=SAME)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            (SAME, 201),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Sec-Fetch-Site": "same-site"}, 403),
            ({"Origin": "http://testserver"}, 201),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({}, 403),
        ],
    )
    def test_changes_something_from_our_pages_only(
        self, api: Api, browser: TestClient, headers: dict[str, str], status: int
    ) -> None:
        sign_in(browser, api.key("admin"))
        answer = browser.post("/keys", json={"scopes": ["read"]}, headers=headers)
        assert answer.status_code == status
        if status == 403:
            assert answer.json()["code"] == "cross_site"

    def test_ends_with_its_key(self, api: Api, browser: TestClient) -> None:
        key = api.client.post("/keys", json={"scopes": ["read"]}).json()
        sign_in(browser, key["key"])
        assert browser.get("/ui/").status_code == 200
        api.client.delete(f"/keys/{key['id']}")
        eventually(lambda: browser.get("/ui/").status_code == 303, 3.0)

    def test_signing_out(self, api: Api, browser: TestClient) -> None:
        sign_in(browser, api.key("read"))
        token = browser.cookies[COOKIE]
        assert browser.post("/ui/sign-out", headers=SAME).status_code == 303
        assert COOKIE not in browser.cookies
        browser.cookies.set(COOKIE, token)
        assert browser.get("/jobs").status_code == 401

    def test_a_header_goes_before_it(self, api: Api, browser: TestClient) -> None:
        sign_in(browser, api.key("read"))
        assert browser.get("/jobs", headers={"Authorization": "Bearer nonsense"}).status_code == 401


class TestPages:
    def test_carry_a_policy(self, api: Api) -> None:
        headers = api.client.get("/ui/").headers
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["cache-control"] == "no-store"

    @pytest.mark.parametrize("path", ["jobs/job_0", "students/st_0", "datasets/ds_0", "deployments/nothing"])
    def test_of_what_is_not_there(self, api: Api, path: str) -> None:
        answer = api.client.get(f"/ui/{path}")
        assert answer.status_code == 404
        assert "Not here" in answer.text

    def test_static_files(self, api: Api, browser: TestClient) -> None:
        page = browser.get("/ui/sign-in").text
        style = page.partition('href="/ui/static/limbeck.css?v=')[2].partition('"')[0]
        found = browser.get(f"/ui/static/limbeck.css?v={style}")
        assert found.headers["content-type"] == "text/css; charset=utf-8"
        assert "immutable" in found.headers["cache-control"]
        again = browser.get(
            "/ui/static/page.js", headers={"If-None-Match": browser.get("/ui/static/page.js").headers["etag"]}
        )
        assert again.status_code == 304
        assert browser.get("/ui/static/pages.py").status_code == 404
        assert browser.get("/ui/static/..%2fpages.py").status_code == 303  # no file, and so the way to sign in
